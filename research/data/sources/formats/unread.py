"""Fields of a record that its format does not read: they are metadata, they say again what is
read, the source names them, or the record is refused.

One rule for all formats, so that a weight beside a pair is told as one beside messages is.
"""

import ast
import contextlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from research.data.sources.formats.base import (
    ROLE_SYNONYMS,
    Format,
    Record,
    has_value,
    same_json,
)
from research.text.conversation import REASONING, WEIGHT

# Names under which data sets keep where a record is from, how it is called and how long it is.
METADATA = frozenset(
    "id _id uid uuid guid idx index row_id example_id sample_id doc_id document_id prompt_id "
    "question_id problem_id task_id conversation_id message_id thread_id session_id tfds_id "
    "cluster hash md5 sha256 source source_url url uri dataset dataset_name data_source origin "
    "repo repo_name path filename file_name file_path title author authors license licence meta "
    "metadata timestamp date created created_at created_utc updated_at lang language locale "
    "version token_count num_tokens n_tokens __index_level_0__".split()
) | {"Unnamed: 0"}  # and how pandas numbers rows

# Names of a message's weight in training: OpenAI's and Mistral's, axolotl's, ms-swift's,
# LLaMA-Factory's. True and false are 1 and 0; several are multiplied.
WEIGHTS = (WEIGHT, "train", "training", "loss", "loss_scale", "loss_weight")
# Names of what says that a record is trained on, or is not.
_TAKES_PART = ("train_on", "is_train", "use_for_training", "loss_multiplier")
_LEFT_OUT = ("skip", "exclude", "ignore", "discard")
# Answers: what such a field says must be one of those that are trained on.
_ANSWERS = ("completion", "response", "answer", "output", "chosen")
# Values that ask for what is done anyway: a bad answer is not told by a true one.
_DONE_ANYWAY = dict.fromkeys((*WEIGHTS, "weights", "kto_tag", "is_correct", "label"), 1)
_DONE_ANYWAY |= dict.fromkeys(_TAKES_PART, 1) | dict.fromkeys(_LEFT_OUT, 0)
_DONE_ANYWAY |= {"train_on_inputs": 0, "mask_history": 0}

# Fields that say how a record is trained on: refused beside a document, too.
_TRAINING = dict.fromkeys(
    (*WEIGHTS, "weights", "mask", "loss_mask", "completion_mask", "assistant_mask")
    + ("assistant_masks",),
    "give messages a weight",
) | dict.fromkeys(("kto_tag", "is_correct"), "leave records with bad answers out")
_TRAINING |= dict.fromkeys((*_TAKES_PART, *_LEFT_OUT), "leave such records out")


def _hints() -> dict[str, str]:
    """Field -> what to do with it, where a conversation or a setting has a place for it."""
    beside = "write it as {}, beside messages".format
    in_message = "write it in the answer's message"
    arguments = 'chat_template_kwargs: {{"{}": ...}}'.format
    hints = {
        "history": "write it as messages",
        "system system_prompt system_message": beside("system"),
        "tools functions available_tools": beside("tools"),
        " ".join(("tool_calls", *REASONING)): in_message,
        "documents template_arguments chat_template_kwargs": "write messages beside it",
        "images videos audios": "it is no text",
        "tool_choice parallel_tool_calls response_format": "no template reads it",
        "rejected rejected_response": 'learn from it: format="preference"',
        "chat_template": "set the objective's `template`",
        "continue_final_message": "an answer is trained on to its end",
        "train_on_inputs": "no objective trains on questions",
        "mask_history": 'set the objective\'s turns="last"',
        "label": 'leave records with bad answers out, or set format="labelled answers"',
        "text": 'set format="text" if it is what is trained on',
    }
    flat = {name: hint for names, hint in hints.items() for name in names.split()}
    flat |= {name: beside(arguments(name)) for name in ("enable_thinking", "reasoning_effort")}
    flat["thinking"] = f"{in_message}, or {beside(arguments('thinking'))}"
    return flat | _TRAINING


_HINTS = _hints()
# Fields that mean the same wherever they stand: inside metadata, too. The others may be categories,
# scores and texts there.
_ANYWHERE = frozenset(_HINTS) - frozenset(
    "label text history documents functions images videos audios reasoning".split()
)

