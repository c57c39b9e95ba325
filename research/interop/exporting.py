"""Exports runs as folders that other projects serve: adapters merged, layer by layer.

What goes to a bucket is written in the system's temporary folder (TMPDIR) first, then copied, the
file without which nothing opens the rest last.
"""

from __future__ import annotations

import contextlib
import errno
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers

from research.adapters.merging import Merged
from research.checkpoints.runs import Run
from research.interop import huggingface, score_heads
from research.interop.families import FAMILIES
from research.interop.family import Source, family_for_model
from research.runtime import files, storage
from research.text import chat_template
from research.text.tokenizer import Tokenizer


def export_huggingface(
    run: Run,
    out: str | Path,
    dtype: Any = None,
    card: str = "",
    on_tensor: Callable[[str], None] = lambda name: None,
    file_size: int = 5 * 10**9,
) -> None:
    """Writes a run's model, adapters merged, as transformers opens it.

    Args:
      dtype: float32, float16 or bfloat16; None: each parameter's own of an imported model, and
        float32 of others.
      card: the text of its README.md.
      on_tensor: called after each tensor with its name.
      file_size: bytes of a file at most.

    Raises:
      FileExistsError: the folder holds a model already.
      ValueError: no architecture of transformers computes the model.
    """
    read_parameter, origin = Merged(run, without_head=True), run.origin or {}
    head = score_heads.read_head(run)
    with whole_or_nothing(out) as folder:
        names = huggingface.write_folder(
            folder,
            run.model,
            read_parameter,
            dtype=dtype or origin.get("dtype", "float32"),
            dtypes=None if dtype else origin.get("dtypes"),
            files=sidecar_files(run) | _generation_config(run),
            kind=origin.get("family"),
            file_size=file_size,
            head=head,
        )
        for name in names:
            on_tensor(name)
        if card:
            (folder / "README.md").write_text(card, encoding="utf-8")


def plan_huggingface(run: Run) -> tuple[str, dict[str, Source]]:
    """Transformers' class for a run's model, and where each parameter goes, but for a head of its
    own for classes.

    Raises:
      UnsupportedModelError: no architecture of transformers computes the model.
    """
    family, _ = family_for_model(run.model, FAMILIES, (run.origin or {}).get("family"))
    has_score = score_heads.read_head(run) is not None
    name = score_heads.architecture(family) if has_score else family.architecture
    return name, huggingface.written_places(family, run.model, has_score)


@contextlib.contextmanager
def whole_or_nothing(out: str | Path, last: str = huggingface.CONFIG) -> Iterator[Path]:
    """A new folder that appears under its name only when the block ends well.

    Args:
      last: the file that makes it whole in a bucket, where files appear one by one.

    Raises:
      FileExistsError: it is there, and not empty.
      StorageError: the bucket refuses or does not answer.
    """
    check_free(out)
    if storage.is_remote(out):
        with tempfile.TemporaryDirectory(prefix="graft-export-") as name:
            with _full_disk_errors(out):
                yield Path(name)
            _copy(Path(name), out, last)
        return
    with _full_disk_errors(out), files.atomic_folder(Path(out)) as partial:
        yield partial


@contextlib.contextmanager
def whole_file(out: str | Path) -> Iterator[Path]:
    """As `whole_or_nothing`, for one file.

    Raises:
      FileExistsError: it is there.
    """
    check_free(out, file=True)
    if storage.is_remote(out):
        with tempfile.TemporaryDirectory(prefix="graft-export-") as folder:
            name = storage.absolute(out).name
            with _full_disk_errors(out):
                yield Path(folder) / name
            _copy(Path(folder), storage.absolute(out).parent, name)
        return
    with _full_disk_errors(out), files.atomic_path(Path(out)) as partial:
        yield partial


def check_free(out: str | Path, file: bool = False) -> None:
    """Refuses a folder that holds something, or a file that is there, and a bucket that is not ours
    to write in.

    Raises:
      FileExistsError: there is something.
      StorageError: the bucket refuses or does not answer.
    """
    place = storage.absolute(out)
    if storage.is_file(place):
        problem = "there already; choose another name" if file else "a file; name a folder"
        raise FileExistsError(f"{out} is {problem}")
    if storage.is_folder(place) and (file or any(place.iterdir())):
        problem = "a folder; name a file" if file else "not empty; choose another folder"
        raise FileExistsError(f"{out} is {problem}")
    storage.check_writable(place.parent if file else place)


