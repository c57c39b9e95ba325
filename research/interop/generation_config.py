"""`generation_config.json`, or what an older `config.json` says in its place: the tokens that end
an answer are read from them, and what else would change an answer is named."""

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
# settings that a `config.json` may have, and the defaults that all of them once wrote
_OF_A_CONFIG = frozenset(_NEUTRAL) | frozenset(
    """
    max_length do_sample early_stopping bad_words_ids suppress_tokens begin_suppress_tokens
    forced_bos_token_id forced_eos_token_id exponential_decay_length_penalty
    remove_invalid_values task_specific_params
    """.split()
)
_DEFAULTS = {"max_length": 20, "top_k": 50}


def read_notes(
    folder: Path,
    vocabulary: int,
    read_json: Callable[[Path], Mapping[str, Any]],
    config: Mapping[str, Any] | None = None,
) -> list[str]:
    """What a folder says of answers and `graft generate` does not do.

    Args:
      vocabulary: rows of the embedding.
      config: the model's, of which transformers takes what the file would say where there is none.

    Raises:
      UnsupportedModelError: what ends an answer is no token.
    """
    path, config = folder / NAME, config or {}
    notes = _notes_of_ends(folder / "config.json", config, vocabulary)
    if path.is_file():
        content = read_json(path)
        notes += _notes_of_ends(path, content, vocabulary)
    else:
        path = folder / "config.json"
        content = {
            name: value
            for name, value in config.items()
            if name in _OF_A_CONFIG and value != _DEFAULTS.get(name)
        }
    settings = [f"{name} {value!r:.60}" for name, value in content.items() if _acts(name, value)]
    if settings:
        notes.append(
            f"{path.name} says {', '.join(settings)}: kept for exports and not applied, graft "
            "generate has options of its own"
        )
    return notes


def _notes_of_ends(path: Path, content: Mapping[str, Any], vocabulary: int) -> list[str]:
    """The tokens of an answer's end that the model does not have."""
    ends, notes = content.get("eos_token_id"), list[str]()
    for number in ends if isinstance(ends, list) else [ends]:
        if number is not None and type(number) is not int:
            raise UnsupportedModelError(f"{path}: eos_token_id has {number!r}, which is no token")
        # transformers writes its class's default where nobody gave one: a note, no refusal
        if number is not None and not 0 <= number < vocabulary:
            notes.append(
                f"{path.name}: eos_token_id has {number}, and the model's tokens are 0 to "
                f"{vocabulary - 1}: no answer ends by it"
            )
    return notes


def _acts(name: str, value: Any) -> bool:
    """Whether a setting may change an answer."""
    if name in _WITHOUT_EFFECT or value is None or value is False or value in ([], {}, ""):
        return False
    return name not in _NEUTRAL or value != _NEUTRAL[name]
