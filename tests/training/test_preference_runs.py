"""Runs that learn from preferences: their reference, their metrics, and how they go on."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from research import sharding, tree
from research import step as stepping
from research.config import schema
from research.data.config import DataConfig
from research.data.sources import JsonlConfig
from research.experiment import Experiment
from research.losses import DPO, KTO, ORPO, CrossEntropy
from research.methods import LoRA
from research.objectives import LabelledAnswers, Preference, Supervised
from research.training.cost import parameter_count
from research.training.loop import train
from research.training.metrics import read_metrics
from research.training.opening import open_training
from research.training.session import Session
from tests.helpers import tiny_run

WRITER = Supervised(template="Q: {prompt}\nA: ", answer_tokens=8)
LOSS = DPO(beta=0.5)
METRICS = {"chosen_reward", "rejected_reward", "reward_margin", "preference_accuracy"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs of the right colour and another one, and labelled colours."""
    folder = tmp_path_factory.mktemp("preferences")
    colours = tiny_run.COLOURS
    for split, numbers in (("train", range(6)), ("heldout", range(6, 9))):
        pairs, labelled = [], []
        for n in numbers:
            for i, colour in enumerate(colours):
                prompt, other = f"roof {n} {colour}", colours[(i + 1) % len(colours)]
                pairs.append({"prompt": prompt, "chosen": colour, "rejected": other})
                for answer in (colour, other):
                    labelled.append(
                        {"prompt": prompt, "completion": answer, "label": answer is colour}
                    )
        for name, lines in (("pairs", pairs), ("labelled", labelled)):
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{name}-{split}.jsonl").write_text(text)
    return folder


def tuning(world, folder, steps, loss=LOSS, **changes):
    is_paired = "pairs" in loss.example_kinds
    name = "pairs" if is_paired else "labelled"
    source = JsonlConfig(
        name,
        str(folder / (name + "-{split}.jsonl")),
        format="preference" if is_paired else "labelled answers",
    )
    objective = Preference(WRITER) if is_paired else LabelledAnswers(WRITER)
    data = DataConfig((source,), sequence_length=64, batch_size=8, objective=objective)
    settings = {"evaluate_split": "heldout", "schedule": world.experiment(1).schedule}
    return world.tuning(steps, data=data, loss=loss, **settings | changes)


def test_a_run_starts_at_ln_2_reports_its_metrics_and_goes_on_to_the_same_bits(
    world, folder, tmp_path
):
    whole = tuning(world, folder, 4)
    train(whole, tmp_path / "whole")
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    (heldout,) = (line for line in lines if "loss" not in line)
    # log-probabilities of some 20 nats by two programs: 1e-6 of them, times beta
    np.testing.assert_allclose(steps[0]["loss"], np.log(2), rtol=1e-4)
    assert all(set(step) >= METRICS and not step["skipped"] for step in steps)
    assert steps[-1]["loss"] < steps[0]["loss"] and steps[-1]["reward_margin"] > 0
    margin = steps[-1]["chosen_reward"] - steps[-1]["rejected_reward"]
    # means of 30 pairs in float32, of rewards of about 1
    np.testing.assert_allclose(steps[-1]["reward_margin"], margin, atol=1e-5)
    assert set(heldout) == {"step", "heldout_loss"} | {f"heldout_{name}" for name in METRICS}
    train(tuning(world, folder, 2), tmp_path / "parts")
    train(whole, tmp_path / "parts")  # longer: its first half is that of the other
    assert tiny_run.content(tmp_path / "parts") == tiny_run.content(tmp_path / "whole")


