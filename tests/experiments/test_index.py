"""The index of studies: made from what they committed, and up to date."""

import shutil

import pyarrow.parquet as pq
import pytest

from research import cli
from research.studies.code import SAME_NUMBERS, code_hash
from research.studies.study import load
from tests.helpers.tiny_run import ROOT


def test_the_committed_index_is_that_of_the_committed_studies(tmp_path, monkeypatch, capsys):
    homes = shutil.copytree(
        ROOT / "experiments", tmp_path / "experiments", ignore=shutil.ignore_patterns("__pycache__")
    )
    (homes / "README.md").unlink()
    cli.main(["study", "index", str(homes)])
    assert str(homes / "README.md") in capsys.readouterr().out
    text = (homes / "README.md").read_text()
    assert text == (ROOT / "experiments/README.md").read_text()
    folders = [path.name for path in homes.iterdir() if (path / "__init__.py").is_file()]
    assert all(f"[{name}](" in text for name in folders)
    assert len(text.splitlines()) < 40  # one screen


LEDGERS = sorted((ROOT / "experiments").glob("*/ledger.parquet"))


@pytest.mark.parametrize("ledger", LEDGERS, ids=lambda path: path.parent.name)
def test_a_study_accepts_the_code_that_its_committed_rows_ran(ledger):
    """Otherwise its report would say that it is not finished."""
    accepted = {code_hash(), *SAME_NUMBERS, *load(ledger.parent).accepted_code}
    assert set(pq.read_table(ledger, columns=["code"])["code"].to_pylist()) <= accepted
