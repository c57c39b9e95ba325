"""Commands of cards: the ones that are run here give what Graft gives."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys

import jax
import pytest

from research import sharding
from research.checkpoints import runs
from research.commands import convert
from research.generation import decode
from research.generation.responders import Responder, find_stops
from research.interop import exporting, importing, model_card, ollama, serving
from research.methods import DoRA, LoRA
from research.objectives.chat import Chat
from research.objectives.masked import Masked
from research.objectives.supervised import Supervised
from research.text import chat_template
from research.text.conversation import from_messages
from research.text.plain_template import PLAIN
from research.training.loop import train
from tests.helpers import tiny_run

FORMS = ("hf", "peft", "gguf", "gguf-adapter")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = "{{ bos_token }}" + (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    + CHATML
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}" + CHATML
TOKENS = {"bos_token": "<b>", "eos_token": "<e>"}
DATED = "{{ strftime_now('%d') }}" + CHATML
REWRITTEN = CHATML.replace("{{ m.content }}", "{% if loop.last %}!{% endif %}{{ m.content }}")
# writes what the model said before otherwise than what it says last, as Qwen3's does
THINKING = CHATML.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}",
)


@pytest.fixture(scope="module")
def tuned(world, tmp_path_factory):
    """A LoRA on questions, in a template of its own."""
    folder = tmp_path_factory.mktemp("tuned") / "tuned"
    train(world.tuning(6, method=LoRA(rank=2)), folder)
    return runs.open_run(folder)


@pytest.fixture(scope="module")
def bare_talker(world, tmp_path_factory):
    """The same in a template without the token that the tokenizer begins texts with."""
    folder = tmp_path_factory.mktemp("bare_talker") / "bare_talker"
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    data = world.data("questions", objective=Chat(template=template))
    train(world.tuning(6, method=LoRA(rank=2), data=data), folder)
    return runs.open_run(folder)


def with_objective(run, objective):
    data = dataclasses.replace(run.experiment.data, objective=objective)
    return dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, data=data))


@pytest.fixture(scope="module")
def talker(world, tmp_path_factory):
    """A LoRA on conversations, whose chat template the base has not."""
    folder = tmp_path_factory.mktemp("talker") / "talker"
    data = world.data("questions", objective=Chat())
    train(world.tuning(6, method=LoRA(rank=2), data=data), folder)
    return runs.open_run(folder)


def blocks(card, language):
    return re.findall(rf"```{language}\n(.*?)\n```", card, re.DOTALL)


def body_of(commands):
    """The JSON of a curl command, as a shell reads it."""
    (line,) = [line for line in commands.splitlines() if line.startswith("curl ")]
    return json.loads(shlex.split(line)[-1])


def greedy(run):
    """Graft's own answer to the card's question."""
    mesh = sharding.MeshConfig(data=1).make(jax.devices()[:1])
    model = runs.load_model(run, mesh, sharding.RULES)
    responder = Responder(run)
    ids = responder.prompt_ids(from_messages([{"role": "user", "content": "Hello"}]))
    stops = find_stops(run, [responder])
    (answer,) = decode.generate(model, [ids], 100, run.tokenizer.end_id, stops=stops)
    return ids, answer


def test_each_form_has_its_own_commands_with_its_own_name(tuned):
    cards = {form: model_card.write(tuned, form, "tickets") for form in FORMS}
    for card in cards.values():
        assert "tickets" in card and "FOLDER" not in card and "FILE.gguf" not in card
    assert "vllm serve ./tickets\n" in cards["hf"]
    assert "--format gguf --out ./tickets.gguf" in cards["hf"]
    assert "--enable-lora --max-lora-rank 8 --lora-modules tickets=./tickets" in cards["peft"]
    assert "--format gguf-adapter --out ./tickets.gguf" in cards["peft"]
    assert "llama-server --model ./tickets --port" in cards["gguf"]
    assert "llama-server --model ./base.gguf --lora ./tickets --port" in cards["gguf-adapter"]
    (modelfile,) = blocks(cards["gguf-adapter"], "text")
    assert modelfile == (
        'FROM ./base.gguf\nADAPTER ./tickets\nTEMPLATE """Q: {{ .Prompt }}\nA: """'
    )
    assert "vllm" not in cards["gguf"] and "PeftModel" not in cards["hf"]
    spaced = model_card.write(tuned, "hf", "my tickets")
    assert "vllm serve './my tickets'\n" in spaced and '"./my tickets"' in spaced


def test_only_projects_that_can_serve_it_are_named(tuned, world, tmp_path):
    run = runs.open_run(tiny_run.adapter(world.base, DoRA(rank=2), tmp_path / "dora"))
    card = model_card.write(run, "peft", "tickets")
    assert "vllm" not in card and "gguf-adapter" not in card
    assert "--format gguf --out" in card  # merged
    run = runs.open_run(
        tiny_run.adapter(
            world.base, LoRA(rank=2, alphas=((".*/mlp/up", 3.0),)), tmp_path / "alphas"
        )
    )
    assert "vllm" not in model_card.write(run, "peft", "tickets")
    for objective in (Masked(), Supervised(bidirectional=True)):
        card = model_card.write(with_objective(tuned, objective), "hf", "tickets")
        assert "both ways" in card and "from_pretrained" not in card and "vllm serve" not in card


def test_prompts_whose_parts_join_to_other_tokens(tuned):
    """What takes one text would read other tokens than were trained on."""
    assert serving.prompt_format(tuned).is_joint
    apart = with_objective(tuned, Supervised(template="Q: {prompt}n\n"))  # "on" is a token
    assert not serving.prompt_format(apart).is_joint
    for form in FORMS:
        card = model_card.write(apart, form, "tickets")
        assert "tokenized apart. As one text" in card
        assert "vllm serve" not in card and "FROM" not in card
    (request,) = [b for b in blocks(model_card.write(apart, "gguf", "x"), "sh")]
    assert body_of(request)["prompt"] == [1, "Q: ", "Hello", "n\n"]


def test_an_end_that_the_base_has_not_is_given_to_each_server(talker):
    """The base's files do not say it, and the adapter's are read by none of them."""
    template = "{% for m in messages %}{{ m.content }}<|pad|>{% endfor %}"
    run = with_objective(talker, Chat(template=template))
    end = run.tokenizer.pad_id
    cards = {form: model_card.write(run, form, "tickets") for form in FORMS}
    (script,) = blocks(cards["peft"], "python")
    assert f"eos_token_id=[{run.tokenizer.end_id}, {end}]" in script
    serve = blocks(cards["peft"], "sh")[0]
    assert body_of(serve)["stop_token_ids"] == [end] and "--chat-template ./tickets/" in serve
    assert body_of(blocks(cards["gguf-adapter"], "sh")[0])["stop"] == ["<|pad|>"]
    assert "eos_token_id" not in cards["hf"]  # its generation_config.json says it


@pytest.mark.parametrize("template", [PLAIN, CHATML, DEFAULT_SYSTEM, NO_SYSTEM])
def test_go_templates_write_what_jinja_writes(template):
    segments = ollama.chat_segments(template, TOKENS)
    turns = [("user", "Hi"), ("assistant", "Hello {{x}}"), ("user", "Bye")]
    probes = [turns[:1], turns]
    if template is not NO_SYSTEM:
        probes.append([("system", "Be brief."), *turns])
    for probe in probes:
        messages = [{"role": role, "content": text} for role, text in probe]
        expected = chat_template.render(template, messages, TOKENS)
        assert segments.write(messages) == expected
        assert run_go(segments.template(), messages) == expected
    assert segments.without("<b>").start == segments.start.removeprefix("<b>")


def run_go(template, messages):
    """What Go's text/template makes of the few things that these templates use."""
    parts = re.split(r"\{\{ (.*?) \}\}", template)
    tokens = [("text", part) if n % 2 == 0 else ("code", part) for n, part in enumerate(parts)]

    def block(at, message):
        text = ""
        while at < len(tokens):
            kind, code = tokens[at]
            if kind == "text":
                text += code
            elif code in ("end", "else") or code.startswith("else if "):
                return text, at
            elif code == '"{{"':
                text += "{{"
            elif code in (".Content", "(index .Messages 0).Content"):
                text += (message if code == ".Content" else messages[0])["content"]
            elif code == "range .Messages":
                bodies = [block(at + 1, one) for one in messages]
                text, at = text + "".join(body for body, _ in bodies), bodies[0][1]
            else:
                body, at = choice(at, message)
                text += body
            at += 1
        return text, at

    def choice(at, message):
        result = None
        while True:
            code = tokens[at][1]
            body, end = block(at + 1, message)
            match = re.fullmatch(r'(?:else )?if eq (.*)\.Role "(\w+)"', code)
            subject = message if match and match[1] == "" else messages[0]
            if result is None and (match is None or subject["role"] == match[2]):
                result = body
            if tokens[end][1] == "end":
                return result or "", end
            at = end

    return block(0, None)[0]