@pytest.mark.heavy  # trains several runs
@pytest.mark.parametrize("method", [None, LoRA(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("loss", [KTO(), ORPO()], ids=["kto", "orpo"])
def test_every_loss_trains_and_is_measured(world, folder, tmp_path, loss, method):
    changes = {} if method is None else {"method": method}
    train(tuning(world, folder, 3, loss, **changes), tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["skipped"] for line in lines if "loss" in line] == [0, 0, 0]
    assert {"heldout_loss", "heldout_preference_accuracy"} <= set(lines[-1])


@pytest.mark.heavy
def test_the_reference_of_a_run_that_goes_on_with_an_adapter_is_that_adapter(
    world, folder, tmp_path, capsys
):
    lora = LoRA(rank=2)
    train(world.tuning(3, method=lora), tmp_path / "supervised")
    start = str(tmp_path / "supervised")
    train(tuning(world, folder, 1, method=lora, init_from=start), tmp_path / "run")
    first = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    # the policy is its reference: see the bound of the whole run above
    np.testing.assert_allclose(first["loss"], np.log(2), rtol=1e-4)
    # what its pass costs is said before: 2 FLOPs for each weight of a product, and attention
    line = re.search(r"reference .*: ([\d,]+) places, (\S+) FLOPs, once", capsys.readouterr().out)
    each = float(line[2]) / int(line[1].replace(",", ""))
    products = parameter_count(tiny_run.MODEL)
    assert 1.8 * products < each < 2.5 * products


def test_two_betas_share_a_program_which_counts_the_second_pass_of_the_head(world, folder):
    session, tokenizer = Session(), str(world.folder / "tokenizer.json")
    start = {"init_from": None, "model": tiny_run.MODEL, "tokenizer": tokenizer}

    def program(loss):
        return session.make_program(tuning(world, folder, 1, loss, **start), None)

    one, other = program(ORPO(beta=0.1)), program(ORPO(beta=0.5))
    assert one.signature == other.signature and one.hyper.loss != other.hyper.loss
    assert float(other.hyper.loss["beta"]) == 0.5
    texts = world.data(sequence_length=one.experiment.data.sequence_length)
    plain = session.make_program(world.experiment(1, data=texts), None)
    size = 2 * tiny_run.MODEL.width * tiny_run.MODEL.vocabulary
    assert one.flops.forward - plain.flops.forward == size
    assert one.flops.backward == plain.flops.backward


def test_the_reference_is_what_the_switched_off_adapter_says(world, folder, tmp_path):
    session = Session()
    run = open_training(tuning(world, folder, 1, method=LoRA(rank=2)), tmp_path, session)
    program = run.program
    with sharding.mesh_context(program.mesh, program.experiment.sharding_rules):
        with pytest.raises(ValueError, match="rows were not given theirs"):
            next(run.data.batches())
        session.attach_model_fields(program, run.data, run.heldout)
        own, frozen = session.make_state(program, None)
        leaves = tree.flatten(program.model(own, frozen))
        random = np.random.default_rng(0)
        for name, leaf in leaves.items():
            if tree.is_attached(name):
                off = name.endswith("/scale")
                leaves[name] = 0 * leaf if off else leaf + random.normal(size=leaf.shape)
        model = tree.unflatten(program.model_shapes, leaves)
        batch = run.data.batch(0)
        nll = jax.jit(stepping.eval_step)(model, program.place(batch)).nll
    is_answer = batch.roles > 0
    # nats of single tokens by two programs of two layers, float32
    np.testing.assert_allclose(batch.reference[is_answer], -np.asarray(nll)[is_answer], rtol=1e-4)
    assert is_answer.sum() > 50 and np.all(batch.reference[is_answer] < 0)


def test_preferences_go_on_with_a_tuned_adapter_which_is_their_reference(world, folder, tmp_path):
    method = LoRA(rank=2)
    train(world.tuning(4, method=method), tmp_path / "tuned")
    start = {"method": method, "init_from": str(tmp_path / "tuned")}
    train(tuning(world, folder, 1, **start), tmp_path / "run")
    first = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    # as above: against the base alone it is another loss
    np.testing.assert_allclose(first["loss"], np.log(2), rtol=1e-4)
    assert abs(first["reward_margin"]) < 1e-4  # of rewards of 0, but for rounding


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"loss": CrossEntropy()},
            "objective preference gives pairs: set loss.kind to dpo or",
        ),
        ({"loss": KTO()}, "kto is of labelled answers"),
        ({"init_from": None, "model": tiny_run.MODEL, "tokenizer": "t"}, "dpo needs a reference"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused(world, folder, changes, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(tuning(world, folder, 1), **changes)


def test_a_config_without_a_kind_of_loss_is_one_of_cross_entropy(world):
    content = schema.to_dict(world.experiment(1)) | {"loss": {"chunk": 64, "z_loss": 1e-4}}
    experiment = schema.build(Experiment, content)
    assert experiment.loss == CrossEntropy(chunk=64, z_loss=1e-4)
    with pytest.raises(ValueError, match=r"loss.beta: its kind has no such key"):
        schema.build(Experiment, content | {"loss": {"beta": 0.1}})
