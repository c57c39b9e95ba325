"""What an adapter's folder says beside its factors: honored, or refused by its true reason."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.adapters import quantizing
from research.checkpoints import runs
from research.commands import convert
from research.interop.fields import UnsupportedModelError
from research.interop.peft import exporting as peft
from research.interop.peft import importing as peft_importing
from research.interop.peft import switches
from research.methods import LoRA, Several
from research.models.quantization import PRESETS
from tests.helpers import tiny_run
from tests.interop.peft.test_peft import logits_close, our_logits

TABLE = f"{peft.PREFIX}model.embed_tokens.weight"


@pytest.fixture(scope="module")
def base(world):
    return runs.open_run(world.base)


@pytest.fixture(scope="module")
def whole(base, world, tmp_path_factory):
    """An adapter's folder as PEFT writes it."""
    folder = tmp_path_factory.mktemp("adapter")
    method = LoRA((r"layers/\d+/attention/query",), rank=2)
    run = runs.open_run(tiny_run.adapter(world.base, method, folder / "run"))
    peft.export_adapter(run, folder / "whole", "base")
    return folder / "whole"


@pytest.fixture
def write(whole, tmp_path):
    """Writes that folder with changes of its config, more tensors and files."""

    def write(config=None, tensors=None, files=None):
        path = tmp_path / f"adapter-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(whole, path)
        content = json.loads((path / peft.CONFIG).read_text()) | (config or {})
        (path / peft.CONFIG).write_text(json.dumps(content))
        save_file(load_file(path / peft.WEIGHTS) | (tensors or {}), path / peft.WEIGHTS)
        for name, text in (files or {}).items():
            (path / name).write_text(text)
        return path

    return write


def refuses(path, base, match):
    with pytest.raises(UnsupportedModelError, match=match):
        peft_importing.open_adapter(path, base)


SWITCHES = {
    "layer_replication": [[0, 2], [1, 2]],
    "use_qalora": True,
    "lora_bias": True,
    "target_parameters": ["experts.gate"],
    "use_bdlora": {"nblocks": 2},
    "arrow_config": {"top_k": 1},
    "kasa_config": {"beta": 1e-4},
    "monteclora_config": {"num_samples": 4},
    "alora_invocation_tokens": [1, 2],
    "megatron_config": {"x": 1},
}


def test_each_switch_is_named(write, base):
    assert set(SWITCHES) == set(switches.REFUSED)
    for name, value in SWITCHES.items():
        refuses(write({name: value}), base, rf"{name} is .*; Graft has no such thing")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"use_something_new": True}, "use_something_new is True; Graft knows no such field of LO"),
        ({"use_something_new": 0}, "use_something_new is 0; Graft knows no such field of LO"),
        ({"lora_aplha": 3}, r"lora_aplha is 3; .*nearest: lora_alpha"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'; Graft reads adapters of CAUSAL_LM"),
        ({"init_lora_weights": "lora_ga"}, "'lora_ga', which changed the base's weights"),
        ({"init_lora_weights": "PiSSA_niter_4"}, "which changed the base's weights"),
        ({"bias": "some"}, "bias is 'some' of LORA"),
        ({"use_rslora": "no"}, "use_rslora is neither true nor false: 'no'"),
        ({"r": True}, "r is True"),
        # the kind goes before all else
        ({"peft_type": "ADALORA", "lora_bias": True, "r": 0}, "peft_type 'ADALORA'; Graft reads"),
        ({"modules_to_save": ["score"]}, "modules_to_save has 'score', which is no module"),
        ({"modules_to_save": ["lm_head"]}, "lacks lm_head.weight, a module of modules_to_save"),
        ({"trainable_token_indices": [1]}, "has no tensor of trainable_token_indices"),
    ],
)
def test_what_graft_has_not_is_refused(write, base, changes, match):
    refuses(write(changes), base, match)


def test_the_kind_goes_before_pickles_and_missing_files(write, base):
    path = write({"peft_type": "LOKR"})
    (path / peft.WEIGHTS).rename(path / "adapter_model.bin")
    refuses(path, base, "peft_type 'LOKR'")
    mlx = {"peft_type": None, "fine_tune_type": "lora", "lora_parameters": {"rank": 8}}
    refuses(write(mlx), base, r"an adapter of MLX: fuse it there .mlx_lm.fuse.")
    path = write(files={"adapter_model.bin": ""})
    assert "adapter_model.bin is not read" in peft_importing.open_adapter(path, base).notes
    (path / peft.WEIGHTS).rename(path / "adapter_model.bin")
    refuses(path, base, r"adapter_model.bin is a pickle, .*PeftModel.from_pretrained\(...\).save_")
    (path / peft.CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match="has no adapter_config.json: no adapter of PEFT"):
        peft_importing.open_adapter(path, base)


