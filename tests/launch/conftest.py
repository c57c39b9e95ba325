"""Stand-ins for the programs that tools/launch.py drives."""

import pytest

from tests import tiny_run
from tests.tools.stand_in import StandIns


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    from tools.launching import tpu_vm
    from tools.launching.job import Shell

    monkeypatch.setattr(Shell, "INTERVAL", 0.0)
    monkeypatch.setattr(tpu_vm, "PATIENCE", 4)
    monkeypatch.chdir(tiny_run.ROOT)
    return StandIns(tmp_path / "bin", monkeypatch)
