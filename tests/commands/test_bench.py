"""The benchmarks run, agree with the peer before they time it, and write what they print."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from research.benchmarks import decode_roofline, deployment_paths
from research.benchmarks.harness import Spread, rate, ratio
from research.checkpoints import runs
from research.commands import bench as bench_command
from research.methods import LoRA
from tests.helpers import tiny_run

ROOT = Path(__file__).resolve().parent.parent.parent
QUICK = ("--shape", "tiny", "--rounds", "1", "--seconds", "0.05")


def bench(tmp_path, *arguments, verb="step"):
    """Runs a benchmark on the smallest shape; gives what it prints and writes."""
    file = tmp_path / "results.json"
    command = [
        sys.executable,
        "-m",
        "research.cli",
        "bench",
        verb,
        *QUICK,
        "--json",
        str(file),
        *arguments,
    ]
    one_device = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    process = subprocess.run(command, cwd=ROOT, env=one_device, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout, json.loads(file.read_text())


def test_ratios_are_taken_within_a_round():
    mine, theirs = [[1.0, 1.0], [10.0, 10.0]], [[2.0, 2.0], [30.0, 30.0]]  # the machine slowed down
    assert ratio(mine, theirs) == Spread(2.5, 2.0, 3.0)
    assert rate(20.0, mine) == Spread(11.0, 2.0, 20.0)


@pytest.mark.heavy
def test_graft_alone_is_measured_against_the_machines_limit(tmp_path):
    text, results = bench(tmp_path, "--no-peer", "--methods", "lora", "--dtypes", "float32")
    assert 0 < results["utilisation"] < 1
    assert results["lora.float32.graft.tokens_per_second"] > 0
    assert "tokens/s" in text and "ratio" not in results


@pytest.mark.heavy
def test_methods_are_measured_beside_full_and_a_bank_beside_one_adapter(tmp_path):
    text, results = bench(tmp_path, "--methods", "ia3", "bank8", verb="methods")
    for key, other in (("ia3", "full"), ("bank8", "lora-8-rows")):
        for number in ("ratio", "ratio.analytic"):
            low, high = (results[f"{key}.{number}.{end}"] for end in ("low", "high"))
            assert 0 < low <= results[f"{key}.{number}"] <= high
        assert f"  {other}\n" in text
    assert results["bank8.ratio_to_lora"] == pytest.approx(1 / results["bank8.ratio"])
    # AdamW's two moments of what trains: 2 layers' factors of 16 + 16 + 48, and a count a leaf
    assert results["ia3.trainable_parameters"] == 160
    assert 8 * 160 <= results["ia3.optimizer_bytes"] < 8 * 160 + 100
    # a tiny model does much that is no product, but no third of it for frozen weights
    shares = results["ia3.counted_flops_share"], results["ia3.counted_flops.closed_form_share"]
    # XLA counts elementwise work too, a tenth of a step of a model so small
    assert shares[0] == pytest.approx(shares[1], abs=0.1) and shares[0] < 0.7
    assert results["ia3.memory_share"] < 0.6 and results["bank8.flops_share"] == 1


@pytest.mark.heavy
def test_graft_and_transformers_with_peft_take_the_same_steps(tmp_path):
    """`step` refuses to time sides whose first three losses differ, after updates too."""
    text, results = bench(tmp_path)
    assert text.count("losses of the first steps") == 4
    for method in ("full", "lora"):
        ratio = results[f"{method}.ratio"]
        assert results[f"{method}.ratio.low"] <= ratio <= results[f"{method}.ratio.high"]
        assert results[f"{method}.bfloat16.peer.peak_memory_bytes"] > 0


@pytest.mark.heavy
def test_graft_and_transformers_give_the_same_answers_before_they_are_timed(tmp_path):
    pytest.importorskip("transformers")
    tokens = ("--rows", "3", "--prompt-tokens", "8", "--new-tokens", "6")
    text, results = bench(tmp_path, *tokens, verb="generate")
    assert "100% of the tokens are the same on both sides" in text
    for dtype in ("float32", "bfloat16"):
        low, high = (results[f"{dtype}.3.ratio.{end}"] for end in ("low", "high"))
        assert 0 < low <= results[f"{dtype}.3.ratio"] <= high
        assert 0 < results[f"{dtype}.3.share_of_memory_rate"] < 1


@pytest.mark.heavy
def test_a_token_is_compiled_for_chips_that_are_not_there(tmp_path):
    pytest.importorskip("libtpu")
    tokens = ("--rows", "4", "--prompt-tokens", "60", "--new-tokens", "4", "--dtypes", "bfloat16")
    _, results = bench(tmp_path, *tokens, "--topology", "v5e", "v6e", verb="generate")
    # 2 layers of 4 rows with keys and values of 2 heads of 8 for 64 tokens, and all weights
    weights = 64 * 32 + 2 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 48)
    keys = 2 * 4 * 2 * 2 * 8 * 64
    norms = 4 * (2 * 2 * 32 + 32)  # in float32
    for name in ("v5e", "v6e"):
        assert results[f"{name}.bfloat16.4.least_bytes"] == 2 * (weights + keys) + norms
        assert 0 < results[f"{name}.bfloat16.4.share"] < 1


def test_chips_that_nobody_makes_are_refused_in_a_line(monkeypatch):
    monkeypatch.setattr(decode_roofline, "prepare_environment", lambda: None)  # of its process
    with pytest.raises(SystemExit, match="error: topology 'v99:2x2': give a version"):
        bench_command.main(["generate", "--topology", "v99"])


@pytest.mark.heavy
def test_ways_to_serve_many_tasks_answer_alike_and_are_sized_by_their_files(
    world, tmp_path, capsys
):
    file = tmp_path / "results.json"
    tuned = [str(tiny_run.adapter(world.base, LoRA(rank=2), tmp_path / str(n), n)) for n in (1, 2)]
    sizes = ("--tasks", "2", "--requests", "3", "--rows", "2", "--rounds", "1")
    line = ["deploy", "--run", str(world.base), "--adapter", *tuned, *sizes, "--json", str(file)]
    bench_command.main([*line, "--prompt-tokens", "5", "--new-tokens", "4"])
    output, results = capsys.readouterr(), json.loads(file.read_text())
    assert output.err.count("100% of the tokens are the same") == 3
    assert "| adapter bank  |     2 |" in output.out
    base, adapter, model = (results[f"{name}.bytes"] for name in ("base", "adapter", "model"))
    assert results["whole_models.2.disk"] == 2 * model
    assert results["adapter_bank.2.disk"] == base + 2 * adapter == results["adapter_swaps.2.disk"]
    whole, swaps, bank = (results[f"{way}.2.memory"] for way in deployment_paths.PATHS)
    one_adapter = swaps - whole / 2
    assert one_adapter > 0 and bank == whole / 2 + 2 * one_adapter
    assert results["adapter_bank.2.mixed_over_whole_models"] > 0


def test_an_adapter_swap_leaves_the_model_that_loading_it_gives(world, tmp_path):
    base, method = runs.open_run(world.base), LoRA(rank=2)
    adapters = [
        deployment_paths.write_adapter(base, method, tmp_path / "start"),
        runs.open_run(tiny_run.adapter(world.base, method, tmp_path / "tuned")),
    ]
    server = deployment_paths.AdapterSwaps(adapters, [])
    alone = [deployment_paths.AdapterSwaps([each], []).model(0) for each in adapters]
    leaves = [jax.tree.leaves(model) for model in alone]
    assert not all(map(np.array_equal, *leaves))
    for task in (0, 1, 0):
        assert all(map(np.array_equal, jax.tree.leaves(server.model(task)), leaves[task]))


def test_more_tasks_than_requests_and_an_adapter_as_base_are_refused(world, tmp_path):
    with pytest.raises(SystemExit, match="--requests 9 at least"):
        bench_command.main(["deploy", "--run", "nowhere", "--tasks", "9", "--requests", "8"])
    tuned = tiny_run.adapter(world.base, LoRA(rank=2), tmp_path / "tuned")
    with pytest.raises(SystemExit, match="is an adapter: name its base"):
        bench_command.main(["deploy", "--run", str(tuned)])


@pytest.mark.heavy
def test_graft_and_transformers_score_the_same_before_they_are_timed(tmp_path):
    pytest.importorskip("transformers")
    sizes = ("--questions", "5", "--question-tokens", "7", "--answers", "3", "--rows", "2")
    text, results = bench(tmp_path, *sizes, verb="score")
    assert "100% of the choices are the same" in text
    assert 0 < results["ratio.low"] <= results["ratio"] <= results["ratio.high"]


@pytest.mark.heavy
def test_what_a_constraint_adds_to_a_step_is_measured(world, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "items": {"type": "integer"}, "minItems": 3}')
    options = ("--run", str(world.base), "--schema", str(schema), "--rows", "4")
    text, results = bench(tmp_path, *options, "--prompt-tokens", "5", verb="generate")
    assert "4 rows: " in text and results["4.constraint.host_seconds"] > 0
    assert results["4.plain.seconds"] > 0 and results["4.constraint.host_share"] > 0
