"""A tune on a base of transformers, served by transformers + PEFT: merged, and as an adapter."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import methods, sharding, tree
from research.checkpoints import runs
from research.interop import exporting, importing
from research.interop.fields import UnsupportedModelError
from research.interop.peft import exporting as peft
from research.interop.peft import importing as peft_importing
from research.methods import DoRA, LoRA, Partial, Prefix, Prompt, Several
from research.training.loop import train
from tests.helpers import rounding
from tests.methods.cases import CASES, GAP

METHODS = {
    "lora": LoRA(rank=4, alpha=12.0),
    "dora-patterns": DoRA(rank=4, ranks=((r"layers/1/.*", 2),)),
    **{
        name: CASES[name].method
        for name in ("lora-patterns", "lora-ends", "pissa", "ia3", "vera", "loha")
    },
    **{name: CASES[name].method for name in ("oft", "prompt", "prefix", "prefix-mlp")},
    "beside-partial": Several((LoRA(rank=2), Partial((r".*attention_norm/scale", "head/kernel")))),
}


@pytest.fixture(scope="module")
def theirs(world, tmp_path_factory):
    """A tiny random Llama with a tokenizer, as transformers saves it."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("theirs")
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=288,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    transformers.LlamaForCausalLM(shape).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(world.folder / "tokenizer.json"),
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    importing.import_model(importing.open_model(theirs), folder)
    return folder


TOKENS = np.random.default_rng(0).integers(0, 288, (2, 20)).astype(np.int32)


def load(run):
    mesh = sharding.MeshConfig(data=1).make(jax.devices()[:1])
    return runs.load_model(run, mesh, sharding.RULES)


@jax.jit
def logits_of(model, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return model.logits(model.hidden(tokens, jnp.ones_like(tokens), positions)[0])


def our_logits(run, vocabulary=288):
    return logits_of(load(run), TOKENS % vocabulary)


def condition(run, vocabulary=288):
    """How many times larger the change of logits is than the relative change of all parameters that
    makes it, 1 or more. A product's rounding is a relative change of its parameters by that of its
    longest sum (Higham, sections 1.6 and 3.5), so those two give the error, whatever the depth."""
    random, change = np.random.default_rng(0), 2.0**-12
    model, tokens = load(run), TOKENS % vocabulary

    def moved(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf * (1 + change * random.choice([-1, 1], leaf.shape).astype(leaf.dtype))

    logits = logits_of(model, tokens)
    difference = np.abs(logits_of(jax.tree.map(moved, model), tokens) - logits).max()
    return max(1.0, float(difference / (change * np.abs(logits).max())))


def longest_sum(run):
    shape = run.model
    return max(shape.width, shape.mlp_width, shape.heads * shape.head_dim, TOKENS.shape[1])


def logits_close(actual, expected, run):
    count = longest_sum(run)
    scale = np.abs(expected).max() * condition(run, expected.shape[-1])
    rounding.assert_close(actual, expected, roundings=count, scale=scale)


def their_logits(model):
    import torch

    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS).long()).logits.numpy()


@pytest.mark.heavy
@pytest.mark.parametrize("name", METHODS)
def test_a_tune_is_the_same_in_transformers_merged_and_as_an_adapter(
    name, world, base, theirs, tmp_path
):
    import transformers
    from peft import PeftModel

    tuning = world.tuning(6, init_from=str(base), method=METHODS[name], weight_decay=0.0)
    train(tuning, tmp_path / "run")
    run = runs.open_run(tmp_path / "run")
    ours, before = our_logits(run), our_logits(runs.open_run(base))
    assert np.abs(ours - before).max() > 0.01

    if name.startswith("pr"):
        with pytest.raises(ValueError, match="is no change of a weight and cannot be merged"):
            exporting.export_huggingface(run, tmp_path / "merged")
    else:
        exporting.export_huggingface(run, tmp_path / "merged")
        whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        logits_close(their_logits(whole), ours, run)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
        assert tokenizer("red roofs")["input_ids"] == run.tokenizer.encode("red roofs")

    peft.export_adapter(run, tmp_path / "adapter", "somebody/base")
    plain = transformers.AutoModelForCausalLM.from_pretrained(theirs)
    peft_model = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    logits = their_logits(peft_model)[:, -TOKENS.shape[1] :]  # without virtual tokens
    logits_close(logits, ours, run)

    # whose parameters are others there, or those of another class
    if name not in ("pissa", "prefix-mlp", "beside-partial"):
        compare_gradients(run, transformers.AutoModelForCausalLM.from_pretrained(theirs), tmp_path)

    peft_importing.import_adapter(tmp_path / "adapter", runs.open_run(base), tmp_path / "back")
    back = runs.open_run(tmp_path / "back")
    if name in ("pissa", "prefix", "prefix-mlp"):  # a LoRA of twice the rank; keys turned back
        logits_close(our_logits(back), ours, run)
    else:  # names, shapes and bits of all parameters
        assert back.fingerprint == run.fingerprint


