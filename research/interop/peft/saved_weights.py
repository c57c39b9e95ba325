"""Weights of the base that an adapter's file holds too: `modules_to_save`, saved embeddings, rows
of single tokens (`trainable_token_indices`), biases.

In PEFT each stands in for the base's own while the adapter is loaded. One that equals the base's is
of no consequence; any other becomes a leaf of the run, which goes before the base's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from research import tree
from research.checkpoints.runs import Run
from research.interop.families import FAMILIES
from research.interop.family import Source, family_for_model, parameter_shapes, sources
from research.interop.fields import UnsupportedModelError
from research.interop.huggingface import tensor_reader
from research.interop.peft.joined import PREFIX
from research.interop.tensor_files import SafeTensors, is_finite, not_finite
from research.models.config import ModelConfig

_ROWS = ".token_adapter.trainable_tokens_delta"
_TABLE, _HEAD = "embedding/kernel", "head/kernel"
_RESIZED = (
    "the base was resized for it: resize it in transformers too (model.resize_token_embeddings), "
    "and import that as the base"
)


@dataclasses.dataclass(frozen=True)
class SavedWeights:
    """What an adapter's file holds of the base.

    Attributes:
      model: the base's shape, with a head of its own where table and head part.
      tensors: the names of those tensors.
      arrays: parameters that differ from the base's, by single-layer name.
      trainable: of these, what PEFT trains.
    """

    model: ModelConfig
    tensors: frozenset[str]
    arrays: Mapping[str, np.ndarray]
    trainable: tuple[str, ...]


class _Reader:
    """The base's parameters and tensors, and the adapter's."""

    def __init__(self, content: Mapping[str, Any], tensors: SafeTensors, base: Run, where: str):
        self.content, self.tensors, self.base, self.where = content, tensors, base, where
        untied = dataclasses.replace(base.model, tie_embeddings=False)
        kind = (base.origin or {}).get("family")
        family, _ = family_for_model(base.model, FAMILIES, kind)
        self.shapes = parameter_shapes(untied)
        self.sources: dict[str, Source] = sources(family, self.shapes)
        self.base_tensors = {source.name for source in self.sources.values()}
        # the base's tensor -> the adapter's that stands in for it, or for rows of it
        self.whole: dict[str, str] = {}
        self.rows: dict[str, str] = {}
        for name in tensors.shapes:
            bare = name.removeprefix(PREFIX)
            if bare.endswith(_ROWS):
                self.rows[f"{bare.removesuffix(_ROWS)}.weight"] = name
            elif (plain := bare.replace(".base_layer.", ".")) in self.base_tensors:
                if plain in self.whole:
                    raise UnsupportedModelError(f"{where} holds {plain} twice, in {name} too")
                self.whole[plain] = name
        if both := sorted(set(self.whole) & set(self.rows)):
            raise UnsupportedModelError(f"{where} holds {both[0]} whole, and rows of it")

    def own(self, name: str) -> np.ndarray:
        """A parameter of the base."""
        if name == _HEAD and self.base.model.tie_embeddings:
            return self.own(_TABLE).T
        return np.asarray(self.base.read(name)[name], np.float32)

    def saved(self, name: str) -> np.ndarray | None:
        """A parameter as the adapter has it; None where it has none, or the base's."""
        source = self.sources[name]
        if source.name in self.rows:
            return self._with_rows(name)
        if source.name not in self.whole:
            return None
        tensor = self.whole[source.name]
        if self.tensors.shapes[tensor] != source.shape:
            resized = f": {_RESIZED}" if name in (_TABLE, _HEAD) else ""
            raise UnsupportedModelError(
                f"{self.where}: {tensor} has shape {self.tensors.shapes[tensor]}, the base's "
                f"{source.shape}{resized}"
            )
        region = tuple(slice(None) for _ in source.shape)
        value = np.asarray(self.tensors.read(tensor, region), np.float32)
        value = value.T if source.transposed else value
        value = value[..., source.first : source.first + self.shapes[name].shape[-1]]
        return None if _is_rounded(value, self.own(name)) else value

    def _with_rows(self, name: str) -> np.ndarray | None:
        tensor = self.rows[self.sources[name].name]
        rows = np.asarray(self.tensors.read(tensor, (slice(None), slice(None))), np.float32)
        own, ids = self.own(name), self._token_ids(tensor)
        table = own.T.copy() if name == _HEAD else own.copy()
        if not ids or max(ids) >= len(table):
            raise UnsupportedModelError(
                f"{self.where}: trainable_token_indices go up to {max(ids, default=None)}, the "
                f"base has {len(table):,} tokens: {_RESIZED}"
            )
        if rows.shape != (len(ids), table.shape[1]):
            raise UnsupportedModelError(
                f"{self.where}: {tensor} has shape {rows.shape}, not {(len(ids), table.shape[1])}"
            )
        table[ids] = rows
        value = table.T if name == _HEAD else table
        return None if _is_rounded(value, own) else value

    def _token_ids(self, tensor: str) -> list[int]:
        ids = self.content.get("trainable_token_indices")
        module = tensor.removeprefix(PREFIX).removesuffix(_ROWS)
        if isinstance(ids, Mapping):
            ends = [end for end in ids if module == end or module.endswith(f".{end}")]
            ids = ids[ends[0]] if ends else None
        if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
            raise UnsupportedModelError(
                f"{self.where}: {tensor}, of which trainable_token_indices says {ids!r:.60}"
            )
        return ids


