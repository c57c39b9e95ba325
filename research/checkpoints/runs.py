"""A run's folder: what a training run leaves, and how a model is read from it.

A run that trained everything holds a whole model. A tuned run holds what was attached or trained
and names its base by path and fingerprint; reading it reads the base too, and refuses another one.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from research import methods, sharding, tree
from research.checkpoints import fingerprint
from research.checkpoints.checkpoint import Checkpoint
from research.checkpoints.checkpointer import (
    LEFTOVER,
    Checkpointer,
    library_versions,
    open_checkpoint,
)
from research.config import schema
from research.experiment import Experiment, MethodConfig
from research.methods import Method
from research.models.config import ModelConfig
from research.models.transformer import Transformer
from research.runtime import storage
from research.text import chat_template
from research.text import tokenizer as tokenizers
from research.tree import Arrays

TOKENIZER = "tokenizer.json"
# abstract single layers by name, with shardings -> their arrays
Read = Callable[[Mapping[str, jax.ShapeDtypeStruct]], Arrays]


@dataclasses.dataclass(frozen=True)
class Run:
    """A checkpoint with what it says of itself."""

    checkpoint: Checkpoint
    # None: the model was imported, not trained here
    experiment: Experiment | None
    model: ModelConfig
    tokenizer: tokenizers.Tokenizer
    base: Run | None
    # what is attached to the model
    method: Method
    # where the model, or what it was tuned from, was imported from; None: trained from random
    imported: Mapping[str, Any] | None

    @property
    def path(self) -> epath.Path:
        """The checkpoint's folder."""
        return self.checkpoint.path

    @property
    def sidecar_files(self) -> dict[str, bytes]:
        """Files of an imported model beside the tokenizer: chat template, generation config."""
        return {name: text for name, text in self.checkpoint.files().items() if name != TOKENIZER}

    def checksums(self) -> dict[str, fingerprint.Checksum]:
        """Of every parameter, the base's included; reads no array."""
        below = self.base.checksums() if self.base else {}
        return below | self.checkpoint.checksums("model/")

    @functools.cached_property
    def fingerprint(self) -> str:
        """What identifies the whole model: names, shapes, types and bits of all parameters."""
        return fingerprint.combine(self.checksums())

    @property
    def permanent_path(self) -> str:
        """Where these weights stay: the finished model's own folder, if it is that of one."""
        path = self.checkpoint.path
        shelf = path.parent.parent / "model" / path.name
        return str(shelf if shelf.exists() else path)

    def parameters(self, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Arrays:
        """Reads single-layer parameters, each onto the sharding that it asks for.

        Raises:
          ValueError: names or shapes that the run does not have.
        """
        own = self.checkpoint.checksums("model/")
        mine = {name: shape for name, shape in abstract.items() if name in own or not self.base}
        rest = {name: shape for name, shape in abstract.items() if name not in mine}
        read = self.checkpoint.restore({f"model/{n}": s for n, s in mine.items()}, partial=True)
        arrays = {name.removeprefix("model/"): array for name, array in read.items()}
        return arrays | (self.base.parameters(rest) if self.base and rest else {})

    def read(self, *names: str) -> dict[str, np.ndarray]:
        """Parameters on the host, by their single-layer names; the base's where it is not tuned.

        Raises:
          ValueError: no such parameter.
        """
        own = self.checkpoint.checksums("model/")
        mine = [name for name in names if name in own or self.base is None]
        read = self.checkpoint.read(*(f"model/{name}" for name in mine))
        arrays = {name.removeprefix("model/"): array for name, array in read.items()}
        rest = [name for name in names if name not in arrays]
        return arrays | (self.base.read(*rest) if self.base and rest else {})


def open_run(path: str | os.PathLike[str], base: str | None = None) -> Run:
    """Opens a run's folder or one of its checkpoints.

    Args:
      base: where the base is now, if it moved since the run was tuned.

    Raises:
      FileNotFoundError: no checkpoint there, or the base is gone.
      ValueError: the base is not the one that the run was tuned on.
    """
    saved = open_checkpoint(path)
    metadata = saved.metadata()
    where = f"{saved.path}: metadata"
    experiment = metadata["experiment"]
    if experiment is not None:
        experiment = schema.build(Experiment, experiment, f"{where}.experiment")
    model = schema.build(ModelConfig, metadata["model"], f"{where}.model")
    below = None
    if metadata["base"] is not None:
        place = base or metadata["base"]["path"]
        try:
            below = open_run(place)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{saved.path} was tuned on the base {place}, which is gone ({error}); "
                "say where it is now with --base"
            ) from error
        if below.fingerprint != metadata["base"]["fingerprint"]:
            raise ValueError(
                f"{saved.path} was tuned on a base with fingerprint "
                f"{metadata['base']['fingerprint'][:16]}, but {place} has "
                f"{below.fingerprint[:16]}: it is another model, or another step of it"
            )
    method = method_of(metadata, str(saved.path))
    text, name = saved.files()[TOKENIZER].decode(), f"{saved.path}: {TOKENIZER}"
    words = tokenizers.from_json(text, name, **metadata.get("roles", {}))
    words.chat_template = chat_template.find_template(saved.files())
    return Run(saved, experiment, model, words, below, method, metadata.get("imported"))


