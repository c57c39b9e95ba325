"""Commands that serve an export: only those of projects that compute the same from it.

Each is to be run from the folder that holds the export. vLLM's flags are those of 0.11 to 0.22,
llama.cpp's those of its server in 2025 and 2026.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research.checkpoints.runs import Run
from research.interop import exporting, ollama
from research.interop.families import FAMILIES
from research.interop.family import family_for_model
from research.interop.fields import UnsupportedModelError
from research.interop.gguf import adapters, writer
from research.interop.peft import exporting as peft
from research.interop.peft import vllm
from research.text import chat_template
from research.text.tokenizer import Tokenizer

_QUESTION = "Hello"
# prompts whose edges differ
_PROBES = (_QUESTION, "the lamp.", "3 of 4", "(a)", "Über", " x ")
_TRANSFORMERS = "from transformers import AutoModelForCausalLM, AutoTokenizer"
_SLOT = "{prompt}"


@dataclasses.dataclass(frozen=True)
class Command:
    """A way to serve an export, or why there is none.

    Attributes:
      title: the project's name.
      language: of the code: python, sh, or text; empty: the text is the reason, and no code.
      text: the code.
    """

    title: str
    language: str
    text: str


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """How the prompts of a run are written.

    Attributes:
      template: text around a prompt, with `{prompt}` once; None: the run's chat template.
      begin: the begin token and its id, where prompts start with it; chat templates write it.
      opens: whether the tokenizer puts it there by itself.
      is_joint: whether the parts of a prompt have the same tokens as one text. They are tokenized
        apart in training.
      arguments: variables of the chat template.
      ends: ids that end an answer.
      stops: those of them that do not in the base, where that is served with an adapter, and their
        texts.
    """

    template: str | None
    begin: tuple[str, int] | None = None
    opens: bool = False
    is_joint: bool = True
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ends: tuple[int, ...] = ()
    stops: tuple[tuple[int, str], ...] = ()

    def parts(self, text: str) -> list[str]:
        """A prompt's parts, without the begin token."""
        assert self.template is not None
        head, tail = self.template.split(_SLOT)
        return [part for part in (head, text, tail) if part]

    def served(self, text: str) -> str:
        """A prompt for what puts the begin token first where the tokenizer does."""
        begin = self.begin[0] if self.begin and not self.opens else ""
        return begin + "".join(self.parts(text))


def prompt_format(run: Run) -> PromptFormat | None:
    """How a run's prompts are written; None: no other project answers as it was trained, because
    it reads its prompts both ways."""
    objective = run.experiment.data.objective if run.experiment else None
    tokenizer = run.tokenizer
    begin, opens = (tokenizer.roles["begin"], tokenizer.begin_id), bool(tokenizer.opening)
    template = _SLOT
    if objective is not None:
        if objective.bidirectional or not objective.generates:
            return None
        if objective.kind == "chat":
            return PromptFormat(None, arguments=getattr(objective, "template_arguments", {}))
        if objective.kind == "supervised":
            template = getattr(objective, "template", _SLOT)
    elif chat_template.find_template(run.sidecar_files) is not None:
        return PromptFormat(None)
    is_bare = objective is None or objective.kind != "supervised"
    prompt = PromptFormat(template, None if is_bare and not opens else begin, opens)
    return dataclasses.replace(prompt, is_joint=is_joint(tokenizer, prompt.parts))


def is_joint(tokenizer: Tokenizer, parts_of: Callable[[str], Sequence[str]]) -> bool:
    """Whether the parts in which prompts are tokenized are the same tokens as one text, as probes
    tell."""

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, special=True)

    return all(
        encode("".join(parts)) == [number for part in parts for number in encode(part)]
        for parts in map(parts_of, _PROBES)
    )


def commands(run: Run, form: str, name: str) -> list[Command]:
    """What serves an export.

    Args:
      form: hf, peft, gguf or gguf-adapter.
      name: the export's own, of its folder or file.
    """
    prompt = prompt_format(run)
    if prompt is None:
        return []
    if form in ("peft", "gguf-adapter") and run.base is not None:
        known = exporting.stop_ids(run.base)
        ends = tuple(exporting.stop_ids(run))
        texts = {number: run.tokenizer.decode([number], special=True) for number in ends}
        stops = tuple((number, texts[number]) for number in ends if number not in known)
        prompt = dataclasses.replace(prompt, ends=ends, stops=stops)
    makers = {
        "hf": _whole_folder,
        "peft": _adapter_folder,
        "gguf": _whole_file,
        "gguf-adapter": _adapter_file,
    }
    return makers[form](run, prompt, name)


def _whole_folder(run: Run, prompt: PromptFormat, name: str) -> list[Command]:
    place = json.dumps(f"./{name}")
    load = f"model = AutoModelForCausalLM.from_pretrained({place})"
    loads = (load, f"tokenizer = AutoTokenizer.from_pretrained({place})")
    python = _python(prompt, (_TRANSFORMERS,), loads)
    serve = f"vllm serve {_path(name)}\n{_ask(prompt, 8000, f'./{name}')}"
    return [
        Command("transformers", "python", python),
        *([Command("vLLM", "sh", serve)] if prompt.is_joint else []),
        *_through_gguf(run, name),
    ]


