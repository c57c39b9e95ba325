"""Ways to cut text before merging, by llama.cpp's names, as the `tokenizers` library has them.

The patterns are those of the models' own `tokenizer.json`. llama.cpp computes some of them with
ASCII letters alone in the place of upper and lower case (tekken, gpt-4o), and normalises nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from research.interop.fields import UnsupportedModelError


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
    """A way to cut text, and what else llama.cpp ties to its name.

    Attributes:
      patterns: regular expressions; each cuts what those before it left, and matches stand alone.
      digits: whether each digit stands alone first.
      gpt2: whether GPT-2's pattern cuts last.
      ignore_merges: whether a piece that is a token is that token, whatever its merges.
      opens: whether texts begin with the begin token, where the file does not say it.
    """

    patterns: tuple[str, ...] = ()
    digits: bool = False
    gpt2: bool = False
    ignore_merges: bool = False
    opens: bool = False

    def build(self) -> Any:
        """The pre-tokenizer of the `tokenizers` library."""
        steps: list[Any] = []
        for pattern in self.patterns:
            steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2))
        return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(suffix: str, digits: str) -> str:
    """The pattern of words that end where lower case turns into upper."""
    first = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{suffix}"
    second = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{suffix}"
    return rf"{first}|{second}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]".replace(r"\"", '"')
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    rf"{_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
_DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+")
_PLAIN, _DIGITS = PreTokenizer(gpt2=True), PreTokenizer(digits=True, gpt2=True)
_LLAMA3_MERGES, _QWEN = PreTokenizer((_LLAMA3,)), PreTokenizer((_QWEN2,))
_GPT4O = PreTokenizer((_cased(f"{_CONTRACTIONS}?", r"\p{N}{1,3}"),))

# the first name of each kind is the one that is written
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    **dict.fromkeys(("gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "mpt", "olmo"), _PLAIN),
    **dict.fromkeys(("jais", "trillion", "granite-docling", "exaone4"), _PLAIN),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS),
    **dict.fromkeys(("exaone", "minerva-7b", "mellum2"), _DIGITS),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        PreTokenizer((_LLAMA3,), ignore_merges=True, opens=True),
    ),
    **dict.fromkeys(("smaug-bpe", "dbrx"), _LLAMA3_MERGES),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"), _QWEN),
    **dict.fromkeys(("kormo", "solar-open", "grok-2"), _QWEN),
    "tekken": PreTokenizer((_cased("", r"\p{N}"),), ignore_merges=True, opens=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie"), _GPT4O),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), PreTokenizer(_DEEPSEEK3)),
    "deepseek-coder": PreTokenizer(_DEEPSEEK_CODER, digits=True),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    # no model's own: what llama.cpp does where it knows no name
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}


def find(kind: Any, where: str) -> PreTokenizer:
    """The way to cut text that llama.cpp calls `kind`.

    Raises:
      UnsupportedModelError: none, or none that Graft knows.
    """
    if kind is None:
        raise UnsupportedModelError(
            f"{where} does not say how its tokenizer cuts text (tokenizer.ggml.pre), as old files "
            "do; say it with --pre-tokenizer: llama-bpe for Llama 3, qwen2 for Qwen, gpt-2 for "
            "GPT-2, smollm, deepseek-v3 and so on, or default for what llama.cpp takes then"
        )
    if kind not in PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{where}: a tokenizer that cuts text as {kind!r}; Graft knows "
            f"{', '.join(PRE_TOKENIZERS)}"
        )
    return PRE_TOKENIZERS[kind]


def kind_of(content: Mapping[str, Any]) -> str:
    """GGUF's name for how a `tokenizer.json` cuts text.

    Raises:
      UnsupportedModelError: it is no byte-level BPE, or llama.cpp reads texts in another way.
    """
    model = content["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise UnsupportedModelError("GGUF: the tokenizer is no byte-level BPE")
    for part in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(part):
            raise UnsupportedModelError(f"GGUF: llama.cpp has no {part}, {model[part]!r} here")
    for kind, known in PRE_TOKENIZERS.items():
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = known.build()
        if known.ignore_merges == bool(model.get("ignore_merges")) and _plain(
            json.loads(backend.to_str())["pre_tokenizer"]
        ) == _plain(content["pre_tokenizer"]):
            _check_normalizer(content.get("normalizer"), kind)
            return kind
    raise UnsupportedModelError("GGUF: llama.cpp has no name for how this tokenizer cuts text")


def _check_normalizer(normalizer: Any, kind: str) -> None:
    """Refuses what llama.cpp does not do, but for Qwen's NFC: texts mostly are in that form."""
    steps = [normalizer] if normalizer else []
    if normalizer and normalizer.get("type") == "Sequence":
        steps = normalizer["normalizers"]
    others = [step["type"] for step in steps if step["type"] != "NFC" or kind != "qwen2"]
    if others:
        raise UnsupportedModelError(
            f"GGUF: llama.cpp normalises no text for {kind}; this tokenizer does {others[0]}"
        )


def _plain(content: Any) -> Any:
    """Without what does not change the cuts."""
    if isinstance(content, list):
        return [_plain(part) for part in content]
    if not isinstance(content, dict):
        return content
    result = {name: _plain(part) for name, part in content.items() if name != "trim_offsets"}
    if "Regex" in result:
        result["Regex"] = result["Regex"].replace("\r", r"\r").replace("\n", r"\n")
    # the patterns above match every letter of a text, so keeping only matches is the same
    if result.get("type") == "Split" and (result["behavior"], result["invert"]) == (
        "Removed",
        True,
    ):
        result |= {"behavior": "Isolated", "invert": False}
    return result
