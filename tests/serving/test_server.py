"""The server and OpenAI's own client, over HTTP. Needs `tools/setup serve`."""

import asyncio
import dataclasses
import json
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

import jsonschema
import pytest

from research.commands import serve
from research.generation import decode
from research.generation.decoder import Decoder
from research.generation.sampling import Sampling
from research.serving.engine import Engine
from tests.helpers import tiny_run
from tests.serving import served
from tests.serving.test_engine import requests, slow

openai = pytest.importorskip("openai", reason="tools/setup serve")
pytest.importorskip("starlette", reason="tools/setup serve")
from research.serving import app, running  # noqa: E402

RED = [{"role": "user", "content": "red"}]


class Address:
    def __init__(self, engine, port):
        self.engine, self.url = engine, f"http://127.0.0.1:{port}"
        settings = {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0}
        self.client = openai.OpenAI(**settings)
        self.settings = settings

    def ask(self, **fields):
        return self.client.chat.completions.create(**{"model": "base", "messages": RED} | fields)

    def post(self, body, path="/v1/chat/completions", **headers):
        """Status and JSON of a POST."""
        headers = {"Content-Type": "application/json"} | headers
        call = urllib.request.Request(self.url + path, body, headers, method="POST")
        try:
            with urllib.request.urlopen(call) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


def start(rows=4, max_waiting=512, models=None, **settings):
    """A server that runs in a thread of this process, and the thread."""
    engine = Engine(served.model(), rows, max_waiting=max_waiting)
    listener = running.open_socket("127.0.0.1", 0)
    application = app.make_app(engine, models or served.models(), **settings)
    arguments = (engine, application, listener, 5)
    thread = threading.Thread(target=running.run, args=arguments, daemon=True)
    thread.start()
    return Address(engine, listener.getsockname()[1]), thread


@pytest.fixture(scope="module")
def server():
    address, thread = start()
    yield address
    address.engine.close()
    thread.join(60)
    assert not thread.is_alive()


