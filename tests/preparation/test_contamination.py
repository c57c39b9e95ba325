"""Documents that hold an evaluation example go, and no other."""

import json

import pytest

from research.data.sources import JsonlConfig
from research.preparation.config import Contamination, EvaluationSet
from tests.preparation import corpus

pytest.importorskip("apache_beam", reason="tools/setup prepare")
from research.preparation.runner import Runner  # noqa: E402

pytestmark = pytest.mark.heavy
ONE = ("--direct_num_workers=1",)


def _examples(folder, name, records):
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / f"{name}.jsonl").write_text(lines)
    return EvaluationSet(JsonlConfig(name, str(folder / f"{name}.jsonl")))


def _run(folder, texts, *evaluations, **settings):
    config = corpus.config(
        folder, {"made": texts}, contamination=Contamination(evaluations, **settings)
    )
    statistics, _ = corpus.prepare(config, folder / "out", Runner(ONE))
    kept_rows = [int(name.partition("/d")[2]) for name in corpus.kept_names(folder / "out")]
    return kept_rows, statistics["train"]["made"]["removed"]["contamination"]


def test_a_planted_example_is_found_and_nothing_else(tmp_path):
    texts = [corpus.prose(seed) for seed in range(20)]
    prompts = [corpus.prose(seed, 30) for seed in range(100, 104)]
    words = prompts[0].split()
    texts[3] += " " + " ".join(words[5:18])  # 13 words of a prompt
    texts[5] += " " + " ".join(words[5:17])  # one too few
    texts[8] = f"{texts[8]} {prompts[1].upper().replace(' ', ', ')}! {texts[9]}"
    texts[11] += " " + prompts[3]
    pairs = [{"prompt": prompts[0], "completion": prompts[1]}]
    turns = [
        {"role": "user", "content": prompts[2]},
        {"role": "assistant", "content": prompts[3]},
    ]
    kept_rows, removals = _run(
        tmp_path,
        texts,
        _examples(tmp_path, "pairs", pairs),
        _examples(tmp_path, "chat", [{"messages": turns}]),
    )
    assert kept_rows == [i for i in range(20) if i not in (3, 8, 11)]
    assert removals == {"pairs": 2, "chat": 1}


def test_short_examples_are_looked_for_as_a_whole(tmp_path):
    texts = [corpus.prose(seed) for seed in range(6)]
    nine = "what is the height of the tower in metres"
    texts[1] += f" {nine}?"
    texts[2] += f" {nine[:-7]} feet"
    texts[4] += " who are you"
    kept_rows, removals = _run(
        tmp_path,
        texts,
        _examples(tmp_path, "short", [{"text": nine}, {"text": "who are you"}]),
    )
    assert kept_rows == [0, 2, 3, 4, 5] and removals == {"short": 1}


def test_what_could_never_be_found_is_an_error(tmp_path):
    tiny = _examples(tmp_path, "tiny", [{"text": "who are you"}])
    with pytest.raises(ValueError, match="'tiny': no text of it has 8 words"):
        _run(tmp_path, [corpus.prose(1)], tiny)
    other = _examples(tmp_path, "other", [{"question": "a " * 20}])
    with pytest.raises(ValueError, match="other:train, row 0: field 'text' is no text"):
        _run(tmp_path, [corpus.prose(1)], other)
    example_source = EvaluationSet(other.source, fields=("question",))
    kept_rows, _ = _run(tmp_path, [corpus.prose(1), "a " * 30], example_source)
    assert kept_rows == [0]
