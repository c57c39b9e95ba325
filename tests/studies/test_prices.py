"""What a study will take: trials from fewest to most, hours and money, here and on chips."""

import dataclasses
import json
import os

import jax
import pytest

from research.commands import sweep
from research.config import schema
from research.preflight import examine
from research.runtime import accelerators
from research.studies import Form, Stage, Study, Sweep, estimates, prices
from research.studies.schedule import plan
from research.studies.trials import Cell, Resolver
from tests.helpers import tiny_run

PRICES = examine.Prices("2026-01-01", {"v5e": 1.5}, "US dollars", "made up")


@pytest.fixture
def resolver(world, tmp_path):
    config = str(tiny_run.config_file(tmp_path, world.experiment(40, evaluate_split="heldout")))
    forms = {"small": Form({"data.batch_size": 8}), "large": Form({"data.batch_size": 16})}
    stages = (Stage("screen", (0,), {"steps": 10}, keep=0.5), Stage("confirm", (1, 2, 3)))
    rates = Sweep((1e-3, 1e-2), max_growth=3)
    return Resolver(Study("", "", "", config, forms=forms, stages=stages, sweep=rates))


@pytest.fixture
def process():
    """Puts back the settings of a whole process that a plan for chips changes."""
    environment, caches = dict(os.environ), jax.config.jax_enable_compilation_cache
    yield
    os.environ.clear()
    os.environ.update(environment)
    jax.config.update("jax_enable_compilation_cache", caches)


def cost(flops, trials=4, most=10, done_count=1):
    return estimates.CellCost("s", Cell("a", 0, {}), trials, most, done_count, None, flops)


def test_trials_are_counted_from_the_fewest_to_the_most(resolver):
    screen, confirm = estimates.stage_costs(resolver, plan(resolver, lambda trial: None))
    # two values in each of two cells, which may grow by three; then the better half, three seeds
    assert (screen.trials, screen.most_trials) == (4, 10)
    assert (confirm.trials, confirm.most_trials) == (3, 3)
    small, large = screen.cells
    assert large.flops == 2 * small.flops and confirm.cells[0].flops == 4 * small.flops
    # with the first stage over nothing grows any more
    progress = plan(resolver, lambda trial: trial.value if trial.stage == "screen" else None)
    screen, confirm = estimates.stage_costs(resolver, progress)
    assert screen.trials == screen.most_trials == screen.done_count > 4
    assert confirm.done_count == 0


def test_hours_and_money_are_those_of_what_is_missing():
    place = prices.Place("x", lambda c: c.flops, "made", machines=2, price_per_hour=3.0, chips=8)
    stages = [estimates.StageCost("s", (cost(3600.0), cost(7200.0)))]
    text = prices.describe(stages, place).splitlines()
    # 3 to 9 trials of one and two hours each are missing
    assert "missing: 6 to 18 trials, 32.4k to 97.2k FLOPs" in text
    assert text[-4].startswith("9:00:00 to 27:00:00 on x, by made")
    assert text[-3] == "4:30:00 to 13:30:00 on 2 of them"
    assert text[-2] == "72 to 216 chip-hours" and text[-1].startswith("27.00 to 81.00 at 3 an hour")
    # no number of machines is quicker than the longest trial
    many = prices.describe(stages, dataclasses.replace(place, machines=100))
    assert "2:00:00 on 100 of them" in many
    pair = prices.describe(stages, dataclasses.replace(place, machines=1, workers=2))
    assert "4:30:00 to 13:30:00 on x" in pair and "13.50 to 40.50" in pair


def test_the_speed_of_this_machine_is_that_of_trials_on_as_many_cores(monkeypatch):
    monkeypatch.setattr(prices.os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    kind = prices.jax.local_devices()[0].device_kind

    def row(seconds, cores, **columns):
        own = {"status": "finished", "device": kind, "flops": 100.0, "cores": cores}
        return own | {"seconds": seconds} | columns

    rows = {"a": row(5.0, 4), "b": row(8.0, 2), "c": row(1.0, 4, device="another")}
    assert prices.here(rows).seconds(cost(200.0)) == 10.0
    assert prices.here(rows, workers=2).seconds(cost(200.0)) == 16.0
    # by the core: 5 s on 4 cores and 8 s on 2 are 20 and 16 s on one, 18 in the middle
    assert prices.here(rows, workers=4).seconds(cost(200.0)) == 36.0
    assert "a guess" in prices.here({}).source


def test_chips_take_the_share_of_the_roofline_and_their_price(resolver):
    stages = estimates.stage_costs(resolver, plan(resolver, lambda trial: None))
    chips = prices.Accelerators("v5e:2x4", PRICES, share=0.5)
    reports = chips.examine(stages)
    assert len(reports) == 3 and all(report.fits for _, report in reports)
    place = chips.place()
    for cell, report in reports:
        assert place.seconds(cell) == cell.experiment.steps * report.estimate.step_seconds / 0.5
    topology = accelerators.plan_topology("v5e:2x4")
    alone = examine.plan(stages[0].cells[0].experiment, topology, PRICES)
    assert alone.estimate.step_seconds == reports[0][1].estimate.step_seconds
    assert place.price_per_hour == 8 * 1.5 and place.chips == topology.chips == 8
    assert "50% of the roofline's speed" in place.source
    # 8 rows do not divide over 16 chips, 16 do
    refused = prices.Accelerators("v5e:4x4", PRICES, share=0.5).examine(stages[:1])
    assert [report.fits for _, report in refused] == [False, True]
    assert "| no" in prices.cell_table(refused)


def test_a_sweep_is_planned_by_its_command_line(resolver, tmp_path, capsys, process):
    file = tmp_path / "prices.json"
    file.write_text(json.dumps(schema.to_dict(PRICES)))
    line = ["--config", resolver.study.config, "--folder", str(tmp_path / "sweep")]
    line += ["--axis", "weight_decay=0,0.1", "--dry-run"]
    for flags, status, text in (
        (["--price-per-hour", "2"], 0, "at 2 an hour"),
        (["--topology", "v5e:2x2", "--prices", str(file)], 0, "US dollars (prices of 2026-01-01"),
        (["--topology", "v5e:4x4", "--prices", str(file)], 3, "why not"),
        (["--topology", "v5e:2x2", "--price-per-hour", "2"], None, "not with --topology"),
        (["--topology", "v9:2x2"], None, "give a version"),
    ):
        with pytest.raises(SystemExit) as end:
            sweep.main([*line, *flags])  # not by its name, which takes the compiler's Python
        assert text in (capsys.readouterr().out if status is not None else str(end.value.code))
        assert status is None or end.value.code == status
    assert not (tmp_path / "sweep").exists()