def streamed(chunks):
    """Text, reason and usage of a stream of one choice."""
    text, reason, usage = "", None, None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    return text, reason, usage


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("name", served.NAMES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_is_the_whole_answer_is_that_of_generate(server, name, temperature):
    fields = {"model": name, "temperature": temperature, "seed": 3, "max_tokens": 10}
    whole = server.ask(**fields)
    text, reason, usage = streamed(
        server.ask(**fields, stream=True, stream_options={"include_usage": True})
    )
    choice = whole.choices[0]
    assert (text, reason, usage) == (choice.message.content, choice.finish_reason, whole.usage)
    tokenizer = served.tokenizer()
    prompt = [*tokenizer.opening, *tokenizer.encode("red")]
    (tokens,) = decode.generate(
        served.model(),
        [prompt],
        10,
        tokenizer.end_id,
        Sampling(temperature, seed=3),
        adapter=[served.NAMES[name]],
    )
    assert text == tokenizer.decode(tokens)
    assert usage.prompt_tokens == len(prompt)
    assert usage.completion_tokens == min(10, len(tokens) + (reason == "stop"))


def test_a_stop_string_ends_an_answer_and_is_no_part_of_it(server):
    text = server.ask(temperature=0, max_tokens=30).choices[0].message.content
    stop = text[3:5]
    expected = text[: text.index(stop)]
    answer = server.ask(temperature=0, max_tokens=30, stop=[stop]).choices[0]
    assert (answer.message.content, answer.finish_reason) == (expected, "stop")
    chunks = server.ask(temperature=0, max_tokens=30, stop=stop, stream=True)
    assert streamed(chunks)[:2] == (expected, "stop")


def test_several_choices_are_as_many_draws(server):
    fields = {"n": 3, "seed": 1, "max_tokens": 8}
    choices = server.ask(**fields).choices
    assert [choice.index for choice in choices] == [0, 1, 2]
    assert len({choice.message.content for choice in choices}) == 3
    assert server.ask(**fields).choices == choices
    assert server.ask(seed=1, max_tokens=8).choices == choices[:1]


def test_an_answer_under_a_schema_is_always_of_it(server):
    properties = {"name": {"type": "string"}, "count": {"type": "integer"}, "red": {"enum": [1, 2]}}
    schema = {"type": "object", "properties": properties, "required": ["name", "red"]}
    schema |= {"additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    for seed in range(10):
        answer = server.ask(response_format=form, max_tokens=40, seed=seed).choices[0]
        jsonschema.validate(json.loads(answer.message.content), schema)
        assert answer.finish_reason == "stop"
    form = {"type": "json_object"}
    text = server.ask(response_format=form, max_tokens=20, seed=1).choices[0].message.content
    assert isinstance(json.loads(text), dict)


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Bern"]}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "time", "description": "now"}}


def streamed_calls(chunks):
    """Name, arguments and reason of a stream with one call, put together as clients do."""
    name, arguments, reason = None, "", None
    for chunk in chunks:
        (choice,) = chunk.choices
        for call in choice.delta.tool_calls or []:
            assert call.index == 0
            name, arguments = call.function.name or name, arguments + call.function.arguments
        reason = choice.finish_reason or reason
    return name, arguments, reason


def test_calls_that_the_model_writes_are_tool_calls_of_the_protocol():
    """Random weights write calls where they must; what they write then is read as any is."""
    address, thread = start(models=served.calling_models())
    fields = {"tools": [WEATHER, TIME], "max_tokens": 120, "temperature": 1.0}
    names = set()
    for seed in range(4):
        choice = address.ask(**fields, seed=seed, tool_choice="required").choices[0]
        (call,) = choice.message.tool_calls
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        names.add(call.function.name)
        arguments = json.loads(call.function.arguments)
        if call.function.name == "weather":
            jsonschema.validate(arguments, WEATHER["function"]["parameters"])
        chunks = address.ask(**fields, seed=seed, tool_choice="required", stream=True)
        assert streamed_calls(chunks) == (call.function.name, call.function.arguments, "tool_calls")
    one_tool = {"type": "function", "function": {"name": "weather"}}
    choice = address.ask(**fields, seed=0, tool_choice=one_tool).choices[0]
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather" and names <= {"weather", "time"}
    # the client sends it back with what came of it
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    messages = [*RED, choice.message.model_dump(exclude_none=True), result]
    plain = address.ask(messages=messages, tools=[WEATHER], max_tokens=3, temperature=0)
    assert plain.choices[0].message.tool_calls is None and plain.choices[0].message.content
    assert address.client.models.retrieve("base").parses_tool_calls is True
    address.engine.close()
    thread.join(60)


def test_a_call_that_no_template_writes_cannot_be_asked_for(server):
    with pytest.raises(openai.BadRequestError, match="there are tools"):
        server.ask(tools=[TIME], tool_choice="required")
    assert server.client.models.retrieve("base").parses_tool_calls is False


def test_models_and_health_are_told(server):
    assert [model.id for model in server.client.models.list()] == list(served.NAMES)
    assert server.client.models.retrieve("law").id == "law"
    with urllib.request.urlopen(f"{server.url}/health") as response:
        assert json.load(response) == {"status": "ok", "open_answers": 0}


def test_malformed_requests_get_an_error_that_the_client_reads(server):
    with pytest.raises(openai.NotFoundError, match="did you mean law"):
        server.ask(model="lawn")
    with pytest.raises(openai.BadRequestError, match="temperature") as error:
        server.ask(temperature=-1)
    assert error.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        server.ask(logprobs=True)
    with pytest.raises(openai.BadRequestError, match="is empty"):
        server.ask(messages=[])
    with pytest.raises(openai.BadRequestError) as error:
        server.ask(messages=[{"role": "user", "content": "red " * 300}])
    assert error.value.code == "context_length_exceeded"
    body = json.dumps({"model": "base", "messages": RED}).encode()
    for status, answer in (
        (400, server.post(b"{")),
        (415, server.post(body, **{"Content-Type": "text/plain"})),
        (413, server.post(b" " * (app.MAX_BODY + 1))),
        (404, server.post(body, "/v1/completions")),
        (405, server.post(body, "/v1/models")),
    ):
        assert answer[0] == status and answer[1]["error"]["message"]
    call = urllib.request.Request(f"{server.url}/health", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(call)


def without_ends(monkeypatch):
    """Every answer of the base is as long as it may be."""
    by_name = served.models().by_name
    monkeypatch.setitem(by_name, "base", dataclasses.replace(by_name["base"], ends=frozenset()))


def test_clients_that_go_away_free_their_rows(server, monkeypatch):
    without_ends(monkeypatch)
    server.ask(max_tokens=100, n=4)  # compiles it
    steps = slow(monkeypatch, seconds=0.05)
    chunks = server.ask(stream=True, max_tokens=100, n=4)
    next(iter(chunks))
    assert server.engine.open_answers == 4
    chunks.close()
    wait_until(lambda: server.engine.open_answers == 0)
    with pytest.raises(openai.APITimeoutError):
        server.client.with_options(timeout=0.2).chat.completions.create(
            model="base", messages=RED, max_tokens=100
        )
    wait_until(lambda: server.engine.open_answers == 0)
    assert len(steps) < 100  # of 200


def test_an_error_of_the_engine_is_a_500_and_the_next_request_is_answered(server, monkeypatch):
    def fail(self):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "step", fail)
        with pytest.raises(openai.InternalServerError, match="out of memory"):
            server.ask()
        with pytest.raises(openai.APIError, match="out of memory"):
            list(server.ask(stream=True))
    assert server.ask(max_tokens=3).choices


@pytest.mark.heavy
def test_200_requests_at_once_on_a_slow_model_are_each_answered_as_alone(server, monkeypatch):
    chats = requests(200)
    expected = [served.alone(chat) for chat in chats]
    slow(monkeypatch)

    async def ask_all():
        async with openai.AsyncOpenAI(**server.settings, timeout=300) as client:

            async def ask(number, chat):
                fields = chat.model_dump(exclude_none=True)
                if number % 2:
                    answer = await client.chat.completions.create(**fields)
                    choice = answer.choices[0]
                    return choice.message.content, choice.finish_reason
                chunks = await client.chat.completions.create(**fields, stream=True)
                return streamed([chunk async for chunk in chunks])[:2]

            return await asyncio.gather(*(ask(*pair) for pair in enumerate(chats)))

    assert asyncio.run(ask_all()) == expected
    wait_until(lambda: server.engine.open_answers == 0)


def test_a_full_queue_and_a_wrong_key_are_refused(monkeypatch):
    without_ends(monkeypatch)
    slow(monkeypatch, seconds=0.1)
    address, thread = start(rows=1, max_waiting=1, api_key="right")
    with pytest.raises(openai.AuthenticationError):
        address.ask()
    address.client = address.client.with_options(api_key="right")
    streams = [address.ask(stream=True, max_tokens=100) for _ in range(2)]
    with pytest.raises(openai.RateLimitError, match="ask again later"):
        address.ask()
    for chunks in streams:
        chunks.close()
    address.engine.close()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--host", "0.0.0.0"], "add --expose"),
        (["--api-key", "GRAFT_NO_SUCH_KEY"], "no such environment variable"),
        (["--port", "TAKEN"], "--port takes another"),
        (["--port", "0"], "no checkpoint in"),
        (["--port", "0", "--tensor", "3"], "tensor=3 does not fit 8 devices"),
    ],
)
def test_a_server_that_cannot_start_says_why(options, part, tmp_path):
    with running.open_socket("127.0.0.1", 0) as listener:
        port = str(listener.getsockname()[1])
        line = ["--run", str(tmp_path / "none"), *(o.replace("TAKEN", port) for o in options)]
        with pytest.raises(SystemExit, match=part):
            serve.main(line)


