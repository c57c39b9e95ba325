"""Files from anybody: whatever their bytes say, the readers open them or say what is wrong."""

import json
import resource
import shutil
import struct

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from research.checkpoints import runs
from research.interop import exporting, huggingface, importing, tensor_files
from research.interop.families import FAMILIES
from research.interop.family import parameter_shapes, sources
from research.interop.fields import Fields, UnsupportedModelError
from research.interop.gguf import files
from research.interop.gguf import writer as gguf_writer
from tests.helpers import tiny_run

SHAPE = {
    "model_type": "llama", "vocab_size": 288, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "eos_token_id": 2,
}  # fmt: skip
HARD = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CHANGES = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF]), st.integers(1, 9)),
    min_size=1,
    max_size=3,
)


def weights():
    """A tiny Llama's tensors."""
    family = FAMILIES["llama"]
    places = sources(family, parameter_shapes(family.read(Fields(SHAPE, "shape"))))
    random = np.random.default_rng(0)
    return {s.name: random.normal(size=s.shape).astype(np.float32) for s in places.values()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole model of transformers, in two files with an index."""
    path = tmp_path_factory.mktemp("whole")
    (path / "config.json").write_text(json.dumps(SHAPE))
    tokenizer = tiny_run.world(tmp_path_factory.getbasetemp()).folder / "tokenizer.json"
    (path / "tokenizer.json").write_text(tokenizer.read_text())
    tensors = weights()
    names = sorted(tensors)
    parts = {"one.safetensors": names[:7], "two.safetensors": names[7:]}
    for file, group in parts.items():
        save_file({name: tensors[name] for name in group}, path / file)
    index = {"weight_map": {name: file for file, group in parts.items() for name in group}}
    (path / tensor_files.INDEX).write_text(json.dumps(index))
    return path


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory):
    """A GGUF file with a tensor of each kind of size."""
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.add_tensor("token_embd.weight", np.ones((2, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def corrupt(content: bytes, changes, upto: int) -> bytes:
    """The bytes with runs of others at shares of their first `upto`."""
    broken = bytearray(content)
    for share, value, length in changes:
        start = int(share * (upto - 1))
        broken[start : start + length] = bytes([value]) * len(broken[start : start + length])
    return bytes(broken)


def opens_or_refuses(run):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        run()
    except UnsupportedModelError as error:
        assert str(error)
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert growth < 300_000  # KiB


@HARD
@given(changes=CHANGES)
def test_gguf_files_with_broken_headers(gguf_bytes, tmp_path, changes):
    path = tmp_path / "broken.gguf"
    path.write_bytes(corrupt(gguf_bytes, changes, len(gguf_bytes)))
    opens_or_refuses(lambda: files.open_file(path))


@HARD
@given(changes=CHANGES, cut=st.integers(0, 400))
def test_safetensors_with_broken_headers(folder, tmp_path, changes, cut):
    content = (folder / "one.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    broken = corrupt(content, changes, header)
    path = tmp_path / "broken.safetensors"
    path.write_bytes(broken[: len(broken) - cut if cut < 200 else None])
    opens_or_refuses(lambda: tensor_files.SafeTensors(path))


VALUES = st.sampled_from(
    [None, -1, 0, 1, 3, 2**31, 2**62, 1.5, float("nan"), "x", [], {}, True, [4], {"type": "yarn"}]
)


@HARD
@given(name=st.sampled_from(sorted(SHAPE) + ["head_dim", "rope_scaling", "layer_types"]),
       value=VALUES, kind=st.sampled_from(sorted(FAMILIES)))  # fmt: skip
def test_configs_with_odd_values(name, value, kind):
    content = SHAPE | {"n_embd": 16, "n_layer": 2, "n_head": 2, "model_type": kind} | {name: value}

    def read():
        config = huggingface.read_config(FAMILIES[kind], content, "config.json")
        assert config.layers < 2**40

    opens_or_refuses(read)


def refuses(path, match):
    with pytest.raises(UnsupportedModelError, match=match):
        importing.load_tokenizer(importing.open_model(path))


def test_what_does_not_fit_is_named(folder, tmp_path):
    whole = importing.open_model(folder)
    assert importing.load_tokenizer(whole).vocabulary_size == 288

    def copy(name, **config):
        path = tmp_path / name
        path.mkdir()
        for file in folder.iterdir():
            (path / file.name).write_bytes(file.read_bytes())
        (path / "config.json").write_text(json.dumps(SHAPE | config))
        return path

    refuses(copy("architecture", model_type="mamba"), "model_type is 'mamba'; Graft knows llama")
    refuses(copy("code", auto_map={"AutoModel": "x.py"}), "asks for code from the folder")
    refuses(copy("shape", intermediate_size=25), r"mlp\.down_proj\.weight: shape \(16, 24\) in the")
    refuses(copy("missing", num_hidden_layers=3), r"missing model\.layers\.2\.input_layernorm")
    refuses(copy("surplus", num_hidden_layers=1), r"model\.layers\.1\S+ is no parameter of a llama")
    refuses(copy("activation", hidden_act="gelu"), "hidden_act is 'gelu'; Graft computes 'silu'")
    refuses(copy("untied", tie_word_embeddings=False), r"missing lm_head\.weight")
    outside = copy("outside")
    index = json.loads((outside / tensor_files.INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "../whole/one.safetensors"
    (outside / tensor_files.INDEX).write_text(json.dumps(index))
    refuses(outside, "is not a file beside it")
    pickles = copy("pickled")
    for file in [tensor_files.INDEX, "one.safetensors", "two.safetensors"]:
        (pickles / file).unlink()
    (pickles / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    refuses(pickles, "pytorch_model.bin is a pickle, which can run code and is never read")
    larger = copy("larger", vocab_size=280)
    for file in ("one.safetensors", "two.safetensors"):
        (larger / file).unlink()
    (larger / tensor_files.INDEX).unlink()
    tensors = weights()
    name = "model.embed_tokens.weight"
    save_file(tensors | {name: tensors[name][:280].copy()}, larger / "model.safetensors")
    refuses(larger, "has 288 tokens, the embedding only 280 rows")
    with pytest.raises(FileNotFoundError, match="there is no"):
        importing.open_model(tmp_path / "nothing")


def test_an_import_is_exported_to_the_same_bits_with_its_companions(folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    importing.import_model(importing.open_model(source), tmp_path / "run")
    run = runs.open_run(tmp_path / "run")
    assert run.origin["family"] == "llama" and run.tokenizer.roles["opens"] is False
    exporting.export_huggingface(run, tmp_path / "out", file_size=5000)
    before, after = importing.open_model(source), importing.open_model(tmp_path / "out")
    assert after.config == before.config and len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    for name, shape in before.tensors.shapes.items():
        region = tuple(slice(None) for _ in shape)
        mine, theirs = after.tensors.read(name, region), before.tensors.read(name, region)
        np.testing.assert_array_equal(mine, theirs, err_msg=name)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == run.tokenizer.end_id
    with pytest.raises(FileExistsError, match="is not empty"):
        exporting.export_huggingface(run, tmp_path / "out")


def test_a_model_with_numbers_that_are_not_finite_is_not_exported(folder, tmp_path):
    importing.import_model(importing.open_model(folder), tmp_path / "whole")
    whole = runs.open_run(tmp_path / "whole")
    arrays = dict(whole.read(*whole.checksums()))
    arrays["embedding/kernel"] = arrays["embedding/kernel"].copy()
    arrays["embedding/kernel"][3, 3] = np.inf
    runs.write(tmp_path / "run", whole, arrays, whole.model)
    with pytest.raises(ValueError, match="embedding/kernel holds numbers that are not finite"):
        exporting.export_huggingface(runs.open_run(tmp_path / "run"), tmp_path / "out")
    with pytest.raises(ValueError, match="embedding/kernel holds numbers that are not finite"):
        gguf_writer.export_gguf(runs.open_run(tmp_path / "run"), tmp_path / "out.gguf")
    assert not list(tmp_path.glob("out*"))


def gguf_with(key, kind, value):
    """A header with an architecture and one more key."""

    def text(content):
        return struct.pack("<Q", len(content)) + content.encode()

    first = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, 2) + first + text(key) + kind + value


@pytest.mark.parametrize(
    ("content", "match"),
    [
        # 2**40 numbers in a list, strings in a list, letters in a string; lists in lists
        (
            gguf_with("x.a", struct.pack("<I", 9), struct.pack("<IQ", 0, 2**40)),
            "the key 'x.a' ends",
        ),
        (gguf_with("x.a", struct.pack("<I", 9), struct.pack("<IQ", 8, 2**40)), "'x.a' is no list"),
        (gguf_with("x.a", struct.pack("<I", 8), struct.pack("<Q", 2**62)), "the key 'x.a' ends"),
        (gguf_with("x.a", struct.pack("<I", 9), struct.pack("<IQ", 9, 3) * 9), "'x.a' is no list"),
        (gguf_with("x.a", struct.pack("<I", 77), b""), "'x.a' is of an unknown kind 77"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 2**62, 0), "claims 0 keys and 4,611,"),
        (b"GGUF" + bytes(40), "no whole GGUF file of version 2 or 3"),
    ],
)
def test_a_header_that_claims_what_the_file_does_not_hold_is_refused_at_once(
    content, match, tmp_path
):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=match):
        importing.open_model(tmp_path / "x.gguf")


def test_a_cut_gguf_file_names_the_tensor(gguf_bytes, tmp_path):
    (tmp_path / "x.gguf").write_bytes(gguf_bytes[:-40])
    with pytest.raises(
        UnsupportedModelError, match="the tensor 'token_embd.weight' ends behind its end"
    ):
        importing.open_model(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"num_hidden_layers": 10_000},
            "10,000 layers there, 2 here; missing model.layers.2.input",
        ),
        ({"attention_bias": 10**9}, "attention_bias is neither true nor false"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is too large a number"),
        ({"model_type": []}, "is not as such a file should be: TypeError"),
    ],
)
def test_values_that_no_model_has(folder, tmp_path, changes, match):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "config.json").write_text(json.dumps(SHAPE | changes))
    with pytest.raises(UnsupportedModelError, match=match):
        importing.open_model(broken)


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("tokenizer.json", "{}", "tokenizer.json is not as such a file should be"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json is not as such"),
        ("tokenizer_config.json", '{"eos_token": 5}', "eos_token is no text: 5"),
        ("generation_config.json", "{bad", "generation_config.json is no JSON that can be"),
        ("chat_template.jinja", "{% if %}", "the chat template is not as such"),
        ("chat_template.jinja", "{{ messages | no_filter }}", "No filter named 'no_filter'"),
        (
            "tokenizer_config.json",
            '{"chat_template": [{"name": "tool_use", "template": "{% if %}"},'
            ' {"name": "default", "template": "{{ messages }}"}]}',
            "the chat template is not as such",
        ),
    ],
)
def test_companions_are_read_before_anything_is_written(folder, tmp_path, file, content, match):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / file).write_text(content)
    with pytest.raises(UnsupportedModelError, match=match):
        importing.import_model(importing.open_model(broken), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UnsupportedModelError, match=match):  # what a dry run calls
        importing.load_tokenizer(importing.open_model(broken))


def test_a_folder_without_weights_and_an_adapter_are_named(folder, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    with pytest.raises(UnsupportedModelError, match=r"neither model.safetensors nor .*json$"):
        importing.open_model(tmp_path)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match="adapter of PEFT: import it with --base RUN"):
        importing.open_model(tmp_path / "adapter")
    with pytest.raises(FileNotFoundError, match="graft convert import makes a run of it"):
        runs.open_run(folder)


def test_each_parameter_keeps_its_type_and_none_overflows(folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    for file in ("one.safetensors", "two.safetensors", tensor_files.INDEX):
        (source / file).unlink()
    half = {
        name: value if "norm" in name else value.astype(np.float16)
        for name, value in weights().items()
    }
    save_file(half, source / "model.safetensors")
    importing.import_model(importing.open_model(source), tmp_path / "run")
    run = runs.open_run(tmp_path / "run")
    exporting.export_huggingface(run, tmp_path / "out")
    again = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in half.items():
        assert again[name].dtype == value.dtype and np.array_equal(again[name], value), name
    half["model.norm.weight"][:] = 1e5
    save_file(half, source / "model.safetensors")
    importing.import_model(importing.open_model(source), tmp_path / "large")
    large = runs.open_run(tmp_path / "large")
    with pytest.raises(ValueError, match="model.norm.weight holds numbers beyond float16's"):
        exporting.export_huggingface(large, tmp_path / "half", "float16")
    assert not (tmp_path / "half").exists()


def test_a_disk_that_takes_no_more_is_named_and_nothing_stays(folder, tmp_path):
    importing.import_model(importing.open_model(folder), tmp_path / "run")
    run = runs.open_run(tmp_path / "run")
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, most[1]))
        for export, out in (
            (exporting.export_huggingface, "out"),
            (gguf_writer.export_gguf, "o.gguf"),
        ):
            with pytest.raises(OSError, match="could not be written .*disk may be full|too large"):
                export(run, tmp_path / out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    (tmp_path / "again" / "model").mkdir(parents=True)  # as a failed import leaves it
    importing.import_model(importing.open_model(folder), tmp_path / "again")


def test_fields_that_are_absent_have_transformers_defaults():
    shape = {name: value for name, value in SHAPE.items() if name != "num_key_value_heads"}
    shape |= {"num_attention_heads": 8, "hidden_size": 64}
    mistral = FAMILIES["mistral"].read(Fields(shape, "x"))
    assert (mistral.kv_heads, mistral.windows) == (8, (4096,))
    null = FAMILIES["mistral"].read(Fields(shape | {"sliding_window": None}, "x"))
    assert null.windows == (0,)
    gemma = FAMILIES["gemma2"].read(Fields(shape, "x"))
    assert (gemma.score_cap, gemma.logit_cap) == (50.0, 30.0)
    caps = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    bare = FAMILIES["gemma2"].read(Fields(shape | caps, "x"))
    assert (bare.score_cap, bare.logit_cap) == (0.0, 0.0)


def test_importing_is_whole_or_nothing_and_never_overwrites(folder, tmp_path):
    importing.import_model(importing.open_model(folder), tmp_path / "run")
    with pytest.raises(FileExistsError, match="holds a model already"):
        importing.import_model(importing.open_model(folder), tmp_path / "run")


def test_a_key_that_appears_twice_in_a_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"vocab_size": 1, "vocab_size": 2}')
    with pytest.raises(UnsupportedModelError, match="config.json .*'vocab_size' appears twice"):
        huggingface.read_json(tmp_path / "config.json")
