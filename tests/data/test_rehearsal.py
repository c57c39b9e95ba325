"""Sources with objectives of their own: what is taught and what is rehearsed, in one run."""

import dataclasses

import numpy as np
import pytest

from research.data.mixture import MixtureConfig
from research.data.pipeline import Pipeline
from research.losses import DPO
from research.objectives import Causal, Preference, PrefixLM, Supervised
from research.text import tokenizer
from research.training.heldout_loss import heldout_loss, open_heldout
from research.training.loop import train
from tests.helpers import tiny_run

BY_TOKENS = MixtureConfig(share_of="trained_tokens")


@pytest.fixture
def config(world):
    """Questions and, for a fifth of the trained tokens, prose."""
    prose, questions = (world.data(name).sources[0] for name in ("prose", "questions"))
    sources = (dataclasses.replace(questions, weight=0.8), dataclasses.replace(prose, weight=0.2))
    return dataclasses.replace(
        world.questions(), sources=sources, objectives={"prose": Causal()}, mixture=BY_TOKENS
    )


def pipeline(world, config, tmp_path):
    return Pipeline(config, tokenizer.load(world.folder / "tokenizer.json"), tmp_path)


def test_rows_are_of_their_sources_objective_in_shares_of_trained_tokens(world, config, tmp_path):
    data = pipeline(world, config, tmp_path)
    trained = dict.fromkeys(("questions", "prose"), 0.0)
    for step in range(40):
        batch = data.batch(step)
        for row, (source, _) in enumerate(data.rows_of(step)):
            trained[source] += batch.weights[row].sum()
            if source == "prose":  # every token of it
                assert np.array_equal(batch.weights[row] > 0, batch.segments[row] > 0)
            else:
                assert 0 < batch.weights[row].sum() < (batch.segments[row] > 0).sum() / 2
    # shares are kept to within a row, of 320
    np.testing.assert_allclose(trained["prose"] / sum(trained.values()), 0.2, atol=0.02)
    by_rows = dataclasses.replace(config, mixture=MixtureConfig())
    assert pipeline(world, by_rows, tmp_path).mixture.counts(100) == [80, 20]


def test_each_source_is_measured_by_its_own_objective(world, config, tmp_path):
    data = pipeline(world, config, tmp_path)
    parts = open_heldout(data, "heldout", None)
    metrics = heldout_loss(lambda batch: np.ones(batch.tokens.shape), parts)
    alone = [open_heldout(data, "heldout", None, (name,))[0] for name in ("questions", "prose")]
    assert [part.tokens for part in alone] == [part.tokens for part in parts]
    assert metrics["heldout_loss/prose"] == metrics["heldout_loss/questions"] == 1
    bits = metrics["heldout_bits_per_byte/prose"]
    assert bits == alone[1].tokens / np.log(2) / alone[1].bytes
    # rows of one objective have a prefix, and those of the other one none
    both_ways = dataclasses.replace(config, objectives={"prose": PrefixLM()})
    prefixes = [pipeline(world, both_ways, tmp_path).batch(step).prefix for step in range(4)]
    assert all(prefix is not None for prefix in prefixes) and np.any(prefixes)


def test_what_names_no_source_or_does_not_fit_the_loss_is_refused(world, config):
    with pytest.raises(ValueError, match="objectives: there is no source 'prosa'.*prose"):
        dataclasses.replace(config, objectives={"prosa": Causal()})
    with pytest.raises(ValueError, match="heldout_sources: there is no source 'prosa'.*prose"):
        world.tuning(1, data=config, heldout_sources=("prosa",))
    pairs = dataclasses.replace(config, objective=Preference(Supervised()))
    with pytest.raises(ValueError, match="dpo is of pairs, and data.objective causal gives texts"):
        world.tuning(1, data=pairs, loss=DPO())


def test_tokens_of_a_source_count_by_its_loss_weight_in_training_alone(world, config, tmp_path):
    questions, prose = config.sources
    half = dataclasses.replace(prose, loss_weight=0.5)
    other = dataclasses.replace(config, sources=(questions, half))
    plain, weighted = (pipeline(world, each, tmp_path) for each in (config, other))
    for step in range(4):
        before, after = plain.batch(step), weighted.batch(step)
        is_prose = [source == "prose" for source, _ in plain.rows_of(step)]
        factors = np.where(is_prose, 0.5, 1.0)[:, None]
        np.testing.assert_array_equal(after.weights, before.weights * factors)
        np.testing.assert_array_equal(after.tokens, before.tokens)
    parts = [open_heldout(data, "heldout", None, ("prose",))[0] for data in (plain, weighted)]
    assert parts[0].tokens == parts[1].tokens
    pairs = dataclasses.replace(other, objective=Preference(Supervised()), objectives={})
    with pytest.raises(ValueError, match="source 'prose' has a loss_weight, and loss dpo is of"):
        world.tuning(1, data=pairs, loss=DPO())


def test_a_run_teaches_and_rehearses(world, config, tmp_path):
    settings = {"evaluate_split": "heldout", "evaluate_every": 2}
    train(world.tuning(2, data=config, **settings), tmp_path / "run")
    lines = [line for line in tiny_run.lines(tmp_path / "run") if "heldout_loss/prose" in line]
    assert len(lines) == 1
