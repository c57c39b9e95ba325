"""Folders whose weights are quantized: which kind it is, and how they come to be plain ones.

A folder says its kind in `config.json` or in a file beside it, or only by the names and types of
its tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.interop.fields import UnsupportedModelError

_DEQUANTIZE = (
    "load it with transformers' {0}(dequantize=True) and save that with save_pretrained, or import "
    "the folder that it was made of"
)
_ORIGINAL = "import the folder that it was quantized from"
# `quant_method`, as transformers and others write it -> name, and what to do
KINDS: dict[str, tuple[str, str]] = {
    "fp8": ("FP8 in blocks", _DEQUANTIZE.format("FineGrainedFP8Config")),
    "mxfp8": ("MXFP8", _DEQUANTIZE.format("FineGrainedFP8Config")),
    "fbgemm_fp8": ("FP8 by rows (FBGEMM)", _ORIGINAL),
    "modelopt": ("ModelOpt (FP8 or NVFP4)", _ORIGINAL),
    "nvfp4": ("NVFP4", _ORIGINAL),
    "mxfp4": ("MXFP4", _DEQUANTIZE.format("Mxfp4Config")),
    "compressed-tensors": ("compressed-tensors", _DEQUANTIZE.format("CompressedTensorsConfig")),
    "bitsandbytes": (
        "bitsandbytes",
        "load it with transformers, call model.dequantize() and save that with save_pretrained, or "
        + _ORIGINAL,
    ),
    "awq": ("AWQ", _ORIGINAL),
    "gptq": ("GPTQ", _ORIGINAL),
    "awq or gptq": ("AWQ or GPTQ", _ORIGINAL),
    "auto-round": ("AutoRound", _ORIGINAL),
    "bitnet": ("BitNet", _ORIGINAL),
    "eetq": ("EETQ", _ORIGINAL),
    "exl2": ("EXL2", _ORIGINAL),
    "exl3": ("EXL3", _ORIGINAL),
    "mlx": ("MLX", "mlx_lm.convert --dequantize makes plain weights of it"),
    "mlx, gptq or awq": (
        "MLX, GPTQ or AWQ, which its config does not tell apart",
        "of MLX mlx_lm.convert --dequantize makes plain weights; else " + _ORIGINAL,
    ),
    "hqq": ("HQQ", _ORIGINAL),
    "aqlm": ("AQLM", _ORIGINAL),
    "quanto": ("quanto", _ORIGINAL),
    "torchao": ("torchao", _ORIGINAL),
    "fp8 tensors": ("8-bit floats", "convert them to bfloat16, scales applied, or " + _ORIGINAL),
    "integers": ("integers", _ORIGINAL),
}
_ALIASES = {"intel/auto-round": "auto-round", "gptq_marlin": "gptq", "awq_marlin": "awq"}
# settings by which a config that names no method is known
_SETTINGS = (
    ({"load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "llm_int8_threshold"}, "bitsandbytes"),
    ({"w_bit", "q_group_size", "zero_point"}, "awq"),
    ({"desc_act", "damp_percent", "true_sequential"}, "gptq"),
    ({"config_groups", "sparsity_config"}, "compressed-tensors"),
    ({"quant_algo", "quantization"}, "modelopt"),
    ({"weight_block_size", "activation_scheme"}, "fp8"),
    ({"mode"}, "mlx"),
    ({"group_size", "bits"}, "mlx, gptq or awq"),
)
_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
# the first pattern over names of tensors that matches any
_NAMES = (
    (r".*\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*)",
     "bitsandbytes"),
    (r".*\.(SCB|weight_format)", "bitsandbytes"),
    (r".*\.weight_scale_inv", "fp8"),
    (r".*\.(weight_packed|weight_shape)", "compressed-tensors"),
    (r".*\.weight_scale_2", "modelopt"),
    (r".*\.(q_weight|q_groups|q_invperm)", "exl2"),
    (r".*\.(trellis|suh|svh)", "exl3"),
    (r".*\.g_idx", "gptq"),
    (r".*\.(qweight|qzeros)", "awq or gptq"),
    (r".*_blocks", "mxfp4"),
    (r".*\.codebooks", "aqlm"),
    (r".*\.W_q", "hqq"),
    (r".*\.weight\._(data|scale)", "quanto"),
    (r".*[:_]qdata", "torchao"),
    # in its modes mxfp4 and nvfp4 without biases
    (r".*\.(biases|scales)", "mlx"),
)  # fmt: skip


def check_config(content: Mapping[str, Any], where: str) -> None:
    """Refuses a `config.json` that says that the weights are quantized.

    Raises:
      UnsupportedModelError: naming the kind and what to do.
    """
    if content.get("quantization") or content.get("quantization_config"):
        settings = content.get("quantization_config") or content["quantization"]
        raise _error(_kind_of(settings, "quantization" in content), where)
    if content.get("compression_config"):
        raise _error("compressed-tensors", where)


def _kind_of(settings: Any, is_mlx: bool) -> str:
    """The kind that a quantizer's settings name or, without a name, show by their fields."""
    if not isinstance(settings, Mapping):
        return "mlx" if is_mlx else str(settings)
    if isinstance(settings.get("quant_method"), str):
        method = settings["quant_method"].lower()
        return _ALIASES.get(method, method)
    if is_mlx:
        return "mlx"
    fields = set(settings)
    return next(
        (kind for names, kind in _SETTINGS if names & fields), "a kind that it does not name"
    )


def check_folder(path: Path) -> None:
    """Refuses a folder with a quantizer's own config beside `config.json`.

    Raises:
      UnsupportedModelError: naming the kind and what to do.
    """
    for name, kind in _FILES.items():
        if (path / name).is_file():
            raise _error(kind, str(path / name))


def check_tensors(dtypes: Mapping[str, str], where: str) -> None:
    """Refuses tensors whose names or types are those of a quantizer, where no file says so.

    Args:
      dtypes: the type of each tensor, as safetensors names it.

    Raises:
      UnsupportedModelError: naming the kind, a tensor, and what to do.
    """
    for pattern, kind in _NAMES:
        for name in dtypes:
            if re.fullmatch(pattern, name):
                raise _error(kind, f"{where}: by its tensor {name}")
    for name, dtype in dtypes.items():
        if name.endswith(".weight") and dtype.startswith(("F8_", "F4", "F6_", "I", "U")):
            kind = "fp8 tensors" if dtype.startswith("F") else "integers"
            raise _error(kind, f"{where}: by the type of {name}, {dtype}")


def _error(kind: str, where: str) -> UnsupportedModelError:
    name, advice = KINDS.get(kind, (json.dumps(kind), _ORIGINAL))
    return UnsupportedModelError(
        f"{where}: the weights are quantized ({name}); Graft reads plain ones: {advice}"
    )