def read(content: Mapping[str, Any], tensors: SafeTensors, base: Run, where: str) -> SavedWeights:
    """The weights of the base that an adapter's file holds.

    Args:
      content: `adapter_config.json`, its switches checked.

    Raises:
      UnsupportedModelError: modules that the file lacks or the base has not, other shapes, or
        numbers that only a base in full precision can take.
    """
    reader = _Reader(content, tensors, base, where)
    copied = _copied_tensors(content, reader)
    if content.get("trainable_token_indices") and not reader.rows:
        raise UnsupportedModelError(f"{where} has no tensor of trainable_token_indices")
    names = [
        name
        for name, source in reader.sources.items()
        if source.name in {*reader.whole, *reader.rows}
    ]
    arrays = {name: value for name in names if (value := reader.saved(name)) is not None}
    trainable, model = tuple(arrays), base.model
    if model.tie_embeddings:
        arrays, trainable = _tied(arrays, copied, reader)
        if _HEAD in arrays:
            model = dataclasses.replace(model, tie_embeddings=False)
    if arrays and model.storage:
        kinds = ", ".join(model.storage_kinds)
        raise UnsupportedModelError(
            f"{where} holds {next(iter(arrays))}, which goes before that of {base.path}, stored as "
            f"{kinds}: import the adapter on the base in float32"
        )
    tensor_names = frozenset((*reader.whole.values(), *reader.rows.values()))
    return SavedWeights(model, tensor_names, arrays, trainable)