def compare_gradients(run, plain, tmp_path):
    """Of a fixed functional of the logits, with respect to all that the adapter trains."""
    import torch
    from peft import PeftModel

    probe = np.random.default_rng(1).normal(size=(*TOKENS.shape, 288)).astype(np.float32)
    prompts = isinstance(run.method, Prompt | Prefix)  # PEFT loads those as not trainable only
    peft_model = PeftModel.from_pretrained(plain, tmp_path / "adapter", is_trainable=not prompts)
    for name, parameter in peft_model.eval().named_parameters():
        parameter.requires_grad_(parameter.requires_grad or "prompt_encoder" in name)
    logits = peft_model(torch.from_numpy(TOKENS).long()).logits[:, -TOKENS.shape[1] :]
    (logits * torch.from_numpy(probe)).sum().backward()
    theirs = {
        name.replace(".default", "").removesuffix(".weight"): parameter.grad.numpy()
        for name, parameter in peft_model.named_parameters()
        if parameter.grad is not None
    }
    mesh = sharding.MeshConfig(data=1).make(jax.devices()[:1])
    model = runs.load_model(run, mesh, sharding.RULES)
    trainable, frozen = tree.partition(model, methods.trainable(model, run.method))
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)

    def functional(trainable):
        model_ = tree.merge(model, trainable, frozen)
        hidden = model_.hidden(TOKENS, jnp.ones_like(TOKENS), positions)[0]
        return (model_.logits(hidden) * probe).sum()

    arrays = tree.unstack(frozen | jax.jit(jax.grad(functional))(trainable))
    ours = peft.tensors_of(run, {n: np.asarray(a) for n, a in arrays.items()})[0]
    if list(ours) == ["prompt_embeddings"]:
        ours = {"prompt_encoder.embedding": ours["prompt_embeddings"]}
    ours = {name.removesuffix(".weight"): array for name, array in ours.items()}
    ours = {name: array for name, array in ours.items() if "base_model.vera_" not in name}
    assert set(ours) == set(theirs)
    count, growth = TOKENS.size + longest_sum(run), condition(run)  # a sum over tokens too
    for name, array in theirs.items():
        scale = growth * np.abs(array).max()
        rounding.assert_close(ours[name], array, roundings=count, scale=scale, err_msg=name)


