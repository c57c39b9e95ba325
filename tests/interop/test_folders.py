"""Folders of transformers that say more than one thing: what they say is honored, or refused."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from research.interop import huggingface, importing, tensor_files
from research.interop.families import FAMILIES
from research.interop.fields import UnsupportedModelError
from tests.interop.test_broken_files import SHAPE, weights

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}


@pytest.fixture
def write(world, tmp_path):
    """Writes a tiny Llama's folder: its config's changes, other tensors, and files beside them."""

    def write(config=None, tensors=None, files=None, name="folder"):
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps(SHAPE | (config or {})))
        (path / "tokenizer.json").write_text((world.folder / "tokenizer.json").read_text())
        save_file(weights() | (tensors or {}), path / tensor_files.ONE)
        for file, content in (files or {}).items():
            (path / file).write_text(content)
        return path

    return write


def refuses(path, match):
    with pytest.raises(UnsupportedModelError, match=match):
        importing.open_model(path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"is_causal": False}, "is_causal is False; Graft's llama computes True"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder is True"),
        ({"architectures": ["LlamaBidirectionalModel"]}, "architectures is 'LlamaBidirectional"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "Graft computes LlamaForCausalLM"),
        ({"logit_scale": 0.25}, r"logit_scale is 0.25; Graft knows no such key of llama .nearest"),
        ({"attention_biass": True}, r"attention_biass is True.*nearest: attention_bias"),
        ({"sliding_window": 4096}, "sliding_window is 4096; Graft knows no such key of llama"),
        ({"layer_types": ["full_attention"]}, "layer_types is"),
        ({"no_rope_layers": [1, 0]}, "no_rope_layers is"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_interleaved": True}, "rope_interleaved is True"),
        ({"rope_scaling": {"factor": 2.0}}, "factor is 2.0, which a rope of type default does not"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "attention_factor": 0.9}},
            "attention_factor is 0.9, which a rope of type linear does not have",
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 2.0}},
            "rope_type is 'linear' and type 'dynamic'",
        ),
        (
            {"original_max_position_embeddings": 8, "rope_parameters": LLAMA3},
            "original_max_position_embeddings is 8, which transformers takes, and 16 in the rope",
        ),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "rope_theta is 10000, and rope_theta 500000 in the rope scaling",
        ),
        (
            {
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "default"},
            },
            "rope_parameters and rope_scaling differ",
        ),
    ],
)
def test_a_key_that_could_change_what_is_computed_is_refused_by_name(write, changes, match):
    refuses(write(changes), match)


def test_keys_without_effect_are_accepted(write):
    plain = importing.open_model(write())
    more = {
        "architectures": ["LlamaModel"], "is_causal": True, "logit_scale": None, "use_cache": True,
        "attention_dropout": 0.1, "unsloth_version": "2026.1", "pretraining_tp": 2,
        "transformers.js_config": {"dtype": "q4"}, "is_llama_config": True,
        "rope_interleaved": False, "max_position_embeddings": 99,
        "rope_scaling": {"rope_type": "default", "type": "default", "rope_theta": 1e4},
    }  # fmt: skip
    assert importing.open_model(write(more, name="more")).config == plain.config


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("gemma2", {"hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"}),
        ("gemma3_text", {"_sliding_window_pattern": 6, "use_bidirectional_attention": False}),
        ("qwen2", {"use_mrope": False, "sliding_window": 32768, "max_window_layers": 21}),
        ("phi3", {"original_max_position_embeddings": 4096, "resid_pdrop": 0.0}),
        ("mistral", {"sliding_window": None, "attention_bias": False}),
    ],
)
def test_so_are_those_of_other_families_published_models(kind, more):
    content = {k: v for k, v in SHAPE.items() if k != "model_type"} | more
    huggingface.read_config(FAMILIES[kind], content, "config.json")


@pytest.mark.heavy
def test_all_that_transformers_writes_by_default_is_known():
    """So that a release that adds a key is seen: it is read, neutral or without effect."""
    import transformers

    names = {kind: kind.capitalize() for kind in FAMILIES} | {
        "gemma3_text": "Gemma3Text", "gpt2": "GPT2"
    }  # fmt: skip
    for kind, name in names.items():
        content = getattr(transformers, f"{name}Config")().to_dict()
        huggingface.read_config(FAMILIES[kind], content, kind)
        unknown = content | {"something_else": 1}
        with pytest.raises(UnsupportedModelError, match="something_else is 1"):
            huggingface.read_config(FAMILIES[kind], unknown, kind)


def test_a_saved_head_is_tied_where_it_is_the_table_and_its_own_where_not(write):
    table = weights()[TABLE]
    same = importing.open_model(write(tensors={HEAD: table}))
    assert same.config.tie_embeddings and not same.notes
    other = importing.open_model(write(tensors={HEAD: 2 * table}, name="other"))
    assert not other.config.tie_embeddings and "the saved head differs" in other.notes[0]
    assert other.sources["head/kernel"].name == HEAD
    refuses(write(tensors={HEAD: table[:9].copy()}, name="size"), r"lm_head.weight: shape \(9, 16")


@pytest.mark.heavy
def test_a_head_of_its_own_computes_what_transformers_does(write):
    import transformers

    from research.checkpoints import runs
    from research.interop import exporting
    from tests.helpers import rounding
    from tests.interop.test_huggingface import our_logits, their_logits

    path = write({"max_position_embeddings": 64}, {HEAD: weights()[TABLE][::-1].copy()})
    tokens = np.random.default_rng(0).integers(0, 288, (2, 24)).astype(np.int32)
    model, theirs = importing.open_model(path), transformers.LlamaForCausalLM.from_pretrained(path)
    expected = their_logits(theirs, tokens)
    count = rounding.forward_roundings(model.config, 24)
    rounding.assert_close(our_logits(model, tokens), expected, roundings=count)

    importing.import_model(model, path.parent / "run")
    run = runs.open_run(path.parent / "run")
    assert "head" in run.origin["notes"][0] and not run.model.tie_embeddings
    exporting.export_huggingface(run, path.parent / "out")
    again = transformers.LlamaForCausalLM.from_pretrained(path.parent / "out")
    assert not again.config.tie_word_embeddings
    np.testing.assert_array_equal(their_logits(again, tokens), expected)


def test_a_folder_that_is_two_models_is_refused(write):
    adapter = write(files={"adapter_config.json": "{}"}, name="adapter")
    refuses(adapter, r"holds a model and an adapter of PEFT .adapter_config.json.*--base RUN")
    weights_alone = write(files={"adapter_model.safetensors": ""}, name="weights")
    refuses(weights_alone, r"holds a model and an adapter of PEFT .adapter_model.safetensors")
    (adapter / tensor_files.ONE).unlink()  # some trainers leave the base's config beside it
    refuses(adapter, "adapter is an adapter of PEFT: import it with --base RUN")
    index = json.dumps({"weight_map": {}})
    refuses(write(files={tensor_files.INDEX: index}, name="copies"), "two copies of the weights")


def test_other_copies_of_the_weights_are_named(write, capsys):
    from research.commands import convert

    names = ["consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin"]
    path = write(files={name: "" for name in [*names, "training_args.bin", "optimizer.pt"]})
    (note,) = importing.open_model(path).notes
    assert note == f"{', '.join(names)}: other copies of weights, not read"
    convert.main(["import", "--from", str(path), "--out", str(path / "run"), "--dry-run"])
    assert note in capsys.readouterr().out


def test_a_template_that_takes_no_question_is_noted_in_a_dry_run_too(write, capsys):
    from research.commands import convert

    settings = json.dumps({"eos_token": "<|end|>"})
    template = "{{ raise_exception('a system message comes first') }}"
    path = write(files={"chat_template.jinja": template, "tokenizer_config.json": settings})
    arguments = ["import", "--from", str(path), "--out", str(path.parent / "run")]
    for more in (["--dry-run"], []):
        convert.main([*arguments, *more])
        text = capsys.readouterr().out
        assert "of a user's question alone, the chat template does not take" in text
        assert "a system message comes first" in text


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("model.fp16.safetensors", "model.fp16.safetensors is a variant of it: rename that"),
        ("consolidated.safetensors", "consolidated.safetensors has names of Mistral's own"),
        ("pytorch_model.bin", r"pytorch_model.bin is a pickle, .* model.save_pretrained\(FOLDER\)"),
    ],
)
def test_what_lies_in_place_of_the_weights_is_named(write, name, match):
    path = write(files={"training_args.bin": ""})
    (path / tensor_files.ONE).rename(path / name)
    refuses(path, match)


def test_a_part_that_holds_more_than_its_index_names_is_refused(write):
    path = write()
    (path / tensor_files.ONE).rename(path / "model-00001-of-00001.safetensors")
    refuses(path, r"model-00001-of-00001.safetensors may be a part of it: .*index.json.* missing")
    names = dict.fromkeys(sorted(weights())[1:], "model-00001-of-00001.safetensors")
    (path / tensor_files.INDEX).write_text(json.dumps({"weight_map": names}))
    refuses(path, r"holds lm_head|holds model.embed_tokens.weight, which .* does not name .1 such")


def test_tokens_that_only_the_tokenizers_config_lists_are_refused(write):
    """transformers adds them to what tokenizer.json has."""
    for number, content in (("288", "<|more|>"), ("5", "<|end|>")):
        listed = {"eos_token": "<|end|>", "added_tokens_decoder": {number: {"content": content}}}
        files = {"tokenizer_config.json": json.dumps(listed)}
        path = write(files=files, name=f"folder-{number}")
        match = re.escape(f"lists the token {content!r} as number {number}")
        with pytest.raises(UnsupportedModelError, match=match):
            importing.load_tokenizer(importing.open_model(path))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (f"{QUERY.removesuffix('.weight')}.lora_A.default.weight", "adapter was not merged before"),
        (f"module.{QUERY}", "saved while a trainer wrapped it"),
        ("score.weight", "it classifies texts"),
        ("model.layers.0.mlp.experts.0.up_proj.weight", "it has experts"),
    ],
)
def test_surplus_tensors_tell_how_a_file_was_written(write, name, match):
    refuses(write(tensors={name: np.zeros((2, 2), np.float32)}), match)


def test_what_sentence_transformers_adds_is_named(write):
    (note,) = importing.open_model(write(files={"modules.json": "[]"})).notes
    assert "modules.json names what sentence-transformers does behind the model: not read" in note


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_counted(write, tmp_path, value):
    tensors = weights()
    tensors[QUERY][1, 2:5] = value
    path = write(tensors={QUERY: tensors[QUERY]})
    match = rf"folder: 3 of 256 numbers of {QUERY} are not finite"
    with pytest.raises(UnsupportedModelError, match=match):
        importing.import_model(importing.open_model(path), tmp_path / "run")
    with pytest.raises(UnsupportedModelError, match=match):
        importing.check_numbers(importing.open_model(path))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, r"FP8 in blocks.*FineGrainedFP8Config"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, r"MXFP4.*Mxfp4Config\(dequantize"),
        ({"quantization_config": {"quant_method": "awq"}}, r"AWQ.*that it was quantized from"),
        ({"quantization_config": {"quant_method": "gptq"}}, "GPTQ"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"model.dequantize\(\)"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": {"quant_method": "hqq"}}, "HQQ"),
        ({"quantization_config": {"quant_method": "new"}}, r'quantized \("new"\)'),
        ({"quantization": {"bits": 4, "group_size": 64}}, "MLX.*mlx_lm.convert --dequantize"),
        ({"compression_config": {"format": "x"}}, "compressed-tensors"),
        # as the tools write them, older ones without a name
        ({"quantization_config": {"load_in_8bit": True, "llm_int8_threshold": 6.0}}, "bitsandby"),
        ({"quantization_config": {"w_bit": 4, "q_group_size": 128, "zero_point": True}}, "AWQ"),
        ({"quantization_config": {"bits": 4, "group_size": 128, "desc_act": False}}, "GPTQ"),
        ({"quantization_config": {"bits": 4, "group_size": 128}}, "MLX, GPTQ or AWQ"),
        ({"quantization_config": {"quant_algo": "NVFP4", "producer": {}}}, "ModelOpt"),
        ({"quantization_config": {"config_groups": {}, "format": "pack"}}, "compressed-tensors"),
        ({"quantization_config": {"weight_block_size": [128, 128]}}, "FP8 in blocks"),
        ({"quantization_config": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}, "MLX"),
        ({"quantization_config": {"quant_method": "intel/auto-round"}}, "AutoRound"),
        ({"quantization_config": {"strange": 1}}, "a kind that it does not name"),
    ],
)
def test_a_quantized_folder_names_its_kind(write, config, match):
    refuses(write(config), match)


@pytest.mark.parametrize("dry_run", [["--dry-run"], []])
def test_a_quantized_folder_names_its_kind_in_a_dry_run_too(write, dry_run):
    from research.commands import convert

    settings = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
    path = write({"quantization_config": settings | {"version": "gemm"}})
    with pytest.raises(SystemExit, match="are quantized .AWQ.*import the folder that it was"):
        convert.main(["import", "--from", str(path), "--out", str(path / "run"), *dry_run])
    assert not (path / "run").exists()


PLACE = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["weight.absmax", "weight.quant_map"], "bitsandbytes"),
        (["SCB"], "bitsandbytes"),
        (["weight_scale_inv"], "FP8 in blocks"),
        (["weight_packed", "weight_scale"], "compressed-tensors"),
        (["qweight", "qzeros", "scales", "g_idx"], "GPTQ"),
        (["qweight", "qzeros", "scales"], "AWQ"),
        (["scales", "biases"], "MLX"),
        (["scales"], "MLX"),
        (["W_q", "meta"], "HQQ"),
        (["codes", "codebooks"], "AQLM"),
        (["weight._data", "weight._scale"], "quanto"),
        (["weight_blocks", "weight_scales"], "MXFP4"),
    ],
)
def test_so_does_one_that_only_its_tensors_tell(write, names, match):
    tensors = {f"{PLACE}.{name}": np.zeros((2, 2), np.float32) for name in names}
    refuses(write(tensors=tensors), rf"\({match}.*; Graft reads plain ones")


def test_tensors_of_types_that_hold_no_plain_numbers_are_refused(write):
    refuses(write(tensors={QUERY: np.ones((16, 16), np.int8)}), r"of \S+q_proj.weight, I8.*integer")


def test_floats_of_8_bits_are_refused(write):
    path = write(tensors={QUERY: np.ones((16, 16), np.int8)}) / tensor_files.ONE
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    header = content[8:size].replace(b'"I8"', b'"F8_E4M3"')
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[size:])
    refuses(path.parent, r"of \S+q_proj.weight, F8_E4M3.*8-bit floats.*scales applied")


def test_a_quantizers_own_file_is_enough(write):
    refuses(write(files={"quantize_config.json": "{}"}), "quantize_config.json.*GPTQ")


def test_a_template_that_links_out_of_the_folder_is_not_copied(write, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path = write()
    (path / "chat_template.jinja").symlink_to(secret)
    with pytest.raises(OSError, match=r"chat_template\.jinja leads to .*secret, outside .*folder"):
        importing.open_model(path).files()
    (path / "chat_template.jinja").unlink()
    (path / "chat_template.jinja").symlink_to("config.json")  # stays in the folder
    assert "chat_template.jinja" in importing.open_model(path).files()


def test_a_download_of_the_hub_links_to_its_own_blobs(write, tmp_path):
    (tmp_path / "models--made" / "snapshots").mkdir(parents=True)
    (tmp_path / "models--made" / "blobs").mkdir()
    path = write(name="models--made/snapshots/1")
    for file in list(path.iterdir()):
        blob = tmp_path / "models--made" / "blobs" / file.name
        file.rename(blob)
        file.symlink_to(f"../../blobs/{file.name}")
    assert set(importing.open_model(path).files()) == {"config.json", "tokenizer.json"}
