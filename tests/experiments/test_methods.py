"""The study of all methods: its sweep, its plan, and its committed table."""

from pathlib import Path

import pytest

from configs.methods import smollm2
from experiments.methods import study, table
from experiments.methods.results import Scores, StudyResults
from research import methods
from research.config import cli
from research.experiment import Experiment
from research.models import quantization
from research.models.config import ModelConfig
from research.reports.statistics import Estimate
from tests.methods.cases import BESIDE, CASES


class Sweep(study.Study):
    """Its held-out loss is how far, in powers of ten, a rate is from the best."""

    def __init__(self, best):
        super().__init__(Path("nowhere"), Path("nowhere.json"))
        self.best, self.tried_rates = best, []

    def screen(self, form, rate):
        self.tried_rates.append(rate)
        return abs(rate / self.best - 1)

    def save(self):
        pass


@pytest.mark.parametrize(
    ("best", "rates"),
    [
        (1e-3, [3e-4, 1e-3, 3e-3]),
        (1e-2, [3e-4, 1e-3, 3e-3, 9e-3, 3e-2]),
        (1e-4, [3e-4, 1e-3, 3e-3, 1e-4, 3e-5]),
    ],
)
def test_a_sweep_goes_on_past_an_edge_that_is_best(best, rates):
    sweep = Sweep(best)
    best_rate = sweep.sweep("lora")
    assert sweep.tried_rates == rates
    assert best_rate == min(rates, key=lambda rate: abs(rate / best - 1))


def test_a_dry_run_says_every_command_and_does_nothing(tmp_path, capsys):
    runs = tmp_path / "runs"
    study.Study(runs, runs / "results.json", dry_run=True).run(["qlora_nf4"], (1, 2, 3))
    output = capsys.readouterr().out
    assert output.count("$ graft train") == 8  # two bases, three rates, three seeds
    assert output.count("graft evaluate") == 5
    assert output.count("quantize --from") == 1 and not runs.exists()


class StandIn(study.Study):
    """Numbers from nowhere; is interrupted after some of them."""

    def __init__(self, file, breaks_after):
        super().__init__(file.parent / "runs", file)
        self.remaining = breaks_after

    def command(self, module, *arguments):
        raise AssertionError(module)

    def count(self):
        if not self.remaining:
            raise KeyboardInterrupt
        self.remaining -= 1

    def train(self, form, rate, seed, run, *more):
        self.count()
        return dict.fromkeys(
            ("trainable_parameters", "program_bytes", "flops", "loss", "seconds"), 1
        ) | {  # no number at high rates
            "heldout_loss": None if rate > 2e-3 else rate,
            "quickest_step_seconds": 0.5,
        }

    def evaluate(self, run):
        self.count()
        return Scores(Estimate(0.5, 0.4, 0.6, 9), {"books": 1.0}, str(run))


def test_a_stopped_study_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(study.Study, "start", lambda self, storage: self.folder / "base")
    whole_file, interrupted_file = tmp_path / "whole.json", tmp_path / "stopped.json"
    StandIn(whole_file, 99).run(["lora", "ia3"], (1, 2))
    for _ in range(99):
        try:
            StandIn(interrupted_file, 3).run(["lora", "ia3"], (1, 2))
            break
        except KeyboardInterrupt:
            pass
    assert interrupted_file.read_text() == whole_file.read_text()
    StandIn(whole_file, 0).run(["lora", "ia3"], (1, 2))  # nothing is left to do


def test_results_of_another_form_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(study.Study, "start", lambda self, storage: self.folder / "base")
    file = tmp_path / "results.json"
    StandIn(file, 99).run(["ia3"], (1,))
    file.write_text(file.read_text().replace('"ia3"', '"lora"').replace('"lora": {', '"ia3": {'))
    with pytest.raises(ValueError, match="take it out of the file"):
        StandIn(file, 0)


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


def test_the_committed_table_and_plot_are_those_of_the_committed_numbers():
    results = StudyResults.load(study.RESULTS)
    for form, result in results.forms.items():
        assert result.setting == study.setting(form)
    assert (table.HERE / "table.md").read_text(encoding="utf-8") == table.table(results) + "\n"
    assert (table.HERE / "plot.svg").read_text(encoding="utf-8") == table.plot(results)


def test_every_form_is_measured_and_learns():
    results = StudyResults.load(study.RESULTS)
    assert set(results.forms) == set(smollm2.FORMS)
    for form, result in results.forms.items():
        runs = [result.runs[str(seed)] for seed in study.SEEDS]
        storage = smollm2.FORMS[form].storage
        before = results.bases[f"base_{storage}" if storage else "base"].heldout_loss
        assert all(run.heldout_loss < before / 2 for run in runs), form
        right = sum(run.scores.quality.value for run in runs) / len(runs)
        # what 32 steps teach a prompt does not show in its answers yet, what 320 do does
        short = form.startswith("prompt") and "steps" not in smollm2.FORMS[form].overrides
        assert right > results.bases["base"].scores.quality.value or short, form
