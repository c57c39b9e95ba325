"""The study of all methods: its forms, and its committed page."""

import os
import shutil

import pytest
from pyarrow import parquet

from configs.methods import smollm2
from research import cli as program
from research import methods
from research.config import cli
from research.experiment import Experiment
from research.models import quantization
from research.models.config import ModelConfig
from research.studies import report
from research.studies.bases import make_bases
from research.studies.study import load
from tests.helpers.tiny_run import ROOT
from tests.methods.cases import BESIDE, CASES

HOME = ROOT / "experiments/methods"


def test_every_method_has_a_form():
    kinds = {form.method["kind"] for form in smollm2.FORMS.values()}
    # rows of a bank are what its adapters are
    assert {case.method.kind for case in (CASES | BESIDE).values() if case.studied} == kinds


@pytest.mark.heavy
@pytest.mark.parametrize("form", smollm2.FORMS)
def test_every_form_fits_the_shape_that_it_is_for(form):
    from configs.shapes import SMOLLM2_135M

    experiment = cli.load(Experiment, f"configs/methods/smollm2.py:{form}")
    kind = smollm2.FORMS[form].storage
    shape = ModelConfig(
        **SMOLLM2_135M, max_scan_layers=1, storage=quantization.PRESETS.get(kind, ())
    )
    method = experiment.method

    class StandInTokenizer:
        def encode(self, text):
            return [len(text) % 7]

    assert methods.derive_stacks(shape, method.bind(StandInTokenizer()))


def test_every_form_is_measured_and_learns():
    study = load(HOME)
    rows = [
        {name: value for name, value in row.items() if value is not None}
        for row in parquet.read_table(HOME / report.LEDGER).to_pylist()
    ]
    assert {row["code"] for row in rows} == set(study.accepted_code)
    bases = {row["base"]: row for row in rows if row["stage"] == "before"}
    plain = min(bases.values(), key=lambda row: row["bits_per_byte"])
    for form in smollm2.FORMS:
        runs = [row for row in rows if (row["stage"], row["form"]) == ("confirm", form)]
        assert sorted(run["seed"] for run in runs) == [1, 2, 3], form
        assert all(run["heldout_loss"] < bases[run["base"]]["heldout_loss"] / 2 for run in runs)
        right = sum(run["quality"] for run in runs) / len(runs)
        # what 32 steps teach a prompt does not show in its answers yet, what 320 do does
        short = form.startswith("prompt") and "steps" not in smollm2.FORMS[form].overrides
        assert right > plain["quality"] or short, form


@pytest.mark.heavy
def test_the_committed_page_is_that_of_the_committed_ledger(tmp_path, monkeypatch):
    """The base is imported and quantized anew: addresses know it by its content."""
    shutil.copytree(HOME, tmp_path / "experiments/methods")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    make_bases(load(HOME).bases)  # each in a process of its own: it takes gigabytes
    program.main(["study", "report", "experiments/methods"])
    files = [path.relative_to(HOME) for path in HOME.rglob("*") if path.suffix != ".pyc"]
    for name in [path for path in files if (HOME / path).is_file()]:
        assert (tmp_path / "experiments/methods" / name).read_bytes() == (HOME / name).read_bytes()
    assert not os.path.exists("runs/studies")  # nothing was run