@pytest.mark.parametrize("template", [REWRITTEN, THINKING])
def test_templates_that_go_cannot_write_are_left_out(template):
    assert ollama.chat_segments(template, TOKENS) is None


def test_a_date_in_a_modelfile_is_that_of_training():
    segments = ollama.chat_segments(DATED, TOKENS)
    question = [{"role": "user", "content": "Hi"}]
    assert segments is not None and segments.write(question).startswith("26<|im_start|>user")


def test_an_adapters_two_templates_go_beside_its_gguf_file(talker, monkeypatch, tmp_path):
    # it begins as texts do, or the base's file would say otherwise
    own = "{{ bos_token }}" + CHATML
    files = {chat_template.TEMPLATE: own.encode(), chat_template.TOOLS: REWRITTEN.encode()}
    sidecar_files = property(lambda run: files if run.base else {})
    monkeypatch.setattr(runs.Run, "sidecar_files", sidecar_files)
    export(talker, "gguf-adapter", tmp_path, "x.gguf")
    assert (tmp_path / "x.gguf.jinja").read_text() == own
    assert (tmp_path / "x.gguf.tools.jinja").read_text() == REWRITTEN
    assert (
        "# where a conversation has tools, name x.gguf.tools.jinja\n"
        in (tmp_path / "x.gguf.md").read_text()
    )