def _copy(folder: Path, out: str | Path, last: str) -> None:
    """Copies a folder's files into a bucket; where that fails, takes back what was copied."""
    uploads = []
    try:
        present = [file for file in folder.rglob("*") if file.is_file()]
        for file in sorted(present, key=lambda file: file.name == last):
            copy = storage.absolute(out) / file.relative_to(folder).as_posix()
            storage.upload_file(file, copy)
            uploads.append(copy)
    except BaseException:
        with contextlib.suppress(Exception):  # storage that is away: without `last` it is not whole
            for copy in uploads:
                copy.unlink()
        raise


@contextlib.contextmanager
def _full_disk_errors(out: str | Path) -> Iterator[None]:
    """Errors of a full disk, with what to do about it; the block leaves nothing behind."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"could not write {out}: {error.strerror}. Nothing is left of it; free disk space, or "
            + ("set TMPDIR to a larger disk" if storage.is_remote(out) else "choose another place")
        ) from error


def sidecar_files(run: Run) -> dict[str, bytes]:
    """A run's sidecar files and its tokenizer; templates see in them what they see in the run."""
    files, tokens = _tokenizer_files(run) | run.sidecar_files, run.tokenizer.template_tokens
    theirs = chat_template.find_tokens(files, run.tokenizer.named_tokens)
    if theirs == tokens:
        return files
    settings = chat_template.read_settings(files)
    changes = {name: tokens.get(name) for name in theirs | tokens}
    if isinstance(extra := settings.get("extra_special_tokens"), dict):
        settings["extra_special_tokens"] = {n: t for n, t in extra.items() if tokens.get(n) == t}
    files.pop(chat_template.TOKEN_NAMES, None)  # which goes before the config
    return files | {chat_template.SETTINGS: json.dumps(settings | changes, indent=2).encode()}


def _tokenizer_files(run: Run) -> dict[str, bytes]:
    """The tokenizer as transformers reads it, for a model that came without such files."""
    tokenizer, token_names = run.tokenizer, run.tokenizer.template_tokens
    token_ids = {
        "bos_token_id": tokenizer.begin_id,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.pad_id,
    }
    return {
        "tokenizer.json": _opening_json(tokenizer).encode(),
        "tokenizer_config.json": json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", **token_names}, indent=2
        ).encode(),
        huggingface.CONFIG: json.dumps(token_ids).encode(),
        "generation_config.json": json.dumps(token_ids, indent=2).encode(),
    }


def _opening_json(tokenizer: Tokenizer) -> str:
    """A `tokenizer.json` that begins a text as Graft begins a bare prompt."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    if tokenizer.opening and backend.encode("a").ids[:1] != tokenizer.opening:
        begin = tokenizer.roles["begin"]
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=[begin, "$A"],
            pair=[begin, "$A", begin, "$B"],
            special_tokens=[(begin, tokenizer.begin_id)],
        )
        return backend.to_str()
    return tokenizer.to_json()


def stop_ids(run: Run) -> list[int]:
    """The tokens that end what a run writes, the end of a text first: those of its companions, and
    the end of a turn in the template that it was tuned with."""
    objective = run.experiment.data.objective if run.experiment else None
    own = objective.stop_ids(run.tokenizer) if objective and objective.generates else ()
    return list(
        dict.fromkeys((run.tokenizer.end_id, *chat_template.find_stops(run.sidecar_files), *own))
    )


def _generation_config(run: Run) -> dict[str, bytes]:
    """`generation_config.json`, where an imported one does not end all that the run ends."""
    stops = stop_ids(run)
    present = _tokenizer_files(run) | run.sidecar_files
    name = "generation_config.json"  # which goes before config.json in transformers and vLLM
    if set(stops) <= set(chat_template.find_stops({name: present[name]})):
        return {}
    content = json.loads(present[name]) | {"eos_token_id": stops}
    return {name: json.dumps(content, indent=2).encode()}


def own_chat_template(run: Run) -> str | None:
    """The chat template of a tuned run, where it is not its base's."""
    own = chat_template.find_template(run.sidecar_files)
    base = chat_template.find_template(run.base.sidecar_files) if run.base else None
    return own if own != base else None
