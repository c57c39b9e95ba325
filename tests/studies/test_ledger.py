"""The ledger: rows appear whole, damaged ones do not count, ledgers merge by copying."""

import math
import shutil

import pytest

from research.studies.ledger import Ledger, to_parquet

ADDRESSES = [f"{number:020x}" for number in range(3)]


def row(number, **columns):
    return {
        "address": ADDRESSES[number],
        "inputs": "i",
        "code": "c",
        "status": "finished",
    } | columns


def test_rows_come_back_as_they_were(tmp_path):
    ledger = Ledger(tmp_path)
    content = row(0, loss=1.5, steps=3, correct=[True, False], config={"b": 1, "a": None})
    ledger.write(content)
    (back,) = Ledger(tmp_path).read().values()
    assert back == content | {"config": '{"a": null, "b": 1}'}


def test_a_trial_that_two_processes_ran_has_one_row_for_all_who_read(tmp_path):
    first, second = Ledger(tmp_path), Ledger(tmp_path)
    first.write(row(0, seconds=1.0))
    second.write(row(0, seconds=2.0))
    failed = {"status": "failed", "error": "the disk is full"}
    first.write(row(0, seconds=3.0) | failed)
    first.write(row(1) | failed)
    rows = first.read()
    assert rows == second.read() and rows[ADDRESSES[0]]["status"] == "finished"
    first.remove_failed()
    assert set(second.read()) == {ADDRESSES[0]}


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_row_is_found_and_does_not_count(tmp_path, damage):
    ledger = Ledger(tmp_path)
    ledger.write(row(0))
    ledger.write(row(1))
    (file,) = (tmp_path / "rows").glob(f"{ADDRESSES[0]}.*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"flip": bytes(content), "cut": bytes(content[:-9]), "empty": b""}[damage])
    ledger = Ledger(tmp_path)
    assert set(ledger.read()) == {ADDRESSES[1]} and ledger.damaged == [file.name]
    ledger.write(row(0, loss=3.0))  # its trial has run again
    assert ledger.read()[ADDRESSES[0]]["loss"] == 3.0 and not ledger.damaged


def test_a_row_under_another_trials_name_does_not_count(tmp_path):
    Ledger(tmp_path).write(row(0))
    (file,) = (tmp_path / "rows").iterdir()
    renamed = file.rename(file.with_name(file.name.replace(ADDRESSES[0], ADDRESSES[1])))
    ledger = Ledger(tmp_path)
    assert not ledger.read() and ledger.damaged == [renamed.name]


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", to_parquet([{"a": 1}]), to_parquet([row(0)] * 2)]
)
def test_a_committed_ledger_that_is_damaged_is_named(tmp_path, content):
    file = tmp_path / "ledger.parquet"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"ledger\.parquet (is no ledger of a study|has two rows)"):
        Ledger(tmp_path, file).read()
    file.write_bytes(to_parquet([row(0), row(1)]))
    assert len(Ledger(tmp_path, file).read()) == 2


def test_two_ledgers_merge_by_copying_and_foreign_files_are_left_alone(tmp_path):
    one, other = Ledger(tmp_path / "one"), Ledger(tmp_path / "other")
    one.write(row(0))
    other.write(row(1))
    (tmp_path / "one/rows/notes.parquet").write_bytes(b"mine")
    shutil.copytree(tmp_path / "other/rows", tmp_path / "one/rows", dirs_exist_ok=True)
    assert set(one.read()) == set(ADDRESSES[:2]) and not one.damaged
    assert (tmp_path / "one/rows/notes.parquet").read_bytes() == b"mine"


def test_rows_kept_with_the_study_count_and_newer_ones_go_before_them(tmp_path):
    committed = tmp_path / "ledger.parquet"
    committed.write_bytes(to_parquet([row(0, loss=1.0), row(1, loss=1.0, quality=0.5)]))
    ledger = Ledger(tmp_path, committed)
    ledger.write(row(0, loss=2.0))
    rows = ledger.read()
    assert (rows[ADDRESSES[0]]["loss"], rows[ADDRESSES[1]]["loss"]) == (2.0, 1.0)
    assert "quality" not in rows[ADDRESSES[0]] and rows[ADDRESSES[1]]["quality"] == 0.5


def test_the_same_rows_are_the_same_bytes():
    rows = [row(0, loss=math.nan, b=1), row(1, a=2.0)]
    assert to_parquet(rows) == to_parquet([dict(reversed(list(r.items()))) for r in rows])
