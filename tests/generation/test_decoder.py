"""Rows that are refilled: what a request is answered depends on nothing but the request."""

import dataclasses

import numpy as np
import pytest

from research import sharding
from research.batch import NO_ADAPTER
from research.generation import decode, programs
from research.generation.decoder import Decoder, Request
from research.generation.sampling import Sampling
from research.methods import Bank, Prompt
from research.models.cache import Vectors
from research.sharding import MeshConfig
from tests.helpers import tiny

random = np.random.default_rng(0)
WARM = Sampling(temperature=1.0, top_k=20, top_p=0.95, seed=3)


def prompt(length):
    return random.integers(1, tiny.CONFIG.vocabulary, length).tolist()


REQUESTS = [
    Request(prompt(length), new_tokens, sampling=sampling, number=number)
    for number, (length, new_tokens, sampling) in enumerate(
        [
            (5, 9, WARM),
            (30, 3, Sampling()),
            (1, 1, WARM),
            (90, 20, WARM),  # needs a larger cache than those before it
            (12, 40, Sampling()),
            (3, 30, dataclasses.replace(WARM, seed=4)),
            (8, 30, WARM),
        ]
    )
]


@pytest.fixture(scope="module")
def model():
    return tiny.shaken(tiny.model(), size=0.3)


def answer(model, requests, rows, **settings):
    """The tokens that each request is answered, in their order."""
    answers = Decoder(model, rows, **settings)
    tickets = [answers.add(request) for request in requests]
    tokens = {ticket: [] for ticket in tickets}
    while not answers.is_idle:
        for ticket, token, *_ in answers.step():
            tokens[ticket].append(token)
    return [tokens[ticket] for ticket in tickets]


def test_a_refilled_row_answers_as_a_row_alone(model):
    alone = [answer(model, [request], 1)[0] for request in REQUESTS]
    assert [len(tokens) for tokens in alone] == [request.new_tokens for request in REQUESTS]
    # the ring of slots is gone round several times
    for rows in (1, 2, 4):
        assert answer(model, REQUESTS, rows) == alone


def test_programs_are_compiled_once_for_a_size_of_prompts_and_of_the_cache(model):
    answer(model, [Request(prompt(20), 8)], 3)
    before = programs.advance._cache_size(), programs.prefill._cache_size()
    answer(model, [Request(prompt(length), 8) for length in (1, 7, 19, 30)], 3)
    more = programs.advance._cache_size(), programs.prefill._cache_size()
    # four rows are filled three and one at a time: one size of prefill more
    assert more[0] == before[0] and more[1] <= before[1] + 1


@pytest.mark.parametrize("rows", [2, 5])
def test_what_prompts_begin_with_is_computed_once(model, rows, monkeypatch):
    beginning, widths, prefill = prompt(70), [], programs.prefill
    requests = [Request(beginning + prompt(n), 6, number=n) for n in (3, 1, 9, 20, 2)]
    expected = [answer(model, [request], 1)[0] for request in requests]

    def count(model, tokens, *rest):
        widths.append(tokens.shape)
        return prefill(model, tokens, *rest)

    monkeypatch.setattr(programs, "prefill", count)
    assert answer(model, requests, rows) == expected
    # whole blocks of 32 tokens, once; then what is left of each prompt, none longer than 26
    assert widths[0] == (1, 64) and {width for _, width in widths[1:]} == {32}


def test_rows_of_a_bank_answer_as_each_adapter_alone():
    method = Bank(of=Prompt(length=3), names=("a", "b"))
    model = tiny.shaken(tiny.attached(method), size=0.5)
    beginning = prompt(40)
    requests = [
        Request(beginning + prompt(5), 6, number=number, adapter=adapter)
        for number, adapter in enumerate([0, 1, NO_ADAPTER, 1, 0, NO_ADAPTER, 0])
    ]
    alone = [answer(model, [request], 1)[0] for request in requests]
    assert answer(model, requests, 3) == alone
    others = [dataclasses.replace(request, adapter=NO_ADAPTER) for request in requests]
    base = [answer(model, [request], 1)[0] for request in others]
    assert [a == b for a, b in zip(alone, base, strict=True)] == [
        request.adapter == NO_ADAPTER for request in requests
    ]


def test_devices_share_the_rows_and_the_heads(model):
    expected = answer(model, REQUESTS, 4)
    with sharding.mesh_context(MeshConfig(fsdp=2, tensor=2).make(), sharding.RULES):
        assert answer(model, REQUESTS, 4) == expected


