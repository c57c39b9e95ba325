"""Bases stored in fewer bits: as bases, and exported."""

import numpy as np
import pytest

from research import sharding, tree
from research.adapters import merging, quantizing
from research.checkpoints import runs
from research.interop import exporting, importing, model_card
from research.methods import LoRA
from research.models import quantization
from research.sharding import MeshConfig
from tests.adapters.saved import read_weights
from tests.helpers import tiny_run


@pytest.mark.parametrize("kind", quantization.PRESETS)
def test_a_stored_base_is_a_base_and_says_what_it_lost(world, kind, tmp_path):
    source = runs.open_run(world.base)
    reports = quantizing.store(source, tmp_path / "small", quantization.PRESETS[kind])
    small = runs.open_run(tmp_path / "small")
    assert small.fingerprint != source.fingerprint
    count = sum(report.parameters for report in reports.values())
    total_bytes = sum(report.bytes for report in reports.values())
    arrays = read_weights(tmp_path / "small")
    sizes = {n: array.nbytes for n, array in arrays.items()}
    assert total_bytes == sum(sizes.values()) and count == sum(
        a.size for a in read_weights(world.base).values()
    )
    # what 16 levels, 255 and eight bits of a number leave of a normal distribution
    assert 0 < reports[kind].error < {"nf4": 0.12, "int8": 0.01, "bfloat16": 0.003}[kind]
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).make()
    with sharding.mesh_context(mesh, sharding.RULES):
        model = runs.load_model(small, mesh, sharding.RULES)
    for name, leaf in tree.unstack(tree.flatten(model)).items():
        assert np.array_equal(leaf, arrays[name]), name


@pytest.mark.heavy
def test_an_export_of_a_stored_base_is_what_it_reads_as(world, tmp_path):
    base = runs.open_run(world.base)
    quantizing.store(base, tmp_path / "nf4", quantization.PRESETS["nf4"])
    adapter = runs.open_run(tiny_run.adapter(tmp_path / "nf4", LoRA(rank=2), tmp_path / "adapter"))
    card = model_card.write(adapter, "hf", "out")
    assert "its weights were stored as bfloat16, nf4; those here are what that reads as" in card
    exporting.export_huggingface(adapter, tmp_path / "theirs", card=card)
    importing.import_model(importing.open_model(tmp_path / "theirs"), tmp_path / "back")
    expected = merging.Merged(adapter)
    for name, value in read_weights(tmp_path / "back").items():
        assert np.array_equal(value, expected(name)), name
