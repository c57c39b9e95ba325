"""Parameters and FLOPs of a run, in closed form.

Model FLOPs count each needed product once, attention over the causal half of its square; what
rematerialisation computes again is not counted. XLA's own `cost_analysis` counts a scan's body
once, so it serves as a check on unrolled models only (tests/training/test_cost.py).
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import jax

from research import methods, tree
from research.models import quantization
from research.models.config import ModelConfig
from research.models.sites import Chain, Factor, Weight, Work
from research.models.transformer import Transformer


def parameter_count(config: ModelConfig) -> int:
    """Parameters of the base model; nothing is computed."""
    return count(jax.eval_shape(lambda key: Transformer(key, config), jax.random.key(0)))


def reading_flops(config: ModelConfig, length: int) -> float:
    """FLOPs a token of reading rows of `length` with predictions, by the model without adapters."""
    model = jax.eval_shape(lambda key: Transformer(key, config), jax.random.key(0))
    return flops_per_token(config, model, (), length).forward


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs for one token of a row's text."""

    forward: float
    backward: float
    # of a pass, however many tokens it has
    once: float = 0.0
    # of what `remat: full` computes again: the layers forward, but for each one's end
    recomputed: float = 0.0
    # of what `mlp_chunks` computes again with `remat: none`: the MLP's products but its last
    recomputed_in_chunks: float = 0.0
    # of these, products of queries, keys and values: forward and backward, and again
    attention: float = 0.0
    attention_recomputed: float = 0.0

    def train(self, tokens: float) -> float:
        """FLOPs of forward and backward passes over so many tokens at once."""
        return (self.forward + self.backward) * tokens + self.once


def flops_per_token(
    config: ModelConfig, model: Any, trainable: Collection[str], length: int
) -> Flops:
    """FLOPs a token of a model (abstract will do) with what trainable_names, in rows of `length`.

    A product of x with W costs 2|W| forward, 2|W| for the gradient of x where something before it
    trains, and 2|W| for the gradient of W where W trains. Deltas say which products they add
    (`Delta.work`); for tokens that they put in front of a row those of its text pay.
    """
    model = jax.eval_shape(quantization.dequantize, model)
    trainable_names = {layer for name in trainable for layer in tree.layer_names(name)}
    works = list(_works(model))
    rows = length + _in_front(works)
    lowest = min(
        (_order(name, config.layers) for name in _acting(works, trainable_names)), default=_END
    )
    orders = [_order(name, config.layers) for name, work in works if work.chains]
    ends = {layer: (layer, last) for layer, last in sorted(orders)}
    forward = backward = once = recomputed = in_chunks = scores = recomputed_scores = 0.0
    for name, work in works:
        order = _order(name, config.layers)
        share = rows / length if name.startswith("layers/") else 1.0
        is_recomputed = (
            name.startswith("layers/") and order[0] >= lowest[0] and order < ends[order[0]]
        )
        for chain in work.chains:
            trains_before = lowest < order
            is_lookup = name == "embedding"
            chain_forward, chain_backward = _products(
                chain, trains_before, trainable_names, is_lookup
            )
            times = chain.rows * {"token": share, "row": 1 / length, "pass": 0.0}[chain.each]
            forward += times * chain_forward
            backward += times * chain_backward
            recomputed += times * chain_forward * is_recomputed
            if config.mlp_chunks > 1 and re.fullmatch(r"layers/\d+/mlp/(gate|up)", name):
                in_chunks += times * chain_forward * is_recomputed
            once += chain.rows * (chain.each == "pass") * (chain_forward + chain_backward)
    for layer in range(config.layers):
        place, window = f"layers/{layer}/attention", config.window(layer)
        mean_keys = _mean_keys(rows, length, window)
        mean_keys += sum(work.keys for name, work in works if name == place)
        attention = 4 * mean_keys * config.heads * config.head_dim * rows / length
        gradients = 2 * attention * (lowest <= _order(place, config.layers))
        forward, backward = forward + attention, backward + gradients
        scores += attention + gradients
        recomputed_scores += attention * (layer >= lowest[0])
    recomputed += recomputed_scores
    return Flops(forward, backward, once, recomputed, in_chunks, scores, recomputed_scores)


