"""Real processes as one run: as one process would, restarted, killed, stopped, on other counts."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from research import sharding
from research.checkpoints.checkpointer import CheckpointError, open_checkpoint
from research.config import cli, schema
from research.evaluation.in_training import open_tasks
from research.experiment import CheckpointConfig
from research.methods import LoRA
from research.optim.adamw import AdamW
from research.runtime import distributed
from research.sharding import MeshConfig
from research.training.loop import train
from research.training.session import Session
from tests.helpers import rounding, tiny_run

DEVICES, STEPS = 8, 12
NO_LIMIT = 1_000_000


def experiment(world, **changes):
    settings = {
        "mesh": MeshConfig(data=2, fsdp=2, tensor=2),
        "dropout": 0.1,
        "checkpoint": CheckpointConfig(every=4, keep_last=9),
        "evaluate_split": "heldout",
        "evaluate_every": 6,
        "evaluation": questions(world),
        # a large epsilon: without it Adam turns rounding of tiny gradients into whole steps
        "optimizer": AdamW(epsilon=1e-2),
    }
    settings |= changes
    return world.experiment(settings.pop("steps", STEPS), **settings)


def questions(world):
    """Tasks that several processes may ask together."""
    sources = [schema.to_dict(data)["sources"][0] for data in (world.data(), world.questions())]
    text = {"sources": sources[:1], "sequence_length": 32, "batch_size": 8}
    labels = {"labels": tiny_run.COLOURS, "reference": "completion", "batch_size": 8}
    options = {"kind": "multiple_choice", "source": sources[1], "split": "heldout", **labels}
    return {"text": text, "tasks": {"options": options}}


def start(count, config, workdir):
    """So many processes that share 8 devices; `config` is one experiment, or one for each."""
    configs = config if isinstance(config, list) else [config] * count
    lines = []
    for index, one in enumerate(configs):
        folder = workdir.with_name(f"{workdir.name}-{index}")
        folder.mkdir(exist_ok=True)
        file = tiny_run.config_file(folder, one)
        lines.append(tiny_run.command("train", "--config", file, "--workdir", workdir))
    return together(lines)


def together(lines):
    """Command lines as the processes of one run."""
    count = len(lines)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = re.sub(r"(device_count=)\d+", rf"\g<1>{DEVICES // count}", os.environ["XLA_FLAGS"])
    processes = []
    for index, line in enumerate(lines):
        variables = dict(
            zip(distributed.VARIABLES, (f"127.0.0.1:{port}", str(count), str(index)), strict=True)
        )
        processes.append(
            subprocess.Popen(
                [*line, "--distributed"],
                cwd=tiny_run.ROOT,
                env={**os.environ, **variables, "XLA_FLAGS": flags},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def finish(processes, status=0):
    """Their outputs, after all have ended with this status."""
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == status, output
    return outputs


def weights(workdir, step):
    checkpoint = open_checkpoint(workdir, step)
    return checkpoint.read(*(name for name in checkpoint.checksums() if name.startswith("model/")))


def assert_same_run(ours, theirs):
    """To rounding: the same losses, in lines written once, and the same weights."""
    rows = [[json.loads(line) for line in tiny_run.lines(folder)] for folder in (ours, theirs)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for mine, other in zip(*rows, strict=True):
        assert mine.keys() == other.keys()
        for name in other.keys() & {"loss", "heldout_loss", "bits_per_byte/prose"}:
            rounding.assert_close(mine[name], other[name], roundings=tiny_run.ROUNDINGS)
    count = rounding.gradient_roundings(tiny_run.MODEL, rows=8, length=32)
    scale = rounding.moved(STEPS, learning_rate=1e-2, epsilon=1e-2)
    for name, array in weights(theirs, STEPS).items():
        actual = weights(ours, STEPS)[name]
        rounding.assert_close(actual, array, roundings=count, scale=scale, err_msg=name)


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """The run in this process, on the same devices."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(experiment(world), folder, session=Session(open_tasks))
    return folder


@pytest.fixture(scope="module")
def pair(world, tmp_path_factory):
    """The run in two processes."""
    folder = tmp_path_factory.mktemp("pair") / "run"
    outputs = finish(start(2, experiment(world), folder))
    assert "step 12/12" in outputs[0] and "mesh " not in outputs[1]  # one speaks
    return folder


@pytest.mark.heavy
def test_two_processes_train_as_one(pair, alone):
    assert_same_run(pair, alone)