def test_a_card_says_why_it_leaves_ollama_out(talker, monkeypatch):
    def reason(objective):
        files = {"chat_template.jinja": objective.writer(talker.tokenizer).template.encode()}
        monkeypatch.setattr(runs.Run, "sidecar_files", files)
        card = model_card.write(with_objective(talker, objective), "gguf", "x.gguf")
        assert "FROM" not in card
        (line,) = [line for line in card.splitlines() if line.startswith("Ollama: left out: ")]
        return line

    assert "write every message alike" in reason(Chat(template=REWRITTEN))
    eager = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}assistant: "
    assert "a header unasked" in reason(Chat(template=eager))
    variable = "{% set t = thinking %}{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    arguments = {"thinking": False}
    assert "tuned on thinking" in reason(Chat(template=variable, template_arguments=arguments))
    quotes = '{% for m in messages %}{{ m.content }}"""<|end|>{% endfor %}'
    assert "cannot hold three quotes" in reason(Chat(template=quotes))


def test_braces_and_quotes_in_a_modelfile():
    assert ollama.literal("a {{ b") == 'a {{ "{{" }} b'
    assert ollama.modelfile("./x.gguf", 'say """') is None
    assert ollama.modelfile("./x.gguf", 'say "') is None
    assert ollama.modelfile("./x\n.gguf", "say") is None


