"""Runs that learn from another one: what it says of their rows, how they go on, what is refused."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from research import sharding
from research.checkpoints import runs
from research.config import schema
from research.experiment import Experiment
from research.losses import Distillation
from research.methods import LoRA
from research.objectives import Causal, Masked
from research.step import last_hidden
from research.text import tokenizer
from research.training import teacher
from research.training.loop import train
from research.training.metrics import read_metrics
from research.training.opening import open_training
from research.training.session import Session
from tests.helpers import tiny_run

TOP_K = 6


def student(world, steps, top_k=TOP_K, alpha=1.0, **changes):
    """A model from random weights that learns from the base, on texts that rows cut."""
    loss = Distillation(str(world.base), top_k=top_k, alpha=alpha)
    settings = {"data": world.data(sequence_length=24), "loss": loss, "seed": 3}
    return world.experiment(steps, **settings | changes)


def test_a_run_comes_nearer_to_its_teacher_and_goes_on_to_the_same_bits(world, tmp_path):
    whole = student(world, 4, evaluate_split="heldout", evaluate_every=2)
    train(whole, tmp_path / "whole")
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    heldout = [line for line in lines if "heldout_kl" in line]
    assert steps[-1]["kl"] < 0.9 * steps[0]["kl"] and 0.5 < steps[0]["top_k_mass"] < 1
    assert all(line["loss"] == line["kl"] and not line["skipped"] for line in steps)
    assert 0 < heldout[1]["heldout_kl"] < heldout[0]["heldout_kl"]
    # what is measured of the text is what it is for every other loss
    assert heldout[1]["heldout_loss"] > 0 and "heldout_bits_per_byte" in heldout[1]
    train(dataclasses.replace(whole, steps=2), tmp_path / "parts")
    train(whole, tmp_path / "parts")  # longer: its first half is that of the other
    assert tiny_run.content(tmp_path / "parts") == tiny_run.content(tmp_path / "whole")


def test_every_row_has_what_the_teacher_says_of_that_row_and_is_computed_once(
    world, tmp_path, monkeypatch
):
    session, experiment = Session(), student(world, 1, evaluate_split="heldout")
    run = open_training(experiment, tmp_path / "run", session)
    with sharding.mesh_context(run.program.mesh, experiment.sharding_rules):
        with pytest.raises(ValueError, match="a teacher_tokens, and rows were not given theirs"):
            next(run.data.batches())
        session.attach_model_fields(run.program, run.data, run.heldout)
        base = runs.open_run(world.base)
        model = runs.load_model(base, run.program.mesh, experiment.sharding_rules)
        for batch in (run.data.batch(0), run.data.batch(7), run.heldout[0].batch(0)):
            logits = model.logits(last_hidden(model, run.program.place(batch), None))
            log_probs = np.asarray(jax.nn.log_softmax(logits))
            at = np.take_along_axis(log_probs, batch.teacher_tokens, -1)
            is_token = batch.segments > 0
            # log-probabilities of two layers by two programs, float32
            np.testing.assert_allclose(
                batch.teacher_log_probs[is_token][:, :-1], at[is_token], atol=1e-4
            )
            best = np.sort(log_probs, -1)[..., : -TOP_K - 1 : -1]
            np.testing.assert_allclose(at[is_token], best[is_token], atol=1e-4)  # as above
            sums = np.exp(batch.teacher_log_probs[is_token]).sum(-1)
            np.testing.assert_allclose(sums, 1, rtol=1e-5)  # of seven float32
            assert is_token.sum() > 40 and not batch.teacher_log_probs[~is_token].any()
        cut = run.data.rows["prose"].plan.starts
        assert cut.any()  # some rows begin inside a text

        def read_no_model(*_):
            raise AssertionError("the teacher was read again")

        monkeypatch.setattr(runs, "load_model", read_no_model)
        again = open_training(experiment, tmp_path / "again", Session())
        Session().attach_model_fields(again.program, again.data, again.heldout)
        same = jax.tree.map(np.array_equal, again.data.batch(7), run.data.batch(7))
        assert jax.tree.all(same)


def test_a_tuned_run_teaches_and_an_adapter_learns(world, tmp_path):
    lora = LoRA(rank=2)
    train(world.tuning(3, method=lora), tmp_path / "teacher")
    loss = Distillation(str(tmp_path / "teacher"), top_k=TOP_K)
    train(world.tuning(2, method=lora, loss=loss), tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    assert 0 < steps[1]["kl"] < steps[0]["kl"]


def test_teachers_and_numbers_share_a_program_whose_head_is_one_pass(world, tmp_path):
    session = Session()

    def program(loss):
        return session.make_program(student(world, 1, loss=loss), None)

    one = program(Distillation("runs/one", top_k=TOP_K))
    other = program(Distillation("runs/other", top_k=TOP_K, alpha=0.1, temperature=3.0))
    assert one.signature == other.signature and one.hyper.loss != other.hyper.loss
    plain = session.make_program(world.experiment(1, data=one.experiment.data), None)
    assert one.flops == plain.flops
    shapes, batch = one.batch_shapes, one.experiment.data.batch_size
    assert shapes.teacher_tokens.shape == (batch, 24, TOP_K)
    assert shapes.teacher_log_probs.shape == (batch, 24, TOP_K + 1)


def test_a_run_does_not_go_on_with_another_teacher_in_the_place_of_its_own(world, tmp_path):
    shutil.copytree(world.base, tmp_path / "teacher")
    loss = Distillation(str(tmp_path / "teacher"), top_k=TOP_K)
    train(student(world, 1, loss=loss), tmp_path / "run")
    shutil.rmtree(tmp_path / "teacher")
    train(world.experiment(1, seed=8), tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"other content of loss\.teacher"):
        train(student(world, 2, loss=loss), tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"top_k": 0}, "loss.top_k"),
        ({"alpha": -0.1}, "loss.alpha"),
        ({"alpha": 1.5}, "loss.alpha"),
        ({"temperature": 0.0}, "loss.temperature"),
        ({"temperature": -1.0}, "loss.temperature"),
        ({"vocabulary_chunks": 8}, "loss.vocabulary_chunks: its kind has no such key"),
        ({"teacher": None}, "distillation needs `loss.teacher`"),
    ],
)
def test_settings_that_mean_nothing_are_refused(world, settings, match):
    content = schema.to_dict(student(world, 1))
    with pytest.raises(ValueError, match=match):
        schema.build(Experiment, content | {"loss": content["loss"] | settings})


def test_a_teacher_that_cannot_teach_is_refused_before_anything_is_computed(world, tmp_path):
    def check(match, **changes):
        with pytest.raises(ValueError, match=match):
            train(student(world, 1, **changes), tmp_path / "run", dry_run=True)

    nowhere = Distillation(str(tmp_path / "nowhere"))
    check(r"loss\.teacher: .*nowhere is no run that could teach", loss=nowhere)
    size = tiny_run.MODEL.vocabulary
    check(rf"top_k {size + 1}: .* have {size} tokens in common", top_k=size + 1)
    both_ways = world.data(objective=Masked())
    check("never read text both ways as data.objective masked", data=both_ways)
    tokenizer.train(["other words"] * 9, 270).save(tmp_path / "tokenizer.json")
    check("another tokenizer than the run", tokenizer=str(tmp_path / "tokenizer.json"))


def test_what_lies_behind_the_tokenizer_is_no_token_of_a_student(world):
    assert isinstance(world.data().objective, Causal)
    larger = dataclasses.replace(tiny_run.MODEL, vocabulary=320)
    program = Session().make_program(student(world, 1, model=larger), None)
    base = runs.open_run(world.base)
    content = teacher.teacher_of(program, base).content
    assert content["vocabulary"] == tiny_run.MODEL.vocabulary
