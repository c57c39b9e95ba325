"""Families of models: which tensor of transformers' holds each of Graft's parameters.

A family is data: where each module of Graft's decoder stands in transformers' model, and two small
functions between `config.json` and `ModelConfig`. All names are those of single layers.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from research import tree
from research.interop.fields import Fields, UnsupportedModelError, shortest_cycle
from research.models.config import ComputeConfig, ModelConfig
from research.models.transformer import Transformer

# Graft's modules -> transformers', as in Llama; most families have the same or nearly so.
LLAMA_MODULES = {
    "embedding": "model.embed_tokens",
    "layers/*/attention_norm": "model.layers.*.input_layernorm",
    "layers/*/attention/query": "model.layers.*.self_attn.q_proj",
    "layers/*/attention/key": "model.layers.*.self_attn.k_proj",
    "layers/*/attention/value": "model.layers.*.self_attn.v_proj",
    "layers/*/attention/output": "model.layers.*.self_attn.o_proj",
    "layers/*/mlp_norm": "model.layers.*.post_attention_layernorm",
    "layers/*/mlp/gate": "model.layers.*.mlp.gate_proj",
    "layers/*/mlp/up": "model.layers.*.mlp.up_proj",
    "layers/*/mlp/down": "model.layers.*.mlp.down_proj",
    "final_norm": "model.norm",
    "head": "lm_head",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_TABLES = ("embedding", "positions")


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture of transformers, and how Graft's decoder computes the same."""

    # transformers' `model_type` and class
    kind: str
    architecture: str
    # `config.json` -> shape, and back (the fields that say something about the shape)
    read: Callable[[Fields], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    modules: Mapping[str, str] = dataclasses.field(default_factory=lambda: LLAMA_MODULES)
    # Graft's modules whose outputs stand side by side in one of theirs
    joined: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    # whether linears are stored [outputs, inputs]
    transposed: bool = True
    # patterns of tensors that hold no parameter
    ignored: tuple[str, ...] = (r".*rotary_emb\.inv_freq",)
    # transformers' class with a head for classes, where its name does not follow from the other
    classifier: str = ""


@dataclasses.dataclass(frozen=True)
class Source:
    """The place of a parameter's numbers in a file.

    Attributes:
      name: the tensor's.
      shape: the whole tensor's.
      transposed: whether the parameter is its transpose.
      first: where along the tensor's outputs the parameter starts, if others share it.
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    first: int = 0

    def region(self, index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
        """The tensor's region that holds `index` of the parameter of `shape`."""
        ranges = [part.indices(size) for part, size in zip(index, shape, strict=True)]
        starts = [(start, stop) for start, stop, _ in ranges]
        starts[-1] = (starts[-1][0] + self.first, starts[-1][1] + self.first)
        return tuple(slice(*pair) for pair in (reversed(starts) if self.transposed else starts))


def parameter_shapes(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Every parameter of a base in full precision, by single-layer name; nothing is computed."""
    build = functools.partial(Transformer, config=config.full_precision)
    model = jax.eval_shape(build, jax.random.key(0))
    return tree.unstack_shapes(tree.flatten(model))


def sources(family: Family, shapes: Mapping[str, Any]) -> dict[str, Source]:
    """For each parameter of `shapes` the tensor that holds it."""
    result: dict[str, Source] = {}
    for name, value in shapes.items():
        module, leaf = name.rsplit("/", 1)
        is_linear = leaf == "kernel" and module not in _TABLES
        transposed = is_linear and (family.transposed or module == "head")
        joined = joined_linears(family, module)
        sizes = [shapes[f"{linear}/{leaf}"].shape[-1] for linear in joined]
        first = sum(sizes[: joined.index(module)])
        shape = (*value.shape[:-1], sum(sizes))
        shape = shape[::-1] if transposed else shape
        tensor = f"{module_name(family, module)}.{_LEAVES[leaf]}"
        result[name] = Source(tensor, shape, transposed, first)
    return result


def module_name(family: Family, linear: str) -> str:
    """Transformers' module that holds a linear of Graft's, given by its single-layer name."""
    pattern, layer = _layer_pattern(linear)
    return family.modules[pattern].replace("*", layer)


def joined_linears(family: Family, linear: str) -> tuple[str, ...]:
    """The linears whose outputs stand side by side in the module of one, in order; it is among
    them, and mostly alone."""
    pattern, layer = _layer_pattern(linear)
    joined = _joined_patterns(family, pattern) or (pattern,)
    return tuple(other.replace("*", layer) for other in joined)


def _layer_pattern(module: str) -> tuple[str, str]:
    """`layers/7/mlp/up` -> `layers/*/mlp/up` and `7`; a name outside layers and nothing."""
    pattern = re.sub(r"^layers/\d+/", "layers/*/", module)
    return pattern, module.split("/")[1] if pattern != module else ""


def _joined_patterns(family: Family, pattern: str) -> tuple[str, ...]:
    return next((group for group in family.joined.values() if pattern in group), ())


def check_tensors(
    family: Family,
    sources: Mapping[str, Source],
    shapes: Mapping[str, tuple[int, ...]],
    tie_embeddings: bool,
    where: str,
) -> None:
    """Refuses tensors that are missing, left over or of another shape.

    Args:
      sources: where each parameter stands.
      shapes: those of the file's tensors.

    Raises:
      UnsupportedModelError: naming them.
    """
    expected = {source.name: source.shape for source in sources.values()}
    surplus = set(shapes) - set(expected)
    surplus -= {name for name in surplus for p in family.ignored if re.fullmatch(p, name)}
    if tie_embeddings:  # some files carry the table twice
        surplus -= {f"{family.modules['head']}.weight"}
    missing = sorted(set(expected) - set(shapes))
    wrong = [
        f"{name}: shape {shapes[name]} in the file, {shape} by the config"
        for name, shape in expected.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    lines = [f"missing {n} (nearest there: {tree.nearest(n, shapes, 1)})" for n in missing]
    lines += [f"{name} is no parameter of a {family.kind} of this config" for name in surplus]
    lines += wrong
    if lines:
        more = [f"and {len(lines) - 12} more"] if len(lines) > 12 else []
        text = "\n  ".join([*sorted(lines)[:12], *more])
        raise UnsupportedModelError(
            f"{where} does not hold the model of its config{_why(surplus)}:\n  {text}"
        )


# what a name of a surplus tensor says of how the file was written
_SIGNS = {
    r".*\.(lora_|base_layer\.|modules_to_save\.).*|base_model\.model\..*": (
        "an adapter was not merged before the model was saved"
    ),
    r"(module|_orig_mod|_fsdp_wrapped_module)\..*": "it was saved while a trainer wrapped it",
    r"(score|classifier)\..*": "it classifies texts",
    r".*(experts|block_sparse_moe).*": "it has experts",
}


def _why(surplus: Iterable[str]) -> str:
    for pattern, reason in _SIGNS.items():
        if any(re.fullmatch(pattern, name) for name in surplus):
            return f" ({reason})"
    return ""


def check_layers(family: Family, layers: int, tensors: Iterable[str], where: str) -> None:
    """Refuses more layers than there are tensors for, before thousands of them are listed.

    Raises:
      UnsupportedModelError: naming the first that is missing.
    """
    norm = family.modules["layers/*/attention_norm"]
    pattern = re.compile(re.escape(norm).replace(r"\*", r"(\d+)") + r"\.")
    present = {int(match[1]) for name in tensors if (match := pattern.match(name))}
    if layers > len(present):
        first = next(layer for layer in range(layers) if layer not in present)
        raise UnsupportedModelError(
            f"{where} does not hold the model of its config: {layers:,} layers there, "
            f"{len(present):,} here; missing {norm.replace('*', str(first))}.weight"
        )


def architecture(config: ModelConfig) -> ModelConfig:
    """The shape alone, in its canonical form, without how it is computed."""
    defaults = {f.name: f.default for f in dataclasses.fields(ModelConfig)}
    compute: dict[str, Any] = {f.name: defaults[f.name] for f in dataclasses.fields(ComputeConfig)}
    has_own_size = config.head_dim * config.heads != config.width
    return dataclasses.replace(
        config.full_precision,
        head_size=config.head_dim if has_own_size else 0,
        score_size=0 if config.score_size == config.head_dim else config.score_size,
        windows=shortest_cycle(tuple(config.window(layer) for layer in range(config.layers))),
        **compute,
    )


def family_for_model(
    config: ModelConfig, families: Mapping[str, Family], first: str | None = None
) -> tuple[Family, dict[str, Any]]:
    """The first family that can express this shape, and its `config.json`.

    Args:
      first: the family to try before others: where the model came from.

    Raises:
      UnsupportedModelError: none can.
    """
    shape = architecture(config)
    for family in sorted(families.values(), key=lambda family: family.kind != first):
        fields = family.write(shape)
        try:
            is_same = architecture(family.read(Fields(fields, family.kind))) == shape
        except UnsupportedModelError:
            continue
        if is_same:
            return family, fields
    names = ", ".join(families)
    raise UnsupportedModelError(f"no architecture that Graft writes ({names}) computes this model")
