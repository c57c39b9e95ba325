"""Transforms of records: what they do, that they are part of the fingerprint, and what they say."""

import json

import pytest

from research.config import schema
from research.data.config import DataConfig
from research.data.pipeline import Pipeline
from research.data.sources import JsonlConfig, open_source
from research.data.sources.transforms import Clean, Filter, Python, Template
from research.objectives import Supervised
from tests.objectives import cases

RECORDS = [
    {"question": "  What? ", "answer": "THIS", "score": 3},
    {"question": "Who?", "answer": "that", "score": 1},
    {"question": "no mark", "answer": "else", "score": 2},
]
PROMPT = Template({"prompt": "{question} ({score})", "completion": "{answer}"})
OWN = """
import dataclasses


@dataclasses.dataclass
class AtLeast:
    score: int = 0

    def __call__(self, record):
        return {"text": record["answer"]} if record["score"] >= self.score else None


def broken(record):
    return list(record)
"""


def _open(folder, *transforms, records=RECORDS, **settings):
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return open_source(JsonlConfig("a", str(path), transforms=transforms, **settings))


def test_transforms_run_in_order_before_the_format_is_told(tmp_path):
    clean = Clean(("question", "answer"), lower=True)
    source = _open(tmp_path, clean, Filter("question", pattern=r"\?$"), PROMPT)
    assert source.format == "prompt+completion" and len(source) == 2 and source.bad_lines == 0
    pairs = [(source[i]["prompt"], source[i]["completion"]) for i in range(2)]
    assert pairs == [("what? (3)", "this"), ("who? (1)", "that")]
    assert source.note == "transforms clean, filter, template (1 records dropped)"


def test_records_are_drawn_of_the_trained_split_alone_and_fewer_are_some_of_more(tmp_path):
    records = [{"text": f"document {i}", "keep": i} for i in range(60)]
    settings = {"records": records, "sample_seed": 3}
    tens = _open(tmp_path, max_records=10, **settings)
    assert len(tens) == 10 and tens.note == "10 of 60 records"
    names = [[source[i]["text"] for i in range(len(source))] for source in (
        tens,
        _open(tmp_path, max_records=40, **settings),
        _open(tmp_path, max_records=10, records=records, sample_seed=4),
        _open(tmp_path, Filter("text", without="9"), max_records=10, **settings),
    )]  # fmt: skip
    assert set(names[0]) < set(names[1]) and names[0] != names[2] and len(names[3]) == 10
    assert not any("9" in name for name in names[3])
    (tmp_path / "test.jsonl").write_text((tmp_path / "a.jsonl").read_text())
    split_files = JsonlConfig("a", str(tmp_path / "{split}.jsonl"), max_records=10)
    assert len(open_source(split_files, "test")) == 60
    marks = {_open(tmp_path, max_records=n, **settings).fingerprint for n in (10, 40, None)}
    assert len(marks) == 3


def test_training_transforms_leave_other_splits_as_they_are(tmp_path):
    upper = Template({"text": "{text}!"})
    source = JsonlConfig("a", str(tmp_path / "{split}.jsonl"), training_transforms=(upper,))
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": "b"}\n')
    train, test = (open_source(source, split) for split in ("train", "test"))
    assert (train[0]["text"], test[0]["text"]) == ("b!", "b")
    assert train.fingerprint != test.fingerprint


def test_a_filter_looks_at_patterns_and_lengths(tmp_path):
    def answers(**settings):
        source = _open(tmp_path, Filter("answer", **settings))
        return [source[i]["answer"] for i in range(len(source))]

    assert answers(without="^th") == ["THIS", "else"]
    assert answers(min_length=4, max_length=4, pattern="(?i)^th") == ["THIS", "that"]
    with pytest.raises(ValueError, match="its transforms drop all 3 records"):
        answers(min_length=5)


def test_a_class_of_ones_own_file_is_a_transform(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    own = Python(f"{file}:AtLeast", {"score": 2})
    source = _open(tmp_path, own)
    assert [source[i] for i in range(len(source))] == [{"text": "THIS"}, {"text": "else"}]
    first = source.fingerprint
    file.write_text(OWN + "# another\n")
    assert _open(tmp_path, own).fingerprint != first
    with pytest.raises(ValueError, match=r"a\.jsonl:1: .*own\.py has no class 'Not'"):
        len(_open(tmp_path, Python(f"{file}:Not")))
    with pytest.raises(ValueError, match="settings do not fit: .*'least'"):
        len(_open(tmp_path, Python(f"{file}:AtLeast", {"least": 2})))
    with pytest.raises(
        ValueError, match=r"jsonl:2: .*own\.py, line \d+: KeyError: 'score' .* Mend"
    ):
        len(_open(tmp_path, own, records=[RECORDS[0], {"answer": "b"}]))
    file.write_text("import nowhere\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:1: .*own\.py, line 1: ModuleNotFoundError"):
        len(_open(tmp_path, own))
    with pytest.raises(FileNotFoundError, match="which a transform names"):
        len(_open(tmp_path, Python(f"{tmp_path}/none.py:A")))


def test_transforms_are_part_of_the_fingerprint_in_their_order(tmp_path):
    clean, other = Clean(("answer",)), Clean(("answer",), lower=True)
    prints = {
        _open(tmp_path, *transforms).fingerprint
        for transforms in ((), (clean,), (other,), (clean, other), (other, clean))
    }
    assert len(prints) == 5


def test_what_does_not_fit_names_the_record_and_may_be_tolerated(tmp_path):
    records = [*RECORDS, {"question": "Where?", "answer": None, "score": 1}]
    with pytest.raises(ValueError, match=r"a\.jsonl:4: there is no field 'answer'.*template"):
        _open(tmp_path, PROMPT, records=records)[3]
    source = _open(tmp_path, PROMPT, records=records, bad_lines=0.25)
    assert len(source) == 3 and source.bad_lines == 1


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"kind": "filter", "field": "a", "pattern": "("}, "pattern: no regular expression"),
        ({"kind": "template", "fields": {"a": "{"}}, "fields.a: no format string"),
        ({"kind": "python", "path": "own.py"}, "path/to/file.py:ClassName"),
        ({"kind": "clean", "field": "a"}, "field: its kind has no such key"),
        ({"kind": "cleaner"}, "'cleaner'; did you mean clean"),
    ],
)
def test_wrong_transforms_are_refused(transform, message):
    source = {"name": "a", "kind": "jsonl", "path": "a.jsonl", "transforms": [transform]}
    with pytest.raises(ValueError, match=message):
        schema.build(DataConfig, {"sources": [source], "sequence_length": 8, "batch_size": 1})


def test_what_was_prepared_has_no_transforms():
    source = {"name": "a", "kind": "prepared", "path": "a", "transforms": [{"kind": "clean"}]}
    with pytest.raises(ValueError, match="has no transforms: its documents are tokens already"):
        schema.build(DataConfig, {"sources": [source], "sequence_length": 8, "batch_size": 1})


def test_a_config_on_disk_keeps_them_and_a_plan_shows_them(tmp_path):
    _open(tmp_path)
    source = JsonlConfig("a", str(tmp_path / "a.jsonl"), transforms=(PROMPT,))
    config = DataConfig((source,), 64, 2, Supervised())
    assert schema.build(DataConfig, json.loads(json.dumps(schema.to_dict(config)))) == config
    statistics = Pipeline(config, cases.tokenizer(), tmp_path / "cache").statistics(1)
    assert statistics["a"].format == "prompt+completion, transforms template"
