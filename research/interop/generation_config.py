"""`generation_config.json`: the tokens that end an answer are read from it, and what else would
change an answer is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from research.interop.fields import UnsupportedModelError

NAME = "generation_config.json"
# read, book-keeping, and how it is run or what is returned beside the answer
_WITHOUT_EFFECT = frozenset(
    """
    bos_token_id eos_token_id pad_token_id decoder_start_token_id transformers_version
    _from_model_config _commit_hash use_cache cache_implementation cache_config return_legacy_cache
    return_dict_in_generate output_attentions output_hidden_states output_scores output_logits
    prefill_chunk_size compile_config disable_compile low_memory is_assistant chat_format
    """.split()
)
# numbers at which a setting changes nothing; null, false and what is empty never do
_NEUTRAL: Mapping[str, float] = {
    **dict.fromkeys(["temperature", "top_p", "typical_p", "guidance_scale"], 1),
    **dict.fromkeys(["top_k", "min_p", "epsilon_cutoff", "eta_cutoff", "top_h"], 0),
    **dict.fromkeys(["repetition_penalty", "encoder_repetition_penalty", "length_penalty"], 1),
    **dict.fromkeys(["no_repeat_ngram_size", "encoder_no_repeat_ngram_size"], 0),
    **dict.fromkeys(["num_beams", "num_beam_groups", "num_return_sequences"], 1),
    **dict.fromkeys(["min_length", "min_new_tokens", "diversity_penalty"], 0),
}


def read_notes(
    folder: Path, vocabulary: int, read_json: Callable[[Path], Mapping[str, Any]]
) -> list[str]:
    """What a folder's file says of answers and `graft generate` does not do.

    Args:
      vocabulary: rows of the embedding.

    Raises:
      UnsupportedModelError: what ends an answer is no token.
    """
    path = folder / NAME
    content = read_json(path) if path.is_file() else {}
    ends, notes = content.get("eos_token_id"), list[str]()
    for number in ends if isinstance(ends, list) else [ends]:
        if number is not None and type(number) is not int:
            raise UnsupportedModelError(f"{path}: eos_token_id has {number!r}, which is no token")
        # transformers writes its class's default where nobody gave one: a note, no refusal
        if number is not None and not 0 <= number < vocabulary:
            notes.append(
                f"{NAME}: eos_token_id has {number}, and the model's tokens are 0 to "
                f"{vocabulary - 1}: no answer ends by it"
            )
    settings = [f"{name} {value!r:.60}" for name, value in content.items() if _acts(name, value)]
    if not settings:
        return notes
    return [
        *notes,
        f"{NAME} says {', '.join(settings)}: kept for exports and not applied, graft generate has "
        "options of its own",
    ]


def _acts(name: str, value: Any) -> bool:
    """Whether a setting may change an answer."""
    if name in _WITHOUT_EFFECT or value is None or value is False or value in ([], {}, ""):
        return False
    return name not in _NEUTRAL or value != _NEUTRAL[name]