def method_of(metadata: Mapping[str, Any], path: str) -> Method:
    """The method that a checkpoint's metadata speaks of.

    Raises:
      ValueError: it is none of this version's.
    """
    method = metadata.get("method") or (metadata["experiment"] or {}).get("method")
    if method is None:
        return methods.Full()
    return schema.build(MethodConfig, method, f"{path}: metadata.method", "Method")


def open_start(experiment: Experiment) -> tuple[Run | None, tokenizers.Tokenizer]:
    """The base that an experiment starts from, if there is one, and the tokenizer of its data.

    Raises:
      FileNotFoundError: one of them is not there.
      ValueError: the tokenizer is not the base's.
    """
    base = open_run(experiment.init_from) if experiment.init_from else None
    if not experiment.tokenizer:
        assert base is not None  # Experiment checks that one of the two is given
        return base, base.tokenizer
    whose = experiment.tokenizer
    is_run = storage.is_folder(whose)
    words = open_run(whose).tokenizer if is_run else tokenizers.load(whose)
    if base is None:
        return None, words
    if words.fingerprint() != base.tokenizer.fingerprint():
        raise ValueError(
            f"{experiment.tokenizer} is not the tokenizer of {experiment.init_from}: the "
            "base would read other words; leave `tokenizer` out"
        )
    return base, base.tokenizer  # it knows the base's chat template, which no tokenizer file does


