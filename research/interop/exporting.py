"""A run -> a folder that other people serve: adapters merged, layer by layer."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from research.interop import huggingface
from research.merging import Merged
from research.runs import Run


def export_huggingface(
    run: Run,
    out: str | Path,
    dtype: Any = None,
    card: str = "",
    say: Callable[[str], None] = lambda name: None,
    file_size: int = 5 * 10**9,
) -> None:
    """Writes a run's model, adapters merged, as transformers opens it.

    Args:
      dtype: float32, float16 or bfloat16; None: each parameter's own of an imported model, and
        float32 of others.
      card: the text of its README.md.
      say: called after each tensor with its name.
      file_size: bytes of a file at most.

    Raises:
      FileExistsError: the folder holds a model already.
      ValueError: the model cannot be said in transformers' words.
    """
    merged, imported = Merged(run), run.imported or {}
    with whole_or_nothing(out) as folder:
        written = huggingface.write_folder(
            folder,
            run.model,
            merged,
            dtype=dtype or imported.get("dtype", "float32"),
            dtypes=None if dtype else imported.get("dtypes"),
            files=_tokenizer_files(run) | run.companions,
            kind=imported.get("family"),
            file_size=file_size,
        )
        for name in written:
            say(name)
        if card:
            (folder / "README.md").write_text(card, encoding="utf-8")


@contextlib.contextmanager
def whole_or_nothing(out: str | Path) -> Iterator[Path]:
    """A new folder that appears under its name only when the block ends well.

    Raises:
      FileExistsError: it is there, and not empty.
    """
    out = Path(out)
    if out.is_file():
        raise FileExistsError(f"{out} is a file; name a folder")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    partial.chmod(0o755)
    with _nothing_left(out, lambda: shutil.rmtree(partial, ignore_errors=True)):
        yield partial
    if out.exists():
        out.rmdir()
    partial.rename(out)


@contextlib.contextmanager
def whole_file(out: str | Path) -> Iterator[Path]:
    """As `whole_or_nothing`, for one file.

    Raises:
      FileExistsError: it is there.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} is there already; choose another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    with _nothing_left(out, lambda: partial.unlink(missing_ok=True)):
        yield partial
    partial.replace(out)


@contextlib.contextmanager
def _nothing_left(out: Path, remove: Callable[[], None]) -> Iterator[None]:
    """Removes what was written when the block ends badly, and says so of a full disk."""
    try:
        yield
    except BaseException as error:
        remove()
        if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"could not write {out}: {error.strerror}. Nothing is left of it; free disk space, or "
            "choose another place"
        ) from error


def _tokenizer_files(run: Run) -> dict[str, bytes]:
    """The tokenizer as transformers reads it, for a model that came without such files."""
    words, roles = run.tokenizer, run.tokenizer.roles
    named = {f"{ours}_token": roles[role] for ours, role in _ROLES.items()}
    numbers = {
        "bos_token_id": words.begin_id,
        "eos_token_id": words.end_id,
        "pad_token_id": words.pad_id,
    }
    return {
        "tokenizer.json": words.to_json().encode(),
        "tokenizer_config.json": json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", **named}, indent=2
        ).encode(),
        huggingface.CONFIG: json.dumps(numbers).encode(),
        "generation_config.json": json.dumps(numbers, indent=2).encode(),
    }


_ROLES = {"bos": "begin", "eos": "end", "pad": "pad"}
