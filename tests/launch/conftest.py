"""Stand-ins for the programs that graft launch drives."""

import pytest

from tests.helpers import tiny_run
from tests.launch.stand_in import StandIns


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    from research.launch import tpu_vm
    from research.launch.job import Shell

    monkeypatch.setattr(Shell, "INTERVAL", 0.0)
    monkeypatch.setattr(tpu_vm, "PATIENCE", 4)
    monkeypatch.chdir(tiny_run.ROOT)
    return StandIns(tmp_path / "bin", monkeypatch)