@pytest.mark.heavy
def test_what_four_processes_saved_goes_on_on_two_and_on_one(world, alone, tmp_path):
    # two of them share each row: their devices are those of its tensor axis
    half = experiment(world, steps=STEPS // 2, mesh=MeshConfig(data=2, fsdp=1, tensor=4))
    wide = dataclasses.replace(half, model=dataclasses.replace(half.model, heads=4, kv_heads=4))
    finish(start(4, wide, tmp_path / "run"))
    shutil.copytree(tmp_path / "run", tmp_path / "one")
    whole = dataclasses.replace(wide, steps=STEPS, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    finish(start(2, whole, tmp_path / "run"))
    train(whole, tmp_path / "one", session=Session(open_tasks))
    assert_same_run(tmp_path / "run", tmp_path / "one")
    train(whole, tmp_path / "never stopped", session=Session(open_tasks))
    assert_same_run(tmp_path / "run", tmp_path / "never stopped")


@pytest.mark.heavy
def test_one_killed_ends_the_others_within_a_minute_and_the_run_goes_on_to_the_same_bits(
    world, pair, tmp_path
):
    """The coordinator; tests/launch/test_local.py kills another."""
    run, killed = tmp_path / "run", 0
    processes = start(2, experiment(world), run)
    tiny_run.wait_for(processes[0], lambda: len(tiny_run.lines(run)) >= 5)
    processes[killed].kill()
    when = time.monotonic()
    other = processes[1 - killed]
    output = other.communicate(timeout=60)[0]
    assert time.monotonic() - when < 60
    # by a collective that broke, or in JAX's place; never as with an error of its own
    assert other.returncode == distributed.EXIT_RESTART, output
    last_line = (
        rf"process 1 of 2: error: (another process|process {killed}) is gone, or cannot be .*"
    )
    assert re.fullmatch(last_line + "goes on at its last checkpoint.", output.splitlines()[-1]), (
        output
    )
    processes[killed].communicate()
    finish(start(2, experiment(world), run))
    assert tiny_run.content(run, STEPS) == tiny_run.content(pair, STEPS)
    steps = [json.loads(line)["step"] for line in tiny_run.lines(run)]
    assert steps == [json.loads(line)["step"] for line in tiny_run.lines(pair)]


@pytest.mark.heavy
def test_a_signal_to_one_saves_on_all_at_one_step(world, tmp_path):
    run = tmp_path / "run"
    tuned = experiment(world, steps=NO_LIMIT, evaluate_split=None, method=LoRA(rank=2))
    tuned = dataclasses.replace(
        tuned, model=None, tokenizer=None, init_from=str(world.base), checkpoint=CheckpointConfig()
    )
    processes = start(2, tuned, run)
    tiny_run.wait_for(processes[0], lambda: len(tiny_run.lines(run)) >= 3)
    processes[1].send_signal(signal.SIGTERM)
    outputs = finish(processes, distributed.EXIT_RESTART)
    (step,) = map(int, re.findall(r"stopped by a signal at step (\d+), saved", outputs[0]))
    assert open_checkpoint(run).step == step == json.loads(tiny_run.lines(run)[-1])["step"]
    finish(start(2, dataclasses.replace(tuned, steps=step + 2), run))
    assert open_checkpoint(run).step == step + 2


@pytest.mark.heavy
def test_processes_that_differ_refuse_to_run_and_say_in_what(world, tmp_path):
    other = experiment(world, seed=5)
    processes = start(2, [experiment(world), other], tmp_path / "run")
    for output in finish(processes, status=1):
        assert "config of process 1 is not that of process 0" in output.splitlines()[-1], output
    assert not (tmp_path / "run").exists()


@pytest.mark.heavy
@pytest.mark.parametrize("failing", [0, 1])
def test_what_ends_one_process_is_the_last_line_of_all(failing):
    """Whether it coordinates or not; the other is far from any collective."""
    program = (
        "import time, jax\n"
        "from research.config import cli\n"
        "from research.runtime import distributed\n"
        "with distributed.abort_on_error(), cli.clear_errors():\n"
        "    distributed.initialize()\n"
        f"    if jax.process_index() == {failing}: raise ValueError('the folder is taken')\n"
        "    time.sleep(200)\n"
    )
    outputs = finish(together([[sys.executable, "-c", program]] * 2), status=1)
    reason = f"process {failing} of 2: error: the folder is taken"
    assert outputs[failing].splitlines()[-1] == reason
    follows = f"process {1 - failing} of 2: ends with process {failing}: error: the folder is taken"
    assert outputs[1 - failing].splitlines()[-1] == follows


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("victim", "kill"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)]
)
def test_a_lost_process_is_named_by_the_last_line_of_the_others(victim, kill):
    """No collective breaks here: JAX aborts them, with a stack trace and a status of its own."""
    program = (
        "import time, jax\n"
        "from research.config import cli\n"
        "from research.runtime import distributed, lost_process\n"
        "distributed.HEARTBEAT_SECONDS, lost_process.SILENCE = 10, 3\n"
        "with distributed.abort_on_error(), cli.clear_errors():\n"
        "    distributed.initialize()\n"
        "    print('joined', flush=True)\n"
        "    time.sleep(200)\n"
    )
    processes = together([[sys.executable, "-c", program]] * 3)
    for process in processes:
        tiny_run.wait_for(process, lambda process=process: "joined" in process.stdout.readline())
    time.sleep(2)  # a beat of each
    processes[victim].send_signal(kill)
    survivors = [process for number, process in enumerate(processes) if number != victim]
    for output in finish(survivors, status=distributed.EXIT_RESTART):
        assert f"error: process {victim} is gone, or cannot be reached. Start all" in output
        assert output.splitlines()[-1].endswith("goes on at its last checkpoint.")
    processes[victim].kill()
    processes[victim].communicate()


