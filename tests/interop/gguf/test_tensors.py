"""Tensors of GGUF files: every quantised type to the bit, and models that are split over files."""

import gguf
import jax
import numpy as np
import pytest

from research.interop import importing
from research.interop.fields import UnsupportedModelError
from research.interop.gguf import files, tensors
from tests.helpers import gguf_file
from tests.interop.gguf.test_gguf import llama_cpp
from tests.interop.test_huggingface import our_logits

KINDS = [kind for kind in tensors.TYPES if kind not in tensors.PLAIN_TYPES]


def dequantise(raw, kind):
    return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])


def assert_same_bits(one, other):
    np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))


def write_one(path, value):
    gguf_file.write(path, keys={}, words={}, tensors={"x.weight": value})
    return tensors.open_parts(path)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_regions_of_quantised_tensors_are_those_of_the_whole(kind, tmp_path):
    raw = gguf_file.random_blocks(kind, 8, 512)
    tensor_file = write_one(tmp_path / "one.gguf", (raw, kind))
    assert tensor_file.shapes == {"x.weight": (8, 512)} and tensor_file.dtypes == {"x.weight": kind}
    whole = dequantise(raw, kind)
    part = tensor_file.read("x.weight", (slice(2, 5), slice(100, 333)))
    assert_same_bits(part, whole[2:5, 100:333])
    tensor_file.heads["x.weight"] = 2
    rows = tensor_file.read("x.weight", (slice(0, 8), slice(None)))
    assert_same_bits(rows, whole[[0, 2, 1, 3, 4, 6, 5, 7]])
    back = tensors.interleave_halves(rows, 2)
    assert_same_bits(back, whole)


def test_what_the_package_quantises_comes_back_as_it_says(tmp_path):
    numbers = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    count = 0
    for kind in KINDS:
        try:
            raw = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[kind])
        except NotImplementedError:
            continue
        tensor_file = write_one(tmp_path / f"{kind}.gguf", (raw, kind))
        everything = tensor_file.read("x.weight", (slice(None), slice(None)))
        assert_same_bits(everything, dequantise(raw, kind))
        error = np.linalg.norm(everything - numbers) / np.linalg.norm(numbers)
        assert error < 1  # which nothing but zeros would have
        count += 1
    assert count >= 7


def test_other_types_are_named(tmp_path):
    numbers = np.zeros((4, 32), np.int32)
    with pytest.raises(UnsupportedModelError, match=r"x.weight is of type I32; Graft reads F32"):
        write_one(tmp_path / "one.gguf", numbers)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_reads_the_same_numbers(kind, tmp_path):
    """Only the table is quantised, and the layer adds nothing: logits are those of its rows."""
    rows, width = len(gguf_file.TOKENS), 256
    content = gguf_file.matrices(rows=rows, width=width)
    for name in content:
        if name.startswith("blk.0") and "norm" not in name:
            content[name] *= 0
    content["output.weight"] = content["token_embd.weight"] / 16
    content["token_embd.weight"] = gguf_file.random_blocks(kind, rows, width), kind
    path = tmp_path / "x.gguf"
    gguf_file.write(path, keys=gguf_file.shape(width=width), tensors=content)
    ids = np.arange(1, 9, dtype=np.int32)
    ours = jax.nn.log_softmax(our_logits(files.open_file(path), ids[None])[0])
    theirs = llama_cpp(path, ids, rows)
    # exponentials and sums over 258 words, in another order
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


def split(path, **changes):
    """A model over several files, and their paths in order."""
    gguf_file.write(path, split_max_tensors=4, **changes)
    return sorted(path.parent.glob(f"{path.stem}-0*.gguf"))


