"""What a run is asked with, and where its answer ends; the model is a stand-in."""

import contextlib
import dataclasses
import types

import numpy as np
import pytest

from research.checkpoints import runs
from research.commands import generate
from research.data.config import DataConfig
from research.data.sources import TfdsConfig
from research.generation import decode
from research.generation.responders import Responder
from research.methods import LoRA
from research.objectives import Chat, Masked, Supervised
from research.text import tokenizer as tokenizers
from research.text.conversation import from_messages
from tests.helpers import tiny_run
from tests.text import templates


@pytest.fixture
def chatting(monkeypatch):
    """A run that was tuned on conversations; gives its tokenizer and what the model was given."""
    tokenizer = tokenizers.train(["user assistant some words\n" * 9], 290)
    data = DataConfig((TfdsConfig("a"),), 64, 4, Chat())
    run = types.SimpleNamespace(
        experiment=types.SimpleNamespace(data=data),
        tokenizer=tokenizer,
        sidecar_files={},
        method=types.SimpleNamespace(kind="full", bank_names=()),
    )
    calls = []

    def stream(model, prompts, tokens, end_id, sampling, stops=(), **settings):
        calls.append((run.tokenizer.decode(prompts[0], special=True), stops))
        return iter(np.asarray([[token] for token in [*tokenizer.encode("yes"), tokenizer.end_id]]))

    monkeypatch.setattr(runs, "open_run", lambda *_: run)
    monkeypatch.setattr(runs, "load_model", lambda *_: None)
    monkeypatch.setattr(decode, "stream", stream)
    return tokenizer, calls


def test_a_run_tuned_on_conversations_goes_on_with_its_template(chatting, monkeypatch, capsys):
    tokenizer, calls = chatting
    prompts = iter(["some", "words"])
    monkeypatch.setattr(generate, "_ask", lambda: next(prompts, None))
    with contextlib.suppress(SystemExit):
        generate.main(["--run", "there"])
    first = "<|begin|>user\nsome<|end|>\n<|begin|>assistant\n"
    second = first + "yes<|end|>\n<|begin|>user\nwords<|end|>\n<|begin|>assistant\n"
    assert calls == [(first, (tokenizer.end_id,)), (second, (tokenizer.end_id,))]
    assert capsys.readouterr().out == "yes\nyes\n"


def test_tools_and_template_arguments_are_those_of_training_unless_others_are_given(
    chatting, tmp_path, capsys
):
    _, calls = chatting
    run = runs.open_run("there", None)
    run.tokenizer = templates.tokenizer()
    objective = Chat(template=templates.THINKING, template_arguments={"enable_thinking": False})
    run.experiment.data = dataclasses.replace(run.experiment.data, objective=objective)
    tools = tmp_path / "tools.json"
    tools.write_text('[{"type": "function", "function": {"name": "weather"}}]')
    line = ["--run", "there", "--prompt", "some"]

    def prompt(*options):
        calls.clear()
        generate.main([*line, *options])
        return calls[0][0]

    no_thoughts = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert prompt().endswith(no_thoughts)
    text = prompt("--tools", str(tools), "--template-argument", "enable_thinking=true")
    assert text.startswith("<|im_start|>system\nTools: ") and '"name": "weather"' in text
    assert text.endswith("<|im_start|>assistant\n")
    with pytest.raises(SystemExit, match="never reads 'mood'"):
        prompt("--template-argument", "mood=glad")
    with pytest.raises(SystemExit, match="write NAME=VALUE"):
        prompt("--template-argument", "mood")
    tools.write_text('{"name": "weather"}')
    with pytest.raises(SystemExit, match=r"tools.json: tools must be a list of JSON schemas"):
        prompt("--tools", str(tools))
    with pytest.raises(SystemExit, match="template arguments, which would be lost"):
        prompt("--raw", "--template-argument", "enable_thinking=true")


@pytest.mark.parametrize("thinking", [True, False])
def test_a_prompt_has_the_tokens_of_the_same_record_in_training(thinking):
    """With its tools and its switch of thoughts, up to where the answer begins."""
    tokenizer = templates.tokenizer()
    objective = Chat(template=templates.THINKING, template_arguments={"enable_thinking": True})
    tools = [{"type": "function", "function": {"name": "weather"}}]
    question, answer = templates.user("some"), templates.assistant("words")
    arguments = {"enable_thinking": thinking}
    record = {"messages": [question, answer], "tools": tools, "template_arguments": arguments}
    encoder = objective.encoder(tokenizer, 512)
    encoder.add(record, "the record")
    row = encoder.take()
    (tokens,), (intervals,) = row["tokens"].values, row["intervals"].values
    conversation = from_messages([question], tools, arguments)
    data = DataConfig((TfdsConfig("a"),), 512, 4, objective)
    run = types.SimpleNamespace(experiment=types.SimpleNamespace(data=data), tokenizer=tokenizer)
    prompt = Responder(run).prompt_ids(conversation)
    assert tokens[: len(prompt)] == prompt and intervals[0] == len(prompt)
    assert tokenizer.decode(prompt, special=True).endswith("</think>\n\n") != thinking


def test_a_raw_prompt_is_in_no_template(chatting):
    _, calls = chatting
    generate.main(["--run", "there", "--raw", "--prompt", "some"])
    assert calls[0][0] == "<|begin|>some"


def test_prompts_in_no_chat_template_are_asked_alone(chatting, monkeypatch):
    run = runs.open_run("there", None)
    prompts = ["some", "words"]
    for objective, line in ((Chat(), ["--raw"]), (Supervised("{prompt}: "), [])):
        run.experiment.data = dataclasses.replace(run.experiment.data, objective=objective)
        monkeypatch.setattr(generate, "_ask", [None, *reversed(prompts)].pop)
        generate.main(["--run", "there", *line])
    texts = [text for text, _ in chatting[1]]
    assert texts == [f"<|begin|>{prompt}{end}" for end in ("", ": ") for prompt in prompts]


def test_a_model_of_masked_text_does_not_write(chatting):
    run = runs.open_run("there", None)
    run.experiment.data = dataclasses.replace(run.experiment.data, objective=Masked())
    with pytest.raises(SystemExit, match="it was trained to fill in masked tokens"):
        generate.main(["--run", "there", "--prompt", "some"])


@pytest.mark.heavy
def test_one_of_several_side_by_side_is_switched_off(world, tmp_path, capsys):
    adapter_options = []
    for seed, name in enumerate(("law", "style")):
        path = tiny_run.adapter(world.base, LoRA(rank=2), tmp_path / name, seed)
        adapter_options += ["--adapter", f"{name}={path}"]
    capsys.readouterr()  # of the base's training

    def outputs(*off):
        line = ["--run", str(world.base), *adapter_options, "--prompt", "red", "--tokens", "3"]
        generate.main([*line, *(option for name in off for option in ("--switch-off", name))])
        return dict(text.split(": ", 1) for text in capsys.readouterr().out.splitlines())

    both = outputs()
    assert list(both) == ["law", "style"]
    assert outputs("law") == {"style": both["style"]}
    assert list(outputs("law", "style")) == ["base"]
    with pytest.raises(SystemExit, match="side by side are law, style"):
        outputs("lax")
