"""Model folders of transformers: `config.json`, safetensors, tokenizer, chat template."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.interop import (
    config_keys,
    folder_contents,
    generation_config,
    quantized_folders,
    score_heads,
    tensor_files,
)
from research.interop.families import FAMILIES
from research.interop.family import (
    Family,
    Source,
    check_layers,
    check_tensors,
    family_for_model,
    parameter_shapes,
    sources,
)
from research.interop.fields import Fields, UnsupportedModelError
from research.interop.score_heads import ScoreHead
from research.models.config import ModelConfig
from research.runtime import unique_json
from research.runtime.files import check_inside
from research.text import chat_template

CONFIG = "config.json"
# what transformers keeps beside the weights; a run keeps it as it is, for the export
SIDECAR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
)
_MODULES = "modules.json"
_LARGEST_TEXT = 100 * 2**20
# rows compared at a time
_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class HuggingFaceModel:
    """A folder, checked: its tensors are those of its config.

    Attributes:
      content: `config.json`.
      sources: where each parameter stands, by single-layer name.
      notes: what in the folder is not read, or otherwise than its config says.
    """

    path: Path
    family: Family
    config: ModelConfig
    content: Mapping[str, Any]
    tensors: tensor_files.SafeTensors
    sources: Mapping[str, Source]
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """The type of most tensors, `float32`, `float16` or `bfloat16`."""
        kinds = [self.tensors.dtypes[source.name] for source in self.sources.values()]
        return str(tensor_files.DTYPES[max(set(kinds), key=kinds.count)])

    @property
    def dtypes(self) -> dict[str, str]:
        """The types of parameters that have another one, by single-layer name."""
        dtypes = {
            name: str(tensor_files.DTYPES[self.tensors.dtypes[source.name]])
            for name, source in self.sources.items()
        }
        return {name: dtype for name, dtype in dtypes.items() if dtype != self.dtype}

    @property
    def facts(self) -> dict[str, str]:
        """The licence that the folder's own card states."""
        card = self.path / "README.md"
        text = read_text(card) if card.is_file() else ""
        match = re.search(r"\A---\n(?:.*\n)*?license: *(\S+)", text)
        return {"licence": match[1]} if match else {}

    def files(self) -> dict[str, bytes]:
        """The config and the sidecar files, as far as they exist; an import copies them.

        Raises:
          LinkError: one is a link out of the model, and would bring another file into the run.
        """
        paths = {CONFIG: self.path / CONFIG} | sidecar_paths(self.path)
        # a download of the Hub links from snapshots/REVISION to blobs/
        is_snapshot = self.path.absolute().parent.name == "snapshots"
        root = self.path.absolute().parents[1] if is_snapshot else self.path
        for path in paths.values():
            check_inside(path, root)
        return {name: read_text(path).encode() for name, path in paths.items()}


def sidecar_paths(folder: Path) -> dict[str, Path]:
    """Where a folder has the sidecar files, by the names that a run keeps them under.

    Raises:
      UnsupportedModelError: a chat template with a name that no file of a run can have.
    """
    paths = {name: folder / name for name in SIDECAR_FILES if (folder / name).is_file()}
    for path in sorted((folder / chat_template.ADDITIONAL).glob("*.jinja")):
        try:
            paths[chat_template.named_file(path.name.removesuffix(".jinja"))] = path
        except ValueError as error:
            raise UnsupportedModelError(f"{folder}: {error}") from None
    return paths


