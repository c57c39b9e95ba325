"""Imports models of other projects as folders that runs start from, tensor by tensor.

Parameters are float32 in Graft, so the numbers of any type that is read are kept exactly. Each
device reads its own part of each tensor from the mapped file; beyond its share of the model, the
host holds one tensor at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from research import sharding
from research.checkpoints import runs
from research.checkpoints.checkpointer import Checkpointer, library_versions
from research.config import schema
from research.interop import folder_contents, huggingface, tokenizer_settings
from research.interop.family import Family, Source, parameter_shapes
from research.interop.fields import UnsupportedModelError, refuse_malformed
from research.interop.gguf import files as gguf_files
from research.interop.tensor_files import NotFiniteError, Tensors, to_array
from research.models.config import ModelConfig
from research.runtime import storage
from research.text import chat_template, tokenizer_checks
from research.text import tokenizer as tokenizer_lib
from research.text.tokenizer import Tokenizer

TOKENIZER = "tokenizer.json"


class ExternalModel(Protocol):
    """A model in another project's format, opened and checked."""

    @property
    def path(self) -> Path: ...
    @property
    def family(self) -> Family: ...
    @property
    def config(self) -> ModelConfig: ...
    @property
    def tensors(self) -> Tensors: ...
    @property
    def sources(self) -> Mapping[str, Source]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def dtypes(self) -> dict[str, str]: ...
    @property
    def facts(self) -> dict[str, str]: ...
    @property
    def notes(self) -> tuple[str, ...]:
        """What its files say that is not read, or read otherwise than they say."""

    def files(self) -> dict[str, bytes]:
        """`config.json`, the tokenizer and what belongs to it, as transformers names them."""


def open_model(path: str | Path, pre_tokenizer: str | None = None) -> ExternalModel:
    """Opens a model's folder or file, whichever lies at a path.

    Args:
      pre_tokenizer: of a GGUF file that does not say it, llama.cpp's name for how its tokenizer
        cuts text.

    Raises:
      FileNotFoundError: there is nothing.
      UnsupportedModelError: it is nothing that Graft reads.
    """
    path = storage.require_local(path, "the model")
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    if (path / folder_contents.ADAPTER).is_file() and not (path / huggingface.CONFIG).is_file():
        raise UnsupportedModelError(f"{path} is {folder_contents.IS_ADAPTER}")
    gguf_names = sorted(file.name for file in path.glob("*.gguf")) if path.is_dir() else []
    if gguf_names and not (path / huggingface.CONFIG).is_file():
        more = f" or another of {len(gguf_names)}" if len(gguf_names) > 1 else ""
        raise UnsupportedModelError(f"{path} holds GGUF files: give {path / gguf_names[0]}{more}")
    if pre_tokenizer and not path.is_file():
        raise UnsupportedModelError(f"{path} is no GGUF file: its {TOKENIZER} says how text is cut")
    with refuse_malformed(str(path)):
        if path.is_file():
            return gguf_files.open_file(path, pre_tokenizer)
        return huggingface.open_folder(path)


