"""What lies in a model's folder beside what is read: an adapter, or other copies of the weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection
from pathlib import Path

from research.interop import tensor_files
from research.interop.fields import UnsupportedModelError

ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.*"
IS_ADAPTER = "an adapter of PEFT: import it with --base RUN"
# how others name files of weights
_WEIGHTS = (
    "*.safetensors",
    "pytorch_model*.bin",
    "consolidated*.pth",
    "tf_model*.h5",
    "flax_model*.msgpack",
    "rust_model*.ot",
    "model.ckpt*",
    "*.gguf",
)


def check(path: Path) -> None:
    """Refuses a folder that could be read as two different models.

    Raises:
      UnsupportedModelError: it holds an adapter too, or two models in safetensors.
    """
    adapters = sorted(file.name for file in path.glob(ADAPTER_WEIGHTS))
    if (path / ADAPTER).is_file() or adapters:
        name = ADAPTER if (path / ADAPTER).is_file() else adapters[0]
        if not [file for file in unread_weights(path, ()) if file not in adapters]:
            raise UnsupportedModelError(f"{path} is {IS_ADAPTER}")
        raise UnsupportedModelError(
            f"{path} holds a model and an adapter of PEFT ({name}), and nothing says whether the "
            "model has it merged: move the adapter's files to a folder of their own. Where the "
            "model is the plain base, import it, then the adapter with --base RUN"
        )
    if (path / tensor_files.ONE).is_file() and (path / tensor_files.INDEX).is_file():
        raise UnsupportedModelError(
            f"{path} holds two copies of the weights, {tensor_files.ONE} and the files of "
            f"{tensor_files.INDEX}: move one of them away"
        )


def check_adapter(path: Path) -> None:
    """Refuses an adapter beside a model.

    Raises:
      UnsupportedModelError: naming the model's file.
    """
    names = [
        name
        for name in unread_weights(path, ())
        if not fnmatch.fnmatch(name, ADAPTER_WEIGHTS) and not name.endswith(".gguf")
    ]
    if names:
        raise UnsupportedModelError(
            f"{path} holds an adapter of PEFT and a model ({names[0]}), and nothing says whether "
            "the model has it merged: move the adapter's files to a folder of their own"
        )


def unread_weights(path: Path, files_read: Collection[Path]) -> list[str]:
    """The names of files that hold weights, by their names, and that are not read."""
    return sorted(
        file.name
        for file in path.iterdir()
        if file not in files_read and any(fnmatch.fnmatch(file.name, p) for p in _WEIGHTS)
    )