@pytest.mark.heavy
def test_pissa_starts_where_pefts_does_and_moves_the_same_way(base, theirs):
    """Singular vectors are known but for their sign."""
    import peft as their_peft
    import torch
    import transformers

    config = their_peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights="pissa",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    plain = transformers.AutoModelForCausalLM.from_pretrained(theirs)
    peft_model = their_peft.get_peft_model(plain, config).eval()
    probe = np.random.default_rng(1).normal(size=(*TOKENS.shape, 288)).astype(np.float32)
    logits = peft_model(torch.from_numpy(TOKENS).long()).logits
    (logits * torch.from_numpy(probe)).sum().backward()

    mesh = sharding.MeshConfig(data=1).make(jax.devices()[:1])
    plain = runs.load_model(runs.open_run(base), mesh, sharding.RULES)
    method = LoRA((r".*/attention/query", r".*/mlp/down"), rank=4, alpha=8.0, start="pissa")
    model = method.attach(plain, jax.random.key(0))
    trainable, frozen = tree.partition(model, methods.trainable(model, method))
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)

    def functional(trainable):
        model_ = tree.merge(model, trainable, frozen)
        hidden = model_.hidden(TOKENS, jnp.ones_like(TOKENS), positions)[0]
        return (model_.logits(hidden) * probe).sum()

    starts, gradients = (
        tree.unstack(trainable),
        tree.unstack(jax.jit(jax.grad(functional))(trainable)),
    )
    places = {"self_attn.q_proj": "attention/query", "mlp.down_proj": "mlp/down"}
    for layer, (their_place, place) in itertools.product(range(2), places.items()):
        module = peft_model.get_submodule(f"base_model.model.model.layers.{layer}.{their_place}")
        for leaf, linear in (("a", module.lora_A.default), ("b", module.lora_B.default)):
            name, turn = f"layers/{layer}/{place}/site/lora/{leaf}", leaf == "b"
            their, slope = linear.weight.detach().numpy().T, linear.weight.grad.numpy().T
            axis = 1 if turn else 0
            signs = np.sign((np.asarray(starts[name]) * their).sum(axis, keepdims=True))
            for ours, expected in ((starts[name], their), (gradients[name], slope)):
                # singular vectors turn by rounding over the gap between two values
                scale = np.abs(expected).max() / GAP
                rounding.assert_close(ours, signs * expected, roundings=10, scale=scale)


