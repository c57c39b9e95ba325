"""Whether an objective writes prompts as the chat template that came with the tokenizer does."""

from collections.abc import Callable, Sequence

from research.text.conversation import Message, Writer
from research.text.tokenizer import Tokenizer

# Conversations that two templates must write alike; what one of them refuses is not compared.
_CONTENT = {"system": "Be brief.", "user": "What is red?", "assistant": "A rose is red."}
_PROBES = (("user",), ("user", "assistant", "user"), ("system", "user"))


def check_own_template(
    write: Callable[[Sequence[Message]], list[int]], tokenizer: Tokenizer, name: str
) -> None:
    """Compares prompts with those of the tokenizer's own chat template, if it has one.

    Args:
      write: messages -> token ids of a prompt, as the objective writes it; ValueError where it
        does not take them.
      tokenizer: the model's.
      name: what the error calls the configured template.

    Raises:
        ValueError: a prompt is written in another way.
    """
    if tokenizer.chat_template is None:
        return
    writer = Writer(tokenizer.chat_template, tokenizer)
    for roles in _PROBES:
        messages = [{"role": role, "content": _CONTENT[role]} for role in roles]
        try:
            own_ids, ids = writer.prompt_ids(messages), write(messages)
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
