"""What a step needs at least, against arithmetic, for devices that are not there."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from configs import presets
from research.config import cli, schema
from research.experiment import Experiment
from research.preflight import alternatives, examine, roofline
from research.preflight.describe import describe, table
from research.preflight.report import MemoryFit, Report
from research.runtime import accelerators
from research.runtime.accelerators import TPUS, Topology
from research.training.program import UnevenBatchError, make_program

ROOT = Path(__file__).resolve().parents[2]
LLAMA = str(ROOT / "configs/pretrain/llama3_8b.py")
# parameters of Llama 3 8B: two tables, and in each layer attention, MLP and two norms
TABLE, NORMS = 128_256 * 4096, 65 * 4096
LAYERS = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14_336)
PARAMETERS = 2 * TABLE + LAYERS + NORMS


def program(devices=64, slices=1, *overrides):
    experiment = cli.load(Experiment, LLAMA, ["data.batch_size=64", *overrides])
    return make_program(experiment, None, mesh=experiment.mesh.abstract(devices, slices))


def test_flops_of_llama_3_8b():
    limits = roofline.roofline(program(), TPUS["v5p"])
    tokens = 64 * 4096
    # 6 for each weight of a product, and attention over the causal half: 4 forward, 8 backward
    products = 6 * (LAYERS + TABLE) * tokens
    attention = 12 * 32 * 4096 * (4097 / 2) * tokens
    # closed forms on both sides, a dozen steps in float64; a product of one layer would be 1%
    assert limits.model_flops == pytest.approx(products + attention, rel=1e-6)
    # rematerialisation: the layers forward again, each but for its last product; and the head
    again = 2 * (LAYERS - 32 * 4096 * 14_336 + TABLE) * tokens + attention / 3
    # as above
    assert limits.hardware_flops == pytest.approx(limits.model_flops + again, rel=1e-6)
    assert limits.compute == pytest.approx(limits.hardware_flops / (64 * 459e12))
    assert limits.utilisation <= limits.model_flops / limits.hardware_flops


def test_chunks_of_the_mlp_are_computed_again_where_layers_are_not():
    again = 2 * 32 * 2 * 4096 * 14_336 * 64 * 4096  # gate and up of 32 layers
    for remat, expected in {"none": again, "products": 0, "full": 0}.items():
        programs = [program(64, 1, f"model.remat={remat}", f"model.mlp_chunks={n}") for n in (0, 8)]
        whole, in_chunks = (roofline.roofline(p, TPUS["v5p"]).hardware_flops for p in programs)
        # as above, of the numbers that are subtracted
        assert in_chunks - whole == pytest.approx(expected, abs=1e-6 * whole)


def test_fully_sharded_weights_travel_twice_and_their_gradients_once():
    traffic = roofline.traffic(program())
    part = 63 / 64
    weights = LAYERS + TABLE  # tokens travel to the embedding instead
    # in bfloat16; the head's chunks once more, for the normaliser
    # (but for the norms' scales, 1 / 30000 of all)
    assert traffic.gathered_weights == pytest.approx(part * 2 * (2 * weights + TABLE), rel=1e-3)
    # as above
    assert traffic.scattered_gradients == pytest.approx(4 * part * PARAMETERS, rel=1e-3)
    assert traffic.activations == pytest.approx(2 * part * 4096 * 4096 * 2)
    assert traffic.replicas == traffic.keys_and_values == traffic.between_slices == 0


def test_a_tied_table_travels_to_the_head_and_its_gradient_back_once():
    apart, together = (
        roofline.traffic(program(64, 1, f"model.tie_embeddings={x}")) for x in (False, True)
    )
    table = 63 / 64 * TABLE
    # the embedding's own table was not gathered, but its gradient was summed
    # (a dozen steps in float64)
    assert together.gathered_weights == pytest.approx(apart.gathered_weights, rel=1e-6)
    assert together.scattered_gradients == pytest.approx(apart.scattered_gradients - 4 * table)


def test_accumulation_gathers_weights_for_each_micro_batch():
    once, four = (roofline.traffic(program(16, 1, *x)) for x in ([], ["accumulation_steps=4"]))
    assert four.gathered_weights == pytest.approx(4 * once.gathered_weights)
    assert four.activations == pytest.approx(once.activations)


def test_slices_tell_each_other_gradients_alone():
    between = roofline.traffic(program(128, 2, "data.batch_size=128"), 2)
    # an all-reduce of what a device holds, over two
    # (but for leaves that are padded to divide)
    assert between.between_slices == pytest.approx(
        2 * 0.5 * 4 * (PARAMETERS / 64 + NORMS), rel=1e-3
    )
    assert between.replicas == 0
    inside = roofline.traffic(program(128, 1, "mesh.data=2", "data.batch_size=128"))
    assert inside.replicas == pytest.approx(between.between_slices) and not inside.between_slices


def test_tensor_and_sequence_axes_send_activations_and_keys():
    tensor = roofline.traffic(program(64, 1, "mesh.tensor=4"))
    tokens = 64 * 4096 / 16
    sums = 2 * 0.75 * tokens * 4096 * 2 * 32 * 5  # two a pass forward, back, one again
    assert tensor.activations == pytest.approx(sums + 2 * 15 / 16 * tokens * 4096 * 2)
    sequence = roofline.traffic(program(64, 1, "mesh.sequence=4"))
    keys = 2 * 4 * 4096 * 1024 * 2 * 0.75 * 32 * 3  # 4 rows of 16 groups; forward, again, back
    assert sequence.keys_and_values == pytest.approx(keys)
    assert tensor.keys_and_values == 0


def test_adapters_leave_gradients_of_the_base_at_home():
    overrides = ['method={"kind": "lora", "rank": 16}', 'model.storage=[[".*", "bfloat16"]]']
    lora, full = program(8, 1, *overrides), program(8)
    gradients = [roofline.traffic(one).scattered_gradients for one in (lora, full)]
    assert gradients[0] < 0.01 * gradients[1]
    resident = examine.resident_bytes(lora)
    # but for the norms' scales, which every device holds whole
    assert resident["weights"] == pytest.approx(2 * PARAMETERS / 8, rel=1e-2)
    assert resident["adapters"] + resident["optimizer"] < 0.2 * resident["weights"]
    assert roofline.memory_bytes(lora) < roofline.memory_bytes(full)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e:2x2x2", "give a version .* and its shape in chips"),
        ("v9:2x2", "give a version"),
        ("v5p", "give a version"),
        ("v5e:0x4", "give a version"),
        ("v5e:32x32", "v5e has 256 chips at most"),
    ],
)
def test_a_topology_that_there_is_not_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        accelerators.get_topology(name)


V5P = Topology("v5p:4x4x4", 1, TPUS["v5p"], [None] * 64)


def make_report(memory, prices=None):
    """A report on Llama 3 8B, with what a compiler would say of its memory."""
    llama = program()
    return Report(
        V5P.name,
        V5P.slices,
        memory,
        examine.describe_workload(llama, V5P),
        examine.estimate_step(llama, V5P, prices),
    )


def test_a_report_prices_its_steps_and_is_json():
    prices = schema.load_json(examine.Prices, ROOT / "configs/prices.json")
    report = make_report(MemoryFit(True, peak_gib=5.0), prices)
    estimate, content = report.estimate, report.to_json()
    assert estimate.chip_hours == pytest.approx(64 * estimate.hours)
    assert estimate.money == pytest.approx(estimate.chip_hours * prices.chip_hour["v5p"])
    assert estimate.hours == pytest.approx(1e5 * estimate.step_seconds / 3600)
    assert json.loads(json.dumps(content)) == content
    # a few steps in float64
    assert math.isclose(max(estimate.seconds.values()), estimate.step_seconds)
    text = describe(report)
    assert "90.74 left" in text and "bound by compute" in text and "US dollars" in text
    assert f"prices of {prices.date}, {prices.what}" in text
    text = describe(make_report(MemoryFit(False, peak_gib=100.0), prices))
    assert text.startswith("NO") and "4.26 too many" in text


def test_what_is_refused_says_why_in_its_row_and_in_words():
    row = make_report(MemoryFit(True, peak_gib=5.0)).to_json()
    refusal = Report("tpu7x:4x4x4", 1, MemoryFit.refused("too many heads")).to_json()
    assert {"argument_gib", "temp_gib", "fits", "model_flops"} <= set(refusal)
    first, second = table([row, refusal]).splitlines()[2:]
    assert "yes" in first and "too many heads" not in first
    assert "tpu7x:4x4x4" in second and "too many heads" in second
    sizeless = make_report(MemoryFit.refused("the compiler's own words"))
    assert "64 chips: the compiler's own words" in describe(sizeless)


def test_an_uncompiled_steps_size_is_what_is_known_of_it():
    refusal = MemoryFit.refused("too large", 3 * 2**30, 5 * 2**30)
    assert (refusal.argument_gib, refusal.temp_gib, refusal.peak_gib) == (3, 2, 5)
    assert set(refusal.to_json()) == {"fits", "why", "argument_gib", "temp_gib", "peak_gib"}
    assert "why" not in MemoryFit(True).to_json()


def test_rows_that_do_not_divide_name_the_nearest_sizes_that_do():
    for rows, accumulation_steps, nearest in (
        (256, 1, [512]),
        (1500, 1, [1536, 1024]),
        (512, 2, [1024]),
    ):
        accumulation = f"accumulation_steps={accumulation_steps}"
        with pytest.raises(UnevenBatchError, match=f"nearest: {nearest[0]}") as caught:
            program(512, 2, f"data.batch_size={rows}", accumulation)
        assert caught.value.nearest == nearest
        program(512, 2, f"data.batch_size={nearest[0]}", accumulation)


def test_rows_a_chip_are_whole_rows_a_device():
    v5p, tpu7x = (Topology(name, 1, TPUS[name], [None] * 128) for name in ("v5p", "tpu7x"))
    assert [v5p.rows(n) for n in (1, 3)] == [128, 384]
    assert [tpu7x.rows(n) for n in (1, 2, 3)] == [128, 128, 256]


def test_prices_of_another_shape_are_refused(tmp_path):
    (tmp_path / "prices.json").write_text('{"date": "now", "chip_hours": {}}')
    with pytest.raises(ValueError, match="chip_hours: no such key; did you mean .*chip_hour"):
        schema.load_json(examine.Prices, tmp_path / "prices.json")


def test_the_first_candidates_cost_only_time():
    experiment = cli.load(Experiment, LLAMA, ["model.remat=none", "loss.vocabulary_chunks=0"])
    topology = Topology("v5e:16x16", 1, TPUS["v5e"], [None] * 256)
    big = make_program(experiment, None, mesh=experiment.mesh.abstract(256))
    changes = list(alternatives.candidates(dataclasses.replace(big), topology))
    assert changes[0] == ["compute.remat=full"]
    assert changes[1] == ["compute.remat=full", "loss.vocabulary_chunks=16"]
    assert changes[2] == [*changes[1], "compute.mlp_chunks=8"]
    assert any("mesh.tensor=2" in change for change in changes)


@pytest.mark.parametrize("accelerator", [*TPUS, "gpu", "cpu"])
def test_every_accelerator_has_something_to_begin_with(accelerator):
    experiment = cli.load(Experiment, f"{LLAMA}:{accelerator}", ["data.batch_size=64"])
    assert make_program(experiment, None, mesh=experiment.mesh.abstract(64)).rows_of_device == 1
    assert experiment.model.remat == presets.PRESETS[accelerator].remat


def test_an_accelerator_without_a_preset_is_named():
    with pytest.raises(ValueError, match="no preset 'v9'; there are v4"):
        cli.load(Experiment, f"{LLAMA}:v9", [])