def test_a_cancelled_request_frees_its_row(model):
    requests = [dataclasses.replace(REQUESTS[0], new_tokens=50), *REQUESTS[1:3]]
    answers = Decoder(model, 1)
    first, second, third = map(answers.add, requests)
    assert [token.ticket for token in answers.step()] == [first]
    answers.cancel(third)  # it waits
    answers.cancel(first)
    events = []
    while not answers.is_idle:
        events += answers.step()
    assert {token.ticket for token in events} == {second} and events[-1].ending == "length"
    assert [token.token for token in events] == answer(model, requests[1:2], 1)[0]


def test_vectors_in_a_byte_a_number_are_off_by_half_a_step():
    x = np.random.default_rng(1).normal(size=(2, 3, 4, 5, 8)).astype(np.float32)
    vectors = Vectors(x).astype("int8")
    assert vectors.numbers.dtype == np.int8 and vectors.scale.shape == x.shape[:-1]
    step = np.abs(x).max(axis=-1, keepdims=True) / 127
    error = np.abs(np.asarray(vectors.numbers) * np.asarray(vectors.scale)[..., None] - x)
    # half a step, and the rounding of the quotient
    assert np.all(error <= step * (0.5 + 1e-4))
    assert np.all(np.abs(vectors.numbers).max(axis=-1) == 127)


@pytest.mark.parametrize(("kind", "most"), [("bfloat16", 0.02), ("int8", 0.04)])
def test_a_smaller_cache_changes_logits_by_little(model, kind, most):
    """A number is off by 1/256 of itself in bfloat16, by 1/254 of its vector's largest in int8;
    over three layers that stays within a few hundredths of the logits' spread."""
    text = np.asarray([prompt(24)], np.int32)
    logits = {}
    for name in ("float32", kind):
        cache = model.empty_cache(1, 64, name)
        _, new = programs.prefill(model, text, np.array([24]), None, None, 0)
        content = cache.insert(np.array([0]), new, np.array([24])).content
        token, position = np.array([7], np.int32), np.array([24], np.int32)
        logits[name], _ = programs.advance(model, token, position, None, content)
    error = np.abs(logits[kind] - logits["float32"]).max()
    assert 0 < error < most * np.std(logits["float32"])


def test_answers_of_a_smaller_cache_are_those_of_its_own_steps(model):
    """A decoder's rows, refilled, read what was stored: each answers as alone, in every type."""
    for dtype in ("bfloat16", "int8"):
        alone = [answer(model, [request], 1, cache_dtype=dtype)[0] for request in REQUESTS[:4]]
        assert answer(model, REQUESTS[:4], 2, cache_dtype=dtype) == alone


def test_requests_that_cannot_be_answered_are_refused(model):
    answers = Decoder(model, 1)
    for request, message in [
        (Request([], 3), "a prompt holds no token"),
        (Request([1], 0), "new_tokens must be at least 1, not 0"),
        (Request([1], 3, adapter=0), "adapters \\[0\\]: the bank holds 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            answers.add(request)
    assert answers.is_idle and answers.step() == []


class Failing:
    """Lets anything come, and fails at its third token, where it is looked up or taken."""

    is_finished = is_complete = False

    def __init__(self, where):
        self._where, self._count = where, 0

    def mask(self):
        if self._where == "mask" and self._count == 2:
            raise ValueError("no mask")
        return np.full(2, 0xFFFFFFFF, np.uint32)

    def advance(self, token):
        self._count += 1
        if self._where == "advance" and self._count == 3:
            raise RuntimeError("no way")


@pytest.mark.parametrize(("where", "why"), [("mask", "no mask"), ("advance", "no way")])
def test_a_constraint_that_fails_ends_its_row_alone(model, where, why):
    requests = [dataclasses.replace(each, new_tokens=8) for each in REQUESTS[:3]]
    expected = decode.complete(model, requests, 3)
    failing = dataclasses.replace(requests[1], constraint=Failing(where))
    answers = decode.complete(model, [requests[0], failing, requests[2]], 3)
    assert answers[::2] == expected[::2]
    # greedy, so that what came before is as without a constraint
    assert answers[1][:3] == (expected[1].tokens[:2], True, why)
    failures = {}
    constraints = [None, Failing(where), None]
    prompts = [request.prompt for request in requests]
    settings = {"constraints": constraints, "on_failure": failures.__setitem__}
    texts = decode.generate(model, prompts, 8, -1, **settings)
    assert failures == {1: why} and [len(text) for text in texts] == [8, 2, 8]