def test_what_peft_would_not_load_is_refused(write, base):
    path = write()
    tensors = load_file(path / peft.WEIGHTS)
    save_file(
        {n.removeprefix("base_model.model."): t for n, t in tensors.items()}, path / peft.WEIGHTS
    )
    refuses(path, base, r"does not begin with base_model\.model\., so that PEFT would not load it")
    prompt = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}
    path = write()
    content = prompt | {"task_type": "CAUSAL_LM", "num_transformer_submodules": 2}
    (path / peft.CONFIG).write_text(json.dumps(content))
    save_file(
        {"prompt_embeddings": np.zeros((2, base.model.width), np.float32)}, path / peft.WEIGHTS
    )
    refuses(path, base, "num_transformer_submodules is 2; a decoder alone has 1")


def test_an_adapter_beside_a_model_is_refused_with_its_base_too(write, base):
    for name in ("model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"):
        path = write(files={"config.json": "{}", name: "x"})
        refuses(path, base, f"holds an adapter of PEFT and a model .{name}")
    peft_importing.open_adapter(write(files={"config.json": "{}"}), base)  # as trainers leave it
    path = write(files={"special_tokens_map.json": '{"eos_token": "<|pad|>"}'})
    assert (
        peft_importing.open_adapter(path, base).tokenizer_files.tokenizer.roles["end"] == "<|pad|>"
    )


def test_neutral_and_harmless_fields_are_accepted(write, base, whole):
    more = dict.fromkeys(SWITCHES) | {
        "lora_dropout": 0.3, "eva_config": {"rho": 2}, "velora_config": {"scale": 1.0},
        "init_lora_weights": "gaussian", "ensure_weight_tying": True,
    }  # fmt: skip
    more |= {f"new_{i}": value for i, value in enumerate((None, False, "", "none", [], {}))}
    assert peft_importing.open_adapter(write(more), base).run_method == (
        peft_importing.open_adapter(whole, base).run_method
    )


@pytest.mark.heavy
def test_every_field_of_pefts_own_configs_is_known():
    """So that a release that adds a switch is seen."""
    import peft as their_peft

    names = {"LORA": "Lora", "IA3": "IA3", "OFT": "OFT", "VERA": "Vera", "LOHA": "LoHa"}
    names |= {"PROMPT_TUNING": "PromptTuning", "PREFIX_TUNING": "PrefixTuning"}
    assert set(names) == set(switches.KNOWN)
    for kind, name in names.items():
        config = getattr(their_peft, f"{name}Config")
        fields = {field.name for field in dataclasses.fields(config)}
        unknown = fields - switches.KNOWN[kind] - set(switches.REFUSED)
        assert not unknown, f"{kind}: {sorted(unknown)}"
        fields = {"num_virtual_tokens": 2} if "TUNING" in kind else {}
        switches.check(config(**fields).to_dict(), kind)


def test_saved_embeddings_that_are_the_bases_are_accepted_and_others_replace_it(
    write, base, tmp_path
):
    table = base.read("embedding/kernel")["embedding/kernel"]
    half = table.astype(np.float16)
    same = peft_importing.open_adapter(write(tensors={TABLE: half}), base)
    assert same.run_method == same.method and not same.notes[1:]
    other = table + np.float32(1e-3) * table
    path = write(tensors={TABLE: other})
    peft_importing.import_adapter(path, base, tmp_path / "run")
    run = runs.open_run(tmp_path / "run")
    assert isinstance(run.method, Several) and run.method.of[1].patterns == (r"embedding/kernel",)
    np.testing.assert_array_equal(run.read("embedding/kernel")["embedding/kernel"], other)
    quantizing.store(base, tmp_path / "small", PRESETS["bfloat16"])
    small = runs.open_run(tmp_path / "small")
    refuses(path, small, r"embedding/kernel, which goes before that of .*, stored as bfloat16")
    resized = np.concatenate([table, table[:2]])
    refuses(write(tensors={TABLE: resized}), base, r"\(290, 16\).*resize_token_embeddings")
    refuses(write(tensors={f"{peft.PREFIX}x.weight": table}), base, "x.weight is for no linear")
    broken = other.copy()
    broken[3, 4:6] = np.nan
    path = write(tensors={TABLE: broken})
    with pytest.raises(UnsupportedModelError, match="2 of 4,608 numbers of embedding/kernel are n"):
        peft_importing.import_adapter(path, base, tmp_path / "broken")
    arguments = ["import", "--from", str(path), "--out", "x", "--dry-run"]
    with pytest.raises(SystemExit, match="2 of 4,608 numbers of embedding/kernel are not finite"):
        convert.main([*arguments, "--base", str(base.path.parent.parent)])


def test_tensors_of_other_types_are_refused(write, base):
    whole = load_file(write() / peft.WEIGHTS)
    tensors = {name: value.astype(np.int8) for name, value in whole.items()}
    refuses(write(tensors=tensors), base, "lora_A.weight is of type I8; Graft reads F32, F16, BF16")


