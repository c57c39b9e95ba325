"""The study of all methods: its sweep, its plan, and its committed table."""

from pathlib import Path

import pytest

from configs.methods import smollm2
from experiments.methods import __main__ as study
from research import config as door
from research import methods
from research.experiment import Experiment
from research.methods import METHODS
from research.models import storage
from research.models.config import ModelConfig


class Sweep(study.Study):
    """Its held-out loss is how far, in powers of ten, a rate is from the best."""

    def __init__(self, best):
        super().__init__(Path("nowhere"))
        self.best, self.trained = best, []

    def train(self, form, rate, seed, screen=False):
        self.trained.append(rate)
        return Path(f"{rate:g}")

    def heldout_loss(self, run):
        return abs(float(run.name) / self.best - 1)


@pytest.mark.parametrize(
    ("best", "trained"),
    [
        (1e-3, [3e-4, 1e-3, 3e-3]),
        (1e-2, [3e-4, 1e-3, 3e-3, 9e-3, 3e-2]),
        (1e-4, [3e-4, 1e-3, 3e-3, 1e-4, 3e-5]),
    ],
)
def test_a_sweep_goes_on_past_an_edge_that_is_best(best, trained):
    sweep = Sweep(best)
    chosen = sweep.sweep("lora")
    assert sweep.trained == trained
    assert chosen == min(trained, key=lambda rate: abs(rate / best - 1))


def test_a_dry_run_says_every_command_and_does_nothing(tmp_path, capsys):
    study.Study(tmp_path / "runs", dry_run=True).run(["qlora_nf4"], (1, 2, 3))
    said = capsys.readouterr().out
    assert said.count("python -m research.train") == 6
    assert said.count("python -m research.evaluate") == 5  # two bases, three seeds
    assert "quantize --from" in said and not (tmp_path / "runs").exists()


def test_every_method_has_a_form():
    kinds = {form.method["kind"] for form in smollm2.FORMS.values()}
    # rows of a bank are what its adapters are
    assert set(METHODS) - {"bank"} == kinds


@pytest.mark.heavy
@pytest.mark.parametrize("form", smollm2.FORMS)
def test_every_form_fits_the_shape_that_it_is_for(form):
    from configs.quickstart.smollm2_tune import MODEL

    experiment = door.load(Experiment, f"configs/methods/smollm2.py:{form}")
    kind = smollm2.FORMS[form].stored
    shape = ModelConfig(**MODEL, longest_stack=1, storage=storage.PRESETS.get(kind, ()))
    method = experiment.method

    class Words:
        def encode(self, text):
            return [len(text) % 7]

    assert methods.derive_stacks(shape, methods.bind(method, Words()))
