"""What the files beside `tokenizer.json` say of its tokens: read as transformers reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken

from research.interop.fields import UnsupportedModelError, refuse_malformed
from research.runtime import unique_json
from research.text import chat_template
from research.text.tokenizer import Tokenizer

# those that transformers adds to a tokenizer that has them not
_NAMED_ROLES = tuple(f"{role}_token" for role in "bos eos unk sep pad cls mask".split())
# classes that put no space before a text where their config is silent, whatever tokenizer.json says
_WITHOUT_SPACE = ("GPT2Tokenizer", "Qwen2Tokenizer")
# classes that put begin and end tokens around a text as their config says, in transformers 4
_WITH_ENDS = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")


def check_listed_tokens(files: Mapping[str, bytes], tokenizer: Tokenizer, where: str) -> None:
    """Refuses tokens that the files beside `tokenizer.json` list and it has not, or has under
    another number, or as part of the plain vocabulary: transformers would add them.

    Raises:
      UnsupportedModelError: naming the token, the file and what to do.
    """
    known = tokenizer.tokens()
    advice = "write both with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    for file, name, number in _numbered_tokens(files, where):
        if known.get(name) != number:
            raise UnsupportedModelError(
                f"{where}: {file} lists the token {name!r} as number {number}, "
                f"which is {known.get(name, 'none')} there; {advice}"
            )
        if file == chat_template.ADDED and name not in tokenizer.named_tokens:
            raise UnsupportedModelError(
                f"{where}: {file} lists the token {name!r}, which is no added token there; {advice}"
            )
    settings = chat_template.read_settings(files)
    for role in ("extra_special_tokens", "additional_special_tokens"):
        tokens = settings.get(role) or []
        for token in tokens.values() if isinstance(tokens, dict) else tokens:
            name = token["content"] if isinstance(token, dict) else token
            if name not in tokenizer.named_tokens:
                raise UnsupportedModelError(
                    f"{where}: {name!r} is one of {role} in the files beside it, and no added "
                    f"token there; {advice}"
                )
    for role in _NAMED_ROLES:
        token = settings.get(role)
        token = token.get("content") if isinstance(token, dict) else token
        if token and token not in known:
            raise UnsupportedModelError(
                f"{where}: {token!r} is the {role} in the files beside it, and no token there; "
                f"{advice}"
            )


def _numbered_tokens(files: Mapping[str, bytes], where: str) -> Iterator[tuple[str, str, int]]:
    """File, name and number of the tokens that are listed with numbers, in transformers' way: one
    file instead of the other."""
    settings = json_object(files, chat_template.SETTINGS, where)
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        yield chat_template.SETTINGS, token["content"], int(number)
    if "added_tokens_decoder" not in settings:
        for name, number in json_object(files, chat_template.ADDED, where).items():
            yield chat_template.ADDED, name, number


def find_changes(files: Mapping[str, bytes], tokenizer: Tokenizer) -> list[AddedToken]:
    """Tokens that transformers adds again to those of `tokenizer.json`: what a config's
    `added_tokens_decoder` lists with other flags, and special tokens of the plain vocabulary."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    present = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    settings = chat_template.read_settings(files)
    tokens = chat_template.find_tokens(files, tokenizer.tokens())
    changes = []
    for _, token in sorted(
        (settings.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0])
    ):
        change = _added_token(token)
        if repr(change) not in present:
            change.special |= change.content in tokens.values()
            changes.append(change)
    names = tokenizer.named_tokens | {change.content for change in changes}
    for name, content in tokens.items():
        if content not in names:
            token = settings.get(name)
            change = _added_token(token if isinstance(token, dict) else {"content": content})
            change.special = True
            changes.append(change)
    return changes


def _added_token(token: Mapping[str, Any]) -> AddedToken:
    return AddedToken(**{name: value for name, value in token.items() if name != "__type"})


def check_spaces(files: Mapping[str, bytes], tokenizer: Tokenizer, where: str) -> None:
    """Refuses an `add_prefix_space` that is not what `tokenizer.json` does: which of the two counts
    depends on the class and on the version of transformers.

    Raises:
      UnsupportedModelError: naming both and what to do.
    """
    settings = chat_template.read_settings(files)
    setting = settings.get("add_prefix_space")
    kind = str(settings.get("tokenizer_class")).removesuffix("Fast")
    if setting is None and kind in _WITHOUT_SPACE:
        setting = False
    if isinstance(setting, bool) and setting != tokenizer.opens_with_space:
        raise UnsupportedModelError(
            f"{where}: it puts {'a' if tokenizer.opens_with_space else 'no'} space before a text, "
            f"and add_prefix_space in {chat_template.SETTINGS} beside it "
            f"({settings.get('tokenizer_class')}) says {str(setting).lower()}: "
            "other tokens. Make both say what the model was trained with"
        )


def check_ends(files: Mapping[str, bytes], tokenizer: Tokenizer, where: str) -> None:
    """Refuses `add_bos_token` and `add_eos_token` that are not what `tokenizer.json` does, of the
    classes that do as they say in some versions of transformers.

    Raises:
      UnsupportedModelError: naming both and what to do.
    """
    settings = chat_template.read_settings(files)
    if str(settings.get("tokenizer_class")).removesuffix("Fast") not in _WITH_ENDS:
        return
    for name, is_done in (("add_bos_token", tokenizer.roles["opens"]), ("add_eos_token", False)):
        setting = settings.get(name)
        if isinstance(setting, bool) and setting != is_done:
            raise UnsupportedModelError(
                f"{where}: its post_processor adds {'one' if is_done else 'none'}, and {name} in "
                f"{chat_template.SETTINGS} beside it says {str(setting).lower()}: transformers 4 "
                "does as the one says, and 5 as the other. Make both say what the model was "
                "trained with; Graft writes the end token where an answer or a document ends"
            )


def begins_with(begin_id: int | None, backend: tokenizers.Tokenizer, where: str) -> bool:
    """Whether the post-processor puts the begin token before a text.

    Raises:
      UnsupportedModelError: it puts others there, or some behind the text.
    """
    backend.no_truncation()
    backend.no_padding()
    bare = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a", add_special_tokens=True).ids
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    before, after = whole[:start], whole[start + len(bare) :]
    advice = "take it out of the post_processor, if the model was trained without it"
    if after:
        names = " ".join(str(backend.id_to_token(number)) for number in after)
        raise UnsupportedModelError(
            f"{where}: post_processor puts {names} behind a text: every text would end in it, "
            f"prompts too, and Graft writes nothing there; {advice}"
        )
    if before and before != [begin_id]:
        names = " ".join(str(backend.id_to_token(number)) for number in before)
        raise UnsupportedModelError(
            f"{where}: post_processor puts {names} before a text, and Graft the bos_token alone: "
            f"name it in {chat_template.SETTINGS}, or {advice}"
        )
    return bool(before)


def json_object(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    """The content of a sidecar file; empty where the file is absent."""
    with refuse_malformed(f"{where}: {name}"):
        content = unique_json.parse(files.get(name, b"{}"))
        if not isinstance(content, dict):
            raise TypeError(f"an object was expected, not {str(content)[:40]}")
        return content