def test_an_adapter_with_a_head_of_its_own_is_merged_and_not_unmerged(write, base, tmp_path):
    """The base ties head and table, the adapter does not."""
    from research.adapters import merging

    assert base.model.tie_embeddings
    table = base.read("embedding/kernel")["embedding/kernel"]
    head = {f"{peft.PREFIX}lm_head.weight": np.flip(table, 0).copy()}
    path = write({"modules_to_save": ["lm_head"]}, head)
    assert any("one table in the base" in note for note in (
        peft_importing.open_adapter(path, base).notes
    ))  # fmt: skip
    peft_importing.import_adapter(path, base, tmp_path / "run")
    run = runs.open_run(tmp_path / "run")
    merging.merge(run, tmp_path / "whole")
    whole = runs.open_run(tmp_path / "whole")
    assert not whole.model.tie_embeddings and whole.base is None
    vocabulary = base.model.vocabulary
    logits_close(our_logits(whole, vocabulary), our_logits(run, vocabulary), run)
    assert np.abs(our_logits(run, vocabulary) - our_logits(base, vocabulary)).max() > 0.01
    with pytest.raises(ValueError, match=r"changed weights of the base itself .head/kernel"):
        merging.unmerge(whole, run, tmp_path / "apart")


def test_token_rows_that_do_not_fit_are_refused(write, base):
    rows = {TABLE.replace(".weight", ".token_adapter.trainable_tokens_delta"): np.ones((2, 16))}
    rows = {name: value.astype(np.float32) for name, value in rows.items()}
    refuses(write({"trainable_token_indices": [1, 300]}, rows), base, "up to 300, the base has 288")
    refuses(write({"trainable_token_indices": [1]}, rows), base, r"shape \(2, 16\), not \(1, 16\)")
    refuses(write({}, rows), base, "of which trainable_token_indices says None")


def test_an_adapters_own_tokenizer_and_template_go_before_the_bases(write, base, tmp_path, capsys):
    def run_of(files, name):
        peft_importing.import_adapter(write(files=files), base, tmp_path / name)
        return runs.open_run(tmp_path / name)

    own = base.tokenizer.to_json()
    same = run_of({"tokenizer.json": own}, "same")
    assert same.tokenizer.fingerprint() == base.tokenizer.fingerprint()

    template = "{{ messages[0].content }}!"
    chat = run_of({"chat_template.jinja": template}, "chat")
    assert chat.tokenizer.chat_template == template
    older = run_of({"tokenizer_config.json": json.dumps({"chat_template": template})}, "older")
    assert older.tokenizer.chat_template == template
    path = write(files={"chat_template.jinja": template})
    notes = peft_importing.open_adapter(path, base).notes
    assert "its chat template is not the base's: the adapter's is used" in notes
    base_path = str(base.path.parent.parent)
    arguments = ["import", "--from", str(path), "--base", base_path, "--out", "x", "--dry-run"]
    convert.main(arguments)
    assert "its chat template is not the base's" in capsys.readouterr().out
    path = write(files={"generation_config.json": '{"suppress_tokens": [3]}'})
    (note,) = peft_importing.open_adapter(path, base).notes
    assert note.startswith("generation_config.json: not read, nor by PEFT")

    settings = {"added_tokens_decoder": {"5": {"content": "<|more|>"}}}
    refuses(
        write(files={"tokenizer_config.json": json.dumps(settings)}),
        base,
        "lists the token '<|more|>' as number 5",
    )
    refuses(write(files={"added_tokens.json": '{"<|end|>": 5}'}), base, "token '<|end|>' .5.")
    refuses(write(files={"tokenizer.model": "x"}), base, "tokenizer.model and no tokenizer.json")
    refuses(write(files={"chat_template.jinja": "{% if %}"}), base, "the chat template is not as")


def test_a_tokenizer_with_more_tokens_than_the_base_is_refused_for_that(write, base):
    """By whichever of its files names them, and whatever does not fit because of it."""
    content = json.loads(base.tokenizer.to_json())
    token = dict(content["added_tokens"][-1], id=288, content="<|more|>")
    content["added_tokens"].append(token)
    settings = {"pad_token": "<|more|>"}
    listed = settings | {"added_tokens_decoder": {"288": {"content": "<|more|>"}}}
    table = base.read("embedding/kernel")["embedding/kernel"]
    resized = {TABLE: np.concatenate([table, table[:1]]).astype(np.float32)}
    match = (
        r"has 289 tokens, the base rows for 288; without one are <\|more\|>\..*"
        r"resize_token_embeddings\(289\)"
    )
    for files in (
        {"tokenizer.json": json.dumps(content), "tokenizer_config.json": json.dumps(settings)},
        {"tokenizer_config.json": json.dumps(listed)},
        {"added_tokens.json": '{"<|more|>": 288}', "tokenizer_config.json": json.dumps(settings)},
    ):
        for tensors in ({}, resized):
            refuses(write(tensors=tensors, files=files), base, match)
    nameless = write(files={"tokenizer_config.json": json.dumps(settings)})
    match = r"has '<\|more\|>' as pad_token, .* .\d+ tokens. has not, and there is no"
    refuses(nameless, base, match)


def test_adapters_with_templates_of_their_own_do_not_share_a_model(write, base, tmp_path):
    from research.adapters import compatibility

    path = write(files={"chat_template.jinja": "{{ messages }}"})
    peft_importing.import_adapter(path, base, tmp_path / "run")
    with pytest.raises(ValueError, match="a chat template of its own.*used alone, or merged"):
        compatibility.common_base([runs.open_run(tmp_path / "run")])
