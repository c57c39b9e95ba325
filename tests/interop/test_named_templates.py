"""Chat templates that have names: read, trained with and written as transformers does."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from research.checkpoints import runs
from research.interop import exporting, importing, tensor_files
from research.interop.fields import UnsupportedModelError
from research.interop.gguf import files as gguf_files
from research.interop.gguf import writer as gguf_writer
from research.interop.peft import exporting as peft_exporting
from research.interop.peft import tokenizer_files
from research.objectives.chat import Chat
from research.text import chat_template
from tests.interop.test_broken_files import SHAPE, weights

DEFAULT, TOOL_USE, RAG = (f"{name}{{{{ tools }}}}" for name in ("default", "tool use", "rag"))
SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|begin|>",
    "eos_token": "<|end|>",
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.fixture
def write(world, tmp_path):
    """A tiny Llama's folder with templates by name in `additional_chat_templates`."""

    def write(templates, template=DEFAULT, settings=None):
        path = tmp_path / "model"
        shutil.rmtree(path, ignore_errors=True)
        (path / chat_template.ADDITIONAL).mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(SHAPE))
        (path / "tokenizer.json").write_text((world.folder / "tokenizer.json").read_text())
        (path / "tokenizer_config.json").write_text(json.dumps(SETTINGS | (settings or {})))
        save_file(weights(), path / tensor_files.ONE)
        if template is not None:
            (path / chat_template.TEMPLATE).write_text(template)
        for name, text in templates.items():
            (path / chat_template.ADDITIONAL / f"{name}.jinja").write_text(text)
        return path

    return write


@pytest.fixture
def run(write, tmp_path):
    """That model, imported."""
    path = write({"tool_use": TOOL_USE, "rag": RAG})
    importing.import_model(importing.open_model(path), tmp_path / "run")
    return runs.open_run(tmp_path / "run")


@pytest.mark.heavy
def test_named_templates_are_read_and_exported_as_transformers_does(run, tmp_path):
    import transformers

    assert run.tokenizer.templates == (DEFAULT, TOOL_USE)
    exporting.export_huggingface(run, tmp_path / "out")
    for folder in (tmp_path / "model", tmp_path / "out"):
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert theirs.chat_template == {"default": DEFAULT, "tool_use": TOOL_USE, "rag": RAG}
        assert theirs.get_chat_template() == run.tokenizer.chat_template
        assert theirs.get_chat_template(tools=TOOLS) == run.tokenizer.tool_template
    gguf_writer.export_gguf(run, tmp_path / "out.gguf")
    again = gguf_files.open_file(tmp_path / "out.gguf")
    assert importing.load_tokenizer(again).templates == (DEFAULT, TOOL_USE)


def test_a_configured_template_takes_the_place_of_both(run):
    tokenizer = run.tokenizer
    own = Chat()._template_files(tokenizer)
    assert own == {chat_template.TEMPLATE: DEFAULT, chat_template.TOOLS: TOOL_USE}
    other = Chat(template="{{ messages }}")._template_files(tokenizer)
    assert set(other.values()) == {"{{ messages }}"} and set(other) == set(own)
    assert Chat().writer(tokenizer).tool_template == TOOL_USE


def test_an_adapters_template_goes_without_the_bases_named_ones(run, tmp_path):
    folder = tmp_path / "adapter"
    (folder / chat_template.ADDITIONAL).mkdir(parents=True)
    assert tokenizer_files.read(folder, run).files == run.sidecar_files
    (folder / chat_template.TEMPLATE).write_text(DEFAULT)
    plain = tokenizer_files.read(folder, run)
    assert chat_template.find_tool_template(plain.files) is None and len(plain.notes) == 1
    (folder / chat_template.ADDITIONAL / "tool_use.jinja").write_text(TOOL_USE)
    both = tokenizer_files.read(folder, run)
    assert chat_template.find_tool_template(both.files) == TOOL_USE and not both.notes


def test_an_adapter_with_another_template_for_tools_is_exported_with_it(run, tmp_path):
    arrays, name = run.read("embedding/kernel"), chat_template.TOOLS
    files = run.sidecar_files | {name: b"other"}
    runs.write(tmp_path / "own", run, arrays, run.model, base=run, sidecar_files=files)
    own = runs.open_run(tmp_path / "own")
    assert np.array_equal(own.read("embedding/kernel")["embedding/kernel"], *arrays.values())
    assert peft_exporting.own_files(own)[name] == b"other"


@pytest.mark.parametrize(
    ("templates", "template", "settings", "match"),
    [
        ({"default": "x"}, DEFAULT, {}, r"default.jinja, which transformers takes instead"),
        ({"rag": "x"}, None, {"chat_template": "x"}, r"without a chat_template.jinja beside it"),
        ({"rag": "{% if %}"}, DEFAULT, {}, "the chat template is not as such"),
        ({"a b": "x"}, DEFAULT, {}, r"a b.jinja: a template's name has letters"),
        (
            {},
            DEFAULT,
            {
                "chat_template": [
                    {"name": "default", "template": DEFAULT},
                    {"name": "tool_use", "template": TOOL_USE},
                ]
            },
            "a template tool_use, which transformers does not read beside chat_template.jinja",
        ),
    ],
)
def test_templates_that_another_project_would_not_take_are_refused(
    write, templates, template, settings, match
):
    with pytest.raises(UnsupportedModelError, match=match):
        importing.load_tokenizer(importing.open_model(write(templates, template, settings)))


@pytest.mark.heavy
def test_of_two_templates_with_one_name_the_last_is_taken_as_in_transformers(write):
    import transformers

    pairs = [("default", "first"), ("tool_use", "t"), ("default", "last"), ("tool_use", "u")]
    listed_templates = [{"name": name, "template": text} for name, text in pairs]
    path = write({}, None, {"chat_template": listed_templates})
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    ours = importing.load_tokenizer(importing.open_model(path))
    assert ours.templates == (theirs.get_chat_template(), theirs.get_chat_template(tools=TOOLS))
    assert ours.templates == ("last", "u")
