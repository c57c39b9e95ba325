"""An exported adapter against the rules of vLLM's loader, restated here as facts of its source.

vllm/lora/peft_helper.py: which fields it reads, and what it refuses. vllm/lora/lora_model.py: names
of tensors and modules. vllm/config/lora.py: the ranks that a server may allow.
"""

import json

import pytest
from safetensors.numpy import load_file

from research.checkpoints import runs
from research.commands import convert
from research.interop.peft import exporting as peft
from research.interop.peft import importing as peft_importing
from research.interop.peft import vllm
from research.methods import IA3, DoRA, LoRA, Prompt
from tests.helpers import tiny_run

ALLOWED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# the last names of a Llama's modules: linears, and embedding_modules
EXPECTED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
EXPECTED |= {"embed_tokens", "lm_head"}


def load_as_vllm(folder, max_lora_rank):
    """Its checks, and the scale and the tensors of each module as it would hold them."""
    content = json.loads((folder / "adapter_config.json").read_text())
    assert {"r", "lora_alpha", "target_modules"} <= set(content)  # required
    assert not content.get("modules_to_save") and not content.get("use_dora", False)
    assert content.get("bias", "none") == "none"
    assert max_lora_rank in ALLOWED_RANKS and content["r"] <= max_lora_rank
    scale = content["lora_alpha"] / content["r"]
    modules = {}
    for name, value in load_file(folder / "adapter_model.safetensors").items():
        parts = name.removeprefix("base_model.model.").split(".")
        assert name.startswith("base_model.model.")
        if parts[-1] == "weight" and parts[-2] in ("lora_A", "lora_B"):
            module, leaf = ".".join(parts[:-2]), parts[-2][-1]
        else:
            assert parts[-1] in ("lora_embedding_A", "lora_embedding_B"), name
            module, leaf = ".".join(parts[:-1]), parts[-1][-1]
        assert module.rpartition(".")[2] in EXPECTED, module
        modules.setdefault(module, {})[leaf] = value
    for module, leaves in modules.items():
        assert set(leaves) == {"A", "B"}, module
        assert leaves["A"].shape[0] == leaves["B"].shape[1] <= max_lora_rank
    return scale, modules


@pytest.mark.parametrize(
    "method",
    [
        LoRA(rank=3, alpha=7.0),
        LoRA((".*/query", "head", "embedding"), rank=9),
        LoRA(rank=3, rank_stabilized=True),
        LoRA(rank=4, start="pissa"),
        # the same alpha / rank everywhere
        LoRA(rank=2, alpha=4.0, ranks=((".*/query", 10),), alphas=((".*/query", 20.0),)),
    ],
    ids=["plain", "ends", "stabilized", "pissa", "patterns"],
)
def test_a_lora_is_taken_and_means_the_same(world, tmp_path, method):
    run = runs.open_run(tiny_run.adapter(world.base, method, tmp_path / "run"))
    export = peft.export_adapter(run, tmp_path / "out", "base", "# Card\n")
    (note,) = export.notes
    rank = int(note.split("--max-lora-rank ")[1].split()[0])
    scale, modules = load_as_vllm(tmp_path / "out", rank)
    deltas = peft._deltas(run.read(*run.checkpoint.checksums("model/")), method.adapter)
    assert len(modules) == len(deltas)
    for place, delta in deltas.items():
        assert scale == pytest.approx(float(delta["scale"])), place
    assert note in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (DoRA(rank=2), "it serves no DoRA"),
        (IA3(), "it serves LoRA alone, and this is IA3"),
        (Prompt(length=2, start="random"), "this is PROMPT_TUNING"),
        (LoRA(rank=2, ranks=((".*/query", 4),)), "reads neither rank_pattern nor alpha_pattern"),
        (LoRA(rank=2, alphas=((".*/query", 4.0),)), "modules differ in alpha / rank"),
    ],
    ids=["dora", "ia3", "prompt", "ranks", "alphas"],
)
def test_what_it_does_not_serve_is_said_with_what_to_do(world, tmp_path, method, reason, capsys):
    path = tiny_run.adapter(world.base, method, tmp_path / "run")
    out = str(tmp_path / "out")
    convert.main(["export", "--from", str(path), "--format", "peft", "--out", out])
    printed, card = capsys.readouterr().out, (tmp_path / "out" / "README.md").read_text()
    for text in (printed, card):
        assert "vLLM does not serve this adapter" in text and reason in text, text
        assert "export it merged (`--format hf`)" in text


SHAPES = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (8, 4)}
CONTENT = {"peft_type": "LORA", "r": 8, "lora_alpha": 8}


@pytest.mark.parametrize(
    ("content", "shapes", "family", "reason"),
    [
        ({"r": 600}, {}, "llama", "its largest rank is 512, and this has 600"),
        ({"bias": "all"}, {}, "llama", "it takes no biases"),
        ({"modules_to_save": ["lm_head"]}, {}, "llama", r"no modules_to_save \(lm_head\)"),
        ({}, {}, "gpt2", "no adapters of gpt2"),
        ({}, {"base_model.model.lm_head.lora_A.weight": (8, 4)}, "qwen3", "on lm_head of qwen3"),
        ({}, {"base_model.model.lm_head.lora_A.weight": (8, 4)}, "llama", "258,048 tokens"),
        (
            {},
            {"base_model.model.model.embed_tokens.base_layer.weight": (9, 4)},
            "llama",
            "it passes over weights of the base such as .*embed_tokens.base_layer",
        ),
    ],
)
def test_each_rule_has_its_reason(content, shapes, family, reason):
    from re import search

    assert not vllm.problems(CONTENT, SHAPES, "llama", 10**6)
    (problem,) = vllm.problems(CONTENT | content, SHAPES | shapes, family, 10**6)
    assert search(reason, problem)


def test_the_least_rank_that_a_server_may_allow():
    assert [vllm.max_lora_rank(rank) for rank in (1, 2, 16, 17, 300)] == [1, 8, 16, 32, 320]
    assert vllm.RANKS == ALLOWED_RANKS


def test_an_adapter_with_a_template_of_its_own_takes_it_along(world, tmp_path):
    base = runs.open_run(world.base)
    run = runs.open_run(tiny_run.adapter(world.base, LoRA(rank=2), tmp_path / "run"))
    peft.export_adapter(run, tmp_path / "plain", "base")
    assert not (tmp_path / "plain" / "tokenizer.json").exists()
    (tmp_path / "plain" / "chat_template.jinja").write_text("{{ messages }}")
    peft_importing.import_adapter(tmp_path / "plain", base, tmp_path / "own")
    export = peft.export_adapter(runs.open_run(tmp_path / "own"), tmp_path / "out", "base")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert "a chat template of its own" in export.notes[1]
    peft_importing.import_adapter(tmp_path / "out", base, tmp_path / "again")
    assert runs.open_run(tmp_path / "again").tokenizer.chat_template == "{{ messages }}"
