"""Decoding with a cache."""

import functools

import numpy as np
import pytest

from research.generation import decode
from research.generation.sampling import Sampling
from tests import tiny

PROMPTS = [[5], [7, 3, 9, 2, 11], [1, 2, 3, 4, 5, 6, 7, 8, 9]]
NEVER = 1000  # an end token that no model of 64 tokens says


@functools.cache
def model():
    return tiny.shaken(tiny.model())


def by_full_passes(prompt, count):
    """Greedy continuation without a cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(np.argmax(tiny.log_probabilities(model(), ids)[-1])))
    return ids[len(prompt) :]


def test_a_ragged_batch_equals_full_passes_one_by_one():
    rows = decode.generate(model(), PROMPTS, 4, NEVER)
    assert rows == [by_full_passes(prompt, 4) for prompt in PROMPTS]


def test_a_row_stops_at_end_of_text_and_the_others_go_on():
    free = decode.generate(model(), PROMPTS, 8, NEVER)
    end = next(t for t in free[0] if t not in free[1][: free[0].index(t) + 1])
    rows = decode.generate(model(), PROMPTS, 8, end)
    cut = lambda row: row[: row.index(end)] if end in row else row  # noqa: E731
    assert rows == [cut(row) for row in free] and len(rows[0]) < 8 and end not in rows[1]
    assert len(list(decode.stream(model(), PROMPTS[:1], 8, end))) == len(rows[0]) + 1


def test_draws_do_not_depend_on_the_other_rows():
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=3)
    rows = decode.generate(model(), PROMPTS, 8, NEVER, sampling)
    assert decode.generate(model(), PROMPTS[:1], 8, NEVER, sampling) == rows[:1]
    other = Sampling(temperature=1.0, top_p=0.9, seed=4)
    assert decode.generate(model(), PROMPTS, 8, NEVER, other) != rows


def test_stream_yields_what_generate_returns():
    columns = np.stack(list(decode.stream(model(), PROMPTS, 4, NEVER)), axis=1)
    assert columns.tolist() == decode.generate(model(), PROMPTS, 4, NEVER)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="a prompt holds no token"):
        decode.generate(model(), [[1], []], 4, NEVER)
