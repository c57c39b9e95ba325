"""The study of all methods: its sweep, its plan, and its committed table."""

from pathlib import Path

import pytest

from configs.methods import smollm2
from experiments.methods import __main__ as study
from experiments.methods import table
from research import methods
from research.config import cli
from research.experiment import Experiment
from research.models import quantization
from research.models.config import ModelConfig
from tests.methods.cases import BESIDE, CASES


class Sweep(study.Study):
    """Its held-out loss is how far, in powers of ten, a rate is from the best."""

    def __init__(self, best):
        super().__init__(Path("nowhere"), Path("nowhere.json"))
        self.best, self.trained = best, []

    def screen(self, form, rate):
        self.trained.append(rate)
        return abs(rate / self.best - 1)

    def keep(self):
        pass


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
    runs = tmp_path / "runs"
    study.Study(runs, runs / "results.json", dry_run=True).run(["qlora_nf4"], (1, 2, 3))
    said = capsys.readouterr().out
    assert said.count("python -m research.train") == 8  # two bases, three rates, three seeds
    assert said.count("graft evaluate") == 5
    assert said.count("quantize --from") == 1 and not runs.exists()


class Measured(study.Study):
    """Numbers from nowhere; counts what is asked for."""

    def __init__(self, file, breaks_after):
        super().__init__(file.parent / "runs", file)
        self.left = breaks_after

    def command(self, module, *arguments):
        raise AssertionError(module)

    def count(self):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1

    def train(self, form, rate, seed, run, *more):
        self.count()
        return dict.fromkeys(
            ("trainable_parameters", "program_bytes", "flops", "loss", "seconds"), 1
        ) | {"heldout_loss": None if rate > 2e-3 else rate, "quickest_step_seconds": 0.5}

    def evaluate(self, run):
        self.count()
        return {"quality": {}, "bits_per_byte": {"books": 1.0}, "fingerprint": str(run)}


def test_a_stopped_study_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(study.Study, "start", lambda self, stored: self.folder / "base")
    whole, stopped = tmp_path / "whole.json", tmp_path / "stopped.json"
    Measured(whole, 99).run(["lora", "ia3"], (1, 2))
    for _ in range(99):
        try:
            Measured(stopped, 3).run(["lora", "ia3"], (1, 2))
            break
        except KeyboardInterrupt:
            pass
    assert stopped.read_text() == whole.read_text()
    Measured(whole, 0).run(["lora", "ia3"], (1, 2))  # nothing is left to do


def test_results_of_another_form_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(study.Study, "start", lambda self, stored: self.folder / "base")
    file = tmp_path / "results.json"
    Measured(file, 99).run(["ia3"], (1,))
    file.write_text(file.read_text().replace('"ia3"', '"lora"').replace('"lora": {', '"ia3": {'))
    with pytest.raises(ValueError, match="take it out of the file"):
        Measured(file, 0)


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

    class Words:
        def encode(self, text):
            return [len(text) % 7]

    assert methods.derive_stacks(shape, method.bind(Words()))


def test_the_committed_table_and_plot_are_those_of_the_committed_numbers():
    results = study.read(study.RESULTS)
    for form, kept in results["forms"].items():
        assert kept["setting"] == study.setting(form)
    assert (table.HERE / "table.md").read_text(encoding="utf-8") == table.table(results) + "\n"
    assert (table.HERE / "plot.svg").read_text(encoding="utf-8") == table.plot(results)


def test_every_form_is_measured_and_learns():
    results = study.read(study.RESULTS)
    bases, forms = results["bases"], results["forms"]
    assert set(forms) == set(smollm2.FORMS)
    for form, kept in forms.items():
        runs = [kept["runs"][str(seed)] for seed in study.SEEDS]
        stored = smollm2.FORMS[form].storage
        before = bases[f"base_{stored}" if stored else "base"]["heldout_loss"]
        assert all(run["heldout_loss"] < before / 2 for run in runs), form
        right = sum(run["quality"]["value"] for run in runs) / len(runs)
        # what 32 steps teach a prompt does not show in its answers yet, what 320 do does
        short = form.startswith("prompt") and "steps" not in smollm2.FORMS[form].overrides
        assert right > bases["base"]["quality"]["value"] or short, form
