"""Whether an objective writes prompts as the chat template that came with the tokenizer does."""

from collections.abc import Callable, Mapping
from typing import Any

from research.text import chat_template
from research.text.conversation import Conversation, from_messages
from research.text.conversation_writer import Writer
from research.text.tokenizer import Tokenizer

# Conversations that two templates must write alike; what one of them refuses is not compared.
_CONTENT = {"system": "Be brief.", "user": "What is red?", "assistant": "A rose is red."}
_PROBES = (("user",), ("user", "assistant", "user"), ("system", "user"))


def check_own_template(
    write: Callable[[Conversation], list[int]],
    tokenizer: Tokenizer,
    name: str,
    template_arguments: Mapping[str, Any] | None = None,
) -> None:
    """Compares prompts with those of the tokenizer's own chat template, if it has one.

    Args:
      write: conversation -> token ids of a prompt, as the objective writes it; ValueError where it
        does not take one.
      tokenizer: the model's.
      name: what the error calls the configured template.
      template_arguments: variables that both templates are given, if their own reads them.

    Raises:
        ValueError: a prompt is written in another way.
    """
    if tokenizer.chat_template is None:
        return
    names = chat_template.read_contents(tokenizer.chat_template).names
    arguments = {k: v for k, v in (template_arguments or {}).items() if k in names}
    writer = Writer(tokenizer.chat_template, tokenizer, arguments)
    for roles in _PROBES:
        conversation = from_messages([{"role": r, "content": _CONTENT[r]} for r in roles])
        try:
            own_ids, ids = writer.prompt_ids(conversation), write(conversation)
        except ValueError:
            continue
        prompt, own_prompt = (tokenizer.decode(each, special=True) for each in (ids, own_ids))
        if prompt != own_prompt:
            raise ValueError(
                f"The configured {name} writes a prompt unlike the chat template that came with "
                f"the tokenizer.\n  configured {prompt!r}\n  its own    {own_prompt!r}\n"
                'Use the objective "chat" without a template to write it as the model knows it, or '
                "say that another one is meant: --config.checks.other_template=true"
            )
