"""Adapters on modules that are several linears of Graft's: the same here and in PEFT."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from research import methods, sharding, tree
from research.checkpoints import runs
from research.interop import importing
from research.interop.fields import UnsupportedModelError
from research.interop.peft import config
from research.interop.peft import exporting as peft
from research.interop.peft import importing as peft_importing
from research.methods import IA3, DoRA, LoHa, LoRA, VeRA
from research.methods.oft import OFT
from tests.interop.peft.test_peft import logits_close, our_logits, their_logits
from tests.interop.test_huggingface import their_model

FAMILIES = {"gpt2": {}, "phi3": {}}


@pytest.fixture(scope="module")
def bases(world, tmp_path_factory):
    """Tiny random models of both families: transformers' folder and the run imported from it."""
    import transformers

    folders = {}
    for family, changes in FAMILIES.items():
        path = tmp_path_factory.mktemp(family)
        their_model(family, vocab_size=288, **changes).save_pretrained(path / "theirs")
        transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(world.folder / "tokenizer.json"),
            bos_token="<|begin|>",
            eos_token="<|end|>",
            pad_token="<|pad|>",
        ).save_pretrained(path / "theirs")
        importing.import_model(importing.open_model(path / "theirs"), path / "run")
        folders[family] = path
    return folders


def load_theirs(folder):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder / "theirs")


def load_adapter(folder, adapter):
    from peft import PeftModel

    return PeftModel.from_pretrained(load_theirs(folder), adapter)


LORA = {"peft_type": "LORA", "r": 3, "lora_alpha": 7}
# family, what PEFT is asked for, and whether what is exported again has the same tensors
THEIRS = {
    "gpt2-lora": ("gpt2", LORA | {"target_modules": ["c_attn"]}, True),
    "gpt2-all": (
        "gpt2",
        LORA
        | {"target_modules": "all-linear", "use_rslora": True, "rank_pattern": {"mlp.c_proj": 5}},
        True,
    ),
    "gpt2-dora": ("gpt2", LORA | {"target_modules": ["c_attn", "c_fc"], "use_dora": True}, True),
    "gpt2-ia3": (
        "gpt2",
        {"peft_type": "IA3", "target_modules": ["c_attn"], "feedforward_modules": []},
        True,
    ),
    # whole weights: of the tied head, of a joined matrix, of the last norm; rows of the table
    "gpt2-saved": (
        "gpt2",
        LORA | {"target_modules": ["c_fc"], "modules_to_save": ["lm_head", "attn.c_attn", "ln_f"]},
        True,
    ),
    "gpt2-rows": (
        "gpt2",
        LORA | {"target_modules": ["c_attn"], "trainable_token_indices": {"wte": [3, 9]}},
        True,
    ),
    "phi3-saved": (
        "phi3",
        LORA | {"target_modules": ["o_proj"], "modules_to_save": ["gate_up_proj", "embed_tokens"]},
        True,
    ),
    # each part has 32 outputs
    "gpt2-over": ("gpt2", LORA | {"r": 40, "target_modules": ["c_attn"]}, False),
    "phi3-lora": (
        "phi3",
        LORA
        | {
            "target_modules": ["qkv_proj", "gate_up_proj"],
            "rank_pattern": {"layers.1.self_attn.qkv_proj": 5},
            "alpha_pattern": {"gate_up_proj": 2},
        },
        True,
    ),
    # keys and values have 16 outputs, queries 32
    "phi3-over": ("phi3", LORA | {"r": 20, "target_modules": ["qkv_proj", "o_proj"]}, False),
    "phi3-dora": ("phi3", LORA | {"target_modules": "all-linear", "use_dora": True}, True),
    "phi3-ia3": (
        "phi3",
        {
            "peft_type": "IA3",
            "target_modules": ["qkv_proj", "down_proj"],
            "feedforward_modules": ["down_proj"],
        },
        False,  # the input of `down` is an output of `gate_up` then
    ),
    "phi3-oft": (
        "phi3",
        {
            "peft_type": "OFT",
            "r": 0,
            "oft_block_size": 8,
            "use_cayley_neumann": False,
            "target_modules": ["qkv_proj", "down_proj"],
        },
        True,
    ),
    "phi3-loha": (
        "phi3",
        {"peft_type": "LOHA", "r": 3, "alpha": 5, "target_modules": ["qkv_proj", "gate_up_proj"]},
        True,
    ),
}


