"""Memory of importing and exporting a large model: what the host holds beyond the model itself.

Makes a folder of zeros in a model's shape (a file with holes, which takes no disk), imports it,
writes it as a run, and exports it again. Anonymous memory is sampled while each goes on: the pages
of a mapped file belong to the system's cache and go when somebody needs them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

from research import sharding
from research.benchmarks import harness
from research.benchmarks.shapes import SHAPES
from research.checkpoints import runs
from research.interop import exporting, importing
from research.interop.families import FAMILIES
from research.interop.family import parameter_shapes, sources
from research.models.config import ModelConfig

GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="llama_8b")
    parser.add_argument("--layers", type=harness.positive, help="fewer than the shape has")
    parser.add_argument("--folder", help="where to write; by default a temporary one")


def main(arguments: argparse.Namespace) -> harness.Results:
    config = ModelConfig(**SHAPES[arguments.shape].model)
    config = dataclasses.replace(config, layers=arguments.layers or config.layers)
    shapes = parameter_shapes(config)
    sizes = [4 * int(shape.size) for shape in shapes.values()]
    largest, whole = max(sizes), sum(sizes)
    print(f"{config.layers} layers: {whole / GIB:.2f} GiB float32, largest {largest / GIB:.2f}")
    results: harness.Results = {**harness.machine(), "bytes": whole, "largest_bytes": largest}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source = Path(folder) / "source"
        _zeros(source, config)
        model = importing.open_model(source)
        with harness.sampled_memory() as import_sample:
            sharded_shapes = sharding.shard_any_axis(shapes)
            arrays = dict(importing.read_parameters(model, sharded_shapes))
        results |= _report("import", import_sample, whole, largest)
        del arrays
        importing.import_model(model, Path(folder) / "run")
        run = runs.open_run(Path(folder) / "run")
        with harness.sampled_memory() as export_sample:
            exporting.export_huggingface(run, Path(folder) / "out", "bfloat16")
        # nothing of the model stays in memory: all of it is beyond
        results |= _report("export", export_sample, 0, largest)
    return results


def _report(
    what: str, sample: harness.MemorySample, model_bytes: int, largest: int
) -> harness.Results:
    beyond = sample.bytes - model_bytes
    print(
        f"{what}: {sample.seconds:.1f} s, beyond the model {beyond / GIB:.2f} GiB, "
        f"{beyond / largest:.2f} of the largest tensor"
    )
    return {
        f"{what}.seconds": sample.seconds,
        f"{what}.beyond_bytes": beyond,
        f"{what}.beyond_largest": beyond / largest,
    }


def _zeros(folder: Path, config: ModelConfig) -> None:
    """A folder of transformers whose weights are bfloat16 zeros, and a tokenizer of bytes."""
    from research.text import tokenizer

    folder.mkdir()
    family = FAMILIES["llama"]
    fields = family.write(config) | {"model_type": "llama", "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    tokenizer.train(["a b"], 259).save(folder / "tokenizer.json")
    header, end = {}, 0
    for source in sources(family, parameter_shapes(config)).values():
        size = 2
        for length in source.shape:
            size *= length
        span = [end, end + size]
        header[source.name] = {"dtype": "BF16", "shape": source.shape, "data_offsets": span}
        end += size
    head = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + end)
