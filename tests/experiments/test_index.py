"""The index of studies: made from what they committed, and up to date."""

import shutil

from research import cli
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
