"""Passages that give a test away are named, and refused unless they are meant."""

import json

import pytest

from research.checkpoints import runs
from research.data.sources import JsonlConfig
from research.retrieval.bm25 import Bm25
from research.retrieval.contamination import find_leaks
from research.retrieval.retrieve import Query, retrieve

QUESTION = "Who painted the red roof of the old town hall?"


def leaks(contents, question=QUESTION, answers=("Ada Lund",)):
    return [leak.passage for leak in find_leaks(contents, ["other?", question], [[], answers], 0.8)]


def test_a_question_with_its_answer_is_a_leak_and_either_alone_is_none():
    assert leaks([f"Q: {QUESTION.upper()} -- A: ada lund!"]) == [0]
    assert not leaks([f"Q: {QUESTION}", "Ada Lund painted it.", "Ada Lund painted the red roof."])
    assert not leaks([f"Q: {QUESTION} Ada Lundqvist"])  # another name
    assert leaks(["x", "roof? red."], "Roof?", ["red"]) == [1]  # of fewer words than are looked up


def test_an_answer_that_is_only_in_the_question_is_not_given_away():
    question = "Is the roof of the hall red or green?"
    assert not leaks([f"{question} Nobody who lives there knows."], question, ["red"])
    assert leaks([f"{question} red"], question, ["red"]) == [0]


def test_a_near_copy_of_a_test_record_is_a_leak():
    record = " ".join(f"word{i}" for i in range(60))
    copy = record.replace("word30", "other")
    assert leaks([copy, record[: len(record) // 2]], record, ["yes"]) == [0]
    assert leaks([copy], record, []) == [0]  # also where the answer is not known


@pytest.fixture
def setting(tmp_path, world):
    path = tmp_path / "notes.jsonl"
    texts = [f"{QUESTION} Ada Lund.", "The red roof of the hall is old."]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = runs.open_run(world.base).tokenizer
    query = Query(QUESTION, QUESTION, ("Ada Lund",), row=7)

    def ask(query=query, **settings):
        config = Bm25(JsonlConfig("notes", str(path)), **settings)
        return retrieve(config, [query], tokenizer, tmp_path / "cache")[0].ids

    return ask


def test_contaminated_passages_are_refused_left_out_or_meant(setting, caplog):
    message = r"1 of 2 passages give the test away:\n  row 0 \(.*notes.jsonl:1\) holds a question "
    with pytest.raises(ValueError, match=message + r'with its answer: row 7\n.*"leave_out"'):
        setting()
    assert setting(contamination="allow") == ("row 0", "row 1")
    assert "left out" not in caplog.text
    assert setting(contamination="leave_out") == ("row 1",)
    assert "notes:train: 1 of 2 passages are left out" in caplog.text
    assert setting(Query(QUESTION)) == ("row 0", "row 1")  # of no test
