"""Writing checkpoints: atomic, asynchronous, keeping the last and the best steps."""

import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from research.checkpoints import fingerprint
from research.checkpoints.checkpointer import (
    Checkpointer,
    CheckpointError,
    library_versions,
    open_checkpoint,
)
from research.runtime import storage
from research.runtime.files import LinkError

ROOT = Path(__file__).resolve().parents[2]


def _arrays(step, rows=16):
    key = jax.random.key(step)
    return {
        "model/layers/0/mlp/up/kernel": jax.random.normal(key, (rows, 8)),
        "model/final_norm/scale": jnp.full(8, step, jnp.bfloat16),
        "model/quantized": jnp.arange(-8, 8).astype(jnp.int4),
        "step": jnp.int32(step),
    }


def _abstract(arrays):
    return {
        n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for n, a in arrays.items()
    }


def _assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype and actual[name].shape == array.shape
        assert np.array_equal(np.asarray(actual[name]), np.asarray(array)), name


def test_round_trip_onto_another_mesh_is_bit_identical(tmp_path):
    def mesh(*shape):
        devices = jax.devices()[: np.prod(shape)]
        return jax.make_mesh(shape, ("a", "b"), (AxisType.Auto,) * 2, devices=devices)

    values = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    values[0, :3] = np.nan, -0.0, np.inf
    arrays = {
        "w": jax.device_put(values, NamedSharding(mesh(4, 2), P("a", "b"))),
        "v": jax.device_put(values.astype(jnp.bfloat16), NamedSharding(mesh(4, 2), P("b"))),
        "n": jax.device_put(np.int32(7), NamedSharding(mesh(4, 2), P())),
    }
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(3, arrays, {})
    for target, spec in ((mesh(1, 2), P("b")), (mesh(2, 4), P(None, "b")), (mesh(8, 1), P(("a",)))):
        abstract = {
            name: jax.ShapeDtypeStruct(
                a.shape, a.dtype, sharding=NamedSharding(target, spec if a.ndim else P())
            )
            for name, a in arrays.items()
        }
        restored = Checkpointer(tmp_path).restore(3, abstract)
        for name, array in restored.items():
            assert array.sharding == abstract[name].sharding
            assert np.asarray(array).tobytes() == np.asarray(arrays[name]).tobytes(), name
        assert fingerprint.fingerprint(restored) == open_checkpoint(tmp_path).fingerprint()


def test_metadata_metrics_and_files_come_back_and_are_readable_json(tmp_path):
    metadata = {"config": {"rate": 1e-3, "steps": [1, 2]}, "versions": library_versions()}
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_bytes(b'{"a": 1}')
    with Checkpointer(tmp_path / "run" / "checkpoints") as checkpointer:
        checkpointer.save(
            5, _arrays(5), metadata, {"loss": 0.5, "odd": float("nan")},
            files={"tokenizer.json": tokenizer, "notes.txt": b"\x00raw"},
        )  # fmt: skip
        tokenizer.write_bytes(b"changed after save returned")
    assert checkpointer.metadata() == metadata and checkpointer.metadata(5) == metadata
    assert checkpointer.files(5) == {"tokenizer.json": b'{"a": 1}', "notes.txt": b"\x00raw"}
    checkpoint = checkpointer.at(5)
    assert checkpoint.metrics() == {"loss": 0.5, "odd": None} and checkpoint.step == 5
    assert json.loads((tmp_path / "run/checkpoints/5/files/metadata.json").read_text()) == metadata
    assert metadata["versions"]["jax"] == jax.__version__
    entries = json.loads((tmp_path / "run/checkpoints/5/files/arrays.json").read_text())
    assert entries["model/quantized"]["dtype"] == "int4"
    model = {n.removeprefix("model/"): a for n, a in _arrays(5).items() if n.startswith("model/")}
    assert checkpoint.fingerprint("model/") == fingerprint.fingerprint(model)
    assert checkpoint.fingerprint() == fingerprint.fingerprint(_arrays(5))


@pytest.mark.parametrize("mode, best", [("min", 2), ("max", 3)])
def test_keeps_the_last_and_the_best_steps(tmp_path, mode, best):
    losses = {1: 5.0, 2: 1.0, 3: 9.0, 4: float("nan"), 5: 4.0, 6: None, 7: 3.0}
    options = dict(keep_last=2, keep_best=1, best_metric="loss", best_mode=mode)
    with Checkpointer(tmp_path, **options) as checkpointer:
        for step, loss in losses.items():
            checkpointer.save(step, _arrays(step), {}, None if loss is None else {"loss": loss})
        checkpointer.wait()
        assert checkpointer.all_steps() == [best, 6, 7]
        assert checkpointer.best_step() == best and checkpointer.latest_step() == 7
        with pytest.raises(ValueError, match="best_metric 'loss' is not in \\['los'\\]"):
            checkpointer.save(8, _arrays(8), {}, {"los": 1.0})
    _assert_same(checkpointer.restore(best, _abstract(_arrays(best))), _arrays(best))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{s}" for s in [best, 6, 7])


