"""Published training rates beside the bounds that graft preflight gives.

    python -m experiments.published [--write]

Each run is a model, a mesh and a batch as published, and the share of peak or the tokens a second
that was reported. Nothing is compiled or run: the bound is closed form
(`research.preflight.roofline`). One that a run passes is wrong; one far above all of them says
little. `--write` renews table.md here.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, Literal

from research.data.config import DataConfig
from research.data.sources import JsonlConfig
from research.experiment import Experiment
from research.models.config import ModelConfig
from research.optim.schedules import ScheduleConfig
from research.preflight.roofline import roofline
from research.reports.tables import Column, text_table
from research.runtime.accelerators import TPUS, Accelerator
from research.sharding import MeshConfig
from research.training.program import Program, make_program

TABLE = Path(__file__).parent / "table.md"
# NVIDIA's data sheet of the H100 SXM: dense bfloat16, memory, NVLink one way; a 400 Gb/s port a GPU
H100 = Accelerator(
    kind="H100",
    flops=989e12,
    memory_bandwidth=3350e9,
    link_bandwidth=450e9,
    network_bandwidth=50e9,
    memory=80 * 10**9,
    max_chips=8,
)
# MaxText's own shapes, by its global scale: 16 and 32 times the base of its base.yml
SCALE = dict(vocabulary=32_000, layers=32, heads=64, kv_heads=64, head_size=128, mlp_width=28_672)
NO_TEXT = (JsonlConfig("none", "none"),)
LLAMA2 = dict(vocabulary=32_000, width=4096, layers=32, heads=32, kv_heads=32, mlp_width=11_008)
LLAMA3 = dict(vocabulary=128_256, width=4096, layers=32, heads=32, kv_heads=8, mlp_width=14_336)


@dataclasses.dataclass(frozen=True)
class PublishedRun:
    """A published run: model, mesh and batch, and the rate that was reported."""

    name: str
    source: str
    accelerator: Accelerator
    devices: int
    # of the model
    shape: dict[str, Any]
    # rows of a device, and their tokens
    rows: int
    length: int
    # what was reported: share of peak, or tokens a second and device
    utilisation: float = 0.0
    tokens_per_second: float = 0.0
    # whether their share of peak counts the whole square of attention
    whole_square: bool = True
    remat: Literal["full", "products"] = "full"
    mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(data=1, fsdp=-1))
    slices: int = 1

    def program(self) -> Program:
        """The run's step as this project would compile it, on abstract devices."""
        model = ModelConfig(
            **self.shape, tie_embeddings=False, remat=self.remat, compute_dtype="bfloat16"
        )
        experiment = Experiment(
            steps=1,
            model=model,
            tokenizer="none",
            mesh=self.mesh,
            data=DataConfig(NO_TEXT, self.length, self.rows * self.devices),
            schedule=ScheduleConfig(learning_rate=1e-3, kind="constant"),
        )
        mesh = self.mesh.abstract(self.devices, self.slices)
        return make_program(experiment, None, mesh=mesh)

    def reached_rate(self) -> float:
        """Reported tokens per second and device."""
        if self.tokens_per_second:
            return self.tokens_per_second
        model = ModelConfig(**self.shape, tie_embeddings=False)
        return self.utilisation * self.accelerator.flops / self._published_flops(model)

    def _published_flops(self, model: ModelConfig) -> float:
        """FLOPs of a token as published: weights of products, and attention's square or half."""
        attention = 2 * model.width * (model.heads + model.kv_heads) * model.head_dim
        layers = model.layers * (attention + 3 * model.width * model.mlp_width)
        scores = 12.0 * model.layers * model.heads * model.head_dim * self.length
        scores *= 1.0 if self.whole_square else 0.5
        return 6 * (layers + model.vocabulary * model.width) + scores


MAXTEXT = "MaxText's README, and its configs of those runs"
RUNS = (
    PublishedRun(
        "MaxText 16B, 256 v5e",
        MAXTEXT,
        TPUS["v5e"],
        256,
        dict(SCALE, width=4096),
        rows=6,
        length=2048,
        utilisation=0.611,
    ),
    PublishedRun(
        "MaxText 32B, 256 v5e",
        MAXTEXT,
        TPUS["v5e"],
        256,
        dict(SCALE, width=8192),
        rows=4,
        length=2048,
        utilisation=0.669,
    ),
    PublishedRun(
        "MaxText 32B, 64 v5p",
        MAXTEXT,
        TPUS["v5p"],
        64,
        dict(SCALE, width=8192),
        rows=7,
        length=2048,
        utilisation=0.715,
        remat="products",
        mesh=MeshConfig(data=1, fsdp=-1, tensor=4),
    ),
    PublishedRun(
        "MaxText Llama 3.1 8B, 256 v6e",
        "its Trillium recipe",
        TPUS["v6e"],
        256,
        LLAMA3,
        rows=4,
        length=8192,
        tokens_per_second=7207,
    ),
    PublishedRun(
        "MaxText Llama 2 7B, 8 H100",
        "its a3 config",
        H100,
        8,
        LLAMA2,
        rows=4,
        length=4096,
        utilisation=0.50,
        remat="products",
    ),
    PublishedRun(
        "AXLearn Llama 2 7B, 4 x 256 v5e",
        "its report; a row of 4,096 a chip and full rematerialisation are taken",
        TPUS["v5e"],
        1024,
        LLAMA2,
        rows=1,
        length=4096,
        utilisation=0.46,
        slices=4,
    ),
)
COLUMNS = [
    Column("name", "run"),
    Column("reached", "reached", "tokens/s a device", format=",.0f"),
    Column("bound", "at best", "tokens/s a device", format=",.0f"),
    Column("utilisation", "of peak at best", "%", 100, ".1f"),
    Column("bound_by", "bound by"),
    Column("share", "reached of the bound", format=".2f"),
]


def rows() -> list[dict[str, Any]]:
    """Rows of the table: each run's rate beside its bound."""
    table_rows = []
    for run in RUNS:
        best_step = roofline(run.program(), run.accelerator, run.slices)
        best_rate = best_step.tokens_per_second / run.devices
        table_rows.append(
            {
                "name": run.name,
                "reached": run.reached_rate(),
                "bound": best_rate,
                "utilisation": best_step.utilisation,
                "bound_by": best_step.bound_by,
                "share": run.reached_rate() / best_rate,
            }
        )
    return table_rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="renew the committed table")
    arguments = parser.parse_args()
    text = text_table(rows(), COLUMNS)
    print(text)
    if arguments.write:
        TABLE.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
