"""A run -> a folder that other people serve: adapters merged, layer by layer."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research import methods, tree
from research.interop import huggingface
from research.interop.importing import spread
from research.models.sites import Weight
from research.models.transformer import Transformer
from research.runs import Run


class Merged:
    """The parameters of a run as a plain base's, read and merged a layer at a time.

    Raises:
      ValueError: something is attached that cannot be merged into weights.
    """

    def __init__(self, run: Run):
        self._run = run
        method: Any = run.method
        if method.kind == "bank":
            raise ValueError(f"{method.names} stand side by side; one model holds one of them")
        parts = method.of if method.kind == "several" else (method,)
        self._adapters = [part.adapter for part in parts if hasattr(part, "adapter")]
        config = run.model
        singles = tuple(tree.stack_key(layer, 1) for layer in range(config.layers))
        base = functools.partial(Transformer, config=config, stacks=singles)

        def build(key: jax.Array) -> Transformer:
            return run.method.attach(base(key), key)

        self._shapes = jax.eval_shape(build, jax.random.key(0))
        for name, module in methods.places(self._shapes, *methods.PLACES):
            outside = not name.startswith("layers/")
            for delta in module.site.values():
                if not hasattr(delta, "merged"):
                    raise ValueError(
                        f"{name}: {type(delta).__name__} is no change of a weight and cannot be "
                        "merged; as an adapter beside the base it can be served"
                    )
                methods.check_untied(name, outside and config.tied)
        self._layer = functools.lru_cache(maxsize=1)(self._read_layer)

    @functools.cached_property
    def _shared(self) -> Any:
        """What methods share between layers."""
        shapes = {f"methods/{n}": s for n, s in tree.flatten(self._shapes.methods).items()}
        held = {n.removeprefix("methods/"): a for n, a in self._read(shapes).items()}
        return tree.unflatten(self._shapes.methods, held)

    def __call__(self, name: str) -> np.ndarray:
        """A parameter by its single-layer name, float32."""
        if name.startswith("layers/"):
            return self._layer(int(name.split("/")[1]))[name]
        self._layer.cache_clear()  # the largest tensors lie outside
        place = name.split("/")[0]
        module = getattr(self._shapes, place)
        if name.endswith("/kernel") and getattr(module, "site", None):
            return _finite(name, self._merged(module, place)["kernel"])
        return _finite(name, self._run.read(name))

    def _read_layer(self, layer: int) -> dict[str, np.ndarray]:
        block = self._shapes.layers[tree.stack_key(layer, 1)]
        shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), block)
        prefix = f"layers/{layer}"
        read = {f"{prefix}/{name}": a for name, a in self._merged(shapes, prefix).items()}
        return {name: _finite(name, array) for name, array in read.items()}

    def _merged(self, part: Any, prefix: str) -> dict[str, jax.Array]:
        """The parameters of a part of the model, its sites merged."""
        shapes = {f"{prefix}/{name}": shape for name, shape in tree.flatten(part).items()}
        held = {n.removeprefix(f"{prefix}/"): a for n, a in self._read(shapes).items()}
        made = tree.unflatten(part, held)
        weight = lambda m: m.weight() if hasattr(m, "weight") else Weight(m.kernel[...])  # noqa: E731
        for adapter in self._adapters:
            methods.merge_sites(made, adapter, self._shared, weight)
        return tree.flatten(made)

    def _read(self, shapes: dict[str, Any]) -> dict[str, jax.Array]:
        return self._run.parameters(spread(shapes))


def _finite(name: str, array: jax.Array | np.ndarray) -> np.ndarray:
    values = np.asarray(array)
    # a sum is finite only if all are, and needs no second array of the size
    if not np.isfinite(values.sum(dtype=np.float64)):
        raise ValueError(f"{name} holds numbers that are not finite; nothing is exported")
    return values


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
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
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
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(out)


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