def test_a_step_whose_metrics_cannot_be_read_is_not_removed_and_said_once(tmp_path, caplog):
    options = dict(keep_last=1, keep_best=1, best_metric="loss")
    with Checkpointer(tmp_path, **options) as checkpointer:
        checkpointer.save(1, _arrays(1), {}, {"loss": 1.0})
        checkpointer.wait()
        (tmp_path / "1" / "files" / "metrics.json").write_text("{")
        checkpointer.save(2, _arrays(2), {}, {"loss": 2.0})
        checkpointer.save(3, _arrays(3), {}, {"loss": 3.0})
        checkpointer.wait()
        assert checkpointer.all_steps() == [1, 2, 3] and checkpointer.best_step() == 2
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{tmp_path}/1: files/metrics.json is not what was saved. Without")
    assert message.endswith("is never removed: remove it by hand if nobody needs it")


def test_a_saved_step_is_left_alone_and_another_or_an_earlier_one_is_refused(tmp_path, caplog):
    with Checkpointer(tmp_path / "run") as checkpointer:
        assert checkpointer.save(4, _arrays(4), {"first": True})
        assert not checkpointer.save(4, _arrays(4), {"first": False})
        with pytest.raises(
            CheckpointError, match="run/4 is there already with other arrays .* move"
        ):
            checkpointer.save(4, _arrays(5), {"first": False})
        assert checkpointer.metadata(4) == {"first": True}
        assert checkpointer.save(4, _arrays(5), {"first": False}, replace=True)
        checkpointer.wait()
        assert "run/4 held other arrays than those of this run: it is written anew" in caplog.text
        assert checkpointer.metadata(4) == {"first": False}
        assert checkpointer.at(4).fingerprint() == fingerprint.fingerprint(_arrays(5))
        (tmp_path / "run" / "4").rename(tmp_path / "other")
        (tmp_path / "run" / "4").symlink_to(tmp_path / "other")
        with pytest.raises(LinkError, match="run/4 is a symbolic link"):
            checkpointer.save(4, _arrays(5), {}, replace=True)
        with pytest.raises(ValueError, match=r"cannot save step 3 in .*step \[4\] already"):
            checkpointer.save(3, _arrays(3), {})


def test_donated_and_overwritten_arrays_are_saved_with_their_old_values(tmp_path):
    mesh = jax.make_mesh((8,), ("a",), (AxisType.Auto,))
    step = jax.jit(lambda tree: jax.tree.map(lambda a: a * 0 - 1, tree), donate_argnums=0)
    placements = {"one": None, "sharded": P("a"), "replicated": P()}
    old = {}
    for kind, spec in placements.items():
        sharding = None if spec is None else NamedSharding(mesh, spec)
        for i in range(8):  # computed arrays, whose buffers XLA owns and may reuse
            old[f"{kind}/{i}"] = jax.device_put(jnp.full((256, 256), i + 1.0), sharding) + 0
    memory = np.zeros(2**20 + 16, np.float32)
    host = memory[-memory.ctypes.data % 64 // 4 :][: 2**20]  # aligned: JAX could share it
    host[:] = 3
    old["host"] = host
    expected = {name: np.array(array) for name, array in old.items()}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, old, {})
        host[:] = -1
        new = step({name: old.pop(name) for name in list(old) if name != "host"})
        for _ in range(3):
            new = step(new)
        jax.block_until_ready(new)
    restored = checkpointer.restore(1, _abstract({n: jnp.array(a) for n, a in expected.items()}))
    _assert_same(restored, expected)


_KILLED = """
import os, random, signal, sys, time
import jax, jax.numpy as jnp
from research.checkpoints.checkpointer import Checkpointer

directory, generator = sys.argv[1], random.Random(int(sys.argv[2]))

def train(report):  # restores the newest step, checks it, saves one step after the other
    checkpointer = Checkpointer(directory, keep_last=2)
    step = checkpointer.latest_step() or 0
    shape = {f"w{i}": jax.ShapeDtypeStruct((512, 256), jnp.float32) for i in range(8)}
    if step:
        arrays = checkpointer.restore(step, shape)
        assert all((a == step).all() for a in arrays.values()), step
    while True:
        step += 1
        arrays = {name: jnp.full(s.shape, step, s.dtype) for name, s in shape.items()}
        checkpointer.save(step, arrays, {"step": step})
        os.write(report, b".")

killed_while_saving = 0
for _ in range(6):  # forked before JAX starts its threads: a start costs no import
    heard, report = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(heard)
        try:
            train(report)
        finally:
            os._exit(1)
    os.close(report)
    for _ in range(3):
        assert os.read(heard, 1), "the training process failed"
    time.sleep(generator.random() * 0.05)  # its third save or a later one is under way
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    os.close(heard)
    killed_while_saving += any("tmp" in name for name in os.listdir(directory))
print(killed_while_saving)
"""


