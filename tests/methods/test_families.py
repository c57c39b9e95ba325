"""Methods on bases that are no Llamas: biases, windows, other norms, no gate, learned positions."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest

from research import methods
from research.data.config import DataConfig
from research.data.sources import JsonlConfig
from research.experiment import Experiment
from research.generation import decoder, programs
from research.interop.fields import UnsupportedModelError
from research.interop.peft import prompts
from research.methods import IA3, LoRA, Prefix, Prompt, Several
from research.methods.lora import EVERY_LINEAR
from research.training.program import make_program
from tests.helpers import rounding, tiny
from tests.methods.cases import CASES, FAMILIES, GROWTH, MERGED

forward = jax.jit(tiny.logits)
TOGETHER = Several(
    of=(LoRA(targets=(EVERY_LINEAR, "embedding", "head"), rank=4), Prompt(length=3), Prefix(2))
)
# the quick ones: a bias that is scaled, one that is behind a norm, ends of the model
QUICK = {("ia3", "gemma"), ("lora-ends", "gpt2")}


def pairs(cases, families=tuple(FAMILIES)):
    every = [(case, family) for family in families for case in cases]
    marks = {pair: () if pair in QUICK else (pytest.mark.heavy,) for pair in every}
    return pytest.mark.parametrize(
        ("case", "family"), [pytest.param(*pair, marks=marks[pair]) for pair in every]
    )


def method_of(case, family):
    method = TOGETHER if case == "together" else CASES[case].method
    if isinstance(method, IA3) and not FAMILIES[family].gated:
        return dataclasses.replace(method, targets=(r"layers/\d+/attention/(key|value)",))
    return method


def attached(case, family):
    return tiny.attached(method_of(case, family), FAMILIES[family])


@functools.cache
def base_logits(family):
    return np.asarray(forward(tiny.model(FAMILIES[family]), tiny.batch()))


@pairs(MERGED)
def test_it_begins_as_the_base_and_ends_in_its_weights(case, family):
    model = attached(case, family)
    ours, base = np.asarray(forward(model, tiny.batch())), base_logits(family)
    rounding.assert_close(ours, base, roundings=tiny.ROUNDINGS)
    if CASES[case].start == 0:
        plain = tiny.model(FAMILIES[family])
        assert np.array_equal(*(tiny.plain_logits(m) for m in (model, plain)))
    model = tiny.shaken(model)
    expected = np.asarray(forward(model, tiny.batch()))
    merged = methods.merge(model, method_of(case, family).adapter)
    scale = GROWTH * np.abs(expected).max()
    actual = forward(merged, tiny.batch())
    rounding.assert_close(actual, expected, roundings=tiny.ROUNDINGS, scale=scale)
    assert np.abs(expected - base).max() > 10 * rounding.bound(tiny.ROUNDINGS, scale)


@pairs((*CASES, "together"), ["gemma"])
def test_decoding_with_a_cache_says_what_the_whole_text_says(case, family):
    model, text = tiny.shaken(attached(case, family)), [3, 5, 7, 11, 2, 9, 40, 1, 33, 8]
    expected, prefill_length = tiny.log_probabilities(model, text), 3
    start = np.array([text[:prefill_length]], np.int32)
    front = decoder.prompt_length(model)
    cache = model.empty_cache(1, len(text) + front)
    logits, new = programs.prefill(model, start, np.array([prefill_length]), None, None, 0)
    cache = cache.insert(np.array([0]), new, np.array([prefill_length + front]))
    for at in range(prefill_length, len(text)):  # past the window
        np.testing.assert_allclose(jax.nn.log_softmax(logits[0]), expected[at - 1], atol=1e-4)
        token, position = np.array([text[at]]), np.array([at + front])
        logits, new = programs.advance(model, token, position, None, cache.content)
        cache = cache.append(new)


@pairs(CASES, ["gemma"])
def test_documents_of_a_packed_row_do_not_see_each_other(case, family):
    tiny.check_documents_apart(forward, tiny.shaken(attached(case, family)))


@pytest.mark.parametrize(("front", "fits"), [(4, True), (5, False)])
def test_prompts_count_where_positions_are_learned(front, fits):
    method, nothing = Prompt(length=front), JsonlConfig("none", "none")
    experiment = Experiment(
        steps=1,
        model=FAMILIES["gpt2"],
        method=method,
        tokenizer="none",
        data=DataConfig((nothing,), sequence_length=60, batch_size=8),
    )
    message = "data.sequence_length 60 and 5 tokens of prompts do not fit the model's 64 learned"
    with contextlib.nullcontext() if fits else pytest.raises(ValueError, match=message):
        make_program(experiment, None)


@pytest.mark.parametrize("method", [Prompt(length=3), Prefix(length=3)], ids=lambda m: m.kind)
def test_pefts_format_has_no_prompt_that_stays_in_a_window(method):
    with pytest.raises(
        UnsupportedModelError, match=f"PEFT's {method.kind} leaves a layer's window"
    ):
        prompts.write(method, {}, FAMILIES["gemma"])
    with pytest.raises(UnsupportedModelError, match="leaves a layer's window"):
        kind = {"prompt": "PROMPT_TUNING", "prefix": "PREFIX_TUNING"}[method.kind]
        shape = (3, 32 if method.kind == "prompt" else 2 * 3 * 16)
        content = {"peft_type": kind, "num_virtual_tokens": 3}
        prompts.read(content, np.zeros(shape), FAMILIES["gemma"], "here")


def test_ia3_is_refused_where_no_gate_makes_it_another_method():
    with pytest.raises(ValueError, match="this MLP has no gate"):
        methods.derive_stacks(FAMILIES["gpt2"], IA3())


@pytest.mark.parametrize(
    "method", [Prompt(length=17), Several(of=(LoRA(rank=2), Prompt(length=17)))]
)
def test_a_prompt_longer_than_the_rows_is_refused(method):
    data = DataConfig((JsonlConfig("none", "none"),), sequence_length=16, batch_size=8)
    experiment = Experiment(steps=1, model=tiny.CONFIG, tokenizer="none", data=data, method=method)
    with pytest.raises(
        ValueError, match="sequence_length 16 and 17 tokens of prompts: a prompt may"
    ):
        make_program(experiment, None)