# Other names of fields that say how much of a document counts, or what its tokens are; a score may
# be weighted.
_MASK = re.compile(r"weight(?!ed)|mask")
_LABELS = re.compile(r"labels")
_TOKENS = re.compile(r"(input|token)_?ids")
# A key of an object that is written as text.
_KEY = re.compile(r"""["'](\w+)\\?["']\s*:""")
_DOCUMENT_HINT = "every token of a document is trained on, and counts as 1"


class UnusedFields:
    """The source's setting `unused_fields`: fields that mean nothing for training, or no more."""

    def __init__(self, patterns: Sequence[str], used_names: Collection[str] = ()):
        """Reads the setting.

        Args:
          patterns: regular expressions that match whole names.
          used_names: fields that transforms have read.

        Raises:
          ValueError: a pattern is no regular expression.
        """
        self._patterns = {}
        for pattern in patterns:
            try:
                self._patterns[pattern] = re.compile(pattern)
            except re.error as error:
                raise ValueError(f"unused_fields: {pattern!r} is no pattern: {error}") from None
        # Those that matched none of the names that were selected from.
        self.idle = set(patterns)
        self._used_names = frozenset(used_names)
        self._is_unused: dict[str, bool] = {}

    def select(self, names: Iterable[str]) -> set[str]:
        """Those of the names that a pattern matches, or that transforms have read."""
        names = set(names)
        return self.match(names) | (names & self._used_names)

    def match(self, names: Iterable[str]) -> set[str]:
        """Those of the names that a pattern matches."""
        for name in names:
            if name not in self._is_unused:
                matching = {p for p, regex in self._patterns.items() if regex.fullmatch(name)}
                self.idle -= matching
                self._is_unused[name] = bool(matching)
        return {name for name in names if self._is_unused[name]}


def check_fields(
    record: Record, converted: Mapping[str, Any], form: Format, unused: UnusedFields, name: str
) -> None:
    """Looks at the fields of a record that its format does not read.

    Args:
      record: what is checked.
      converted: what the format reads of it.
      form: the format.
      unused: fields that the source passes over.
      name: of the source.

    Raises:
      ValueError: names all fields that would be lost, what they may be, and the setting.
    """
    if form.takes_any:
        others = {field for field, value in record.items() if _changes_document(field, value)}
    else:
        others = {f for f in record if f not in form.reads and f not in METADATA}
    inside = {
        name: found_names
        for name, content in record.items()
        if (found_names := _hints_inside(name, content, form))
    }
    others |= inside.keys()
    if not others:
        return
    others -= unused.select(others)
    refused = [
        field
        for field, value in record.items()
        if field in others
        and has_value(value)
        and (field in inside or not _is_harmless(field, value, converted))
    ]
    if refused:
        hints = {f: _DOCUMENT_HINT for f in refused if form.takes_any} | _HINTS
        hints |= {name: f"{', '.join(has)} in it" for name, has in inside.items()}
        raise _loss(refused, hints, name)


def check_overwritten(
    old: Record, new: Record, unused: UnusedFields, writer: str, name: str
) -> None:
    """Looks at the fields of a record that others take the names of.

    Args:
      old: the record without those that are read for it.
      new: what is written into it.
      unused: fields that the source passes over.
      writer: the setting that writes it.
      name: of the source.

    Raises:
      ValueError: names all fields that would be lost, and the setting.
    """
    changed_fields = [
        field
        for field in new
        if field in old
        and field not in METADATA
        and has_value(old[field])
        and not same_json(old[field], new[field])
    ]
    passed_over = unused.match(changed_fields)
    if refused := [field for field in changed_fields if field not in passed_over]:
        raise _loss(refused, dict.fromkeys(refused, f"{writer} writes over it"), name)


def _loss(refused: Sequence[str], hints: Mapping[str, str], name: str) -> ValueError:
    """The error about fields of source `name` that would be lost."""
    hinted_names = [f"{f!r} ({hints[f]})" if f in hints else repr(f) for f in refused]
    patterns = ", ".join(json.dumps(re.escape(field), ensure_ascii=False) for field in refused)
    setting = f"({patterns},)" if len(refused) == 1 else f"({patterns})"
    return ValueError(
        f"{', '.join(hinted_names)} would be lost. Write what the model is to see into what is "
        f"read (`fields`, `transforms`); what means nothing, name in source {name!r}: "
        f"unused_fields={setting}"
    )


