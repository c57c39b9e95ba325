"""Reading checkpoints: an error names whatever does not fit or is damaged."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.checkpoints.checkpointer import Checkpointer, CheckpointError, open_checkpoint


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run's workdir with steps 1 and 2, the second one under tests that damage a copy."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpointer(workdir / "checkpoints") as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, _arrays(step), {"step": step})
    return workdir


def _arrays(step):
    return {
        "model/layers/0/query/kernel": jax.random.normal(jax.random.key(step), (64, 32)),
        "model/layers/1/query/kernel": jnp.full((64, 32), step, jnp.bfloat16),
        "optimizer/count": jnp.int32(step),
    }


def _abstract(**changes):
    abstract = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in _arrays(2).items()}
    return {name: s for name, s in (abstract | changes).items() if s is not None}


def test_opens_a_workdir_its_checkpoints_folder_or_one_step(workdir):
    folder = workdir / "checkpoints"
    expected = (folder / "2").as_posix()
    for path in (workdir, str(folder), folder / "2"):
        assert str(open_checkpoint(path).path) == expected
        assert open_checkpoint(path, 2).metadata() == {"step": 2}
    assert open_checkpoint(workdir, 1).step == 1
    before = sorted(folder.rglob("*"))
    for path, step in ((workdir / "nowhere", None), (workdir, 3), (folder / "2", 1)):
        with pytest.raises(FileNotFoundError, match="no checkpoint in|no step 3|one step's folder"):
            open_checkpoint(path, step)
    assert sorted(folder.rglob("*")) == before


def test_partial_restore_reads_only_the_names_asked_for(workdir):
    abstract = {n: s for n, s in _abstract().items() if n.startswith("model/")}
    restored = open_checkpoint(workdir).restore(abstract, partial=True)
    assert restored.keys() == abstract.keys()
    for name, array in restored.items():
        assert np.array_equal(np.asarray(array), np.asarray(_arrays(2)[name]))
    with pytest.raises(ValueError, match=r"surplus optimizer/count"):
        open_checkpoint(workdir).restore(abstract)


def test_one_array_is_read_on_the_host_and_compared(workdir, tmp_path):
    name = "model/layers/1/query/kernel"
    for step in (1, 2):
        array = open_checkpoint(workdir, step).read(name)[name]
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, _arrays(step)[name])
    with pytest.raises(ValueError, match=r"no array model/layers/1/key \(nearest there: model/lay"):
        open_checkpoint(workdir).read("model/layers/1/key")
    shutil.copytree(open_checkpoint(workdir, 2).path, tmp_path / "2")
    data = _array_data(tmp_path / "2")
    data.write_bytes(data.read_bytes().translate(bytes((b ^ 4) for b in range(256))))
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_checkpoint(tmp_path / "2").read(name)


def test_names_and_shapes_that_do_not_fit_are_listed_with_the_nearest(workdir):
    checkpoint = open_checkpoint(workdir)
    vector = jax.ShapeDtypeStruct((3,), jnp.float32)
    changes = {"model/layers/0/query/kernel": None, "model/layers/0/qeury/kernel": vector}
    with pytest.raises(ValueError) as error:
        checkpoint.restore(_abstract(**changes))
    assert "missing model/layers/0/qeury/kernel (nearest given: model/layers/0/query/kernel)" in (
        message := str(error.value)
    )
    assert "surplus model/layers/0/query/kernel" in message and str(checkpoint.path) in message
    with pytest.raises(ValueError, match="qeury.*nearest there: model/layers/0/query/kernel"):
        checkpoint.restore(_abstract(**changes), partial=True)
    with pytest.raises(ValueError, match=r"query/kernel: shape \(64, 32\) in the file, \(3,\)"):
        checkpoint.restore(_abstract(**{"model/layers/0/query/kernel": vector}))


def test_a_dtype_changes_only_on_request_and_only_between_floats(workdir):
    checkpoint, name = open_checkpoint(workdir), "model/layers/0/query/kernel"
    half = _abstract(**{name: jax.ShapeDtypeStruct((64, 32), jnp.bfloat16)})
    with pytest.raises(ValueError, match="query/kernel: float32 in the file, bfloat16 asked for"):
        checkpoint.restore(half)
    restored = checkpoint.restore(half, cast=True)
    assert restored[name].dtype == jnp.bfloat16
    assert np.array_equal(restored[name], _arrays(2)[name].astype(jnp.bfloat16))
    count = {"optimizer/count": jax.ShapeDtypeStruct((), jnp.float32)}
    with pytest.raises(ValueError, match="optimizer/count: int32 in the file"):
        checkpoint.restore(_abstract(**count), cast=True)


def _array_data(folder):
    return max((folder / "state").rglob("d/*"), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("damage", ["truncated", "deleted", "one bit", "metadata", "manifest"])
def test_damage_is_an_error_that_names_the_folder_and_the_way_back(tmp_path, damage):
    with Checkpointer(tmp_path) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, _arrays(step), {})
    folder = tmp_path / "2"
    data = _array_data(folder)
    if damage == "truncated":
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    elif damage == "deleted":
        data.unlink()
    elif damage == "one bit":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 4
        data.write_bytes(content)
    elif damage == "metadata":
        (folder / "files" / "metadata.json").write_text('{"config": ')
    else:
        (folder / "state" / "manifest.ocdbt").unlink()
    with pytest.raises(CheckpointError) as error:
        checkpointer.restore(None, _abstract())
        checkpointer.metadata()
    message = str(error.value)
    assert f"checkpoint {folder} cannot be read" in message and len(message) < 1000
    assert "move this folder away to fall back to step 1" in message
    folder.rename(tmp_path / "damaged")
    restored = checkpointer.restore(None, _abstract())
    assert restored["optimizer/count"] == 1


def test_a_step_folder_without_commit_marker_is_refused(tmp_path):
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        checkpointer.save(1, _arrays(1), {})
    (tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA").unlink()
    with pytest.raises(CheckpointError, match="1 is not a complete checkpoint"):
        open_checkpoint(tmp_path / "checkpoints" / "1")
    with pytest.raises(FileNotFoundError, match=r"incomplete steps, not usable: \[1\]"):
        open_checkpoint(tmp_path)
