"""Documents for the objectives that cut them, and their examples as a batch's rows hold them."""

import dataclasses
import functools

import numpy as np
import tokenizers
from hypothesis import strategies as st

from research.batch import Batch
from research.data import checks
from research.data.packing import planning
from research.data.packing import rows as rows_lib
from research.objectives.base import Examples
from research.text import tokenizer as tokenizer_lib
from research.text.token_table import Ragged, TokenTable
from research.text.tokenizer import Tokenizer

SPECIAL = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|mask|>"]
SPECIAL += [f"<extra_id_{number}>" for number in range(12)]
# a few short ones, and some of many windows
TEXTS = st.lists(
    st.one_of(st.text("some words. 😀", max_size=12), st.text("some words. ü", max_size=150)),
    min_size=1,
    max_size=5,
).filter(lambda texts: any(len(text) > 3 for text in texts))


@functools.cache
def tokenizer(special: bool = True) -> Tokenizer:
    """With special tokens for markers, or without."""
    trained = tokenizer_lib.train(["some words. are words some"], 270)
    backend = tokenizers.Tokenizer.from_str(trained.to_json())
    if special:
        backend.add_special_tokens(SPECIAL)
    return Tokenizer(backend)


def table(texts: list[str], tokenizer: Tokenizer) -> TokenTable:
    ids = [[*tokenizer.encode(text), tokenizer.end_id] for text in texts]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in ids])])
    values = np.asarray([token for each in ids for token in each], np.uint16)
    sizes = np.asarray([len(text.encode()) for text in texts], np.int64)
    return TokenTable("made", {"text": Ragged(values, offsets)}, {"text": sizes})


@dataclasses.dataclass(frozen=True)
class RowExample:
    """One example as its place in a batch holds it."""

    tokens: list[int]
    targets: list[int]
    weights: list[float]
    prefix: list[bool]


def batch(
    examples: Examples, tokenizer: Tokenizer, length: int
) -> tuple[Batch, planning.PackingPlan]:
    """All examples packed into one batch that may be trained on."""
    plan = planning.plan(examples.lengths, length, splittable=False, pack=True, seed=1)
    packed = rows_lib.PackedRows(examples, plan, tokenizer.pad_id)
    rows = [{"prefix": np.zeros(length, bool)} | packed[i] for i in range(len(packed))]
    batch_arrays = Batch(**{field: np.stack([row[field] for row in rows]) for field in rows[0]})
    checks.check_batch(batch_arrays, tokenizer.vocabulary_size)
    return batch_arrays, plan


def read_back(examples: Examples, tokenizer: Tokenizer, length: int) -> dict[int, RowExample]:
    """Example -> what the rows of a batch hold of it; no example is cut or missing."""
    batch_arrays, plan = batch(examples, tokenizer, length)
    examples_read = {}
    for row in range(len(plan)):
        numbers = range(plan.offsets[row], plan.offsets[row + 1])
        for segment, number in enumerate(numbers, start=1):
            here = batch_arrays.segments[row] == segment
            fields = (
                batch_arrays.tokens,
                batch_arrays.targets,
                batch_arrays.weights,
                batch_arrays.prefix,
            )
            index = int(plan.examples[number])
            examples_read[index] = RowExample(*(field[row][here].tolist() for field in fields))
            assert len(examples_read[index].tokens) == examples.lengths[index] <= length
            assert sum(examples_read[index].weights) == examples.trained[index]
            assert set(examples_read[index].weights) <= {0.0, 1.0}
            assert batch_arrays.positions[row][here].tolist() == list(
                range(examples.lengths[index])
            )
    assert sorted(examples_read) == np.flatnonzero(examples.lengths).tolist()
    return examples_read


def documents(texts: dict[int, list[int]], examples: Examples, count: int) -> list[list[int]]:
    """Tokens of whole documents, from those of examples."""
    joined: list[list[int]] = [[] for _ in range(count)]
    for index in sorted(texts):
        joined[int(examples.rows[index])] += texts[index]
    return joined


def find(part: np.ndarray, tokens: list[int], start: int = 0) -> int:
    """Where `part` first stands in `tokens`."""
    size = len(part)
    for place in range(start, len(tokens) - size + 1):
        if tokens[place : place + size] == list(part):
            return place
    raise AssertionError(f"{part} is not in {tokens}")


def whole(examples, index=0):
    return examples.piece(index, 0, int(examples.lengths[index]))


def trained_texts(piece, tokenizer):
    """Every stretch of trained tokens, as text with its special tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], piece.weights, [0]])))
    return [
        tokenizer.decode(piece.targets[start:stop], special=True)
        for start, stop in edges.reshape(-1, 2)
    ]
