"""A file of rows without a config: what it asks, and how it is scored, is found and said."""

import gzip
import json

import pytest

from research.decisions.detect import Fields, read_file
from research.decisions.problem import open_problem
from tests.decisions.worlds import tokenizer_of


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def reading_of(tmp_path, world, records, fields=None):
    return read_file(write(tmp_path / "rows.jsonl", records), tokenizer_of(world), fields)


def unlike(n):
    return " ".join(f"w{n}x{k}" for k in range(6))


def test_few_answers_with_many_rows_are_labels_whatever_the_fields_are_called(tmp_path, world):
    pairs = [("text", "label"), ("ticket", "team"), ("question", "answer"), ("complaint", "class")]
    for question, answer in [*pairs, ("words", "ours")]:
        fields = Fields(answer="ours") if answer == "ours" else None
        rows = [{question: unlike(n), answer: "ab"[n % 2], "id": n} for n in range(40)]
        reading = reading_of(tmp_path, world, rows, fields)
        assert reading.task.kind == "multiple_choice" and reading.task.labels == ("a", "b")
        assert reading.notes == (
            f"40 rows; '{question}' asks and '{answer}' answers",
            "answers are 2 labels, one of which is chosen: a, b",
        )


def test_the_kind_of_the_answers_decides_how_they_are_scored(tmp_path, world):
    kinds = {
        "numeric": [{"prompt": f"sum {n}", "completion": n * 7} for n in range(9)],
        "exact_match": [{"prompt": f"p {n}", "completion": f"person {n}"} for n in range(9)],
        "rouge_l": [{"prompt": f"p {n}", "completion": f"{unlike(n)} {n}"} for n in range(9)],
        "json": [{"prompt": f"p {n}", "output": {"a": [f"x{n}"], "b": n}} for n in range(9)],
    }
    for kind, rows in kinds.items():
        reading = reading_of(tmp_path, world, rows)
        assert reading.task.kind == "generation" and reading.task.scorers[0].kind == kind
    schema = reading.task.scorers[0].schema
    assert schema["properties"] == {
        "a": {"type": "array", "items": {"type": "string"}},
        "b": {"type": "integer"},
    }
    assert schema["required"] == ["a", "b"] and 8 <= reading.task.max_tokens <= 512


def test_messages_options_and_instructions_are_read(tmp_path, world):
    messages = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": unlike(n)},
                {"role": "assistant", "content": "yn"[n % 2]},
            ]
        }
        for n in range(20)
    ]
    reading = reading_of(tmp_path, world, messages)
    first = reading.splits["train"][0]
    assert first["prompt"] == f"Be brief.\n\n{unlike(0)}" and first["completion"] == "y"
    options = [
        {"question": f"q {n}", "choices": [f"a{n}", f"b{n}"], "answer": n % 2} for n in range(8)
    ]
    reading = reading_of(tmp_path, world, options)
    assert [r["completion"] for r in reading.splits["train"][:2]] == ["a0", "b1"]
    alpaca = [{"instruction": "Name it.", "input": f"x{n}", "output": f"y{n}"} for n in range(8)]
    reading = reading_of(tmp_path, world, alpaca)
    assert reading.splits["train"][0]["prompt"] == "Name it.\n\nx0"


def test_sides_are_taken_from_a_field_or_from_the_files(tmp_path, world):
    sides = {"train": "train", "dev": "validation", "test": "test"}
    rows = [
        {"prompt": unlike(n), "completion": "ab"[n % 2], "split": side}
        for n, side in enumerate([*sides] * 4)
    ]
    reading = reading_of(tmp_path, world, rows)
    assert {name: len(r) for name, r in reading.splits.items()} == {
        name: 4 for name in sides.values()
    }
    assert reading.notes[0] == "the field 'split' says on which side a row stands"
    for name in ("train", "test"):
        write(tmp_path / f"a-{name}.jsonl", rows)
    reading = read_file(str(tmp_path / "a-{split}.jsonl"), tokenizer_of(world))
    assert set(reading.splits) == {"train", "test"}


def test_two_hundred_rows_become_a_problem_with_texts_and_duplicates_on_one_side(tmp_path, world):
    rows = [{"text": unlike(n), "label": "ab"[n % 2]} for n in range(180)]
    rows += [{"text": unlike(n).upper(), "label": "ab"[n % 2]} for n in range(10)]
    rows += [{"text": f"{unlike(n)} more"} for n in range(200, 210)]
    reading = reading_of(tmp_path, world, rows)
    problem = open_problem("rows", reading, tmp_path / "rows", tokenizer_of(world))
    counts = [len(getattr(problem.rows, side)) for side in ("train", "validation", "test")]
    assert sum(counts) == 190 and len(problem.rows.texts) == 10 and problem.metric == "right"
    notes = " | ".join(problem.rows.notes)
    assert "10 rows have no answer: they are texts without a label" in notes
    assert "190 questions in 180 clusters of near duplicates, each on one side" in notes
    sides = [
        {r["prompt"].lower() for r in side}
        for side in (problem.rows.train, problem.rows.validation, problem.rows.test)
    ]
    assert not sides[0] & sides[1] and not sides[1] & sides[2] and not sides[0] & sides[2]


