"""LoRA as a GGUF file: llama.cpp computes with it what we compute, and it comes back as it was."""

from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from research.checkpoints import runs
from research.commands import convert
from research.interop.fields import UnsupportedModelError
from research.interop.gguf import adapters, files
from research.interop.gguf import writer as gguf_writer
from research.methods import DoRA, LoRA
from tests.helpers import rounding, tiny_run
from tests.interop.gguf.test_gguf import CASES, IDS, import_theirs, llama_cpp, server
from tests.interop.gguf.test_gguf import tokenizer_file as tokenizer_file
from tests.interop.peft.test_peft import load, logits_close, logits_of, our_logits
from tests.interop.test_broken_files import CHANGES, corrupt, opens_or_refuses

RULES = {"ranks": ((".*/attention/key", 3),), "alphas": ((".*/mlp/.*", 5.0),)}
METHODS = {
    "plain": LoRA(rank=4),
    "rules": LoRA(rank=4, rank_stabilized=True, **RULES),
    "pissa": LoRA(rank=2, start="pissa"),
}


@pytest.fixture(scope="module")
def tuned(world, tmp_path_factory):
    """A LoRA on the tiny base, and its file."""
    folder = tmp_path_factory.mktemp("tuned")
    run = runs.open_run(tiny_run.adapter(world.base, METHODS["rules"], folder / "run"))
    adapters.export_adapter(run, folder / "adapter.gguf")
    return run, folder / "adapter.gguf"


