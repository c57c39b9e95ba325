"""The committed layouts, which people have read, are where arrays lie.

`python -m tests.preflight.test_layout` writes the files in layouts/ anew; read the difference.
"""

from pathlib import Path

import pytest

from research.config import cli
from research.experiment import Experiment
from research.preflight import layout
from research.training.program import make_program

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).parent / "layouts"
# topology: devices, slices
TOPOLOGIES = {
    "v5e_4x4": (16, 1),
    "v5p_4x4x4": (64, 1),
    "v6e_16x16": (256, 1),
    "2_v5e_16x16": (512, 2),
}
MODELS = ("smollm2_135m", "llama3_8b", "llama3_70b")
# file: model, topology and what else is asked for
CASES = {f"{model}-{where}": (model, where, ()) for model in MODELS for where in TOPOLOGIES} | {
    "llama3_8b-v5p_4x4x4-sequence": ("llama3_8b", "v5p_4x4x4", ("mesh.sequence=4",)),
    "llama3_8b-v5e_4x4-qlora": (
        *("llama3_8b", "v5e_4x4"),
        (
            'method={"kind": "lora", "rank": 16}',
            'model.storage=[["layers/.*", "nf4"], [".*", "bfloat16"]]',
            "mesh.tensor=4",
        ),
    ),
}


def describe_layout(model: str, topology: str, flags: tuple[str, ...]) -> str:
    devices, slices = TOPOLOGIES[topology]
    over = ["data.batch_size=1024", *flags]
    if model == "llama3_70b":
        over.append("mesh.tensor=8" if devices == 16 else "mesh.tensor=2")
    experiment = cli.load(Experiment, str(ROOT / f"configs/pretrain/{model}.py"), over)
    mesh = experiment.mesh.abstract(devices, slices)
    return layout.describe(make_program(experiment, None, mesh=mesh))


@pytest.mark.parametrize("case", CASES)
def test_every_array_lies_where_the_committed_layout_says(case):
    expected = (FOLDER / f"{case}.txt").read_text(encoding="utf-8")
    assert describe_layout(*CASES[case]) == expected


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for case, arguments in CASES.items():
        (FOLDER / f"{case}.txt").write_text(describe_layout(*arguments), encoding="utf-8")
