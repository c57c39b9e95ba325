"""Examines many trials on one base, mapped into one program: their memory and what that gains.

The gain is one of bounds: the least time of a group's step beside that of its trials one after the
other. Mapped trials read the frozen base once where single ones read it each, so that much is
gained where few tokens a trial leave a step bound by memory, and nothing where products bound it.
"""

from __future__ import annotations

import dataclasses

from research import tree
from research.experiment import Experiment
from research.preflight.examine import abstract_program
from research.preflight.roofline import Roofline, roofline
from research.runtime.accelerators import Topology
from research.runtime.memory import GIB, StepMemory
from research.training.program import Program, StepDoesNotFitError
from research.training.together import map_program


@dataclasses.dataclass(frozen=True)
class GroupReport:
    """What a group of trials needs of each device, by the compiler, and its bounds.

    Attributes:
      devices: that share the trials.
      peak_gib, argument_gib: None where the compiler refuses it; `why` says why.
      base_gib, own_gib: between two steps: the base, and what each trial has of its own.
      alone, mapped: limits of a step of one trial, and of all trials of one device.
    """

    topology: str
    trials: int
    devices: int
    tokens: int
    trainable_parameters: int
    limit_gib: float
    base_gib: float
    own_gib: float
    alone: Roofline
    mapped: Roofline
    peak_gib: float | None = None
    argument_gib: float | None = None
    why: str | None = None

    @property
    def fits(self) -> bool:
        return self.peak_gib is not None and self.peak_gib <= self.limit_gib

    @property
    def gain(self) -> float:
        """How many times as long the trials of a device take at least one after the other."""
        return self.trials / self.devices * self.alone.seconds / self.mapped.seconds

    def describe(self) -> str:
        """Some lines for the user."""
        size = self.why or f"{self.peak_gib or 0:.2f} of {self.limit_gib:.2f} GiB at most"
        each = f"each {self.trainable_parameters / 1e6:.1f} million parameters of its own"
        alone, mapped = self.alone, self.mapped
        return "\n".join(
            [
                f"{'fits' if self.fits else 'NO':10} {self.trials} trials on {self.devices} "
                f"device{'s' if self.devices > 1 else ''} of {self.topology}: {size}",
                f"{'memory':10} between steps: one base {self.base_gib:.2f}, {self.trials} trials "
                f"{self.trials * self.own_gib / self.devices:.2f} GiB a device, {each}",
                f"{'alone':10} at best {alone.seconds * 1e3:.2f} ms a step of {self.tokens:,} "
                f"tokens, bound by {alone.bound_by}",
                f"{'mapped':10} at best {mapped.seconds * 1e3:.2f} ms a step of "
                f"{self.trials // self.devices} trials, bound by {mapped.bound_by}",
                f"{'gain':10} {self.gain:.2f} times, by these bounds",
            ]
        )


def examine_together(experiment: Experiment, topology: Topology, trials: int) -> GroupReport:
    """Compiles the step of `trials` trials of an experiment, mapped by `vmap`, for a topology.

    Raises:
      ValueError: the experiment does not fit itself.
    """
    program = _with_frozen_base(abstract_program(experiment, topology.devices[:1]))
    mapped = map_program(program, trials, "vmap", topology.devices)
    devices = mapped.mesh.size if mapped.mesh is not None else 1
    own, base = program.split(program.state_leaves)
    data, accelerator = experiment.data, topology.accelerator
    report = GroupReport(
        topology=topology.name,
        trials=trials,
        devices=devices,
        tokens=data.batch_size * data.sequence_length,
        trainable_parameters=program.trainable_parameters,
        limit_gib=accelerator.memory / GIB,
        base_gib=_gib(base),
        own_gib=_gib(own),
        alone=roofline(program, accelerator),
        mapped=roofline(program, accelerator, trials=trials // devices),
    )
    try:
        memory = StepMemory.of(mapped.compile(program.batch_shapes))
    except StepDoesNotFitError as error:
        return dataclasses.replace(report, why=str(error))
    return dataclasses.replace(
        report, peak_gib=memory.peak / GIB, argument_gib=memory.arguments / GIB
    )


def _with_frozen_base(program: Program) -> Program:
    """The program as with its base on the disk: what does not train of it is shared."""
    if program.experiment.init_from is None:
        return program
    names = set(tree.flatten(program.base_shapes)) - set(program.step_config.trainable)
    return dataclasses.replace(program, frozen_base=tuple(sorted(names)))


def _gib(leaves: tree.Arrays) -> float:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values()) / GIB
