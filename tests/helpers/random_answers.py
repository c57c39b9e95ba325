"""Answers of a model that knows nothing, under a constraint."""

import numpy as np

from research.generation.constraints import Constraint
from research.generation.constraints.rows import CompiledGrammar
from research.generation.constraints.vocabulary import unpack
from research.text.tokenizer import Tokenizer


def random_answer(
    grammar: CompiledGrammar, budget: int, rng: np.random.Generator, tokenizer: Tokenizer
) -> tuple[str, Constraint]:
    """A text whose tokens are drawn from random logits, the mask applied as an engine does it."""
    row, ids = grammar.start(budget), []
    for _ in range(budget):
        mask = row.mask()
        assert mask.dtype == np.uint32
        allowed = np.flatnonzero(unpack(mask))
        assert len(allowed), "nothing may come next"
        token = int(allowed[rng.normal(size=len(allowed)).argmax()])
        row.advance(token)
        if token in grammar.vocabulary.ends:
            break
        ids.append(token)
    return tokenizer.decode(ids), row
