"""Held-out text: every document's own likelihood, kept as it is made, and compared in pairs."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from research.batch import Batch
from research.checkpoints import runs
from research.evaluation import comparison, report
from research.evaluation.results import Answer, TaskResult
from research.evaluation.tasks import Evaluation
from research.evaluation.text_task import TextTask, bits_per_byte, perplexity
from research.methods import LoRA
from tests.helpers import rounding, tiny, tiny_run
from tests.helpers.tiny_run import world


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return world(tmp_path_factory.getbasetemp())


def task(place, **settings):
    return TextTask(place.data().sources, sequence_length=16, batch_size=8, **settings)


def ask(run, text, **settings):
    return report.evaluate_run(run, Evaluation(text=text), **settings).tasks["bits_per_byte"]


def alone(model, documents):
    """Nats of each document in a row of its own; as many rows as 8 devices share, of 64 places."""
    rows = -(-len(documents) // 8) * 8
    tokens, targets, is_used = np.zeros((3, rows, 64), np.int32)
    for row, ids in enumerate(documents):
        length = len(ids) - 1
        tokens[row, :length], targets[row, :length], is_used[row, :length] = ids[:-1], ids[1:], 1
    places = np.broadcast_to(np.arange(64, dtype=np.int32), tokens.shape)
    batch = Batch(tokens, targets, is_used.astype(np.float32), is_used, places)
    log_probs = np.asarray(jax.nn.log_softmax(jax.jit(tiny.logits)(model, batch)), np.float64)
    picked = np.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return -(picked * is_used).sum(axis=1)[: len(documents)]


def test_every_document_has_the_likelihood_that_it_has_alone(place):
    """Rows hold several; none here is longer than a row, which would cut what it sees."""
    run = runs.open_run(place.base)
    text = dataclasses.replace(task(place), sequence_length=64)
    result, questions = ask(run, text), text.prepare(run.tokenizer)
    with report.loaded_model(run) as loaded:
        encode, begin, end = run.tokenizer.encode, run.tokenizer.begin_id, run.tokenizer.end_id
        documents = [[begin, *encode(each.record["text"]), end] for each in questions]
        nats = alone(loaded.model, documents).tolist()
    sizes = [len(question.record["text"].encode()) for question in questions]
    bits = [answer.scores["prose"] * math.log(2) for answer in result.answers]
    # a forward pass of 64 tokens, and a sum in float32 over as many
    roundings = tiny_run.ROUNDINGS + 64
    rounding.assert_close(bits, np.divide(nats, sizes), roundings=roundings)
    assert len(set(bits)) > 1 and len(bits) == 9
    (whole,) = bits_per_byte(result).values()
    rounding.assert_close(whole.value, sum(nats) / math.log(2) / sum(sizes), roundings=roundings)
    assert whole.low < whole.value < whole.high and whole.n == 9
    tokens = sum(answer.prompt_tokens for answer in result.answers)
    expected = math.exp(sum(nats) / tokens)
    # an error of the exponent is one of the number, relative to it
    rounding.assert_close(perplexity(result, "prose").value, expected, roundings=8 * roundings)


def test_a_source_that_was_read_is_not_read_again(place, tmp_path, monkeypatch):
    """A kill between two sources leaves the first."""
    run, (source,) = runs.open_run(place.base), place.data().sources
    other = dataclasses.replace(source, name="other")
    text = dataclasses.replace(task(place), sources=(source, other))
    names, open_source = [], TextTask.open

    def count(self, source, tokenizer):
        names.append(source.name)
        if len(names) == 4:  # both to look at, the first to ask, and then the second
            raise KeyboardInterrupt
        return open_source(self, source, tokenizer)

    with monkeypatch.context() as patched:
        patched.setattr(TextTask, "open", count)
        with pytest.raises(KeyboardInterrupt):
            ask(run, text, cache=tmp_path)
    result = ask(run, text, cache=tmp_path)
    assert result.earlier == 9 and len(result.answers) == 18
    monkeypatch.setattr(report, "loaded_model", lambda *_: pytest.fail("the model was loaded"))
    again = ask(run, text, cache=tmp_path)
    assert again.earlier == 18 and again.metrics == result.metrics


def test_two_models_are_paired_by_document(place, tmp_path):
    base = runs.open_run(place.base)
    tuned = runs.open_run(tiny_run.adapter(place.base, LoRA(rank=2), tmp_path / "lora"))
    first, second = (ask(run, task(place)) for run in (tuned, base))
    path = tmp_path / "base.json"
    path.write_text(json.dumps({"tasks": {"t": second.to_dict()}}))
    bits, nats = comparison.compare({"t": first}, comparison.read_results(path))
    assert (bits.metric, nats.metric) == ("prose", "prose/nats")
    values = [bits_per_byte(result)["prose"].value for result in (first, second)]
    difference = bits.paired.difference
    assert difference.value == pytest.approx(values[0] - values[1])
    # what documents have in common is not in the interval of the difference
    assert difference.low < difference.value < difference.high
    assert bits.paired.p_value < bits.p_value or bits.p_value == 1
    fewer = ask(base, task(place, max_tokens=60))
    with pytest.raises(ValueError, match="the two were not asked the same"):
        comparison.compare({"t": first}, {"t": fewer})


def test_a_document_counts_by_its_bytes_and_one_alone_has_no_interval():
    def result(*documents):
        answers = [
            Answer("", "", str(size), {"a": bits}, sizes={"a": size}) for bits, size in documents
        ]
        return TaskResult(answers, 0, 1.0, settings={"kind": "text"})

    assert result((1.0, 300), (4.0, 100)).metrics["a"].value == 1.75
    alone = result((2.0, 300)).metrics["a"]
    assert (alone.value, alone.low, alone.high, alone.n) == (2.0, 2.0, 2.0, 1)


@pytest.mark.parametrize("names", [(), ("a", "a")])
def test_sources_need_names_of_their_own(place, names):
    (source,) = place.data().sources
    sources = tuple(dataclasses.replace(source, name=name) for name in names)
    with pytest.raises(ValueError, match="each with a name of its own"):
        TextTask(sources)


@pytest.mark.parametrize("name", ["choice", "bits_per_byte"])
def test_a_task_may_not_have_the_name_of_a_key(place, name):
    with pytest.raises(ValueError, match=f"tasks.{name}: .* choose another"):
        Evaluation(tasks={name: task(place)})