@pytest.mark.heavy
def test_adapters_of_a_served_run_answer_as_each_alone_and_sigterm_drains(world, tmp_path):
    from research import sharding
    from research.checkpoints import runs
    from research.methods import LoRA

    adapters = {
        name: tiny_run.adapter(world.base, LoRA(rank=2), tmp_path / name, seed)
        for seed, name in enumerate(("law", "style"), 1)
    }
    options = [f"--adapter={name}={path}" for name, path in adapters.items()]
    options += ["--fsdp=2", "--tensor=2"]  # the answers stay those of one device
    line = tiny_run.command("serve", "--run", world.base, *options, "--port=0", "--window=256")
    process = subprocess.Popen(line, cwd=tiny_run.ROOT, stderr=subprocess.PIPE, text=True)
    try:
        printed = []
        while "http://" not in "".join(printed[-1:]):
            printed.append(process.stderr.readline())
            assert printed[-1], printed
        assert "for evaluation and demos" in "".join(printed)
        url = printed[-1].split()[-1]
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        fields = {"messages": RED, "temperature": 0, "max_tokens": 12}
        mesh = sharding.MeshConfig().make()
        for name, path in {"base": world.base, **adapters}.items():
            run = runs.open_run(path)
            with sharding.mesh_context(mesh, sharding.RULES):
                model = runs.load_model(run, mesh, sharding.RULES)
                prompt = [*run.tokenizer.opening, *run.tokenizer.encode("red")]
                (tokens,) = decode.generate(model, [prompt], 12, run.tokenizer.end_id)
            answer = client.chat.completions.create(model=name, **fields)
            assert answer.choices[0].message.content == run.tokenizer.decode(tokens)
        chunks = client.chat.completions.create(
            model="law", messages=RED, stream=True, max_tokens=200, seed=1
        )
        next(iter(chunks))
        process.send_signal(signal.SIGTERM)
        assert streamed(chunks)[1] in ("stop", "length")
        assert process.wait(60) == 0
        assert "ended" in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