def test_what_is_wrong_with_a_file_is_named(tmp_path, world):
    row = {"prompt": "a", "completion": "b"}
    for records, fields, error in (
        ([{"a": "x", "b": "y"}], None, "which field asks is not known: rows have a, b; say it"),
        (
            [{"prompt": "x", "b": "y", "c": "z"}],
            None,
            "which field answers is not known.*--answer-field",
        ),
        (
            [row],
            Fields(answer="completoin"),
            "no row has a field 'completoin'; did you mean completion",
        ),
        ([{"prompt": "", "completion": "b"}], None, "a row's 'prompt' is no text, but ''"),
        ([row] * 9, None, "every row has the answer 'b': there is nothing to decide"),
        ([{"prompt": "a", "completion": ""}], None, "no row has an answer in 'completion'"),
        ([row] * 9, Fields(labels=("c", "d")), "no answer is ever 'c', 'd'; answers are 'b'"),
        ([row, {**row, "completion": "c"}], Fields(labels=("b",)), "lacks the answers 'c'"),
        (
            [{"messages": [{"role": r, "content": "x"} for r in ("user", "assistant") * 2]}],
            None,
            "a conversation of user, assistant, user, assistant",
        ),
    ):
        with pytest.raises(ValueError, match=error):
            reading_of(tmp_path, world, records, fields)
    path = tmp_path / "broken.jsonl"
    for content, error in (
        (gzip.compress(b"{}"), "it is a gzip file"),
        ('{"a": 1}\n'.encode("utf-16"), "UTF-16.*iconv"),
        (b"\0" * 99, "it holds zeros"),
        (b'{"prompt": "\\ud800", "completion": "b"}\n', "jsonl:1: 'prompt' is no Unicode text"),
        (b'{"prompt": "a", "completion": NaN}\n', "jsonl:1: its 'completion' is nan, no answer"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=error):
            read_file(str(path), tokenizer_of(world))
    for text, error in (('{"a": 1}\n{"a"', "jsonl:2: not a line of JSON"), ("[1]\n", "object")):
        path.write_text(text)
        with pytest.raises(ValueError, match=error):
            read_file(str(path), tokenizer_of(world))
    path.write_text("\n")
    with pytest.raises(ValueError, match="it has no rows"):
        read_file(str(path), tokenizer_of(world))
    with pytest.raises(FileNotFoundError):
        read_file(str(tmp_path / "none.jsonl"), tokenizer_of(world))


def test_what_a_row_says_beside_its_question_is_named_or_refused(tmp_path, world):
    """It would be asked without: a question without its passage, a test row among the labels."""
    row = {"prompt": "a", "completion": "b"}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    answers = [messages[0], messages[1] | {"content": [{"type": "text", "text": "b"}]}]
    weighted = [messages[0], messages[1] | {"weight": 0.5}]
    for record, error in (
        ({**row, "context": "Oslo lies in Norway."}, "jsonl:1: 'context' stands beside the quest"),
        ({**row, "system": "Be brief."}, "'system' stands beside the question"),
        ({"messages": messages, "tools": [{"name": "f"}]}, "'tools' stands beside the question"),
        ({"messages": weighted}, "'weight' of a message is not read"),
        ({"messages": answers}, "'content' of a message is not read"),
        ({**row, "completion": ["b", "B"]}, "jsonl:1: its 'completion' is a list"),
        ({**row, "split": "held_out"}, "its 'split' is 'held_out', none of train, validation"),
        ({**row, "cluster": [1]}, "its 'cluster' is no name or number"),
    ):
        with pytest.raises(ValueError, match=error):
            reading_of(tmp_path, world, [record] * 2)
    with pytest.raises(ValueError, match="'prompt' cannot ask and answer"):
        reading_of(tmp_path, world, [row], Fields("prompt", "prompt"))
    rows = [
        {**row, "completion": ("red", "blue")[n % 2], "why": "so", "id": n, "context": ""}
        for n in range(9)
    ]
    assert "not read: 'why' (9)" in reading_of(tmp_path, world, rows).notes