def test_the_ends_of_turns_go_with_the_export(talker, tmp_path):
    """A model that was tuned to end its turns with a token stops at it where others serve it."""
    stops = exporting.stop_ids(talker)
    (end,) = Chat().stop_ids(talker.tokenizer)
    assert end in stops and stops[0] == talker.tokenizer.end_id
    exporting.export_huggingface(talker, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    ends = content["eos_token_id"]
    assert set(ends if isinstance(ends, list) else [ends]) == set(stops)
    back = importing.load_tokenizer(importing.open_model(tmp_path / "out"))
    assert back.roles == talker.tokenizer.roles  # texts begin there as here
    assert back.encode("roofs") == talker.tokenizer.encode("roofs")


def export(run, form, folder, name):
    convert.main(["export", "--from", str(run.path.parent.parent), "--format", form,
                  "--out", str(folder / name)])  # fmt: skip


def printed(script, folder):
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["tuned", "talker"])
def test_the_scripts_print_what_graft_says(kind, request, tmp_path):
    run = request.getfixturevalue(kind)
    _, answer = greedy(run)
    expected = run.tokenizer.decode(answer) + "\n"
    export(run, "hf", tmp_path, "whole")
    (script,) = blocks((tmp_path / "whole" / "README.md").read_text(), "python")
    assert printed(script, tmp_path) == expected
    export(run, "peft", tmp_path, "adapter")
    (script,) = blocks((tmp_path / "adapter" / "README.md").read_text(), "python")
    assert "# graft convert export --from runs/base --out base\n" in script
    export(run.base, "hf", tmp_path, "base")
    assert printed(script, tmp_path) == expected


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["tuned", "talker", "bare_talker"])
def test_llama_cpp_answers_the_cards_request_as_graft(kind, request, tmp_path):
    import xllamacpp

    run = request.getfixturevalue(kind)
    ids, answer = greedy(run)
    expected = run.tokenizer.decode(answer)
    export(run, "gguf", tmp_path, "whole.gguf")
    export(run, "gguf-adapter", tmp_path, "lora.gguf")
    export(run.base, "gguf", tmp_path, "base.gguf")
    names = ["whole.gguf", "lora.gguf"]
    if kind == "bare_talker":  # the base's file says that a token goes first
        card = (tmp_path / f"{names.pop()}.md").read_text()
        assert "None serves it as it was tuned: export it merged" in card
    for name in names:
        commands = blocks((tmp_path / f"{name}.md").read_text(), "sh")[0]
        (line,) = [line for line in commands.splitlines() if line.startswith("llama-server")]
        params = xllamacpp.CommonParams()
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 256, 1, False, 0
        words = shlex.split(line)[1:]
        options = {word: words[at + 1] for at, word in enumerate(words[:-1])}
        assert {word for word in words if word.startswith("--")} <= FLAGS
        params.model.path = str(tmp_path / options["--model"])
        if "--lora" in words:
            place = str(tmp_path / options["--lora"])
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(place, 1.0)]
        if "--chat-template-file" in words:
            params.chat_template = (tmp_path / options["--chat-template-file"]).read_text()
        params.use_jinja = "--jinja" in words
        server = xllamacpp.Server(params)
        body = body_of(commands)
        if "messages" in body:
            reply = server.handle_chat_completions(body)
            text = reply["choices"][0]["message"]["content"]
        else:
            reply = server.handle_completions(body)
            text = reply["choices"][0]["text"]
        assert reply["usage"]["prompt_tokens"] == len(ids)
        assert text == expected


FLAGS = {"--model", "--lora", "--jinja", "--port", "--chat-template-file"}


@pytest.mark.heavy
def test_llama_cpp_has_the_flags():
    """The server's names are in the library that tests it."""
    import pathlib

    import xllamacpp

    (library,) = pathlib.Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")
    content = library.read_bytes()
    assert all(b"\0" + flag.encode() + b"\0" in content for flag in FLAGS)


@pytest.mark.heavy
def test_what_vllm_is_asked_is_what_graft_reads(tuned, tmp_path):
    """vLLM encodes a prompt as the exported tokenizer does, special tokens included."""
    import transformers

    exporting.export_huggingface(tuned, tmp_path / "whole")
    card = model_card.write(tuned, "hf", "whole")
    (serve,) = [block for block in blocks(card, "sh") if "vllm" in block]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "whole")
    ids, _ = greedy(tuned)
    assert tokenizer(body_of(serve)["prompt"])["input_ids"] == ids


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["talker", "bare_talker"])
def test_a_conversation_has_the_same_tokens_in_transformers(kind, request, tmp_path):
    import transformers

    run = request.getfixturevalue(kind)
    exporting.export_huggingface(run, tmp_path / "whole")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "whole")
    messages = [{"role": "user", "content": "Hello"}]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert encoded["input_ids"] == greedy(run)[0]
