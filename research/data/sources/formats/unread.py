"""Fields of a record that would change what is trained and that no format reads: refused by name.

One table for all formats, so that a weight beside a pair is told as one beside messages is.
"""

from collections.abc import Collection, Mapping
from typing import Any

from research.data.sources.formats.base import Record, refuse_fields
from research.text.conversation import REASONING, WEIGHT

# Names of a message's weight in training: OpenAI's and Mistral's, axolotl's, ms-swift's,
# LLaMA-Factory's. True and false are 1 and 0; several are multiplied.
WEIGHTS = (WEIGHT, "train", "training", "loss", "loss_scale", "loss_weight")
# Of tokens: where a file says which of them are trained on.
_MASKS = ("mask", "loss_mask", "completion_mask", "assistant_mask", "assistant_masks")
# False: what the record says is bad. A label beside a text is its class.
_VERDICTS = ("kto_tag", "is_correct")
# Answers; one that says what is trained on already is not lost.
_ANSWERS = ("completion", "response", "answer", "output", "chosen")
_PREFERENCE = "no objective learns from preferences"

_OF_ALL = dict.fromkeys(_MASKS, "give messages a weight")
# Beside a prompt and a completion, which have no place for them.
_OF_PAIR = dict.fromkeys(
    (
        "system system_prompt system_message history tools functions available_tools tool_calls "
        "documents template_arguments chat_template_kwargs enable_thinking reasoning_effort "
        "images videos audios"
    ).split()
    + list(REASONING),
    "write it as messages",
) | {"rejected": _PREFERENCE, "rejected_response": _PREFERENCE}
_OF_CONVERSATION = {
    "functions": "write them as tools",
    "history": "write it as messages",
    "enable_thinking": 'write it as chat_template_kwargs: {"enable_thinking": ...}',
    "reasoning_effort": 'write it as chat_template_kwargs: {"reasoning_effort": ...}',
    "rejected": _PREFERENCE,
    "rejected_response": _PREFERENCE,
    "images": "it is no text",
    "videos": "it is no text",
    "audios": "it is no text",
    "system_prompt": "write it as system",
    "system_message": "write it as system",
    "available_tools": "write them as tools",
    "tool_choice": "no template reads it",
    "parallel_tool_calls": "no template reads it",
    "response_format": "no template reads it",
    "thinking": "write it as chat_template_kwargs, or as reasoning_content of an answer",
    "reasoning_content": "write it in the answer's message",
    "reasoning": "write it in the answer's message",
    "tool_calls": "write them in the answer's message",
    "chat_template": "set the objective's `template`",
    "continue_final_message": "an answer is trained on to its end",
}


def check_every_field(record: Record) -> None:
    """Raises ValueError for weights, masks and verdicts of a whole record, in any format."""
    for name in (*WEIGHTS, "weights"):
        value = record.get(name)
        if value is not None and not (isinstance(value, bool | int | float) and value == 1):
            raise ValueError(
                f"field {name!r} of a whole record is not read: give messages one, or "
                f"{_removal(name)}."
            )
    for name in _VERDICTS:
        if isinstance(record.get(name), bool | int) and not record[name]:
            raise _bad_answer(name)
    _refuse(record, _OF_ALL)


def check_pair_fields(record: Record, completion: str, own: Collection[str]) -> None:
    """Raises ValueError for what a prompt and its completion have no place for.

    Args:
      record: what is checked.
      completion: what is trained on.
      own: fields that the format reads.
    """
    check_every_field(record)
    _check_label(record)
    _refuse(record, {name: why for name, why in _OF_PAIR.items() if name not in own})
    answers = [name for name in _ANSWERS if name not in own]
    _check_second(record, answers, [completion])


def check_conversation_fields(
    record: Record, messages: list[dict[str, Any]], own: Collection[str]
) -> None:
    """Raises ValueError for what would be lost beside messages, a second conversation for one."""
    check_every_field(record)
    _check_label(record)
    _refuse(record, _OF_CONVERSATION)
    if record.get("train_on_inputs"):
        raise ValueError("field 'train_on_inputs' asks to train on questions: no objective does.")
    if record.get("mask_history"):
        raise ValueError(
            "field 'mask_history' asks to train on the last answer alone: set the objective's "
            f'turns="last", and {_removal("mask_history")}.'
        )
    texts = [message["content"] for message in messages]
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    for name in ("conversations", "prompt"):
        if name not in own:
            _check_second(record, [name], texts)
    _check_second(record, [name for name in _ANSWERS if name not in own], texts, answers)


def _check_label(record: Record) -> None:
    if record.get("label") is False:
        raise _bad_answer("label")


def _check_second(
    record: Record,
    names: Collection[str],
    texts: Collection[str],
    answers: Collection[str] | None = None,
) -> None:
    """Raises ValueError for a field that says something else than the texts, or ends with
    something else than one of the answers."""
    content = {text.strip() for text in texts}
    ends = content if answers is None else {text.strip() for text in answers}
    for name in names:
        value = record.get(name)
        is_empty = value is None or (isinstance(value, str | list | dict) and not value)
        if is_empty or (content.issuperset(_texts(value)) and _texts(value)[-1] in ends):
            continue
        raise ValueError(
            f"field {name!r} says something beside what is trained on and would be lost: name "
            f"the field that is meant in the source's `fields`, or {_removal(name)}."
        )


def _texts(value: Any) -> list[str]:
    """What an answer says: as text, as a number, as a message or several."""
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


def _refuse(record: Record, reasons: Mapping[str, str]) -> None:
    refuse_fields(record, {name: f"{why}, or {_removal(name)}" for name, why in reasons.items()})


def _removal(name: str) -> str:
    return (
        f'remove it with transforms=[{{"kind": "template", "fields": {{}}, "remove": ["{name}"]}}]'
    )


def _bad_answer(name: str) -> ValueError:
    return ValueError(f"field {name!r} says that the answer is bad: leave the record out.")
