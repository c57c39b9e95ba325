"""Addresses of trials: what they depend on and what not; budgets that every cell meets."""

import dataclasses
import shutil

import pytest

from research.config import schema
from research.experiment import Experiment
from research.methods import LoRA
from research.optim.schedules import ScheduleConfig
from research.studies import Equal, Form, Stage, Study
from research.studies.addresses import without_defaults
from research.studies.bases import make_bases, missing_bases
from research.studies.budgets import nearest
from research.studies.trials import Resolver
from research.training.loop import train
from tests.helpers import tiny_run

STAGE = Stage("s", (0,))


def resolver(folder, experiment, **settings):
    config = str(tiny_run.config_file(folder, experiment))
    return Resolver(Study(claim="", source="", refuted_if="", config=config, **settings))


def address(folder, experiment):
    trials = resolver(folder, experiment)
    return trials.trial(STAGE, trials.cells[0], None, 0).address


@pytest.fixture(scope="module")
def tuning(world):
    return world.tuning(4, evaluate_split="heldout", method=LoRA(rank=2))


def test_an_address_says_what_the_numbers_depend_on(world, tuning, tmp_path):
    changes = [
        {},
        {"steps": 5},
        {"schedule": ScheduleConfig(learning_rate=2e-2, kind="constant")},
        {"method": LoRA(rank=3)},
        {"data": dataclasses.replace(world.questions(), batch_size=16)},
        {"evaluate_tokens": 64},
    ]
    addresses = [address(tmp_path, dataclasses.replace(tuning, **change)) for change in changes]
    assert len(set(addresses)) == len(changes)


def test_an_address_does_not_say_where_things_lie_or_what_is_only_shown(world, tuning, tmp_path):
    copy = shutil.copytree(world.base, tmp_path / "copy")
    changes = [{}, {"init_from": str(copy)}, {"log_every": 3}, {"evaluate_every": 2}]
    assert len({address(tmp_path, dataclasses.replace(tuning, **c)) for c in changes}) == 1


def test_another_base_or_text_is_another_trial(world, tuning, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for file in world.folder.glob("questions-*.jsonl"):
        shutil.copy(file, folder)
    other = tiny_run.World(folder).questions()
    same = address(tmp_path, dataclasses.replace(tuning, data=other))
    with (folder / "questions-train.jsonl").open("a") as file:
        file.write('{"prompt": "new", "completion": "red"}\n')
    assert address(tmp_path, dataclasses.replace(tuning, data=other)) != same
    train(world.experiment(2), tmp_path / "base")
    elsewhere = dataclasses.replace(tuning, init_from=str(tmp_path / "base"))
    assert address(tmp_path, elsewhere) != address(tmp_path, tuning)


def test_sources_of_one_name_are_all_in_the_address_and_may_not_change(world, tuning, tmp_path):
    """Each task of an evaluation has a source of its own."""
    tasks = {}
    for number in (0, 1):
        file = tmp_path / f"{number}-heldout.jsonl"
        shutil.copy(world.folder / "questions-heldout.jsonl", file)
        path = str(tmp_path / f"{number}-{{split}}.jsonl")
        source = {"name": "asked", "kind": "jsonl", "path": path}
        scorers = [{"kind": "exact_match"}]
        task = {"kind": "generation", "source": source, "split": "heldout", "scorers": scorers}
        tasks[str(number)] = task
    (tmp_path / "ask.py").write_text(f"def get_config():\n    return dict(tasks={tasks!r})\n")
    settings = {"evaluation": str(tmp_path / "ask.py")}
    addresses = []
    for number in (0, 1):
        trials = resolver(tmp_path, tuning, **settings)
        addresses.append(trials.trial(STAGE, trials.cells[0], None, 0).address)
        trials.check_unchanged()
        with (tmp_path / f"{number}-heldout.jsonl").open("a") as file:
            file.write('{"prompt": "new", "completion": "red"}\n')
        with pytest.raises(ValueError, match=f"{number}-heldout.jsonl was changed or replaced"):
            trials.check_unchanged()
    trials = resolver(tmp_path, tuning, **settings)
    assert trials.trial(STAGE, trials.cells[0], None, 0).address not in addresses
    assert len(set(addresses)) == 2


def test_a_base_that_the_study_makes_is_known_by_how_it_is_made(world, tuning, tmp_path):
    line = f"graft train --config {tiny_run.config_file(tmp_path, world.experiment(30))}"
    bases = {str(world.base): line}

    def made_address(line):
        trials = resolver(tmp_path / "study", tuning, bases={str(world.base): line})
        return trials.trial(STAGE, trials.cells[0], None, 0).address

    (tmp_path / "study").mkdir()
    addresses = [made_address(text) for text in (line, f"{line} --config.seed=1")]
    assert len({*addresses, address(tmp_path / "study", tuning)}) == 3
    tiny_run.config_file(tmp_path, world.experiment(29))
    assert made_address(line) not in addresses and bases
    with pytest.raises(ValueError, match=r"not what the study makes \(steps differ\): graft train"):
        make_bases(bases)  # whose trials would be those of another base
    tiny_run.config_file(tmp_path, world.experiment(30, log_every=7))
    make_bases(bases)
    assert missing_bases(bases | {str(tmp_path / "no"): "graft x"}) == ["graft x"]
    # one that was stopped is gone on with
    shutil.copytree(world.base, tmp_path / "stopped")
    assert missing_bases({str(tmp_path / "stopped"): line}) == []
    shutil.rmtree(tmp_path / "stopped/model")
    assert missing_bases({str(tmp_path / "stopped"): line}) == [line]
    with pytest.raises(ValueError, match="must be made by a graft command"):
        make_bases({str(tmp_path / "no"): "rm -rf x"})


def test_a_config_without_its_defaults_builds_the_same(tuning):
    plain = without_defaults(tuning)
    assert schema.build(Experiment, plain) == tuning
    assert "weight_decay" not in plain and plain["method"] == {"kind": "lora", "rank": 2}


def test_equal_parameters_finds_the_rank(tuning, tmp_path):
    forms = {
        "all": Form({"method": {"kind": "lora"}}),
        "query": Form({"method": {"kind": "lora", "targets": [r".*/query"]}}),
    }
    trials = resolver(tmp_path, tuning, forms=forms, equal=Equal(1_050))
    ranks = [trials.trial(STAGE, cell, None, 0).experiment.method.rank for cell in trials.cells]
    # 2 layers of 16 x 16 queries: 64 parameters a rank; with all linears 544
    assert ranks == [2, 16]
    with pytest.raises(ValueError, match=r"all: no method.rank has 800 parameters within 10%"):
        trials = resolver(tmp_path, tuning, forms=forms, equal=Equal(800))
        trials.trial(STAGE, trials.cells[0], None, 0)


def test_equal_flops_finds_the_steps(tuning, tmp_path):
    trials = resolver(tmp_path, tuning, equal=Equal(1e9, of="flops", by="steps"))
    steps = trials.trial(STAGE, trials.cells[0], None, 0).experiment.steps
    alone = resolver(tmp_path, tuning).flops(STAGE, trials.cells[0]) / 4  # of one of its 4 steps
    assert steps == round(1e9 / alone)


def test_the_nearest_number_is_found_where_costs_grow():
    numbers = [nearest(lambda n: n * n, amount) for amount in (0.1, 4, 6.4, 6.6, 10**6)]
    assert numbers == [1, 2, 2, 3, 1000]