def write(
    run: Run, targets: Collection[str], kind: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of weights of the base that a run trained, and PEFT's fields that name them:
    `modules_to_save`, or `trainable_token_indices` of a table of which few rows changed.

    Args:
      targets: modules to which its adapter attaches: their own weights go by another name.
      kind: PEFT's of the adapter; LORA alone has fields for rows.

    Raises:
      ValueError: numbers that are not finite.
    """
    trained = [
        name.removeprefix("model/")
        for name in run.checkpoint.checksums("model/")
        if not tree.is_attached(name.removeprefix("model/"))
    ]
    if not trained or run.base is None:
        return {}, {}
    family, _ = family_for_model(run.model, FAMILIES, (run.origin or {}).get("family"))
    places = sources(family, parameter_shapes(run.model))
    modules = {places[name].name.rpartition(".")[0] for name in trained}
    table, head = family.modules["embedding"], family.modules["head"]
    tensors: dict[str, np.ndarray] = {}
    fields: dict[str, Any] = {}
    ends = {table, head} if run.model.tie_embeddings else {table}
    if kind == "LORA" and _TABLE in trained and not ends & set(targets):
        rows = _changed_rows(run)
        if rows is not None:
            modules.remove(table)
            ids, values = rows
            tensors[f"{PREFIX}{table}{_ROWS}"] = values
            fields["trainable_token_indices"] = {table: ids}
    read_tensor = tensor_reader(places, lambda name: np.asarray(run.read(name)[name], np.float32))
    whole = {
        source.name: read_tensor(source.name)
        for source in places.values()
        if source.name.rpartition(".")[0] in modules
    }
    if run.model.tie_embeddings and table in modules:
        modules.add(head)  # PEFT would otherwise leave it the base's table
        whole[f"{head}.weight"] = whole[f"{table}.weight"]
    for name, value in (whole | tensors).items():
        if not is_finite(value):
            raise ValueError(f"{not_finite(name, value)}; nothing is exported")
    for name, value in whole.items():
        module, _, leaf = name.rpartition(".")
        inner = ".base_layer" if module in targets else ""
        tensors[f"{PREFIX}{module}{inner}.{leaf}"] = value
    if names := sorted(modules - set(targets)):
        fields["modules_to_save"] = names
    return tensors, fields


def _changed_rows(run: Run) -> tuple[list[int], np.ndarray] | None:
    """The rows of a run's table that differ from its base's, and their numbers; None where they are
    a fourth of all or more, or where table and head part, which rows cannot say."""
    assert run.base is not None
    if run.model.tie_embeddings != run.base.model.tie_embeddings:
        return None
    own = np.asarray(run.read(_TABLE)[_TABLE], np.float32)
    base = np.asarray(run.base.read(_TABLE)[_TABLE], np.float32)
    ids = np.flatnonzero((own != base).any(axis=1))
    return (ids.tolist(), own[ids]) if 0 < len(ids) < len(own) / 4 else None


def _tied(
    arrays: dict[str, np.ndarray], copied: set[str], reader: _Reader
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The parameters of a base whose head is its table: in `modules_to_save`, and where their rows
    differ, each of the two becomes one of its own; elsewhere they stay one."""
    table_tensor, head_tensor = (reader.sources[name].name for name in (_TABLE, _HEAD))
    table, head = arrays.get(_TABLE), arrays.get(_HEAD)
    rest = {name: value for name, value in arrays.items() if name not in (_TABLE, _HEAD)}
    is_apart = bool({table_tensor, head_tensor} & copied) or head_tensor in reader.rows
    if not is_apart:
        if table is not None and head is not None and not np.array_equal(table, head.T):
            raise UnsupportedModelError(
                f"{reader.where}: {table_tensor} and {head_tensor} differ, and the base has one "
                "table for both: in PEFT the one that is loaded last counts. Merge it there"
            )
        shared = table if table is not None else None if head is None else head.T
        whole = rest if shared is None else rest | {_TABLE: shared}
        return whole, tuple(whole)
    trainable = tuple(arrays)
    if table is None and head is None:
        return rest, trainable
    own_head = reader.own(_HEAD) if head is None else head
    if table is not None and np.array_equal(table, own_head.T):
        return rest | {_TABLE: table}, (*rest, _TABLE)
    parts = {_TABLE: table} if table is not None else {}
    return rest | parts | {_HEAD: own_head}, trainable


def _copied_tensors(content: Mapping[str, Any], reader: _Reader) -> set[str]:
    """The base's tensors of which `modules_to_save` makes copies; all must be in the file."""
    entries, where = content.get("modules_to_save") or [], reader.where
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise UnsupportedModelError(f"{where}: modules_to_save is {entries!r:.60}, not names")
    copied: set[str] = set()
    for entry in entries:
        here = {name for name in reader.base_tensors if _is_inside(name, entry)}
        if not here:
            raise UnsupportedModelError(
                f"{where}: modules_to_save has {entry!r}, which is no module of the base"
            )
        copied |= here
    is_tied = bool(content.get("ensure_weight_tying")) and reader.base.model.tie_embeddings
    ends = {reader.sources[name].name for name in (_TABLE, _HEAD)}
    if is_tied and ends & copied and ends & set(reader.whole):
        copied -= ends  # one of them stands for both
    missing = sorted(copied - set(reader.whole))
    if missing:
        raise UnsupportedModelError(
            f"{where} lacks {missing[0]}, a module of modules_to_save ({len(missing)} are missing)"
        )
    return copied


def _is_inside(tensor: str, entry: str) -> bool:
    """Whether a tensor belongs to a module whose name ends with an entry, as PEFT matches it."""
    module = tensor.rpartition(".")[0]
    while module:
        if module.endswith(entry):
            return True
        module = module.rpartition(".")[0]
    return False


def _is_rounded(value: np.ndarray, own: np.ndarray) -> bool:
    """Whether a weight is the base's, perhaps rounded to the type in which the base was loaded."""
    types = (np.float32, ml_dtypes.bfloat16, np.float16)
    with np.errstate(over="ignore"):
        return any(np.array_equal(value, own.astype(kind).astype(np.float32)) for kind in types)
