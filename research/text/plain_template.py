"""The chat template of a tokenizer that comes with none."""

import json

from research.text.tokenizer import Tokenizer

# Where the tokenizer's makers give no template. It writes the tokenizer's own begin and end.
PLAIN = (
    "{%- for message in messages -%}"
    "{{- bos_token + message.role + '\n' + message.content + eos_token + '\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- bos_token + 'assistant\n' -}}{%- endif -%}"
)


def plain_template(tokenizer: Tokenizer) -> str:
    """`PLAIN`, with the tokens themselves where no file of the model gives them a name."""
    template = PLAIN
    for name, role in (("bos_token", "begin"), ("eos_token", "end")):
        if name not in tokenizer.template_tokens:
            template = template.replace(name, json.dumps(tokenizer.roles[role]))
    return template
