"""Adapters on modules that hold several of Graft's linears side by side.

Phi-3 and GPT-2 have one matrix for query, key and value. A LoRA on it is one factor A that the
parts share, and a factor B whose columns are theirs, so it splits into a LoRA for each part,
exactly. The other way, parts that share A stay one product; others need their ranks side by side,
with B block-diagonal. What DoRA and IA3 hold for each output is cut and put together alike. OFT on
a joined matrix is the same rotation for all parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from research import tree
from research.checkpoints.runs import Run
from research.interop.families import FAMILIES
from research.interop.family import family_for_model, joined_linears, module_name
from research.interop.fields import UnsupportedModelError
from research.methods import Full, abstract, places, single_layers
from research.methods.attach import WEIGHTED
from research.models.config import ModelConfig
from research.models.transformer import Transformer

# in front of transformers' name of a module
PREFIX = "base_model.model."
# a delta's leaves, by name
Delta = Mapping[str, np.ndarray]
# leaves that are no output's: factors [I,R], OFT's rotations, VeRA's factors of ranks
INPUT_LEAVES = {
    "lora": ("a",),
    "dora": ("low/a",),
    "loha": ("first_in", "second_in"),
    "oft": ("skew",),
    "vera": ("inner",),
}
# leaves [R,O]
OUTPUT_LEAVES = {"lora": ("b",), "dora": ("low/b",), "loha": ("first_out", "second_out")}
_SCALE = {"lora": "scale", "dora": "low/scale", "loha": "scale"}


@dataclasses.dataclass(frozen=True)
class TargetModules:
    """The modules of transformers that an adapter can attach to.

    Attributes:
      linears: by transformers' name, the linears of Graft whose outputs it holds, in order, by
        single-layer name; mostly one.
      outputs: the number of outputs of each linear.
      conv1d: whether they are GPT-2's, which store weights [inputs, outputs].
    """

    linears: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, int]
    conv1d: bool = False

    def module_of(self, linear: str) -> str:
        """Transformers' name of the module that holds a linear."""
        return next(module for module, linears in self.linears.items() if linear in linears)

    def width(self, module: str) -> int:
        """The number of outputs of a module."""
        return sum(self.outputs[linear] for linear in self.linears[module])

    def columns(self, module: str) -> dict[str, slice]:
        """The range of each linear's outputs in those of the module."""
        result, start = {}, 0
        for linear in self.linears[module]:
            result[linear] = slice(start, start + self.outputs[linear])
            start += self.outputs[linear]
        return result


def target_modules(
    base: Run, model: ModelConfig | None = None
) -> tuple[Transformer, TargetModules]:
    """The base in single layers, abstractly, and what adapters attach to in transformers' model.

    Args:
      model: the shape to take, if not the base's.
    """
    model = model or base.model
    plain = abstract(model, Full(), single_layers(model))
    family, _ = family_for_model(model, FAMILIES, (base.origin or {}).get("family"))
    linears, outputs = {}, {}
    for stacked_name, module in places(plain, *WEIGHTED):
        for name in tree.layer_names(stacked_name):
            linears[module_name(family, name)] = joined_linears(family, name)
            kernel = plain.embedding.kernel if module.kernel is None else module.kernel
            outputs[name] = kernel.shape[-2 if module.kernel is None else -1]
    return plain, TargetModules(linears, outputs, conv1d=not family.transposed)


def join(
    kind: str,
    deltas: Mapping[str, Delta | None],
    outputs: Mapping[str, int],
    kernel: Callable[[str], np.ndarray],
) -> Delta:
    """One delta for linears that stand side by side.

    Args:
      kind: the method's.
      deltas: each linear's leaves, in order; None where the method does not attach.
      outputs: the number of outputs of each linear.
      kernel: the weight [I,O] of a linear; asked of DoRA, to which the weight's own norms are the
        magnitude that changes nothing.

    Returns:
      Leaves of the same names, for all outputs.

    Raises:
      UnsupportedModelError: this method does not join.
    """
    if len(deltas) == 1:
        (delta,) = deltas.values()
        assert delta is not None
        return delta
    if kind == "ia3":
        factors = [
            np.ones(outputs[linear], np.float32) if delta is None else delta["factor"]
            for linear, delta in deltas.items()
        ]
        return {"factor": np.concatenate(factors)}
    if kind == "oft":
        first = next(delta for delta in deltas.values() if delta is not None)
        if all(d is not None and np.array_equal(d["skew"], first["skew"]) for d in deltas.values()):
            return first
    if kind not in _SCALE:
        names = ", ".join(deltas)
        raise UnsupportedModelError(f"{kind} of {names}, which are one module in transformers")
    result = _join_factors(kind, deltas, outputs)
    if kind == "dora":
        magnitudes = [
            np.linalg.norm(kernel(linear), axis=0) if delta is None else delta["magnitude"]
            for linear, delta in deltas.items()
        ]
        result["magnitude"] = np.concatenate(magnitudes)
    return result


def _join_factors(
    kind: str, deltas: Mapping[str, Delta | None], outputs: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """The factors of one low-rank product for all outputs, and its scale."""
    present = [delta for delta in deltas.values() if delta is not None]
    first, inputs = present[0], INPUT_LEAVES[kind]
    is_shared = all(
        np.array_equal(delta[leaf], first[leaf]) for delta in present[1:] for leaf in inputs
    )
    scale = first[_SCALE[kind]]
    result = {_SCALE[kind]: scale}
    for leaf in inputs:
        factors = [first[leaf]] if is_shared else [delta[leaf] for delta in present]
        result[leaf] = np.concatenate(factors, axis=1)
    rank = result[inputs[0]].shape[1]
    for leaf in OUTPUT_LEAVES[kind]:
        blocks, start = [], 0
        for linear, delta in deltas.items():
            block = np.zeros((rank, outputs[linear]), np.float32)
            if delta is not None:
                # one scale for the module: what differs goes into one of the factors
                ratio = delta[_SCALE[kind]] / scale if leaf == OUTPUT_LEAVES[kind][0] else 1.0
                block[start : start + len(delta[leaf])] = delta[leaf] * ratio
                start += 0 if is_shared else len(delta[leaf])
            blocks.append(block)
        result[leaf] = np.concatenate(blocks, axis=1)
    return result