@pytest.mark.heavy
def test_a_run_of_two_processes_that_loses_its_lock_ends_on_both_with_that_reason(world, tmp_path):
    run = tmp_path / "run"
    config = experiment(world, steps=NO_LIMIT, evaluation={})
    processes = start(2, config, run)
    tiny_run.wait_for(processes[0], lambda: saved_steps(run))
    (run / ".lock").unlink()
    outputs = finish(processes, status=1)
    for output in outputs:
        assert ".lock was removed while this run trains in" in output.splitlines()[-1], output
        assert "Traceback" not in output and "stack trace" not in output, output
    assert outputs[1].splitlines()[-1].startswith("process 1 of 2: ends with process 0: error: ")
    steps = [open_checkpoint(run / "checkpoints", int(p.name)) for p in saved_steps(run)]
    assert steps and all(step.checksums() for step in steps)


def saved_steps(run):
    """Folders of whole steps; what a save began is not one."""
    return [path for path in (run / "checkpoints").glob("*") if path.name.isdecimal()]


def saving(cause):
    error = CheckpointError("could not save step 5. Free disk space")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (JaxRuntimeError("UNAVAILABLE: Socket closed"), 75),
        (JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out. Id: save"), 75),
        (JaxRuntimeError("INTERNAL: Barrier failed because: Task 1 heartbeat timeout."), 75),
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), 75),
        (saving(JaxRuntimeError("INTERNAL: Barrier failed because: task is set to ERROR")), 75),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), 1),
        (JaxRuntimeError("INTERNAL: Mosaic failed to compile"), 1),
        (saving(OSError("No space left on device")), 1),
        (ValueError("UNAVAILABLE: Error writing gs://bucket/run"), 1),
        (RuntimeError("a bug"), 1),
        (SystemExit(0), 0),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_lost_process_gives_75_and_an_error_of_its_own_1(monkeypatch, capsys, error, status):
    class Ended(BaseException):
        pass

    def leave(code):
        raise Ended(code)

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(os, "_exit", leave)
    with (
        pytest.raises((Ended, SystemExit)) as exit_info,
        distributed.abort_on_error(),
        cli.clear_errors(),
    ):
        raise error
    assert exit_info.value.args == (status,)
    message = capsys.readouterr().err
    assert ("another process is gone" in message) == (status == 75)
    assert status != 1 or str(error) in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("127.0.0.1:1", None, "0"), r"is set, but not \['JAX_NUM_PROCESSES'\]"),
        (("127.0.0.1:1", "two", "0"), "is none of the numbers from 0 below JAX_NUM_PROCESSES=two"),
        (("127.0.0.1:1", "2", "2"), "JAX_PROCESS_ID=2 is none of the numbers from 0 below"),
    ],
)
def test_a_process_that_does_not_know_the_others_says_so(monkeypatch, values, message):
    for name, value in zip(distributed.VARIABLES, values, strict=True):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        distributed.initialize()


def test_a_process_that_nothing_says_its_place_to_says_what_to_do(world, tmp_path):
    file = tiny_run.config_file(tmp_path, experiment(world))
    line = tiny_run.command("train", "--config", file, "--workdir", tmp_path / "run")
    process = subprocess.run(
        [*line, "--distributed"], cwd=tiny_run.ROOT, capture_output=True, text=True
    )
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "--distributed: " in process.stderr and "Set JAX_COORDINATOR_ADDRESS" in process.stderr


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_a_host_feeds_the_rows_that_its_devices_hold(axes):
    mesh = MeshConfig(*axes).make()
    row_sharding = sharding.batch_sharding(mesh, sharding.RULES)
    here = sharding.local_rows(row_sharding, 16)
    assert here.tolist() == list(range(16))  # this process has all devices
    leaf = np.arange(16 * 3).reshape(16, 3)
    array = sharding.place_rows({"leaf": leaf}, row_sharding, here, 16)["leaf"]
    assert array.sharding == row_sharding and np.array_equal(np.asarray(array), leaf)
    for shard in array.addressable_shards:
        assert np.array_equal(shard.data, leaf[shard.index])
    assert jax.process_count() == 1