@pytest.mark.heavy
def test_killed_while_saving_the_earlier_step_restores_and_the_next_save_works(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", _KILLED, str(tmp_path), str(os.getpid())]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) >= 1, "no kill fell into a save"
    with Checkpointer(tmp_path, keep_last=2) as checkpointer:
        latest = checkpointer.latest_step()
        assert latest >= 6 * 2  # every life but the last saw two commits of its own
        checkpointer.save(latest + 1, _arrays(latest + 1), {})
        checkpointer.wait()
        assert checkpointer.all_steps()[-1] == latest + 1
    assert not [path.name for path in tmp_path.iterdir() if "tmp" in path.name]
    arrays = checkpointer.restore(latest, checkpointer.at(latest).abstract())
    assert len(arrays) == 8 and all((array == latest).all() for array in arrays.values())


# TensorStore's late callbacks find Orbax's event loop closed, where no code can catch the error.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("limit", [10, 3_000, 200_000])  # folders' files, metadata, array data
@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path, limit, asynchronous):
    first, second = _arrays(1), _arrays(2, rows=20_000)
    copies = {name: np.array(array) for name, array in second.items()}
    fingerprint.fingerprint(second)  # compiles now, not while files cannot grow
    checkpointer = Checkpointer(tmp_path, asynchronous=asynchronous)
    checkpointer.save(1, first, {})
    checkpointer.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses to let a file grow past the limit, in the writer's threads too.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(CheckpointError) as failure:
            checkpointer.save(2, second, {})
            checkpointer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(failure.value)
    assert f"could not save step 2 in {tmp_path}" in message and "too large" in message.lower()
    assert "Step 1 there is still good" in message and len(message) < 1000
    checkpointer.wait()  # reported once
    assert checkpointer.all_steps() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["1"]  # the half-written step is gone
    _assert_same(second, copies)
    _assert_same(checkpointer.restore(1, _abstract(first)), first)
    assert checkpointer.save(2, second, {})  # and saving works again
    checkpointer.close()
    _assert_same(checkpointer.restore(2, _abstract(second)), second)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failed_save_is_raised_by_the_next_one_and_by_the_context_manager(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"w": jax.random.normal(jax.random.key(0), (40_000, 8))}
    fingerprint.fingerprint(big)
    try:
        with (
            pytest.raises(CheckpointError, match="could not save step 2"),
            Checkpointer(tmp_path) as checkpointer,
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
            checkpointer.save(1, big, {})
            with pytest.raises(CheckpointError, match="step 1 .*No step is saved"):
                checkpointer.save(2, big, {})
            checkpointer.save(2, big, {})
        with (
            pytest.raises(KeyError, match="the first trouble"),
            Checkpointer(tmp_path) as checkpointer,
        ):
            checkpointer.save(3, big, {})
            raise KeyError("the first trouble")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_steps_without_commit_marker_are_skipped_and_named_once(tmp_path, caplog):
    with Checkpointer(tmp_path) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, _arrays(step), {})
    (tmp_path / "2" / "commit_success.txt").unlink()
    (tmp_path / "3.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    with caplog.at_level(logging.WARNING, "research.checkpoints.checkpointer"):
        checkpointer = Checkpointer(tmp_path)
        assert checkpointer.latest_step() == checkpointer.latest_step() == 1
    assert [r.getMessage() for r in caplog.records] == [
        f"ignoring {tmp_path}/2: no commit marker, its save was cut short; "
        "the newest complete step is 1"
    ]
    with checkpointer:
        assert checkpointer.save(2, _arrays(5), {})  # over the incomplete one
        checkpointer.wait()
        _assert_same(checkpointer.restore(None, _abstract(_arrays(5))), _arrays(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "notes"]


def test_bad_arguments_are_refused_before_anything_is_written(tmp_path):
    checkpointer = Checkpointer(tmp_path / "new")
    good = _arrays(1)
    bad_calls = [
        ("'empty' has no elements", dict(arrays={"empty": jnp.zeros((0, 3))})),
        ("'n' is int64", dict(arrays={"n": np.arange(3)})),
        ("'x' is a <class 'float'>", dict(arrays={"x": 1.0})),
        ("must be plain JSON", dict(metadata={"a": object()})),
        ("must be plain JSON", dict(metadata={"a": float("inf")})),
        ("file name '../x'", dict(files={"../x": b""})),
        ("file name 'metadata.json'", dict(files={"metadata.json": b""})),
        ("step -1", dict(step=-1)),
    ]
    for message, change in bad_calls:
        call = dict(step=1, arrays=good, metadata={}) | change
        with pytest.raises(ValueError, match=message):
            checkpointer.save(**call)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="keep_last"):
        Checkpointer(tmp_path, keep_last=0)
    with pytest.raises(ValueError, match="best_metric"):
        Checkpointer(tmp_path, keep_best=1)


@pytest.mark.parametrize(
    "error",
    [
        ValueError('ALREADY_EXISTS: Error writing "step/zarr.json" in OCDBT database at gs://b/5'),
        OSError("At least one of the conditions did not hold, 412"),
    ],
)
def test_another_run_in_a_folder_of_a_bucket_is_told(error):
    """In the words of the libraries; a full disk, as was said before, has nothing to do with it."""
    message = storage.describe_storage_error(error, "gs://b/run/checkpoints")
    assert message is not None and "Another run writes there" in message
    assert storage.describe_storage_error(ValueError("INVALID_ARGUMENT"), "gs://b/run") is None
