"""What tests of builders share."""

import subprocess

import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Empty asset cache and data folder; no process may be started."""

    def no_process(*_, **__):
        raise AssertionError("a subprocess was started")

    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "assets"))
    monkeypatch.setenv("GRAFT_DATA", str(tmp_path / "tfds"))
    monkeypatch.setattr(subprocess, "run", no_process)
    (tmp_path / "assets").mkdir()
    return tmp_path / "assets"