def write(
    out: str | os.PathLike[str],
    like: Run,
    arrays: Mapping[str, Any],
    model: ModelConfig,
    *,
    method: Method | None = None,
    base: Run | None = None,
    experiment: Experiment | None = None,
    facts: Mapping[str, Any] | None = None,
    beside: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a model that was made of another without training, as a run's folder.

    Args:
      like: the run whose tokenizer and companions it keeps.
      arrays: its own parameters, by single-layer name.
      method, base: what the parameters are attached by, and to; neither for a whole model.
      experiment: what `like` was tuned by, if this is that model in another form: its template
        and its data are said by it.
      facts: what the metadata says beside that.
      beside: arrays that are no parameters.

    Returns:
      The step's folder.

    Raises:
      FileExistsError: there is a model already.
    """
    check_free(out)
    metadata = {
        "experiment": None if experiment is None else schema.to_dict(experiment),
        "model": schema.to_dict(model),
        "method": schema.to_dict(method or methods.Full()),
        "base": None
        if base is None
        else {"path": base.permanent_path, "fingerprint": base.fingerprint},
        "tokenizer": like.tokenizer.fingerprint(),
        "roles": like.tokenizer.roles,
        "imported": like.imported,
        "versions": library_versions(),
        **(facts or {}),
    }
    files = {**like.sidecar_files, TOKENIZER: like.tokenizer.to_json().encode()}
    folder = storage.absolute(out) / "model"
    with Checkpointer(folder, keep_last=1, asynchronous=False) as shelf:
        saved = {f"model/{name}": array for name, array in arrays.items()}
        step = like.checkpoint.step if experiment else 0
        shelf.save(step, {**saved, **(beside or {})}, metadata, files=files)
    return folder / str(step)


def check_free(out: str | os.PathLike[str]) -> None:
    """Refuses a run's folder that holds a model; what a killed program left does not count.

    Raises:
      FileExistsError: it does.
    """
    for shelf in (storage.absolute(out) / "model", storage.absolute(out) / "checkpoints"):
        if storage.is_folder(shelf) and not all(
            LEFTOVER.fullmatch(path.name) for path in shelf.iterdir()
        ):
            raise FileExistsError(f"{out} holds a model already; choose another folder")


def check_parameters(run: Run) -> None:
    """Refuses a run whose own arrays are not those that its method leaves on its base.

    Raises:
      ValueError: arrays that are missing or too many, or of other shapes or types, by name.
    """
    shapes = methods.abstract(run.model, run.method, methods.single_layers(run.model))
    trains = set(tree.unstack_shapes(_only(shapes, methods.trainable(shapes, run.method))))
    below = run.base.checksums() if run.base else {}
    every = tree.unstack_shapes(tree.flatten(shapes))
    wanted = {name: s for name, s in every.items() if name not in below or name in trains}
    own = run.checkpoint.checksums("model/")
    tree.check_names(wanted, own, f"{run.checkpoint.path}: arrays of {run.method.kind}")
    for name, shape in wanted.items():
        if (own[name].shape, own[name].dtype) != (shape.shape, str(shape.dtype)):
            raise ValueError(
                f"{run.checkpoint.path}: {name} is {own[name].dtype} {list(own[name].shape)}; "
                f"{run.method.kind} leaves {shape.dtype} {list(shape.shape)} there"
            )


def _only(shapes: Transformer, names: Iterable[str]) -> dict[str, Any]:
    flat = tree.flatten(shapes)
    return {name: flat[name] for name in names}


def measured_fingerprint(run: Run) -> str:
    """The fingerprint of what lies in the run's files now: every array is read again.

    Raises:
      CheckpointError: a file is missing, cut short or changed.
    """
    found = [fingerprint.checksums(run.read(name)) for name in run.checksums()]
    return fingerprint.combine({name: one for each in found for name, one in each.items()})


def load_model(run: Run, mesh: jax.sharding.Mesh, rules: sharding.Rules) -> Transformer:
    """The run's model with everything attached, sharded over the mesh.

    Raises:
      ValueError: the run's arrays are not those of its method.
    """
    check_parameters(run)
    return read_model(methods.abstract(run.model, run.method), run.parameters, mesh, rules)


def read_model(
    shapes: Transformer, read: Read, mesh: jax.sharding.Mesh, rules: sharding.Rules
) -> Transformer:
    """An abstract model with arrays, sharded over the mesh; `read` gives single layers."""
    flat = tree.flatten(shapes)
    placed = sharding.shardings(tree.parameter_axes(shapes), flat, mesh, rules)
    return tree.unflatten(shapes, restore_stacked(flat, placed, read))


def restore_stacked(flat: Mapping[str, Any], placed: Mapping[str, Any], read: Read) -> Arrays:
    """Reads single layers with `read(abstract) -> arrays` and stacks them under `flat`'s names."""
    singles = single_layers(flat, placed)
    stack = _stacking(tuple(flat))
    return jax.jit(stack, out_shardings={name: placed[name] for name in flat})(read(singles))


@functools.cache  # JAX knows a program again by its function
def _stacking(names: tuple[str, ...]) -> Callable[[Arrays], Arrays]:
    return functools.partial(tree.restack, names=names)


def single_layers(
    flat: Mapping[str, Any], placed: Mapping[str, Any]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Abstract single layers of (stacked) shapes, on the shardings that the stacks have."""
    singles = {}
    for name, shape in flat.items():
        names = tree.layer_names(name)
        stacked = tree.is_stacked(name)
        where = sharding.layer_shardings(names, placed[name]) if stacked else {name: placed[name]}
        for single in names:
            form = shape.shape[1:] if stacked else shape.shape
            singles[single] = jax.ShapeDtypeStruct(form, shape.dtype, sharding=where[single])
    return singles


def unstack_for_saving(arrays: Arrays) -> Arrays:
    """Stacked arrays -> single layers, on the shardings that the stacks have."""
    placed: dict[str, jax.sharding.Sharding] = {}
    for name, array in arrays.items():
        names = tree.layer_names(name)
        if tree.is_stacked(name):
            placed |= sharding.layer_shardings(names, array.sharding)
        else:
            placed[name] = array.sharding
    return jax.jit(tree.unstack, out_shardings=placed)(arrays)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes a JSON file whole or not at all; numbers that are not finite become null."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False)
    storage.write_whole(path, text + "\n")


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
