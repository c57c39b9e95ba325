"""A bank with random weights, served by name, and what each request is answered alone."""

import contextlib
import functools
import threading
import types

from research.batch import NO_ADAPTER
from research.data.config import DataConfig
from research.data.sources import TfdsConfig
from research.generation.decoder import Decoder
from research.generation.responders import Responder
from research.methods import Bank, LoRA
from research.objectives import Chat
from research.serving.engine import Engine
from research.serving.models import Models, ServedModel
from research.serving.protocol import ChatRequest
from research.serving.text import AnswerText
from research.text import tokenizer as tokenizers
from research.text.tool_calls import find_call_form
from tests.helpers import tiny, tiny_run
from tests.text import test_tool_calls

NAMES = {"base": NO_ADAPTER, "law": 0, "style": 1}


@functools.cache
def tokenizer():
    return tokenizers.train(
        ["roofs and leaves fall, red and green\n" * 3], tiny_run.MODEL.vocabulary
    )


@functools.cache
def model():
    bank = Bank(of=LoRA(rank=2), names=("law", "style"))
    return tiny.shaken(tiny.attached(bank, tiny_run.MODEL), size=0.3)


@functools.cache
def models():
    """The base and two adapters, of which a text has 128 tokens at most."""
    run = types.SimpleNamespace(experiment=None, tokenizer=tokenizer(), sidecar_files={})
    ends = frozenset({tokenizer().end_id})
    served = {
        name: ServedModel(name, Responder(run, name, number), ends, 128)
        for name, number in NAMES.items()
    }
    return Models(served, model(), tokens=12)


@functools.cache
def calling_models():
    """The base, with a template that writes calls of tools as Qwen's."""
    template = test_tool_calls.template(test_tool_calls.HERMES, tokenizers.END)
    data = DataConfig((TfdsConfig("a"),), 512, 4, Chat(template=template))
    experiment = types.SimpleNamespace(data=data)
    run = types.SimpleNamespace(experiment=experiment, tokenizer=tokenizer(), sidecar_files={})
    responder = Responder(run, "base", NO_ADAPTER)
    form = find_call_form(responder.writer, tokenizer().special)
    ends = frozenset({tokenizer().end_id})
    return Models({"base": ServedModel("base", responder, ends, 1024, form)}, model(), tokens=12)


def request(text, name="base", **fields):
    messages = [{"role": "user", "content": text}]
    return ChatRequest.model_validate({"model": name, "messages": messages, **fields})


def alone(chat):
    """Text and reason of the first choice, from a decoder that has nothing else to do."""
    choice = models().choices(chat)[0][0]
    decoder, text, answer = Decoder(model(), 1), "", None
    answer = AnswerText(choice.tokenizer, choice.stops)
    decoder.add(choice.request)
    while not decoder.is_idle:
        (token,) = decoder.step()
        text += "" if token.token in choice.request.ends else answer.add(token.token)
        if answer.is_stopped:
            return text, "stop"
    text += answer.finish()
    return text, "stop" if token.ending == "end" else "length"


@contextlib.contextmanager
def running(rows=4, max_waiting=512, **settings):
    """An engine that runs in a thread."""
    engine = Engine(model(), rows, max_waiting=max_waiting, **settings)
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    try:
        yield engine
    finally:
        engine.close()
        thread.join(60)
        assert not thread.is_alive()
