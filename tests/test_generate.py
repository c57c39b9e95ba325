"""What a run is asked with, and where its answer ends; the model is a stand-in."""

import contextlib
import dataclasses
import types

import numpy as np
import pytest

from research import generate, runs
from research.data import tokenizer as tokenizer_lib
from research.data.pipeline import DataConfig
from research.data.sources import SourceConfig
from research.generation import decode


@pytest.fixture
def chatting(monkeypatch):
    """A run that was tuned on conversations; gives its tokenizer and what the model was given."""
    words = tokenizer_lib.train(["user assistant some words\n" * 9], 290)
    data = DataConfig((SourceConfig("a"),), 64, 4, "chat")
    run = types.SimpleNamespace(
        experiment=types.SimpleNamespace(data=data),
        tokenizer=words,
        companions={},
        method=types.SimpleNamespace(kind="full"),
    )
    given = []

    def stream(model, prompts, tokens, end_id, sampling, stops=()):
        given.append((words.decode(prompts[0], special=True), stops))
        return iter(np.asarray([[token] for token in [*words.encode("yes"), words.end_id]]))

    monkeypatch.setattr(runs, "open_run", lambda *_: run)
    monkeypatch.setattr(runs, "load_model", lambda *_: None)
    monkeypatch.setattr(decode, "stream", stream)
    return words, given


def test_a_run_tuned_on_conversations_goes_on_with_its_template(chatting, monkeypatch, capsys):
    words, given = chatting
    asked = iter(["some", "words"])
    monkeypatch.setattr(generate, "_ask", lambda: next(asked, None))
    with contextlib.suppress(SystemExit):
        generate.main(["--run", "there"])
    first = "<|begin|>user\nsome<|end|>\n<|begin|>assistant\n"
    second = first + "yes<|end|>\n<|begin|>user\nwords<|end|>\n<|begin|>assistant\n"
    assert given == [(first, (words.end_id,)), (second, (words.end_id,))]
    assert capsys.readouterr().out == "yes\nyes\n"


def test_a_raw_prompt_is_in_no_template(chatting):
    _, given = chatting
    generate.main(["--run", "there", "--raw", "--prompt", "some"])
    assert given[0][0] == "<|begin|>some"


def test_a_model_of_masked_text_does_not_write(chatting):
    run = runs.open_run("there", None)
    run.experiment.data = dataclasses.replace(run.experiment.data, objective="masked")
    with pytest.raises(SystemExit, match="there was trained to fill in masked tokens"):
        generate.main(["--run", "there", "--prompt", "some"])