def _hints_inside(name: str, content: Any, form: Format) -> list[str]:
    """What is in a field, at any depth, that would change how a record is trained on."""
    if name in METADATA:
        return sorted(set(_named_inside(content, _ANYWHERE)))
    if form.takes_any and name not in form.reads and not isinstance(content, str):
        return sorted(set(_named_inside(content, _TRAINING)))
    return []


def _named_inside(content: Any, names: Collection[str]) -> Iterator[str]:
    """Those of the names that a mapping in it has with a value that asks for something."""
    contents = [content]
    while contents:
        content = contents.pop()
        if isinstance(content, str):  # JSON, as columns have it
            content = _parse_inside(content, names)
        if isinstance(content, Mapping):
            for name in content.keys() & names:
                value = content[name]
                is_done = name in _DONE_ANYWAY and _is_harmless(name, value, {})
                if has_value(value) and not is_done:
                    yield name
            contents.extend(content.values())
        elif isinstance(content, list):
            contents.extend(content)


def _parse_inside(text: str, names: Collection[str]) -> Any:
    """A text that is a mapping or list, if one of the names is in it; otherwise None."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    keys = [key for key in _KEY.findall(text) if key in names]
    if not keys:
        return None
    for parse in (json.loads, ast.literal_eval):  # pandas writes mappings as Python does
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return parse(text.strip())
    return dict.fromkeys(keys, text)


def _changes_document(name: str, value: Any) -> bool:
    """Whether a field beside a document says that some of it counts less, or gives its tokens."""
    values = _flat(value)
    if _MASK.search(name.lower()):
        return any(not isinstance(each, bool | int | float) or each != 1 for each in values)
    if _LABELS.search(name.lower()):  # a number alone is a category, as words are
        is_list = isinstance(value, list | np.ndarray)
        return is_list and any(not isinstance(each, str) for each in values)
    return name in _TRAINING or (bool(values) and bool(_TOKENS.search(name.lower())))


def _flat(value: Any) -> list[Any]:
    """The values of nested lists; null says nothing."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [each for item in value for each in _flat(item)]
    return [value] if has_value(value) else []


def _is_harmless(name: str, value: Any, converted: Mapping[str, Any]) -> bool:
    """Whether a field asks for what is done anyway, or says again what is read."""
    if name in _DONE_ANYWAY:
        return isinstance(value, bool | int | float) and value == _DONE_ANYWAY[name]
    if name in _HINTS:
        return False
    turns = _turns(converted)
    items = value if isinstance(value, list) else [value]
    if all(isinstance(item, Mapping) for item in items):  # messages: each whole, one after another
        others = [_plain_turn(item) for item in items]
        starts = [at for at in range(len(turns)) if turns[at : at + len(others)] == others]
        return bool(starts) and (name not in _ANSWERS or others[-1]["role"] == "assistant")
    texts_read = {turn["content"] for turn in turns}
    texts = [str(item).strip() for item in items]
    if name in _ANSWERS:
        answers = {turn["content"] for turn in turns if _is_trained(turn)}
        return texts_read.issuperset(texts) and texts[-1] in answers
    is_text = all(isinstance(item, str) for item in items)  # an equal number is another thing
    return is_text and texts_read.issuperset(texts)


def _is_trained(turn: Mapping[str, Any]) -> bool:
    return turn["role"] == "assistant" and all(turn.get(name, 1) != 0 for name in WEIGHTS)


def _turns(converted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is read, as messages."""
    pair = {"user": converted.get("prompt"), "assistant": converted.get("completion")}
    turns = [{"role": role, "content": text} for role, text in pair.items() if text is not None]
    return [_plain_turn(turn) for turn in converted.get("messages", turns)]


def _plain_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A message under the names of OpenAI's, with all that it says beside its text."""
    plain = {name: value for name, value in turn.items() if has_value(value)}
    for name, other_name in (("role", "from"), ("content", "value")):
        if name not in plain and other_name in plain:
            plain[name] = plain.pop(other_name)
    role, content = plain.get("role"), plain.get("content", "")
    plain["role"] = ROLE_SYNONYMS.get(role, role) if isinstance(role, str) else role
    plain["content"] = content.strip() if isinstance(content, str) else content
    return plain
