"""Batches of preferences: examples of two answers, each with its own copy of a prompt."""

import numpy as np

from research.batch import BAD, GOOD, MISMATCHED, Batch

# of two rows: (tokens of the prompt, of the first answer, of the second one) of each example
SIZES = [[(3, 2, 4), (1, 3, 1)], [(2, 5, 2)]]
ROLES = {"pairs": (GOOD, BAD), "good": (MISMATCHED, GOOD), "bad": (MISMATCHED, BAD)}


def batch(rows=SIZES, kinds=("pairs",), length=24, vocabulary=64, seed=0) -> Batch:
    """Random tokens and references; examples take their kinds, keys of ROLES, in turn."""
    random = np.random.default_rng(seed)
    shape = (len(rows), length)
    fields = {name: np.zeros(shape, np.int32) for name in ("segments", "positions", "roles")}
    weights, number = np.zeros(shape, np.float32), 0
    tokens = random.integers(1, vocabulary, (2, *shape)).astype(np.int32)
    for row, examples in enumerate(rows):
        at = segment = 0
        for prompt, *answers in examples:
            shared = random.integers(1, vocabulary, prompt)
            for size, role in zip(answers, ROLES[kinds[number % len(kinds)]], strict=True):
                segment += 1
                here, answer_start = slice(at, at + prompt + size - 1), slice(at + prompt - 1, None)
                answer = slice(answer_start.start, here.stop)
                at = here.stop
                fields["segments"][row, here] = segment
                fields["positions"][row, here] = np.arange(prompt + size - 1)
                fields["roles"][row, answer] = role
                weights[row, answer] = role != MISMATCHED
                tokens[0, row, here.start : here.start + prompt] = shared
                tokens[0, row, here.start + 1 : here.stop] = tokens[1, row, here][:-1]
                tokens[1, row, here.start : here.start + prompt - 1] = shared[1:]
                tokens[0, row, here.start : here.start + prompt] = shared
            number += 1
    reference = -random.uniform(1, 4, shape).astype(np.float32)
    return Batch(*tokens, weights, **fields, reference=reference)


def sums(values: np.ndarray, batch: Batch, role: int) -> list[list]:
    """For each row the sums of values [B,S] over each answer of a role, in order."""
    result = []
    for row in range(len(batch.tokens)):
        mine = batch.roles[row] == role
        numbers = dict.fromkeys(batch.segments[row][mine].tolist())
        result.append([values[row][mine & (batch.segments[row] == n)].sum() for n in numbers])
    return result