@dataclasses.dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of reading texts, each token once and without gradients.

    Twice the parameters of its matrices for each token, those of the head only where a token is
    predicted, and attention over what a token sees. What deltas compute once a pass is left out.
    """

    # of a token in all layers, but for attention; and outside of them, but for the head
    token: float
    outside: float
    # of a predicted token: the product with the vocabulary
    head: float
    # of a row, however many tokens it has
    row: float
    # tokens in front of each row
    in_front: int
    # of a token with each key that it sees, in one layer
    key: float
    # of each layer: the window (0: none), and keys that a delta adds
    layers: tuple[tuple[int, int], ...]

    def text(self, tokens: int) -> float:
        """Of reading a text, without its predictions."""
        if not tokens:
            return 0.0
        rows = tokens + self.in_front
        keys = sum(_mean_keys(rows, tokens, window) + extra for window, extra in self.layers)
        return (self.token + self.key * keys) * rows + self.outside * tokens + self.row

    def answer(self, prompt: int, answer: int) -> float:
        """Of a prompt and the tokens that are chosen after it, of which the last is not read."""
        return self.text(prompt + answer - 1) + self.head * answer

    def options(self, question: int, options: Iterable[int]) -> float:
        """Of options after a question that is read once; all in tokens.

        The question's last token is read before each option, and an option's last is not.
        """
        shared, total = self.text(question - 1), 0.0
        for option in options:
            total += self.text(question - 1 + option) - shared + self.head * option
        return shared + total


def forward_flops(config: ModelConfig, model: Any) -> ForwardFlops:
    """FLOPs of a model (abstract will do) that reads."""
    works = list(_works(jax.eval_shape(quantization.dequantize, model)))
    sums = dict.fromkeys(("layers", "head", "row", "other"), 0.0)
    for name, work in works:
        for chain in work.chains:
            forward, _ = _products(chain, False, (), name == "embedding")
            kind = "head" if name == "head" else "other"
            kind = "layers" if name.startswith("layers/") else kind
            if chain.each != "pass":
                sums["row" if chain.each == "row" else kind] += chain.rows * forward
    extra_keys = [
        sum(work.keys for name, work in works if name == f"layers/{layer}/attention")
        for layer in range(config.layers)
    ]
    return ForwardFlops(
        token=sums["layers"],
        outside=sums["other"],
        head=sums["head"],
        row=sums["row"],
        in_front=_in_front(works),
        key=4.0 * config.heads * config.head_dim,
        layers=tuple((config.window(n), keys) for n, keys in enumerate(extra_keys)),
    )


def _mean_keys(rows: int, length: int, window: int) -> float:
    """Keys that a token of a row sees, on average; what is in front of its text from anywhere.

    Args:
      rows: tokens of the row.
      length: those of its text.
    """
    span = min(window + rows - length, rows) if window else rows
    return span - span * (span - 1) / (2 * rows)


def tokens_in_front(model: Any) -> int:
    """The number of tokens that attached prompts put in front of each row."""
    return _in_front(_works(jax.eval_shape(quantization.dequantize, model)))


def _in_front(works: Iterable[tuple[str, Work]]) -> int:
    return sum(work.tokens for _, work in works)


def _works(model: Any) -> Iterator[tuple[str, Work]]:
    """The work of every layer's places: of their own weights and of each delta."""
    for name, module in methods.places(model, *methods.PLACES):
        if tree.is_stacked(name):
            module = tree.one_of(module)
        weight = None
        is_tied = name == "head" and module.kernel is None
        if is_tied:
            table = model.embedding.kernel
            weight = Weight(jax.ShapeDtypeStruct(table.shape[::-1], table.dtype))
        elif isinstance(module, methods.WEIGHTED):
            weight = Weight(module.kernel)
        for layer in tree.layer_names(name):
            front: tuple[Factor, ...] = ()
            for adapter, delta in reversed(module.site.items()):
                work = delta.work(weight, model.methods).under(f"{layer}/site/{adapter}")
                chains = tuple(_behind(front, chain) for chain in work.chains)
                yield layer, work._replace(chains=chains)
                if work.before:
                    front += tuple((n, ()) for chain in chains for n, _ in chain.factors)
            if weight is not None and not any(d.replaces for d in module.site.values()):
                own = "embedding/kernel" if is_tied else f"{layer}/kernel"
                yield layer, Work((_behind(front, Chain(((own, weight.kernel.shape),))),))


def _behind(front: tuple[Factor, ...], chain: Chain) -> Chain:
    """The chain of tokens that passed others in front, whose gradients pass through this one."""
    return chain._replace(factors=(*front, *chain.factors)) if chain.each == "token" else chain


def _products(
    chain: Chain, trains_before: bool, trainable_names: Collection[str], is_lookup: bool
) -> tuple[float, float]:
    """FLOPs of a row that passes a chain, forward and backward.

    Args:
      trains_before: whether something before the chain trains.
      trainable_names: the names of the leaves that train.
      is_lookup: rows are tokens, which pick rows of the first factor.
    """
    forward = backward = 0.0
    for number, (name, shape) in enumerate(chain.factors):
        is_product = len(shape) > 1 and not (is_lookup and number == 0)
        size = 2.0 * math.prod(shape) * is_product
        forward += size
        backward += size * (trains_before + (name in trainable_names))
        trains_before |= name in trainable_names
    return forward, backward


# patterns over the places and parameters of a layer, in the order in which a token passes them
_IN_A_LAYER = (
    r"attention_norm/.*",
    r"attention/(query|key|value)(/.*)?",
    r"attention/(query|key)_norm/.*",
    r"attention(/site/.*)?",
    r"attention/output(/.*)?",
    r"attention_output(/.*)?",
    r"mlp_norm/.*",
    r"mlp/(gate|up)(/.*)?",
    r"mlp/down(/.*)?",
    r"mlp_output(/.*)?",
)
_END = (sys.maxsize, 0)


def _order(name: str, layers: int) -> tuple[int, int]:
    """The position of a place or a parameter in a token's path; equal where neither waits for the
    other."""
    if match := re.match(r"layers/(\d+)/(.*)", name):
        positions = (
            number
            for number, pattern in enumerate(_IN_A_LAYER)
            if re.fullmatch(pattern, match.group(2))
        )
        return int(match.group(1)), next(positions, 0)
    if name.startswith(("embedding", "positions")):
        return -1, 0
    return layers, int(name.startswith("head"))


def _acting(works: Iterable[tuple[str, Work]], trainable_names: Collection[str]) -> Iterator[str]:
    """The parameters that train in places, and the places that use a shared one that does."""
    yield from (name for name in trainable_names if not name.startswith("methods/"))
    for place, work in works:
        if any(name in trainable_names for chain in work.chains for name, _ in chain.factors):
            yield place


def count(model: Any, names: Collection[str] | None = None) -> int:
    """Number of parameters in a model (abstract will do), or in the named leaves of it."""
    leaves = tree.flatten(jax.eval_shape(quantization.dequantize, model))
    return sum(math.prod(leaves[name].shape) for name in (leaves if names is None else names))