@pytest.mark.heavy
def test_an_adapter_that_peft_made_is_the_same_here(base, theirs, tmp_path):
    import peft as their_peft
    import torch
    import transformers

    plain = transformers.AutoModelForCausalLM.from_pretrained(theirs)
    torch.manual_seed(1)
    config = their_peft.LoraConfig(
        r=3, lora_alpha=7, use_rslora=True, target_modules=["q_proj", "down_proj"],
        init_lora_weights=False, task_type="CAUSAL_LM",
    )  # fmt: skip
    peft_model = their_peft.get_peft_model(plain, config)
    peft_model.save_pretrained(tmp_path / "adapter")
    expected = their_logits(peft_model)
    peft_importing.import_adapter(tmp_path / "adapter", runs.open_run(base), tmp_path / "run")
    run = runs.open_run(tmp_path / "run")
    assert run.method.targets == (r"layers/(0|1)/attention/query", r"layers/(0|1)/mlp/down")
    logits_close(our_logits(run), expected, run)

    def refuses(match, **changes):
        content = json.loads((tmp_path / "adapter" / peft.CONFIG).read_text())
        (tmp_path / "adapter" / peft.CONFIG).write_text(json.dumps(content | changes))
        with pytest.raises(UnsupportedModelError, match=match):
            peft_importing.import_adapter(
                tmp_path / "adapter", runs.open_run(base), tmp_path / "broken"
            )
        (tmp_path / "adapter" / peft.CONFIG).write_text(json.dumps(content))

    refuses("peft_type 'LOKR'", peft_type="LOKR")
    refuses(r"alpha_pattern: '.*more than a module's name", alpha_pattern={r"layers\.\d+": 4})
    refuses("no such field of PREFIX_TUNING", peft_type="PREFIX_TUNING", num_virtual_tokens=3)
    refuses("lacks lm_head.weight, a module of modules_to_save", modules_to_save=["lm_head"])
    refuses(
        r"lacks all tensors of model.layers.0.self_attn.v_proj, .* .2 of 6 modules",
        target_modules=["q_proj", "v_proj", "down_proj"],
    )
    refuses(r"lora_A.weight has shape .3, 32., not .5, 32.", r=5)
    refuses("r is 0", r=0)
    refuses("'pissa', which changed the base's weights", init_lora_weights="pissa")
    assert not (tmp_path / "broken").exists()


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name", ["patterns", "ia3", "embedding", "loha", "dora", "vera", "oft", "over", "excluded"]
)
def test_what_peft_makes_by_default_is_the_same_here(name, base, theirs, tmp_path):
    import peft as their_peft
    import torch
    import transformers

    kind = {"task_type": "CAUSAL_LM", "init_weights": False}
    config = {
        "patterns": lambda: their_peft.LoraConfig(
            r=2,
            target_modules=["q_proj", "up_proj"],
            rank_pattern={r"^model\.layers\.1\..*": 3},
            alpha_pattern={r".*layers\.1\..*q_proj": 40, "layers.0.*proj": 5},
            task_type="CAUSAL_LM",
        ),
        "ia3": lambda: their_peft.IA3Config(task_type="CAUSAL_LM"),
        "embedding": lambda: their_peft.LoraConfig(
            r=2, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM"
        ),
        "loha": lambda: their_peft.LoHaConfig(
            r=3, alpha=5, target_modules=["q_proj", "down_proj"], **kind
        ),
        "dora": lambda: their_peft.LoraConfig(
            r=2,
            use_dora=True,
            target_modules="all-linear",
            rank_pattern={"v_proj": 3},
            task_type="CAUSAL_LM",
        ),
        "vera": lambda: their_peft.VeraConfig(
            r=8, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM"
        ),
        "oft": lambda: their_peft.OFTConfig(
            r=0,
            oft_block_size=8,
            use_cayley_neumann=False,
            target_modules=["q_proj", "down_proj"],
            task_type="CAUSAL_LM",
        ),
        # keys have 16 outputs, the MLP's last linear 48 inputs of 32
        "over": lambda: their_peft.LoraConfig(
            r=40, lora_alpha=9, target_modules=["k_proj", "down_proj"], task_type="CAUSAL_LM"
        ),
        "excluded": lambda: their_peft.LoraConfig(
            r=2,
            target_modules=["q_proj", "v_proj", "lm_head"],
            exclude_modules=["layers.0.self_attn.v_proj"],
            task_type="CAUSAL_LM",
        ),
    }[name]()
    peft_model = their_peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(theirs), config
    )
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    peft_model.save_pretrained(tmp_path / "adapter")
    peft_importing.import_adapter(tmp_path / "adapter", runs.open_run(base), tmp_path / "run")
    run = runs.open_run(tmp_path / "run")
    expected, plain = their_logits(peft_model), our_logits(runs.open_run(base))
    logits_close(our_logits(run), expected, run)
    assert np.abs(expected - plain).max() > 0.01
    with pytest.raises(
        UnsupportedModelError, match="is an adapter itself: --base takes whole models"
    ):
        peft_importing.import_adapter(tmp_path / "adapter", run, tmp_path / "out")


@pytest.mark.heavy
def test_an_adapter_on_a_tied_head_comes_in_with_the_table_that_peft_saves(theirs, tmp_path):
    import peft as their_peft
    import torch
    import transformers

    shape = transformers.AutoConfig.from_pretrained(theirs)
    shape.tie_word_embeddings = True
    torch.manual_seed(3)
    plain = transformers.LlamaForCausalLM(shape)
    plain.save_pretrained(tmp_path / "theirs")
    transformers.AutoTokenizer.from_pretrained(theirs).save_pretrained(tmp_path / "theirs")
    importing.import_model(importing.open_model(tmp_path / "theirs"), tmp_path / "base")
    config = their_peft.LoraConfig(
        r=2, target_modules=["lm_head", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    peft_model = their_peft.get_peft_model(plain, config)
    peft_model.save_pretrained(tmp_path / "adapter")
    base = runs.open_run(tmp_path / "base")
    peft_importing.import_adapter(tmp_path / "adapter", base, tmp_path / "run")
    shapes = peft_importing.open_adapter(tmp_path / "adapter", base).tensors.shapes
    assert any(name.endswith("lm_head.base_layer.weight") for name in shapes)
    expected = their_logits(peft_model)
    run = runs.open_run(tmp_path / "run")
    logits_close(our_logits(run), expected, run)