def load_tokenizer(model: ExternalModel) -> Tokenizer:
    """The model's tokenizer with the roles that its files give it, and its chat template.

    Raises:
      UnsupportedModelError: it has none that Graft reads, one with more tokens than the model, or
        a sidecar file or a template that is none.
    """
    with refuse_malformed(f"{model.path}: the tokenizer"):
        files = model.files()
    if TOKENIZER not in files:
        raise UnsupportedModelError(
            f"{model.path} has no {TOKENIZER}; transformers writes one with "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    where = f"{model.path}: {TOKENIZER}"
    tokenizer = read_tokenizer(files, where)
    if tokenizer.vocabulary_size > model.config.vocabulary:
        raise UnsupportedModelError(
            f"{where} has {tokenizer.vocabulary_size} tokens, the embedding only "
            f"{model.config.vocabulary} rows"
        )
    sidecar_files = {name: content for name, content in files.items() if name != TOKENIZER}
    check_sidecar_files(sidecar_files, str(model.path))
    tokenizer.chat_template = chat_template.find_template(files)
    tokenizer.tool_template = chat_template.find_tool_template(files)
    return tokenizer


def read_tokenizer(files: Mapping[str, bytes], where: str) -> Tokenizer:
    """The tokenizer among a model's files, with the roles that they give it.

    Raises:
      UnsupportedModelError: what cannot be read.
    """
    with refuse_malformed(where):
        text = files[TOKENIZER].decode()
        roles = _roles(files, where)
        tokenizer = tokenizer_lib.from_json(text, where, **roles)
        tokenizer_settings.check_listed_tokens(files, tokenizer, where)
        if tokens := tokenizer_settings.find_changes(files, tokenizer):
            backend = tokenizer_lib.tokenizers.Tokenizer.from_str(text)
            backend.add_tokens(tokens)
            tokenizer = Tokenizer(backend, **roles)
        tokenizer_settings.check_spaces(files, tokenizer, where)
        tokenizer_settings.check_ends(files, tokenizer, where)
    try:
        tokenizer_checks.check(text, tokenizer.tokens(), where)
    except ValueError as error:
        raise UnsupportedModelError(str(error)) from None
    if chat_template.read_settings(files).get("split_special_tokens"):
        raise UnsupportedModelError(
            f"{where}: {chat_template.SETTINGS} beside it says split_special_tokens: transformers "
            "then reads the special tokens of a chat template as plain text, and Graft does not. "
            "Take it out, or write false"
        )
    tokenizer.template_tokens = chat_template.find_tokens(files, tokenizer.named_tokens)
    return tokenizer


def import_model(
    model: ExternalModel,
    out: str | Path,
    on_parameter: Callable[[str, int], None] = lambda name, size: None,
) -> Path:
    """Writes a model as a run's folder, which `init_from`, `generate` and `evaluate` take.

    Args:
      on_parameter: called after each parameter with its name and its bytes.

    Returns:
      The step's folder.

    Raises:
      UnsupportedModelError: the tokenizer does not fit.
      FileExistsError: there is a model already.
    """
    runs.check_free(out)
    tokenizer, files = load_tokenizer(model), dict(model.files())
    files.pop(TOKENIZER)
    start = time.monotonic()
    arrays: dict[str, jax.Array] = {}
    for name, array in read_parameters(
        model, sharding.shard_any_axis(parameter_shapes(model.config))
    ):
        arrays[name] = array
        on_parameter(name, array.nbytes)
    metadata = {
        "experiment": None,
        "model": schema.to_dict(model.config),
        "base": None,
        "tokenizer": tokenizer.fingerprint(),
        "roles": tokenizer.roles,
        "template_tokens": tokenizer.template_tokens,
        "imported": {
            "family": model.family.kind,
            "source": model.path.name,
            "dtype": model.dtype,
            "dtypes": model.dtypes,
            **model.facts,
            "notes": [*model.notes, *tokenizer.notes],
            "seconds": time.monotonic() - start,
        },
        "versions": library_versions(),
    }
    folder = storage.absolute(out) / "model"
    with Checkpointer(folder, keep_last=1, asynchronous=False) as checkpointer:
        checkpointer.save(
            0,
            {f"model/{name}": array for name, array in arrays.items()},
            metadata,
            files={**files, runs.TOKENIZER: tokenizer.to_json().encode()},
        )
    return folder / "0"


def read_parameters(
    model: ExternalModel, shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> Iterator[tuple[str, jax.Array]]:
    """Parameters by single-layer name, float32, each on the sharding that its shape carries.

    Raises:
      UnsupportedModelError: numbers that are not finite.
    """
    for name, shape in shapes.items():
        try:
            yield name, to_array(model.tensors, model.sources[name], shape, np.float32)
        except NotFiniteError as error:
            raise UnsupportedModelError(f"{model.path}: {error}") from None


def check_numbers(model: ExternalModel) -> None:
    """Reads every parameter, keeps none.

    Raises:
      UnsupportedModelError: one holds numbers that are not finite.
    """
    for _ in read_parameters(model, sharding.shard_any_axis(parameter_shapes(model.config))):
        pass


def check_sidecar_files(files: Mapping[str, bytes], where: str) -> None:
    """Refuses what would fail when it is used.

    Raises:
      UnsupportedModelError: a file that is no JSON object, or a template that is none.
    """
    for name in files:
        if name.endswith(".json"):
            tokenizer_settings.json_object(files, name, where)
    with refuse_malformed(f"{where}: the chat template"):
        _check_templates(files, where)
        for template in (
            chat_template.find_template(files),
            chat_template.find_tool_template(files),
            *chat_template.find_named(files).values(),
        ):
            if template is not None:
                chat_template.check_compiles(template)


def _check_templates(files: Mapping[str, bytes], where: str) -> None:
    """Refuses templates of which another project takes others than Graft would."""
    templates, folder = chat_template.find_named(files), chat_template.ADDITIONAL
    if "default" in templates:
        raise UnsupportedModelError(
            f"{where}: {folder}/default.jinja, which transformers takes instead of "
            f"{chat_template.TEMPLATE}: write it there"
        )
    if templates and chat_template.TEMPLATE not in files:
        raise UnsupportedModelError(
            f"{where}: {folder} without a {chat_template.TEMPLATE} beside it: transformers then "
            f"has no template for all other conversations, whatever {chat_template.SETTINGS} says. "
            "Write that one there too"
        )
    is_file = chat_template.TEMPLATE in files and chat_template.TOOLS not in files
    if is_file and chat_template.find_tool_template(files) is not None:
        raise UnsupportedModelError(
            f"{where}: {chat_template.SETTINGS} has a template tool_use, which transformers does "
            f"not read beside {chat_template.TEMPLATE}: write it to {folder}/tool_use.jinja, or "
            "take it out"
        )


def template_note(tokenizer: Tokenizer) -> str | None:
    """What a tokenizer's chat template answers where it does not write a question; it may have a
    reason, such as a system's message that it needs."""
    if tokenizer.chat_template is None:
        return None
    question = {"role": "user", "content": "?"}
    try:
        chat_template.render(tokenizer.chat_template, [question], tokenizer.template_tokens)
    except ValueError as error:
        return f"of a user's question alone, {error}"
    return None


def _roles(files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """The special tokens that begin, end and pad a text; where a model names none for beginning or
    padding, the end of the text before it serves, as in pretraining."""
    for name in (chat_template.SETTINGS, chat_template.TOKEN_NAMES):
        tokenizer_settings.json_object(files, name, where)
    token_names = chat_template.read_settings(files)
    token_ids = tokenizer_settings.json_object(files, huggingface.CONFIG, where)
    backend = tokenizer_lib.tokenizers.Tokenizer.from_str(files[TOKENIZER].decode())

    def token(role: str) -> str | None:
        name = token_names.get(f"{role}_token")
        name = name.get("content") if isinstance(name, dict) else name
        number = token_ids.get(f"{role}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if name is not None and not isinstance(name, str):
            raise UnsupportedModelError(f"{where}: {role}_token is no text: {name!r:.40}")
        return name or (backend.id_to_token(number) if isinstance(number, int) else None)

    end = token("eos")
    if end is None:
        raise UnsupportedModelError(f"{where}: no file beside it says which token ends a text")
    begin = token("bos")
    begin_id = None if begin is None else backend.token_to_id(begin)
    opens = tokenizer_settings.begins_with(begin_id, backend, where)
    return {"begin": begin or end, "end": end, "pad": token("pad") or end, "opens": opens}