def make_peft_model(folder, fields):
    """A model of PEFT's with everything that it trains moved off its start."""
    import peft as their_peft
    import torch

    config = their_peft.get_peft_config({"task_type": "CAUSAL_LM", **fields})
    model = their_peft.get_peft_model(load_theirs(folder), config)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.heavy
@pytest.mark.parametrize("name", THEIRS)
def test_an_adapter_on_joined_modules_is_the_same_here_and_there_again(name, bases, tmp_path):
    family, fields, is_exact = THEIRS[name]
    folder = bases[family]
    model = make_peft_model(folder, fields)
    model.save_pretrained(tmp_path / "adapter")
    expected = their_logits(model)
    base = runs.open_run(folder / "run")
    assert np.abs(expected - our_logits(base)).max() > 0.01
    peft_importing.import_adapter(tmp_path / "adapter", base, tmp_path / "run")
    run = runs.open_run(tmp_path / "run")
    logits_close(our_logits(run), expected, run)

    peft.export_adapter(run, tmp_path / "back", "somebody/base")
    logits_close(their_logits(load_adapter(folder, tmp_path / "back")), expected, run)
    if is_exact:
        before, after = (load_file(tmp_path / side / peft.WEIGHTS) for side in ("adapter", "back"))
        assert set(after) == set(before)
        for tensor, values in before.items():
            np.testing.assert_array_equal(after[tensor], values, err_msg=tensor)


ATTENTION = (r"layers/\d+/attention/(query|value)",)
OURS = {
    "gpt2-lora": ("gpt2", LoRA(rank=2)),
    "gpt2-some": ("gpt2", LoRA(targets=ATTENTION, rank=3)),
    "gpt2-dora": ("gpt2", DoRA(targets=ATTENTION, rank=3)),
    "gpt2-pissa": ("gpt2", LoRA(rank=2, start="pissa")),
    "phi3-scales": (
        "phi3",
        LoRA(rank=4, ranks=((r".*/key", 2),), alphas=((r".*/(value|gate)", 3.0),)),
    ),
    "phi3-dora": ("phi3", DoRA(rank=2, alphas=((r".*/(value|gate)", 3.0),))),
    "phi3-ia3": ("phi3", IA3()),
    "phi3-loha": ("phi3", LoHa(targets=(*ATTENTION, r".*/mlp/(gate|up)"), rank=2)),
}


def write_run(method, base, out):
    """A run of this method, with everything that it trains moved off its start."""
    mesh = sharding.MeshConfig(data=1).make(jax.devices()[:1])
    model = method.attach(runs.load_model(base, mesh, sharding.RULES), jax.random.key(0))
    trainable = tree.unstack(tree.partition(model, methods.trainable(model, method))[0])
    arrays = {
        name: np.asarray(array)
        for name, array in tree.unstack(tree.flatten(model)).items()
        if tree.is_attached(name)
    }
    random = np.random.default_rng(0)
    for name in trainable:
        noise = 0.2 * random.normal(size=arrays[name].shape)
        arrays[name] = (arrays[name] + noise).astype(np.float32)
    runs.write(out, base, arrays, base.model, method=method, base=base)
    return runs.open_run(out)