def rewrite(path, out, **changes):
    """An adapter's file with other keys (dots are two underscores) or tensors."""
    reader = gguf.GGUFReader(path)
    content = {name: f.contents() for name, f in reader.fields.items() if "." in name}
    content = {k: v for k, v in content.items() if not k.startswith("GGUF.")}
    tensors = changes.pop("tensors", lambda tensors: tensors)
    content |= {name.replace("__", "."): value for name, value in changes.items()}
    writer = gguf.GGUFWriter(out, content.pop("general.architecture"))
    for name, value in content.items():
        if value is not None:
            add = writer.add_string if isinstance(value, str) else writer.add_float32
            add(name, value)
    for name, value in tensors({t.name: np.array(t.data) for t in reader.tensors}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def products(run):
    """What a run's LoRA adds to each weight."""
    names = [name for name in run.checkpoint.checksums("model/") if "/site/" in name]
    arrays = run.read(*(name.removeprefix("model/") for name in names))
    places = {name.rpartition("/")[0] for name in arrays}
    return {p: arrays[f"{p}/scale"] * (arrays[f"{p}/a"] @ arrays[f"{p}/b"]) for p in places}


@pytest.mark.parametrize("name", ["plain", "rules", pytest.param("pissa", marks=pytest.mark.heavy)])
def test_an_adapter_comes_back_as_it_was(name, world, tmp_path):
    run = runs.open_run(tiny_run.adapter(world.base, METHODS[name], tmp_path / "run"))
    names = adapters.export_adapter(run, tmp_path / "adapter.gguf")
    adapters.import_adapter(tmp_path / "adapter.gguf", run.base, tmp_path / "back")
    back = runs.open_run(tmp_path / "back")
    if name == "pissa":  # a LoRA of twice the rank
        logits_close(our_logits(back), our_logits(run), run)
    else:
        ours = products(run)
        for place, product in products(back).items():
            # where alphas differ the file has one, and the second factor the rest
            rounding.assert_close(product, ours.pop(place), roundings=8, err_msg=place)
        assert not ours
    assert adapters.export_adapter(back, tmp_path / "again.gguf") == names
    content = gguf.GGUFReader(tmp_path / "adapter.gguf")
    assert content.get_field("general.type").contents() == "adapter"
    assert content.get_field("adapter.type").contents() == "lora"


def test_what_does_not_fit_the_base_is_named(tuned, tmp_path):
    run, file = tuned

    def refuses(match, base=run.base, **changes):
        path = rewrite(file, tmp_path / "x.gguf", **changes)
        with pytest.raises(UnsupportedModelError, match=match):
            adapters.import_adapter(path, base, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refuses("is for the architecture 'qwen3', the base is 'llama'", general__architecture="qwen3")
    refuses("was tuned on another base", graft__base__fingerprint="0" * 64)
    refuses("general.type is 'model'.*imported without --base", general__type="model")
    refuses("adapter.type 'control'", adapter__type="control")
    refuses("adapter.lora.prompt_prefix is 'Q: '", adapter__lora__prompt_prefix="Q: ")
    refuses("is an adapter itself", base=run)
    first = "blk.0.attn_q.weight"

    def without(tensors):
        return {name: value for name, value in tensors.items() if name != f"{first}.lora_b"}

    refuses(f"{first}.lora_b is missing", tensors=without)
    refuses("holds no tensors of an adapter", tensors=lambda _: {})
    norm = {"blk.0.attn_norm.weight": np.ones(16, np.float32)}
    refuses("attn_norm.weight is for no linear.*no norms", tensors=lambda t: t | norm)
    table = {"token_embd.weight.lora_a": np.ones((4, 2), np.float32)}
    refuses("token_embd.weight.lora_a is for no linear of this base", tensors=lambda t: t | table)
    deep = {"blk.9.attn_q.weight.lora_a": np.ones((2, 16), np.float32)}
    refuses("blk.9.attn_q.weight.lora_a is for no linear of this base", tensors=lambda t: t | deep)

    def changed(name, change):
        return lambda tensors: tensors | {name: change(tensors[name])}

    refuses("which do not multiply", tensors=changed(f"{first}.lora_a", lambda a: a[:1]))
    refuses("another base", tensors=changed(f"{first}.lora_a", lambda a: a[:, :-2]))
    refuses("not finite", tensors=changed(f"{first}.lora_a", lambda a: a * np.nan))
    with pytest.raises(UnsupportedModelError, match=r"'adapter', which is no model; give its base"):
        files.open_file(file)


def test_without_an_alpha_the_product_is_as_it_is(tuned, tmp_path):
    run, file = tuned
    path = rewrite(file, tmp_path / "x.gguf", adapter__lora__alpha=None)
    adapter = adapters.open_adapter(path, run.base)
    scales = [value for name, value in adapter.arrays.items() if name.endswith("/scale")]
    assert scales and all(float(scale) == 1.0 for scale in scales)


@pytest.mark.parametrize(
    ("method", "match"),
    [
        (DoRA(rank=2), "'dora' leaves no adapter of llama.cpp's.*merge it"),
        (LoRA(rank=2, targets=("embedding",)), "not to an embedding or a tied head; merge it"),
        (LoRA(rank=2, targets=("head",)), "not to an embedding or a tied head; merge it"),
    ],
)
def test_what_llama_cpp_cannot_add_is_refused_with_the_way_that_works(
    method, match, world, tmp_path
):
    run = runs.open_run(tiny_run.adapter(world.base, method, tmp_path / "run"))
    with pytest.raises(UnsupportedModelError, match=match):
        adapters.export_adapter(run, tmp_path / "x.gguf")
    with pytest.raises(UnsupportedModelError, match="'full' leaves no adapter"):
        adapters.export_adapter(run.base, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.heavy
@pytest.mark.parametrize("case", ["llama", "qwen3", "gemma3", "gpt2", "phi3"])
def test_llama_cpp_adds_it_to_the_base(case, tokenizer_file, tmp_path):
    base = import_theirs(case, CASES[case], tokenizer_file, tmp_path)
    gguf_writer.export_gguf(base, tmp_path / "base.gguf")
    run = runs.open_run(tiny_run.adapter(tmp_path / "run", METHODS["rules"], tmp_path / "lora"))
    adapters.export_adapter(run, tmp_path / "lora.gguf")
    rows = base.model.vocabulary
    ours = jax.nn.log_softmax(logits_of(load(run), IDS[None])[0])
    theirs = llama_cpp(tmp_path / "base.gguf", IDS, rows, tmp_path / "lora.gguf")
    # llama.cpp looks GELU up in a table of float16
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-3)
    plain = jax.nn.log_softmax(logits_of(load(base), IDS[None])[0])
    assert np.abs(plain - ours).max() > 0.05  # as far as it moves the model
    assert (theirs.argmax(-1) == np.asarray(ours).argmax(-1)).mean() > 0.9


def test_an_adapter_by_the_command_line(tuned, world, tmp_path, capsys):
    run, file = tuned
    out = str(tmp_path / "x.gguf")
    folder = str(run.path.parent.parent)
    arguments = ["export", "--from", folder, "--format", "gguf-adapter", "--out", out]
    convert.main([*arguments, "--dry-run"])
    assert "blk.0.attn_q.weight.lora_a [" in capsys.readouterr().out and not Path(out).exists()
    convert.main(arguments)
    assert Path(out).read_bytes() == file.read_bytes() and Path(f"{out}.md").is_file()
    back = ["import", "--from", out, "--base", str(world.base), "--out", str(tmp_path / "back")]
    convert.main([*back, "--dry-run"])
    assert "blk.0.attn_q.weight.lora_b" in capsys.readouterr().out
    convert.main(back)
    assert isinstance(runs.open_run(tmp_path / "back").method, LoRA)
    with pytest.raises(SystemExit, match="there already"):
        convert.main(arguments)


@pytest.mark.heavy
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=CHANGES)
def test_broken_files_of_adapters_are_opened_or_refused(tuned, tmp_path, changes):
    run, file = tuned
    content = file.read_bytes()
    (tmp_path / "x.gguf").write_bytes(corrupt(content, changes, min(len(content), 3000)))
    opens_or_refuses(lambda: adapters.open_adapter(tmp_path / "x.gguf", run.base))


@pytest.mark.heavy
def test_llama_cpp_refuses_another_base(tuned, tokenizer_file, tmp_path):
    """So a wrong base is not served in silence there either."""
    base = import_theirs("qwen3", {}, tokenizer_file, tmp_path)
    gguf_writer.export_gguf(base, tmp_path / "base.gguf")
    with pytest.raises(RuntimeError):
        server(tmp_path / "base.gguf", tuned[1])