def _through_gguf(run: Run, name: str) -> list[Command]:
    """The way to llama.cpp and Ollama, where they have the model."""
    try:
        writer.plan(run)
    except UnsupportedModelError as error:
        return [Command("llama.cpp, Ollama", "", f"left out, since {error}.")]
    out = _path(f"{name}.gguf")
    text = f"graft convert export --from {_folder(run)} --format gguf --out {out}"
    return [Command("llama.cpp, Ollama", "sh", f"{text}    # its card has the commands")]


def _adapter_folder(run: Run, prompt: PromptFormat, name: str) -> list[Command]:
    base, note = _base_folder(run)
    own_files = peft.own_files(run)
    tokenizer = name if "tokenizer.json" in own_files else base
    place, base_place, tokens = (json.dumps(f"./{part}") for part in (name, base, tokenizer))
    loads = [
        *note,
        f"base = AutoModelForCausalLM.from_pretrained({base_place})",
        f"model = PeftModel.from_pretrained(base, {place})",
        f"tokenizer = AutoTokenizer.from_pretrained({tokens})",
    ]
    imports = ("from peft import PeftModel", _TRANSFORMERS)
    result = [Command("PEFT", "python", _python(prompt, imports, loads))]
    rank = vllm_rank(run)
    if rank is not None and prompt.is_joint:
        serve = (
            f"vllm serve {_path(base)} --enable-lora --max-lora-rank {rank} "
            f"--lora-modules {_quote(name)}={_path(name)}"
        )
        if own_files:
            serve += f" --tokenizer {_path(name)}"
        if (
            chat_template.TEMPLATE in own_files
            and chat_template.TOOLS not in own_files  # the tokenizer's folder has both
            and prompt.template is None
        ):
            serve += f" --chat-template {_path(f'{name}/{chat_template.TEMPLATE}')}"
        result.append(Command("vLLM", "sh", f"{serve}\n{_ask(prompt, 8000, name)}"))
    try:
        adapters.plan(run)
    except UnsupportedModelError:
        return [*result, *_through_gguf(run, name)]
    out = _path(f"{name}.gguf")
    text = f"graft convert export --from {_folder(run)} --format gguf-adapter --out {out}"
    return [*result, Command("llama.cpp, Ollama", "sh", f"{text}    # its card has the commands")]


def vllm_rank(run: Run) -> int | None:
    """`--max-lora-rank` for a run's adapter; None where vLLM does not serve it."""
    family, _ = family_for_model(run.model, FAMILIES, (run.origin or {}).get("family"))
    tensors, content = peft.adapter_tensors(run)
    shapes = {name: value.shape for name, value in tensors.items()}
    if vllm.problems(content, shapes, family.kind, run.model.vocabulary):
        return None
    return vllm.max_lora_rank(vllm.largest_rank(content, shapes))


def _whole_file(run: Run, prompt: PromptFormat, name: str) -> list[Command]:
    result = [Command("llama.cpp", "sh", _llama_server(prompt, f"--model {_path(name)}"))]
    return result + _ollama(run, prompt, f"./{name}", None)


def _adapter_file(run: Run, prompt: PromptFormat, name: str) -> list[Command]:
    if writer.opens(run) != bool(run.tokenizer.opening):
        return []  # the base's file says the other
    source = str((run.origin or {}).get("source", ""))
    base, export = source, ""
    if not source.endswith(".gguf"):
        base, folder = "base.gguf", _folder(run.base) if run.base else "BASE"
        export = f"graft convert export --from {folder} --format gguf --out {base}\n"
    options = f"--model {_path(base)} --lora {_path(name)}"
    if prompt.template is None and exporting.own_chat_template(run):
        options += f" --chat-template-file {_path(f'{name}.jinja')}"
        if chat_template.find_tool_template(run.sidecar_files):
            export = f"# where a conversation has tools, name {name}.tools.jinja\n{export}"
    result = [Command("llama.cpp", "sh", export + _llama_server(prompt, options))]
    return result + _ollama(run, prompt, f"./{base}", f"./{name}")


def _llama_server(prompt: PromptFormat, options: str) -> str:
    """llama.cpp's server and a request; its own template of a chat, or a prompt as text."""
    if prompt.template is None:
        return f"llama-server {options} --jinja --port 8080\n{_ask(prompt, 8080)}"
    # a number first: then every text is tokenized apart, and no begin token is added
    parts = prompt.parts(_QUESTION)
    ids = [prompt.begin[1]] if prompt.begin else []
    body: dict[str, Any] = {"prompt": [*ids, *parts] if ids else parts[0], "n_predict": 100}
    body |= {"temperature": 0} | _stop_texts(prompt)
    return f"llama-server {options} --port 8080\n{_curl(8080, 'completion', body)}"


