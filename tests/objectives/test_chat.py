"""The chat objective: the assistant's turns and their ends are trained on, with any template."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import assume, given
from hypothesis import strategies as st

from research.data import checks
from research.data.config import DataConfig
from research.data.pipeline import Pipeline
from research.data.sources import JsonlConfig
from research.data.token_cache import encode
from research.objectives.chat import Chat
from research.text import chat_template
from research.text import tokenizer as tokenizer_lib
from research.text.conversation import from_messages
from research.text.plain_template import PLAIN
from tests.objectives.cases import trained_texts, whole

TEMPLATES = {
    "plain": (PLAIN, "<|end|>"),
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "<|im_end|>",
    ),
    "trimmed, with headers": (
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n\n"
        "{{ m['content'] | trim }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}",
        "<|im_end|>",
    ),
    "instructions in brackets, system within": (
        "{% set s, turns = '', messages %}{% if messages[0].role == 'system' %}"
        "{% set s, turns = messages[0].content + '\n', messages[1:] %}{% endif %}"
        "{% for m in turns %}{% if m.role == 'user' %}"
        "{{ bos_token }}[INST] {{ s if loop.first else '' }}{{ m.content | trim }} [/INST]"
        "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}",
        " <|end|>",
    ),
}
# A template of some models: earlier answers are written without what the last one has.
FORGETFUL = PLAIN.replace("message.content", "message.content + ('!' if loop.last else '')")


@pytest.fixture(scope="module")
def tokenizer():
    base = tokenizer_lib.train(["user assistant some words and an end of it\n" * 9], 300)
    backend = tokenizers.Tokenizer.from_str(base.to_json())
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return tokenizer_lib.Tokenizer(backend)


class Source:
    """Conversations in memory."""

    name, format, bad_lines, acceptance = "talks", "messages", 0, {}

    def __init__(self, talks):
        self.talks = talks
        self.fingerprint = json.dumps(talks)

    def __len__(self):
        return len(self.talks)

    def __getitem__(self, index):
        talk = self.talks[index]
        return {"messages": talk} if isinstance(talk, list) else talk


def _prepare(talks, tokenizer, cache, window=512, **settings):
    objective = Chat(**settings)
    table = encode(Source(talks), objective.encoder(tokenizer, window), cache)
    return objective.prepare(table, tokenizer, window)


def _message(role, content):
    return {"role": role, "content": content}


WORDS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["some words", "<|im_end|>", "a<|end|>b <|begin|>", " x\n", "\ufdd01\ufdd0"]),
)
ANSWERS = WORDS.filter(lambda text: text.strip())
TALKS = st.builds(
    lambda system, turns: (
        [_message("system", text) for text in system]
        + [_message(*m) for a, b in turns for m in (("user", a), ("assistant", b))]
    ),
    st.lists(WORDS, max_size=1),
    st.lists(st.tuples(WORDS, ANSWERS), min_size=1, max_size=4),
)


@pytest.mark.parametrize("name", TEMPLATES)
@given(talk=TALKS)
def test_what_is_trained_is_what_the_assistant_says_and_its_ends(
    tokenizer, tmp_path_factory, name, talk
):
    template, end = TEMPLATES[name]
    cache = tmp_path_factory.mktemp("cache")
    examples = _prepare([talk], tokenizer, cache, window=4096, template=template)
    piece = whole(examples)
    answer = [m["content"] for m in talk if m["role"] == "assistant"]
    trims = "trim" in template
    space = " " if end.startswith(" ") else ""
    expected = [space + (text.strip() if trims else text) + end for text in answer]
    assert trained_texts(piece, tokenizer) == expected
    ends = piece.targets[piece.weights > 0] == tokenizer.encode(end.strip(), special=True)[0]
    assert ends.sum() == len(answer), "no message can end a turn by writing the token's name"
    assert piece.targets[-1] == examples.stops[0] and len(examples.stops) == 1
    assert examples.trained[0] == piece.weights.sum() and not examples.splittable
    texts = [text.removesuffix(end.strip()) for text in expected]
    assert examples.bytes[0] == sum(len(text.encode()) for text in texts)
    # All that is read is what the template writes.
    whole_text = tokenizer.decode([piece.tokens[0], *piece.targets], special=True)
    tokens = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    assert chat_template.render(template, talk, tokens, ask=False).startswith(whole_text)


@given(talk=TALKS)
def test_a_model_is_asked_with_what_it_read_in_training(tokenizer, tmp_path_factory, talk):
    examples = _prepare([talk], tokenizer, tmp_path_factory.mktemp("cache"), window=4096)
    piece = whole(examples)
    ids = [piece.tokens[0], *piece.targets]
    prompt_ids, _ = Chat().prompt_ids(tokenizer, from_messages(talk[:-1]), 64)
    assert prompt_ids == ids[: len(prompt_ids)]
    assert piece.weights[len(prompt_ids) - 2] == 0 and piece.weights[len(prompt_ids) - 1 :].all()


def _talk(turns, words=3, system=True):
    talk = [_message("system", "Be brief.")] if system else []
    for turn in range(turns):
        talk += [_message("user", f"q{turn} " * words), _message("assistant", f"a{turn} " * words)]
    return talk


@given(st.integers(1, 6), st.integers(1, 5), st.booleans(), st.integers(20, 200))
def test_a_long_conversation_loses_whole_turns_from_its_beginning(
    tokenizer, tmp_path_factory, turns, words, system, window
):
    talk, cache = _talk(turns, words, system), tmp_path_factory.mktemp("cache")
    head = talk[:1] if system else []

    def size(first):
        left = [*head, *talk[len(head) + 2 * first :]]
        return int(_prepare([left], tokenizer, cache, window=4096).lengths[0])

    fits = [first for first in range(turns) if size(first) <= window]
    if not fits:
        with pytest.raises(ValueError, match=r"talks, row 0: the conversation has \d+ tokens"):
            _prepare([talk], tokenizer, cache, window=window)
        return
    examples = _prepare([talk], tokenizer, cache, window=window)
    piece = whole(examples)
    assert len(piece.tokens) == size(fits[0]) <= window
    answers = [m["content"] for m in talk if m["role"] == "assistant"]
    assert trained_texts(piece, tokenizer) == [text + "<|end|>" for text in answers[fits[0] :]]
    assert examples.truncated.tolist() == [fits[0] > 0]
    if system:
        assert tokenizer.decode(piece.tokens).startswith("system\nBe brief.")
    assume(fits[0] > 0)
    with pytest.raises(ValueError, match="Answers are never cut"):
        _prepare([talk], tokenizer, cache, window=window, too_long="refuse")


def test_prompt_and_completion_are_a_conversation_of_two_turns(tokenizer, tmp_path):
    pair = {"prompt": "some", "completion": "words"}
    talk = [_message("user", "some"), _message("assistant", "words")]
    examples = _prepare([pair, talk], tokenizer, tmp_path)
    assert np.array_equal(whole(examples, 0).tokens, whole(examples, 1).tokens)
    with pytest.raises(ValueError, match="row 0: there are no 'messages', and no 'prompt'"):
        _prepare([{"text": "a"}], tokenizer, tmp_path)


def test_a_conversation_without_an_answer_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="row 0: there is no answer"):
        _prepare([_talk(1)[:2]], tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (
            FORGETFUL,
            r"row 0: The chat template writes what comes before message 2 as '!.* as '<\|end",
        ),
        (PLAIN.replace("+ eos_token", ""), "no special token: the model would never stop"),
        (PLAIN.replace("message.content", "message.content | upper"), "changes what the assistant"),
        (PLAIN.replace("if add_generation_prompt", "if false"), "see add_generation_prompt"),
        ("{{ raise_exception('no') }}", "row 0: the chat template does not take .*: no"),
        ("{% for m in messages %}{{ m.nothing.at_all }}{% endfor %}", "row 0: the chat template"),
    ],
)
def test_a_template_that_does_not_serve_is_refused(tokenizer, tmp_path, template, match):
    with pytest.raises(ValueError, match=match):
        _prepare([_talk(2)], tokenizer, tmp_path, template=template)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="no template of Jinja"):
        Chat(template="{% for")
    with pytest.raises(ValueError, match="'cut' or 'refuse', not 'drop'"):
        Chat(too_long="drop")  # type: ignore[arg-type]


def test_the_date_of_a_template_is_the_same_on_any_day(tokenizer, tmp_path):
    template = "{{ strftime_now('%d %b %Y') }}" + PLAIN
    piece = whole(_prepare([_talk(1)], tokenizer, tmp_path, template=template))
    assert tokenizer.decode(piece.tokens).startswith("26 Jul 2024")


@pytest.mark.parametrize("template", [None, TEMPLATES["chatml"][0]])
def test_batches_of_conversations_and_the_template_that_is_stated(tokenizer, tmp_path, template):
    turns = [{"from": "human", "value": "some"}, {"from": "gpt", "value": "words"}]
    lines = [json.dumps({"conversations": turns * n}) for n in range(1, 9)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = JsonlConfig("a", str(tmp_path / "a.jsonl"))
    settings = {} if template is None else {"template": template}
    pipeline = Pipeline(DataConfig((source,), 64, 4, Chat(**settings)), tokenizer, tmp_path)
    answer = pipeline.statistics(1)["a"]
    kind = "plain" if template is None else "configured"
    assert answer.format == f"sharegpt, the {kind} chat template"
    assert pipeline.sidecar_files == {chat_template.TEMPLATE: (template or PLAIN).encode()}
    batch = pipeline.batch(0)
    texts = [
        tokenizer.decode(batch.targets[row][batch.weights[row] > 0], special=True)
        for row in range(4)
    ]
    end = "<|end|>" if template is None else "<|im_end|>"
    assert all(text and not text.replace("words" + end, "") for text in texts)


def test_the_tokenizers_own_template_is_taken_and_its_end_is_known(tokenizer, tmp_path):
    own = tokenizer_lib.from_json(tokenizer.to_json(), "here")
    own.chat_template, end = TEMPLATES["chatml"]
    examples = _prepare([_talk(2)], own, tmp_path)
    assert examples.note == "the tokenizer's chat template"
    assert examples.stops == Chat().stop_ids(own) == tuple(own.encode(end, special=True))
    checks.check_examples(examples, own, 64)
    assert Chat().stop_ids(tokenizer) == (tokenizer.end_id,)
