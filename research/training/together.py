"""Runs of one program as one: their states side by side along a leading axis [T], the base once.

The step is `Program.step`, mapped over trials: by `lax.map`, one after the other inside one program
and with the weights of single runs to the bit, or by `vmap`, all in one product, equal to rounding.
On several devices each works on its share of the trials, as a run on one device would, to rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from research import sharding
from research.batch import Batch
from research.step import Hyper, Metrics
from research.training.program import Program, compile_lowered
from research.tree import Arrays

Kind = Literal["map", "vmap"]
KINDS: tuple[Kind, ...] = ("map", "vmap")
AXIS = "trial"


@dataclasses.dataclass(frozen=True)
class MappedProgram:
    """A program, mapped over trials; made by `map_program`.

    Attributes:
      program: of one trial, on the first device.
      count: T.
      mesh: of all devices that share the trials; None for one device.
    """

    program: Program
    count: int
    kind: Kind
    mesh: Mesh | None

    def step(self, own: Arrays, base: Arrays, batch: Batch, hyper: Hyper) -> tuple[Arrays, Metrics]:
        """The train step of T trials, to be traced: all leaves but the base's are [T,...]."""
        single = self.program.step

        def run(own: Arrays, base: Arrays, batch: Batch, hyper: Hyper) -> tuple[Arrays, Metrics]:
            if self.kind == "vmap":
                return jax.vmap(single, in_axes=(0, None, 0, 0))(own, base, batch, hyper)

            def run_one(trial: tuple[Arrays, Batch, Hyper]) -> tuple[Arrays, Metrics]:
                own, batch, hyper = trial

                def leave(own: Arrays, *_: Any) -> tuple[Arrays, Metrics]:
                    _, metrics = jax.eval_shape(single, own, base, batch, hyper)
                    return own, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)

                # always true, which the compiler does not know: in a branch it fuses a trial's
                # operations as it does a single run's, not with what takes arrays out of stacks
                is_trial = own["step"] >= 0
                return jax.lax.cond(is_trial, single, leave, own, base, batch, hyper)

            return jax.lax.map(run_one, (own, batch, hyper))

        if self.mesh is not None:
            trials, whole = PartitionSpec(AXIS), PartitionSpec()
            run = jax.shard_map(
                run,
                mesh=self.mesh,
                in_specs=(trials, whole, trials, trials),
                out_specs=trials,
                check_vma=False,
            )
        return run(own, base, batch, hyper)

    def compile(self, batch: Batch) -> Any:
        """`step` as an executable, from shapes; `own` is donated.

        Args:
          batch: of one trial, B rows.

        Raises:
          StepDoesNotFitError: the compiler finds that the devices' memory is too small.
        """
        program = self.program

        def abstract(x: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

        def stacked(x: Any) -> jax.ShapeDtypeStruct:
            shape = (self.count, *x.shape)
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=self.trials)

        own, base = program.split(program.state_leaves)
        arguments = (
            jax.tree.map(stacked, own),
            {name: abstract(leaf, self.everywhere) for name, leaf in base.items()},
            jax.tree.map(stacked, batch),
            jax.tree.map(stacked, program.hyper),
        )
        step = jax.jit(self.step, donate_argnums=0, out_shardings=(self.trials, None))
        with self.context():
            return compile_lowered(step.lower(*arguments))

    def context(self) -> Any:
        """The mesh to trace in. Inside a device's share nothing is sharded, so no rules hold."""
        if self.mesh is not None:
            return jax.set_mesh(self.mesh)
        return sharding.mesh_context(self.program.mesh, self.program.experiment.sharding_rules)

    @property
    def trials(self) -> NamedSharding:
        """Where arrays [T,...] lie."""
        if self.mesh is None:
            return self.program.replicated
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    @property
    def everywhere(self) -> NamedSharding:
        """Where the base lies: whole on each device."""
        return NamedSharding(self.mesh or self.program.mesh, PartitionSpec())

    def stack(self, trees: Sequence[Any]) -> Any:
        """T trees on the first device as one tree [T,...] on all."""
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        return jax.device_put(stacked, self.trials)

    def place_base(self, base: Arrays) -> Arrays:
        """The base's arrays on all devices; on one they are those of a run alone, not copies."""
        return base if self.mesh is None else jax.device_put(base, self.everywhere)

    def place(self, batches: Sequence[Batch]) -> Batch:
        """T batches of the host as one [T,B,S] on the devices."""
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
        return jax.device_put(stacked, self.trials)

    def take(self, own: Arrays, number: int) -> Arrays:
        """One trial's arrays, on the first device, where a run alone has them."""
        mine, _ = self.program.split(self.program.shardings)
        return {name: jax.device_put(array[number], mine[name]) for name, array in own.items()}


def map_program(
    program: Program, count: int, kind: Kind, devices: Sequence[jax.Device] | None = None
) -> MappedProgram:
    """A program of one device mapped over `count` trials.

    Args:
      devices: that may share the trials; as many work as divide their number.

    Raises:
      ValueError: the program is one for several devices.
    """
    if program.mesh.size != 1:
        raise ValueError(f"only programs of one device are mapped, not of {program.mesh.size}")
    devices = list(devices or program.mesh.devices.flat)
    most = max(size for size in range(1, len(devices) + 1) if count % size == 0)
    mesh = None
    if most > 1:
        mesh = Mesh(np.asarray(devices[:most]), (AXIS,), axis_types=(AxisType.Auto,))
    return MappedProgram(program, count, kind, mesh)