def _ollama(run: Run, prompt: PromptFormat, model: str, adapter: str | None) -> list[Command]:
    """A Modelfile, where the prompts can be written by one, or why there is none."""
    roles, note = run.tokenizer.roles, ""
    if not prompt.is_joint:
        return []
    if prompt.template is not None:
        head, tail = prompt.served(_SLOT).split(_SLOT)
        template = f"{ollama.literal(head)}{{{{ .Prompt }}}}{ollama.literal(tail)}"
    else:
        jinja = chat_template.find_template(run.sidecar_files)
        segments = ollama.chat_segments(jinja, run.tokenizer.template_tokens) if jinja else None
        if segments is None:
            return _without_ollama(
                "its templates write every message alike, and this chat template does not, or "
                "writes more than messages (a header unasked)"
            )
        if prompt.arguments:
            names = ", ".join(prompt.arguments)
            return _without_ollama(
                f"its templates take no variables, and this was tuned on {names}"
            )
        if writer.opens(run):
            if not segments.opens_with(roles["begin"]):
                return _without_ollama(
                    f"it puts {roles['begin']} first itself, and so does each message of this "
                    "chat template"
                )
            segments = segments.without(roles["begin"])
        if segments.system is None:
            note = " (a system message has no place in it)"
        template = segments.template()
    text = ollama.modelfile(model, template, adapter, [text for _, text in prompt.stops])
    if text is None:
        return _without_ollama("a Modelfile cannot hold three quotes, or a name of several lines")
    file = (adapter or model).removeprefix("./").removesuffix(".gguf")
    name = re.sub(r"[^a-z0-9._-]+", "-", file.lower())
    create = f"ollama create {name} -f Modelfile && ollama run {name}"
    return [Command(f"Ollama, as Modelfile{note}", "text", text), Command("", "sh", create)]


def _without_ollama(reason: str) -> list[Command]:
    return [Command("Ollama", "", f"left out: {reason}.")]


def _python(prompt: PromptFormat, imports: Sequence[str], loads: Sequence[str]) -> str:
    """A script that prints the greedy answer to a question."""
    if prompt.template is None:
        arguments = "".join(f", {name}={value!r}" for name, value in prompt.arguments.items())
        ask = [
            f'messages = [{{"role": "user", "content": "{_QUESTION}"}}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"'
            f"{arguments}",
            ")",
        ]
    else:
        parts = [*prompt.begin[:1]] if prompt.begin else []
        parts += prompt.parts(_QUESTION)
        ask = [
            f"parts = {parts!r}  # tokenized apart, as in training",
            "encode = functools.partial(tokenizer.encode, add_special_tokens=False)",
            "ids = torch.tensor([sum(map(encode, parts), [])])",
            'inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}',
        ]
        imports = ["import functools", "", "import torch", *imports]
    ends = f", eos_token_id={list(prompt.ends)}" if prompt.stops else ""
    answer = (
        f"output = model.generate(**inputs, max_new_tokens=100, do_sample=False{ends})",
        'answer = output[0, inputs["input_ids"].shape[1] :]',
        "print(tokenizer.decode(answer, skip_special_tokens=True))",
    )
    return "\n".join([*imports, "", *loads, *ask, *answer])


def _ask(prompt: PromptFormat, port: int, model: str | None = None) -> str:
    """A request to a server with OpenAI's interface."""
    body: dict[str, Any] = {"model": model} if model else {}
    body |= {"max_tokens": 100, "temperature": 0}
    if model and prompt.stops:
        body["stop_token_ids"] = [number for number, _ in prompt.stops]  # vLLM's
    else:
        body |= _stop_texts(prompt)
    if prompt.template is None:
        body["messages"] = [{"role": "user", "content": _QUESTION}]
        if prompt.arguments:
            body["chat_template_kwargs"] = dict(prompt.arguments)
        return _curl(port, "v1/chat/completions", body)
    # vLLM puts the begin token first where the tokenizer does
    body["prompt"] = prompt.served(_QUESTION)
    return _curl(port, "v1/completions", body)


def _stop_texts(prompt: PromptFormat) -> dict[str, list[str]]:
    return {"stop": [text for _, text in prompt.stops]} if prompt.stops else {}


def _curl(port: int, path: str, body: Mapping[str, Any]) -> str:
    text = json.dumps(body, ensure_ascii=False).replace("'", r"\u0027")
    return f"curl http://127.0.0.1:{port}/{path} --json '{text}'"


def _base_folder(run: Run) -> tuple[str, list[str]]:
    """The name of the base's folder for transformers, and a comment where it has to be made."""
    source = str((run.origin or {}).get("source", ""))
    if source and not source.endswith(".gguf"):
        return source, []
    base = _folder(run.base) if run.base else "BASE"
    return "base", [f"# graft convert export --from {base} --out base"]


def _folder(run: Run) -> str:
    """The folder of a run, without where it lies, for a shell."""
    return _quote(f"runs/{run.path.parent.parent.name}")


def _path(name: str) -> str:
    """A file or a folder beside, for a shell."""
    return _quote(f"./{name}")


def _quote(text: str) -> str:
    """A word of a shell, in one line."""
    if text.isprintable():
        return shlex.quote(text)
    codes = [f"\\x{byte:02x}" for byte in text.encode("utf-8", "surrogateescape")]
    return f"$'{''.join(codes)}'"
