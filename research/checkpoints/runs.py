"""A run's folder: its checkpoint, metadata and tokenizer, and the model read from them.

A run that trained everything holds a whole model. A tuned run holds what was attached or trained
and names its base by path and fingerprint; opening it opens the base too, and refuses another one.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from research import methods, sharding, tree
from research.checkpoints import fingerprint
from research.checkpoints.best import open_best
from research.checkpoints.checkpoint import Checkpoint
from research.checkpoints.checkpointer import (
    Checkpointer,
    library_versions,
    open_checkpoint,
)
from research.checkpoints.removal import LEFTOVER
from research.checkpoints.stacking import restore_model
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


@dataclasses.dataclass(frozen=True)
class Run:
    """A checkpoint and what its metadata describes: model, tokenizer, method and base."""

    checkpoint: Checkpoint
    # None: the model was imported, not trained here
    experiment: Experiment | None
    model: ModelConfig
    tokenizer: tokenizers.Tokenizer
    base: Run | None
    # what is attached to the model
    method: Method
    # where the model, or the base it was tuned from, was imported from; None: trained from random
    origin: Mapping[str, Any] | None

    @property
    def path(self) -> epath.Path:
        """The checkpoint's folder."""
        return self.checkpoint.path

    @property
    def sidecar_files(self) -> dict[str, bytes]:
        """Files of an imported model beside the tokenizer: chat template, generation config."""
        files = self.checkpoint.files()
        return {name: content for name, content in files.items() if name != TOKENIZER}

    @property
    def context_length(self) -> int:
        """Tokens of a text that the model was made for: the places it has, or what its makers say,
        or the rows that it was trained on."""
        makers = json.loads(self.sidecar_files.get("config.json", b"{}"))
        trained_length = self.experiment.data.sequence_length if self.experiment else 2048
        says = int(makers.get("max_position_embeddings") or trained_length)
        return self.model.learned_positions or says

    def checksums(self) -> dict[str, fingerprint.Checksum]:
        """The checksum of every parameter, the base's included; reads no array."""
        base_checksums = self.base.checksums() if self.base else {}
        return base_checksums | self.checkpoint.checksums("model/")

    @functools.cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the whole model: names, shapes, types and bits of all parameters."""
        return fingerprint.combine(self.checksums())

    @property
    def permanent_path(self) -> str:
        """The folder of the finished model, which pruning never removes; else the checkpoint's."""
        path = self.checkpoint.path
        finished = path.parent.parent / "model" / path.name
        return str(finished if finished.exists() else path)

    def restore(self, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Arrays:
        """Reads single-layer parameters, each onto the sharding that its abstract array has.

        Raises:
          ValueError: names or shapes that the run does not have.
        """
        own_names, base_names = self._split(abstract)
        own = {f"model/{name}": abstract[name] for name in own_names}
        arrays = _without_prefix(self.checkpoint.restore(own, partial=True))
        if self.base and base_names:
            arrays |= self.base.restore({name: abstract[name] for name in base_names})
        return arrays

    def read(self, *names: str) -> dict[str, np.ndarray]:
        """Reads parameters on the host, by their single-layer names; the base's where not tuned.

        Raises:
          ValueError: no such parameter.
        """
        own_names, base_names = self._split(names)
        arrays = _without_prefix(self.checkpoint.read(*(f"model/{name}" for name in own_names)))
        return arrays | (self.base.read(*base_names) if self.base and base_names else {})

    def _split(self, names: Iterable[str]) -> tuple[list[str], list[str]]:
        """The names that this run's own checkpoint has, and those that its base has."""
        if self.base is None:
            return list(names), []
        own = self.checkpoint.checksums("model/")
        names = list(names)
        return [n for n in names if n in own], [n for n in names if n not in own]


def _without_prefix(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("model/"): array for name, array in arrays.items()}


def open_run(path: str | os.PathLike[str], base: str | None = None) -> Run:
    """Opens a run's folder, one of its checkpoints, or RUN/best, the best of them.

    Args:
      base: where the base is now, if it moved since the run was tuned.

    Raises:
      FileNotFoundError: no checkpoint there, or the base is gone.
      CheckpointError: a file of it is missing or damaged.
      ValueError: the base is not the one that the run was tuned on, or the folder's number is not
        that of the step in it.
    """
    checkpoint = open_best(path) or open_checkpoint(path)
    metadata = checkpoint.metadata()
    checkpoint.check_step()
    where = f"{checkpoint.path}: metadata"
    with checkpoint.errors_in("metadata.json"):
        experiment, model, recorded_base = (
            metadata[name] for name in ("experiment", "model", "base")
        )
        origin, roles = metadata.get("imported"), dict(metadata.get("roles", {}))
        if recorded_base is not None:
            recorded_base = {name: str(recorded_base[name]) for name in ("path", "fingerprint")}
    if experiment is not None:
        experiment = schema.build(Experiment, experiment, f"{where}.experiment")
    return Run(
        checkpoint=checkpoint,
        experiment=experiment,
        model=schema.build(ModelConfig, model, f"{where}.model"),
        tokenizer=_read_tokenizer(checkpoint, roles, metadata, experiment),
        base=_open_base(checkpoint, recorded_base, base),
        method=method_of(metadata, str(checkpoint.path)),
        origin=origin,
    )


def _read_tokenizer(
    checkpoint: Checkpoint,
    roles: Mapping[str, str],
    metadata: Mapping[str, Any],
    experiment: Experiment | None,
) -> tokenizers.Tokenizer:
    """The tokenizer of a checkpoint, with its chat template.

    Raises:
      CheckpointError: one of their files is missing or damaged.
    """
    files = checkpoint.files()
    with checkpoint.errors_in(TOKENIZER):
        tokenizer = tokenizers.from_json(files[TOKENIZER].decode(), TOKENIZER, **roles)
    for name, content in files.items():
        if name.endswith(".json"):
            with checkpoint.errors_in(name):
                dict(json.loads(content))
    template_names = [n for n in (chat_template.TEMPLATE, chat_template.SETTINGS) if n in files]
    with checkpoint.errors_in((template_names or [TOKENIZER])[0]):
        tokenizer.chat_template = chat_template.find_template(files)
        tokenizer.tool_template = chat_template.find_tool_template(files)
        tokenizer.template_tokens = _template_tokens(files, tokenizer, metadata, experiment)
    return tokenizer


def _template_tokens(
    files: Mapping[str, bytes],
    tokenizer: tokenizers.Tokenizer,
    metadata: Mapping[str, Any],
    experiment: Experiment | None,
) -> dict[str, str]:
    """The special tokens that a run's templates see. Those of old do not record them: what was
    trained on conversations then goes on with a token of a role for each that its files lack."""
    if "template_tokens" in metadata:
        return dict(metadata["template_tokens"])
    if experiment is None:
        is_tuned = "method" in metadata
    else:
        is_tuned = experiment.data.objective.kind == "chat"
    if {chat_template.SETTINGS, "config.json"} & set(files) and not is_tuned:
        return chat_template.find_tokens(files, tokenizer.named_tokens)
    return tokenizer.template_tokens | chat_template.find_tokens(files)


def _open_base(
    checkpoint: Checkpoint, recorded: Mapping[str, str] | None, path: str | None
) -> Run | None:
    """The base that a checkpoint's metadata records, at `path` if it has moved.

    Raises:
      FileNotFoundError, ValueError: as `open_run` does.
    """
    if recorded is None:
        if path is not None:
            raise ValueError(
                f"{checkpoint.path} is a whole model, not an adapter of a base such as {path}"
            )
        return None
    path = path or recorded["path"]
    try:
        base = open_run(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{checkpoint.path} was tuned on the base {path}, which is gone ({error}); "
            "say where it is now with --base"
        ) from error
    if base.fingerprint != recorded["fingerprint"]:
        raise ValueError(
            f"{checkpoint.path} was tuned on a base with fingerprint "
            f"{recorded['fingerprint'][:16]}, but {path} has "
            f"{base.fingerprint[:16]}: it is another model, or another step of it"
        )
    return base


def method_of(metadata: Mapping[str, Any], path: str) -> Method:
    """The method that a checkpoint's metadata records.

    Raises:
      ValueError: this version has no such method.
    """
    method = metadata.get("method") or (metadata.get("experiment") or {}).get("method")
    if method is None:
        return methods.Full()
    return schema.build(MethodConfig, method, f"{path}: metadata.method", "Method")


def open_base_and_tokenizer(experiment: Experiment) -> tuple[Run | None, tokenizers.Tokenizer]:
    """The base that an experiment starts from, if there is one, and the tokenizer of its data.

    Raises:
      FileNotFoundError: one of them is not there.
      ValueError: the tokenizer is not the base's.
    """
    base = open_run(experiment.init_from) if experiment.init_from else None
    if not experiment.tokenizer:
        assert base is not None  # Experiment checks that one of the two is given
        return base, base.tokenizer
    path = experiment.tokenizer
    tokenizer = open_run(path).tokenizer if storage.is_folder(path) else tokenizers.load(path)
    if base is None:
        return None, tokenizer
    if tokenizer.fingerprint() != base.tokenizer.fingerprint():
        raise ValueError(
            f"{experiment.tokenizer} is not the tokenizer of {experiment.init_from}: the "
            "base would read other words; leave `tokenizer` out"
        )
    return base, base.tokenizer  # with the base's chat template, which a tokenizer file lacks


def write(
    out: str | os.PathLike[str],
    like: Run,
    arrays: Mapping[str, Any],
    model: ModelConfig,
    *,
    method: Method | None = None,
    base: Run | None = None,
    experiment: Experiment | None = None,
    extra_metadata: Mapping[str, Any] | None = None,
    extra_arrays: Mapping[str, Any] | None = None,
    tokenizer: tokenizers.Tokenizer | None = None,
    sidecar_files: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes a model that was derived from another without training, as a run's folder.

    Args:
      like: the run whose tokenizer and sidecar files it keeps.
      arrays: its own parameters, by single-layer name.
      method, base: what the parameters are attached by, and to; neither for a whole model.
      experiment: the experiment that trained `like`, if this is that model in another form; it
        records the template and the data.
      extra_metadata: entries of the metadata beside the usual ones.
      extra_arrays: arrays that are not parameters.
      tokenizer, sidecar_files: in place of those of `like`.

    Returns:
      The step's folder.

    Raises:
      FileExistsError: there is a model already.
    """
    check_free(out)
    tokenizer = tokenizer or like.tokenizer
    metadata = {
        "experiment": None if experiment is None else schema.to_dict(experiment),
        "model": schema.to_dict(model),
        "method": schema.to_dict(method or methods.Full()),
        "base": None
        if base is None
        else {"path": base.permanent_path, "fingerprint": base.fingerprint},
        "tokenizer": tokenizer.fingerprint(),
        "roles": tokenizer.roles,
        "template_tokens": tokenizer.template_tokens,
        "imported": like.origin,
        "versions": library_versions(),
        **(extra_metadata or {}),
    }
    sidecar_files = like.sidecar_files if sidecar_files is None else sidecar_files
    files = {**sidecar_files, TOKENIZER: tokenizer.to_json().encode()}
    folder = storage.absolute(out) / "model"
    step = like.checkpoint.step if experiment else 0
    parameters = {f"model/{name}": array for name, array in arrays.items()}
    with Checkpointer(folder, keep_last=1, asynchronous=False) as checkpointer:
        checkpointer.save(step, {**parameters, **(extra_arrays or {})}, metadata, files=files)
    return folder / str(step)


def check_free(out: str | os.PathLike[str]) -> None:
    """Refuses a run's folder that holds a model; leftovers of a killed save do not count.

    Raises:
      FileExistsError: the folder holds a model.
    """
    for folder in (storage.absolute(out) / "model", storage.absolute(out) / "checkpoints"):
        if storage.is_folder(folder) and not all(
            LEFTOVER.fullmatch(path.name) for path in folder.iterdir()
        ):
            raise FileExistsError(f"{out} holds a model already; choose another folder")


def check_parameters(run: Run) -> None:
    """Refuses a run whose own arrays are not those of its method.

    Raises:
      ValueError: arrays that are missing or too many, or of other shapes or types, by name.
    """
    model = methods.abstract(run.model, run.method, methods.single_layers(run.model))
    leaves = tree.flatten(model)
    trainable = {name: leaves[name] for name in methods.trainable(model, run.method)}
    trainable_names = set(tree.unstack_shapes(trainable))
    base_names = run.base.checksums() if run.base else {}
    expected = {
        name: shape
        for name, shape in tree.unstack_shapes(leaves).items()
        if name not in base_names or name in trainable_names
    }
    own = run.checkpoint.checksums("model/")
    tree.check_names(expected, own, f"{run.checkpoint.path}: arrays of {run.method.kind}")
    for name, shape in expected.items():
        if (own[name].shape, own[name].dtype) != (shape.shape, str(shape.dtype)):
            raise ValueError(
                f"{run.checkpoint.path}: {name} is {own[name].dtype} {list(own[name].shape)}; "
                f"{run.method.kind} leaves {shape.dtype} {list(shape.shape)} there"
            )


def recompute_fingerprint(run: Run) -> str:
    """The fingerprint of the content of the run's files now: reads every array again.

    Raises:
      CheckpointError: a file is missing, cut short or changed.
    """
    checksums: dict[str, fingerprint.Checksum] = {}
    for name in run.checksums():
        checksums |= fingerprint.checksums(run.read(name))
    return fingerprint.combine(checksums)


def load_model(run: Run, mesh: jax.sharding.Mesh, rules: sharding.Rules) -> Transformer:
    """Reads the run's model with everything attached, sharded over the mesh.

    Raises:
      ValueError: the run's arrays are not those of its method.
    """
    check_parameters(run)
    abstract_model = methods.abstract(run.model, run.method)
    return restore_model(abstract_model, run.restore, mesh, rules)