def test_a_model_in_several_files_is_read_from_any_of_them(tmp_path):
    parts = split(tmp_path / "x.gguf")
    assert [part.name for part in parts] == [f"x-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    gguf_file.write(tmp_path / "whole.gguf")
    whole = files.open_file(tmp_path / "whole.gguf")
    for part in parts:
        model = importing.open_model(part)
        assert model.config == whole.config and model.tensors.shapes == whole.tensors.shapes
        assert model.files() == whole.files()
        for name, shape in whole.tensors.shapes.items():
            everything = tuple(slice(None) for _ in shape)
            assert_same_bits(
                model.tensors.read(name, everything), whole.tensors.read(name, everything)
            )


def _add_key(source, target, name, value):
    """Copies the last of three parts as the second, with a key more."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(target, "llama")
    writer.kv_data[0].clear()  # a part says nothing of the architecture
    for key in ("split.no", "split.count"):
        writer.add_uint16(key, int(reader.fields[key].contents()) - (key == "split.no"))
    writer.add_int32("split.tensors.count", reader.fields["split.tensors.count"].contents())
    writer.add_float32(name, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_missing_and_mixed_files_are_named(tmp_path):
    parts = split(tmp_path / "x.gguf")
    match = r"holds GGUF files: give .*x-00001-of-00003.gguf or another of 3"
    with pytest.raises(UnsupportedModelError, match=match):
        importing.open_model(tmp_path)
    (tmp_path / "other").mkdir()
    more = gguf_file.matrices() | {"output.weight": np.zeros((258, 32), np.float32)}
    others = split(tmp_path / "other" / "x.gguf", tensors=more)

    def refuses(match, path=parts[0]):
        with pytest.raises(UnsupportedModelError, match=match):
            files.open_file(path)

    content = parts[1].read_bytes()
    parts[1].unlink()
    refuses(r"one of 3 files of a model; x-00002-of-00003.gguf is not beside it", parts[2])
    parts[1].write_bytes(others[1].read_bytes())
    refuses(r"x-00002-of-00003.gguf is of another model than x-00001-of-00003.gguf")
    _add_key(parts[2], parts[1], "llama.rope.freq_base", 5e5)  # which the first has not
    refuses(r"x-00002-of-00003.gguf is of another model .*: llama.rope.freq_base")
    parts[1].write_bytes(parts[2].read_bytes())
    refuses(r"is part 2 \(from 0\) of 3 by its keys split.no and split.count, not 1 of 3")
    parts[1].write_bytes(content)
    parts[0].rename(tmp_path / "renamed.gguf")
    refuses(r"their names must end in -00001-of-00003.gguf", tmp_path / "renamed.gguf")
    (tmp_path / "renamed.gguf").rename(parts[0])
    assert files.open_file(parts[0]).config.layers == 1


def test_files_of_two_fine_tunes_that_are_cut_alike_are_named(tmp_path):
    """They differ in their numbers alone: the notes of the download, or a note of ours, tell."""
    parts = split(tmp_path / "x.gguf")
    (tmp_path / "other").mkdir()
    tuned = {name: values + 1 for name, values in gguf_file.matrices().items()}
    others = split(tmp_path / "other" / "x.gguf", tensors=tuned)
    parts[1].write_bytes(others[1].read_bytes())
    (note,) = [note for note in files.open_file(parts[0]).notes if "of its 3 files" in note]
    assert "only the first says of which model it is" in note and "checksums" in note
    downloads = tmp_path / ".cache" / "huggingface" / "download"
    downloads.mkdir(parents=True)
    for number, part in enumerate(parts):  # as huggingface_hub writes them
        text = f"{'ab'[number == 1] * 40}\n{'0' * 64}\n1712656091.123\n"
        (downloads / f"{part.name}.metadata").write_text(text)
    match = "x-00002-of-00003.gguf was downloaded from another commit than x-00001-of-00003.gguf"
    for part in parts:
        with pytest.raises(UnsupportedModelError, match=match):
            files.open_file(part)
    (downloads / f"{parts[1].name}.metadata").write_bytes(b"\xff")
    assert files.open_file(parts[0]).config.layers == 1
    gguf_file.write(tmp_path / "whole.gguf")
    assert not files.open_file(tmp_path / "whole.gguf").notes


def test_notes_of_downloads_are_those_of_huggingface_hub(tmp_path):
    local_folder = pytest.importorskip("huggingface_hub._local_folder")
    parts = split(tmp_path / "x.gguf")
    for part, commit in zip(parts, "aba", strict=True):
        local_folder.write_download_metadata(tmp_path, part.name, commit * 40, "0" * 64)
    with pytest.raises(UnsupportedModelError, match="another commit"):
        files.open_file(parts[0])