def write_sidecar_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes a run's sidecar files where transformers reads them.

    Raises:
      ValueError: one is no file of a model's folder.
    """
    paths = {name: folder / name for name in SIDECAR_FILES}
    for name in chat_template.find_named(files):
        paths[chat_template.named_file(name)] = folder / chat_template.ADDITIONAL / f"{name}.jinja"
    for name, content in files.items():
        if name not in paths:
            raise ValueError(f"{name} is no file of a model folder")
        paths[name].parent.mkdir(exist_ok=True)
        paths[name].write_bytes(content)


def open_folder(path: str | Path) -> HuggingFaceModel:
    """Opens a folder and checks that it holds exactly the model of its config.

    Raises:
      FileNotFoundError: no such folder or no config in it.
      UnsupportedModelError: an unknown architecture, fields or tensors that do not fit.
    """
    path = Path(path)
    where = path / CONFIG
    if not where.is_file():
        raise FileNotFoundError(f"{path} has no {CONFIG}: no model folder of transformers")
    content = read_json(where)
    folder_contents.check(path)
    quantized_folders.check_folder(path)
    family = find_family(content, str(where))
    config = read_config(family, content, str(where))
    tensors = tensor_files.SafeTensors(path)
    quantized_folders.check_tensors(tensors.dtypes, str(path))
    notes = generation_config.read_notes(path, config.vocabulary, read_json, content)
    if unread := folder_contents.unread_weights(path, tensors.paths):
        notes.append(f"{', '.join(unread)}: other copies of weights, not read")
    prefix = family.modules["embedding"].partition(".")[0] + "."
    if (path / _MODULES).is_file():
        notes.append(f"{_MODULES} names what sentence-transformers does behind the model: not read")
    if not any(name.startswith(prefix) for name in tensors.shapes):
        family = _without(prefix, family)  # saved as a model without a head
    check_layers(family, config.layers, tensors.shapes, str(path))
    if config.tie_embeddings and not _has_tied_head(family, tensors):
        config = dataclasses.replace(config, tie_embeddings=False)
        notes.append(
            "tie_word_embeddings is true, but the saved head differs from the table: the head is "
            "one of its own"
        )
    places = sources(family, parameter_shapes(config))
    check_tensors(family, places, tensors.shapes, config.tie_embeddings, str(path))
    for source in places.values():
        kind = tensors.dtypes[source.name]
        if kind not in tensor_files.DTYPES:
            types = ", ".join(tensor_files.DTYPES)
            advice = ""
            if kind == "F64":
                advice = ": float64 is finer than that; save the model with model.float()"
            raise UnsupportedModelError(
                f"{path}: {source.name} is of type {kind}; Graft reads {types}{advice}"
            )
    return HuggingFaceModel(path, family, config, content, tensors, places, tuple(notes))


def _has_tied_head(family: Family, tensors: tensor_files.SafeTensors) -> bool:
    """Whether a head that is saved beside the table, if one is, is the table; what transformers
    does since version 5, where it differs, is not to tie them."""
    table, head = (f"{family.modules[name]}.weight" for name in ("embedding", "head"))
    if head not in tensors.shapes or table not in tensors.shapes:
        return True
    if tensors.shapes[head] != tensors.shapes[table]:
        return False
    rows, *_ = tensors.shapes[table]
    for start in range(0, rows, _ROWS):
        region = slice(start, min(start + _ROWS, rows)), slice(None)
        rows_of = {
            name: np.asarray(tensors.read(name, region), np.float32) for name in (table, head)
        }
        if not np.array_equal(rows_of[table], rows_of[head]):
            return False
    return True


def find_family(content: Mapping[str, Any], where: str) -> Family:
    """The family of a `config.json`.

    Raises:
      UnsupportedModelError: none has it.
    """
    kind = content.get("model_type")
    if kind not in FAMILIES:
        raise UnsupportedModelError(
            f"{where}: model_type is {kind!r}; Graft knows {', '.join(FAMILIES)}"
        )
    quantized_folders.check_config(content, where)
    if content.get("auto_map"):
        raise UnsupportedModelError(f"{where}: auto_map asks for code from the folder; never run")
    family, names = FAMILIES[kind], content.get("architectures") or []
    head = r"(Text)?(ForCausalLM|LMHeadModel)$"
    stem = re.sub(head, "", family.architecture)
    lawful = {family.architecture, f"{stem}Model", f"{stem}TextModel"}
    if others := sorted(set(map(str, names)) - lawful):
        raise UnsupportedModelError(
            f"{where}: architectures is {others[0]!r}; Graft computes {family.architecture}"
        )
    return family


def read_config(family: Family, content: Mapping[str, Any], where: str) -> ModelConfig:
    """The shape that a `config.json` describes.

    Raises:
      UnsupportedModelError: it is no shape of the family's.
    """
    from research.config import schema

    try:
        fields = Fields(content, where)
        config = family.read(fields)
        config_keys.refuse_unread(fields, family.kind)
        return schema.build(ModelConfig, dataclasses.asdict(config), where)
    except UnsupportedModelError:
        raise
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UnsupportedModelError(f"{where}: {error}") from None


def write_folder(
    path: str | Path,
    config: ModelConfig,
    read_parameter: Callable[[str], np.ndarray],
    *,
    dtype: Any = np.float32,
    dtypes: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    kind: str | None = None,
    file_size: int = 5 * 10**9,
    head: ScoreHead | None = None,
) -> Iterator[str]:
    """Writes a model that transformers opens; yields the names of tensors as they are written.

    Args:
      config: its shape.
      read_parameter: gives one by its single-layer name; called for each when its turn comes.
      dtype: float32, float16 or bfloat16.
      dtypes: of parameters that have another one, by single-layer name.
      files: sidecar files; `config.json` among them gives what the shape does not say.
      kind: the family to prefer where several can say the same.
      file_size: bytes of a file at most.
      head: what stands in place of the vocabulary's.

    Raises:
      UnsupportedModelError: no architecture computes this model.
    """
    path, files = Path(path), dict(files or {})
    original = json.loads(files.pop(CONFIG, b"{}"))
    family, fields = family_for_model(config, FAMILIES, kind)
    places = written_places(family, config, head is not None)
    name = family.architecture if head is None else score_heads.architecture(family)
    content = {name: value for name, value in original.items() if name not in _DERIVED}
    content = content | fields | {
        "architectures": [name],
        "model_type": family.kind,
        "torch_dtype": str(np.dtype(dtype)),
        **(head.fields if head else {}),
    }  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    write_sidecar_files(path, files)
    (path / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shapes = {source.name: source.shape for source in places.values()}
    read_tensor = tensor_reader(places, read_parameter)
    if head is not None:
        weight, read_base = head.weight, read_tensor
        shapes[score_heads.TENSOR] = weight.shape

        def read_tensor(name: str) -> np.ndarray:
            return weight if name == score_heads.TENSOR else read_base(name)

    others = {places[name].name: other for name, other in (dtypes or {}).items() if name in places}
    yield from tensor_files.write(path, shapes, dtype, file_size, read_tensor, others)


def written_places(family: Family, config: ModelConfig, has_score: bool) -> dict[str, Source]:
    """Where each parameter of an export goes; with a head for classes there is no other."""
    shapes = parameter_shapes(config)
    if has_score:
        shapes.pop("head/kernel", None)
    return sources(family, shapes)


# fields of an imported config that the written ones replace
_DERIVED = ("rope_parameters", "rope_scaling", "dtype", "transformers_version", "_name_or_path")


def tensor_reader(
    places: Mapping[str, Source], read_parameter: Callable[[str], np.ndarray]
) -> Callable[[str], np.ndarray]:
    """A function that gives tensors by name, from one that gives parameters by name: transposed,
    and those that share a tensor side by side."""
    parts: dict[str, list[str]] = {}
    for name in sorted(places, key=lambda name: places[name].first):
        parts.setdefault(places[name].name, []).append(name)

    def read_tensor(name: str) -> np.ndarray:
        values = [read_parameter(part) for part in parts[name]]
        whole = values[0] if len(values) == 1 else np.concatenate(values, axis=-1)
        return whole.T if places[parts[name][0]].transposed else whole

    return read_tensor


def _without(prefix: str, family: Family) -> Family:
    """The family whose tensors have no such prefix."""
    modules = {ours: theirs.removeprefix(prefix) for ours, theirs in family.modules.items()}
    joined = {theirs.removeprefix(prefix): ours for theirs, ours in family.joined.items()}
    ignored = tuple(p.removeprefix(prefix.replace(".", r"\.")) for p in family.ignored)
    return dataclasses.replace(family, modules=modules, joined=joined, ignored=ignored)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      UnsupportedModelError: it is none.
    """
    try:
        content = unique_json.parse(read_text(path))
    except ValueError as error:
        raise UnsupportedModelError(f"{path} is no JSON that can be read: {error}") from None
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"{path} is no JSON object")
    return content


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
      UnsupportedModelError: it is too large to be one.
    """
    if path.stat().st_size > _LARGEST_TEXT:
        raise UnsupportedModelError(f"{path} is larger than any such file is")
    return path.read_text(encoding="utf-8", errors="replace")
