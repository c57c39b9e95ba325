"""The plan of a run, in lines for its user: model, start, data, cost and mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from research.data.pipeline import Pipeline, SourceStatistics
from research.optim import extension
from research.training.program import Program


@dataclasses.dataclass(frozen=True)
class ReadingPlan:
    """What a run will read."""

    # by source: `Pipeline.statistics`
    sources: Mapping[str, SourceStatistics]
    # places of all batches that hold a token
    tokens: float
    # the mixture's weights over the run, a line each
    mixture: Sequence[str]

    @classmethod
    def of(cls, data: Pipeline, steps: int) -> ReadingPlan:
        return cls(
            data.statistics(steps),
            data.tokens(steps),
            data.mixture.describe(data.config.batch_size, steps),
        )

    @property
    def examples(self) -> float:
        """Examples read, with repeats."""
        return sum(source.epochs * source.documents for source in self.sources.values())

    @property
    def documents(self) -> int:
        """Documents of all sources, once through each."""
        return sum(source.documents for source in self.sources.values())

    @property
    def truncated(self) -> int:
        """Examples of which something was cut."""
        return sum(source.truncated for source in self.sources.values())

    def describe(self) -> str:
        """A line for each source, and for each part of the mixture if there is one."""
        lines = [_describe_source(name, source) for name, source in self.sources.items()]
        if len(self.mixture) > 1 or len(self.sources) > 1:
            lines += [f"mixture {line}" for line in self.mixture]
        return "\n           ".join(lines)


def _describe_source(name: str, source: SourceStatistics) -> str:
    bad_lines = f"{source.bad_lines:,} bad lines left out, " if source.bad_lines else ""
    return (
        f"{name}: {source.format}, {source.documents:,} documents, {bad_lines}"
        f"{source.tokens:,} tokens, reads {source.tokens_read:,.0f} "
        f"({source.epochs:.2g} epochs), {source.fill:.1%} full, "
        f"{source.trained_share:.1%} trained on, {source.truncated:,} cut"
    )


def describe_run(program: Program, reading: ReadingPlan, first_step: int) -> str:
    """The plan of a run: model, start, what it will read, what that costs, and where."""
    steps, mesh_axes = program.experiment.steps, program.mesh.shape
    trainable, total = program.trainable_parameters, program.parameters
    start = f"step {first_step}" if first_step else program.experiment.init_from
    if program.start is not None and not first_step:
        start = f"{start}, whose {program.start.method.kind} goes on"
    flops, stacks = program.flops_per_token, program.stacks
    layers = ", ".join(stacks) if len(stacks) < 8 else f"{len(stacks)} of them"
    schedule = program.experiment.schedule
    course = extension.Course(schedule, steps)
    has_own_course = schedule.steps or schedule.decays or schedule.on_resume != "refuse"
    outputs = program.experiment.method.head_outputs
    head = f", a head of {outputs:,} outputs in place of the vocabulary's" if outputs else ""
    rates = f"rates      {extension.describe(course)}\n" if has_own_course else ""
    return (
        f"model      {total:,} parameters, {trainable:,} train ({trainable / total:.2%}), method "
        f"{program.experiment.method.kind}{head}, stacks {layers}\n"
        f"start      {start or 'random weights'}\n"
        f"data       {reading.describe()}\n"
        f"{rates}"
        f"cost       {flops:.3g} FLOPs a token, {flops * reading.tokens:.3g} in {steps} steps\n"
        f"mesh       {' x '.join(f'{axis} {size}' for axis, size in mesh_axes.items())}"
    )
