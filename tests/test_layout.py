"""The committed layouts, which people have read, are where arrays lie.

`python -m tests.test_layout` writes tests/layouts/*.txt anew; read the difference.
"""

from pathlib import Path

import pytest

from research import config as door
from research import layout
from research.experiment import Experiment
from research.program import make_program

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(__file__).parent / "layouts"
# topology: devices, slices
TOPOLOGIES = {
    "v5e_4x4": (16, 1),
    "v5p_4x4x4": (64, 1),
    "v6e_16x16": (256, 1),
    "2_v5e_16x16": (512, 2),
}
MODELS = ("smollm2_135m", "llama3_8b", "llama3_70b")


def made(model: str, devices: int, slices: int) -> str:
    over = ["data.batch_size=1024"]
    if model == "llama3_70b":
        over.append("mesh.tensor=8" if devices == 16 else "mesh.tensor=2")
    experiment = door.load(Experiment, str(ROOT / f"configs/pretrain/{model}.py"), over)
    mesh = experiment.mesh.abstract(devices, slices)
    return layout.describe(make_program(experiment, None, mesh=mesh))


CASES = [(model, topology) for model in MODELS for topology in TOPOLOGIES]


@pytest.mark.parametrize(("model", "topology"), CASES)
def test_every_array_lies_where_the_committed_layout_says(model, topology):
    committed = (FOLDER / f"{model}-{topology}.txt").read_text(encoding="utf-8")
    assert made(model, *TOPOLOGIES[topology]) == committed


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for model, topology in CASES:
        text = made(model, *TOPOLOGIES[topology])
        (FOLDER / f"{model}-{topology}.txt").write_text(text, encoding="utf-8")
