"""What is written as a PEFT adapter: whole or not at all, and which modules it names."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.checkpoints import runs
from research.interop.fields import UnsupportedModelError
from research.interop.peft import exporting as peft
from research.interop.peft import importing as peft_importing
from research.interop.peft import joined
from research.methods import LoRA
from tests.helpers import tiny_run
from tests.interop.peft.test_peft import logits_close, our_logits


@pytest.mark.heavy
def test_an_adapter_comes_back_whole_or_not_at_all(world, tmp_path):
    """PiSSA's export is a LoRA of twice its rank, here more than a key has outputs."""
    base = runs.open_run(world.base)
    run = runs.open_run(tiny_run.adapter(world.base, LoRA(rank=12, start="pissa"), tmp_path / "a"))
    peft.export_adapter(run, tmp_path / "whole", "base")
    peft_importing.import_adapter(tmp_path / "whole", base, tmp_path / "back")
    back = runs.open_run(tmp_path / "back")
    assert back.method.rank < 24 or back.method.ranks
    vocabulary = base.model.vocabulary
    ours, theirs = our_logits(run, vocabulary), our_logits(back, vocabulary)
    logits_close(theirs, ours, run)
    assert np.abs(ours - our_logits(base, vocabulary)).max() > 0.01

    def damage(match, keep):
        shutil.copytree(tmp_path / "whole", tmp_path / "torn", dirs_exist_ok=True)
        tensors = load_file(tmp_path / "whole" / peft.WEIGHTS)
        rest = {name: array for name, array in tensors.items() if keep(name)}
        save_file(rest, tmp_path / "torn" / peft.WEIGHTS)
        with pytest.raises(UnsupportedModelError, match=match):
            peft_importing.import_adapter(tmp_path / "torn", base, tmp_path / "out")

    damage(
        "lacks all tensors of .*layers.1.*, which target_modules", lambda n: ".layers.1." not in n
    )
    damage("lora_A.weight of layers/0/mlp/up is missing", lambda n: "0.mlp.up_proj.lora_A" not in n)
    damage("holds no tensors of an adapter", lambda n: False)
    (tmp_path / "torn" / peft.WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="has no adapter_model.safetensors"):
        peft_importing.import_adapter(tmp_path / "torn", base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_on_some_linears_names_no_others_of_the_same_name():
    """GPT-2 has a c_proj in its attention and one in its MLP."""
    from research.interop.families import FAMILIES
    from research.interop.family import module_name

    places = [f"layers/{i}/{place}" for i in (0, 1) for place in ("attention/output", "mlp/down")]
    names = {place: module_name(FAMILIES["gpt2"], place) for place in places}
    modules = joined.TargetModules(
        {names[place]: (place,) for place in places}, dict.fromkeys(places, 8)
    )
    method = LoRA(targets=(r"layers/\d+/attention/output",), rank=2)
    arrays = {}
    for place in places[::2]:
        site = f"{place}/site/lora/"
        arrays[f"{site}a"], arrays[f"{site}b"] = np.ones((8, 2)), np.ones((2, 8))
        arrays[f"{site}scale"] = np.ones(())
    _, content = peft._write_modules(method, arrays, modules, arrays.__getitem__)
    assert content["target_modules"] == sorted(names[place] for place in places[::2])


def test_whole_models_export_no_adapter(world, tmp_path):
    with pytest.raises(UnsupportedModelError, match="method 'full' leaves no adapter"):
        peft.export_adapter(runs.open_run(world.base), tmp_path / "out", "base")
    assert not (tmp_path / "out").exists()
