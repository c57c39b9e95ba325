"""Fields of a record that its format does not read: they are metadata, they say again what is
read, the source names them, or the record is refused.

One rule for all formats, so that a weight beside a pair is told as one beside messages is.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from research.data.sources.formats.base import Format, Record, has_value
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
# Answers: what such a field says must be one of those that are trained on.
_ANSWERS = ("completion", "response", "answer", "output", "chosen")
# Values that ask for what is done anyway: a bad answer is not told by a true one.
_DONE_ANYWAY = dict.fromkeys((*WEIGHTS, "weights", "kto_tag", "is_correct", "label"), 1)
_DONE_ANYWAY |= {"train_on_inputs": 0, "mask_history": 0}

# Fields that say how a record is trained on: refused beside a document, too.
_TRAINING = dict.fromkeys(
    (*WEIGHTS, "weights", "mask", "loss_mask", "completion_mask", "assistant_mask")
    + ("assistant_masks",),
    "give messages a weight",
) | dict.fromkeys(("kto_tag", "is_correct"), "leave records with bad answers out")


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
        "rejected rejected_response": "no objective learns from preferences",
        "chat_template": "set the objective's `template`",
        "continue_final_message": "an answer is trained on to its end",
        "train_on_inputs": "no objective trains on questions",
        "mask_history": 'set the objective\'s turns="last"',
        "label": "leave records with bad answers out",
        "text": 'set format="text" if it is what is trained on',
    }
    flat = {name: hint for names, hint in hints.items() for name in names.split()}
    flat |= {name: beside(arguments(name)) for name in ("enable_thinking", "reasoning_effort")}
    flat["thinking"] = f"{in_message}, or {beside(arguments('thinking'))}"
    return flat | _TRAINING


_HINTS = _hints()


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
        """Those of the names that a pattern matches."""
        for name in names:
            if name not in self._is_unused:
                matching = {p for p, regex in self._patterns.items() if regex.fullmatch(name)}
                self.idle -= matching
                self._is_unused[name] = bool(matching) or name in self._used_names
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
        others = {field for field in record if field in _TRAINING}
    else:
        others = {f for f in record if f not in form.reads and f not in METADATA}
    if not others:
        return
    others -= unused.select(others)
    refused = [
        field
        for field, value in record.items()
        if field in others and has_value(value) and not _is_harmless(field, value, converted)
    ]
    if refused:
        hinted_names = [f"{f!r} ({_HINTS[f]})" if f in _HINTS else repr(f) for f in refused]
        patterns = ", ".join(json.dumps(re.escape(field), ensure_ascii=False) for field in refused)
        setting = f"({patterns},)" if len(refused) == 1 else f"({patterns})"
        raise ValueError(
            f"{', '.join(hinted_names)} would be lost. Write what the model is to see into what is "
            f"read (`fields`, `transforms`); what means nothing, name in source {name!r}: "
            f"unused_fields={setting}"
        )


def _is_harmless(name: str, value: Any, converted: Mapping[str, Any]) -> bool:
    """Whether a field asks for what is done anyway, or says again what is read."""
    if name in _DONE_ANYWAY:
        return isinstance(value, bool | int | float) and value == _DONE_ANYWAY[name]
    if name in _HINTS:
        return False
    if "messages" in converted:
        pairs = [(turn["role"], turn["content"].strip()) for turn in converted["messages"]]
        texts_read = {text for _, text in pairs}
        answers = {text for role, text in pairs if role == "assistant"}
    else:
        texts_read = {converted[f].strip() for f in ("prompt", "completion") if f in converted}
        answers = {converted["completion"].strip()} if "completion" in converted else set()
    if name in _ANSWERS:
        texts = _texts(value)
        return texts_read.issuperset(texts) and texts[-1] in answers
    items = value if isinstance(value, list) else [value]  # a number that is equal is another thing
    is_text = all(isinstance(item, str | Mapping) for item in items)
    return is_text and texts_read.issuperset(_texts(value))


def _texts(value: Any) -> list[str]:
    """What a field says: as text, as a number, as a message or several."""
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list):
        return [
            str(turn.get("content", turn.get("value"))).strip()
            if isinstance(turn, Mapping)
            else str(turn).strip()
            for turn in value
        ]
    return [str(value).strip()]
