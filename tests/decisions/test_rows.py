"""Rows stand on one side each, near duplicates together, and what was done is said."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.decisions.rows import Sizes, split_rows, write_rows

SIZES = Sizes(labels=1000, validation=20, test=30)


def row(text, answer="yes", **fields):
    return {"prompt": text, "completion": answer, **fields}


def unlike(count, start=0):
    """Questions that share no five words."""
    return [
        row(" ".join(f"w{n}x{k}" for k in range(6)), "yes" if n % 2 else "no")
        for n in range(start, start + count)
    ]


def sides(rows):
    return {name: getattr(rows, name) for name in ("train", "validation", "test")}


def test_one_file_is_parted_into_three_and_that_is_said():
    rows = split_rows({"train": unlike(100)}, SIZES)
    counts = {name: len(side) for name, side in sides(rows).items()}
    assert counts == {"train": 50, "validation": 20, "test": 30}
    prompts = [r["prompt"] for side in sides(rows).values() for r in side]
    assert len(set(prompts)) == 100
    assert "of the rows that there are (100 of train), by a fixed seed: 50 train" in rows.notes[-1]
    assert rows == split_rows({"train": unlike(100)}, SIZES)


@given(st.lists(st.integers(0, 25), min_size=40, max_size=80))
def test_near_duplicates_never_stand_on_two_sides(numbers):
    records = [{**unlike(1, n)[0], "id": place} for place, n in enumerate(numbers)]
    if len({r["completion"] for r in records}) < 2:
        return
    rows = split_rows({"train": records}, SIZES)
    places = [{r["prompt"] for r in side} for side in sides(rows).values()]
    assert not any(a & b for n, a in enumerate(places) for b in places[n + 1 :])
    assert all(r["id"] in range(len(numbers)) for side in sides(rows).values() for r in side)


def test_rows_that_a_later_split_has_too_are_left_out_and_counted():
    test = unlike(40, start=100)
    copies = [row(record["prompt"].upper() + "!", record["completion"]) for record in test[:3]]
    rows = split_rows({"train": [*unlike(60), *copies], "test": test}, SIZES)
    assert not {r["prompt"] for r in copies} & {r["prompt"] for r in rows.train + rows.validation}
    assert "3 of 63 rows of train are left out: they stand in validation or test too" in " ".join(
        rows.notes
    )


def test_questions_that_one_template_wrote_are_no_near_duplicates():
    records = [
        row(f"The age in years of the patient who came in late last week was {n}", "ny"[n % 2])
        for n in range(60)
    ]
    rows = split_rows({"train": records}, SIZES)
    assert "written alike, so that only equal ones count" in rows.notes[0]
    assert (len(rows.train), len(rows.validation), len(rows.test)) == (23, 19, 18)


def test_too_few_rows_are_all_asked_and_none_is_held_back():
    rows = split_rows({"train": unlike(29)}, SIZES)
    assert (len(rows.train), len(rows.validation), len(rows.test)) == (0, 29, 0)
    assert "29 rows with labels are too few to learn from" in rows.notes[-1]
    assert len(split_rows({"train": unlike(30)}, SIZES).test) > 0


def test_rows_without_an_answer_are_texts_and_one_answer_for_all_is_refused():
    blank = [row(f"nobody labelled this one {n}", None) for n in range(5)]
    rows = split_rows({"train": unlike(60) + blank}, SIZES)
    assert set(rows.texts) == {record["prompt"] for record in blank}
    with pytest.raises(ValueError, match="all 4 rows have one answer, 'yes'"):
        split_rows({"train": [row(f"question number {n}") for n in range(4)]}, SIZES)
    with pytest.raises(ValueError, match="no row has an answer"):
        split_rows({"train": blank}, SIZES)


def test_a_task_for_evaluation_only_is_chosen_by_half_of_its_test():
    rows = split_rows({"test": unlike(60)}, SIZES)
    assert (len(rows.train), len(rows.validation)) == (0, 20) and len(rows.test) == 30
    assert "ways that need labels are left out" in rows.notes[-1]


def test_rows_that_a_program_scores_need_no_answers_and_nothing_is_learnt_from_them():
    rows = split_rows({"test": [row(r["prompt"], None) for r in unlike(60)]}, SIZES, False)
    assert (len(rows.train), len(rows.validation), len(rows.test)) == (0, 20, 30)
    assert not rows.texts and {r["completion"] for r in rows.validation} == {""}


def test_labels_beyond_the_most_that_are_used_become_texts():
    rows = split_rows({"train": unlike(100)}, Sizes(labels=10, validation=20, test=30))
    assert len(rows.train) == 10 and len(rows.texts) == 40
    assert "10 of 50 rows of training are used with their labels" in rows.notes[-1]


def test_screens_are_parts_of_the_validation_rows_and_are_written_once(tmp_path):
    rows = split_rows({"train": unlike(200)}, Sizes(validation=60, test=30))
    screens = write_rows(tmp_path, rows)
    assert screens == ("screen_1", "screen_2", "screen_3")
    lines = [(tmp_path / f"{name}.jsonl").read_text().splitlines() for name in screens]
    assert [len(each) for each in lines] == [15, 15, 30]
    assert tuple(json.loads(line) for each in lines for line in each) == rows.validation
    before = (tmp_path / "train.jsonl").stat().st_mtime_ns
    write_rows(tmp_path, rows)
    assert (tmp_path / "train.jsonl").stat().st_mtime_ns == before
    assert split_rows({"train": unlike(31)}, SIZES).screens() == [
        split_rows({"train": unlike(31)}, SIZES).validation
    ]