@pytest.mark.heavy
@pytest.mark.parametrize("name", OURS)
def test_adapters_on_parts_are_one_on_the_joined_module(name, bases, tmp_path):
    family, method = OURS[name]
    base = runs.open_run(bases[family] / "run")
    run = write_run(method, base, tmp_path / "run")
    ours = our_logits(run)
    assert np.abs(ours - our_logits(base)).max() > 0.01
    peft.export_adapter(run, tmp_path / "adapter", "somebody/base")
    model = load_adapter(bases[family], tmp_path / "adapter")
    logits_close(their_logits(model), ours, run)
    peft_importing.import_adapter(tmp_path / "adapter", base, tmp_path / "back")
    back = runs.open_run(tmp_path / "back")
    logits_close(our_logits(back), ours, run)


@pytest.mark.heavy
def test_joined_and_single_modules_have_ranks_of_their_own_where_a_method_has_one(bases, tmp_path):
    base = runs.open_run(bases["phi3"] / "run")
    method = LoHa(targets=(*ATTENTION, r".*/mlp/\w+"), rank=2)
    run = write_run(method, base, tmp_path / "run")
    peft.export_adapter(run, tmp_path / "adapter", "somebody/base")
    model = load_adapter(bases["phi3"], tmp_path / "adapter")
    logits_close(their_logits(model), our_logits(run), run)
    with pytest.raises(UnsupportedModelError, match="alpha_pattern; Graft's LoHa has none"):
        peft_importing.import_adapter(tmp_path / "adapter", base, tmp_path / "back")


@pytest.mark.heavy
def test_what_no_joined_module_can_say_is_refused(bases, tmp_path):
    base = runs.open_run(bases["phi3"] / "run")
    with pytest.raises(
        UnsupportedModelError, match="vera of layers/0/attention/query, .*one module"
    ):
        run = write_run(VeRA(rank=4), base, tmp_path / "vera")
        peft.export_adapter(run, tmp_path / "out", "somebody/base")
    gpt2 = runs.open_run(bases["gpt2"] / "run")
    with pytest.raises(UnsupportedModelError, match="PEFT's LoHa takes no Conv1D"):
        run = write_run(LoHa(targets=ATTENTION, rank=2), gpt2, tmp_path / "loha")
        peft.export_adapter(run, tmp_path / "out", "somebody/base")
    with pytest.raises(UnsupportedModelError, match="oft of .*value, which are one module"):
        run = write_run(OFT(targets=ATTENTION, block_size=8), base, tmp_path / "oft")
        peft.export_adapter(run, tmp_path / "out", "somebody/base")
    fields = {"peft_type": "VERA", "r": 8, "target_modules": ["qkv_proj"]}
    make_peft_model(bases["phi3"], fields).save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        UnsupportedModelError, match="qkv_proj is layers/0/attention/query and .*VeRA's"
    ):
        peft_importing.import_adapter(tmp_path / "adapter", base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "use_cayley_neumann sums a few terms"),
        ({"use_cayley_neumann": False, "coft": True}, "coft is True; Graft's OFT has none"),
        ({"use_cayley_neumann": False, "block_share": True}, "block_share is True"),
        ({"use_cayley_neumann": False, "r": 4}, "oft_block_size is None; Graft's OFT needs one"),
    ],
)
def test_an_oft_of_another_form_is_refused(fields, message):
    content = {"peft_type": "OFT"} | fields
    with pytest.raises(UnsupportedModelError, match=message):
        config.read(content, "here", {"layers/0/mlp/up": "up"}, {"layers/0/mlp/up": 8})


@pytest.mark.heavy
def test_a_joined_tensor_of_another_shape_is_named(bases, tmp_path):
    model = make_peft_model(bases["phi3"], LORA | {"target_modules": ["qkv_proj"]})
    model.save_pretrained(tmp_path / "adapter")
    content = json.loads((tmp_path / "adapter" / peft.CONFIG).read_text())
    (tmp_path / "adapter" / peft.CONFIG).write_text(json.dumps(content | {"r": 5}))
    base = runs.open_run(bases["phi3"] / "run")
    with pytest.raises(
        UnsupportedModelError, match=r"lora_A.weight has shape .3, 32., not .5, 32."
    ):
        peft_importing.import_adapter(tmp_path / "adapter", base, tmp_path / "out")
