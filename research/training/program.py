"""A run before anything is computed: its model, its step, and where its arrays lie.

Everything here is abstract (names, shapes, shardings) until `fresh_state` or `resumed_state`
makes or reads arrays, so a mistake costs nothing and a plan can be printed for any mesh.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from research import methods, sharding, tree
from research import step as stepping
from research.batch import Batch
from research.checkpoints import stacking
from research.checkpoints.checkpoint import Checkpoint
from research.checkpoints.runs import Run
from research.experiment import Experiment
from research.models.config import ModelConfig
from research.models.transformer import Transformer
from research.optim.schedules import Schedule, ScheduleConfig
from research.training import cost


@dataclasses.dataclass(frozen=True)
class Program:
    """A run, abstractly; made by `make_program`."""

    experiment: Experiment
    model_config: ModelConfig
    base: Run | None
    mesh: Any  # jax.sharding.Mesh; of a plan that is only looked at, an AbstractMesh
    stacks: tuple[str, ...]
    # abstract models: the base alone, with the method attached, and the whole train state
    base_shapes: Transformer
    model_shapes: Transformer
    state_shapes: stepping.TrainState
    # the static and the numeric half of the step
    step_config: stepping.StepConfig
    hyper: stepping.Hyper
    # where every leaf of the state lies, by name
    shardings: Mapping[str, NamedSharding]
    # base parameters that stay exactly as they are: the base's fingerprint stands for them
    frozen_base: tuple[str, ...]

    @property
    def saved_names(self) -> list[str]:
        """Names of the state's leaves that are this run's own, and so are saved."""
        frozen_names = {f"model/{name}" for name in self.frozen_base}
        return [name for name in self.shardings if name not in frozen_names]

    @property
    def origin(self) -> dict[str, str] | None:
        """The base that a checkpoint of this run needs beside it."""
        if not self.frozen_base or self.base is None:
            return None
        return {"path": self.base.permanent_path, "fingerprint": self.base.fingerprint}

    @property
    def flops(self) -> cost.Flops:
        """What a token costs, in closed form."""
        length = self.experiment.data.sequence_length
        return cost.flops_per_token(
            self.model_config, self.model_shapes, self.step_config.trainable, length
        )

    @property
    def flops_per_token(self) -> float:
        """Model FLOPs of training on one token."""
        data = self.experiment.data
        tokens = data.batch_size * data.sequence_length / self.experiment.accumulation_steps
        return self.flops.train(tokens) / tokens

    @property
    def trainable_parameters(self) -> int:
        return cost.count(self.model_shapes, self.step_config.trainable)

    @property
    def parameters(self) -> int:
        return cost.count(self.model_shapes)

    @property
    def batch_sharding(self) -> NamedSharding:
        """Where a batch lies."""
        return sharding.batch_sharding(self.mesh, self.experiment.sharding_rules)

    @property
    def replicated(self) -> NamedSharding:
        """A copy on each device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def rows_of_device(self) -> int:
        """Rows that a device, and those that share them with it, work on at one time."""
        parts = sharding.batch_shards(self.mesh, self.experiment.sharding_rules)
        return self.experiment.data.batch_size // self.experiment.accumulation_steps // parts

    @property
    def batch_shapes(self) -> Batch:
        """A whole batch, abstractly: what the data will give, without reading it."""
        data = self.experiment.data
        shape = (data.batch_size, data.sequence_length)
        abstract: Any = jax.ShapeDtypeStruct
        tokens = abstract(shape, np.int32)
        bank = self.experiment.method.bank_names
        return Batch(
            tokens=tokens,
            targets=tokens,
            weights=abstract(shape, np.float32),
            segments=tokens,
            positions=tokens,
            prefix=abstract(shape, np.bool_) if data.objective.bidirectional else None,
            adapter=abstract(shape[:1], np.int32) if bank else None,
        )

    @functools.cached_property
    def local_rows(self) -> np.ndarray:
        """The numbers of the rows that this host feeds; hosts whose devices share rows feed the
        same ones."""
        return sharding.local_rows(self.batch_sharding, self.experiment.data.batch_size)

    def with_schedule(self, config: ScheduleConfig) -> Program:
        """The same program with other learning rates of the same kind."""
        experiment = dataclasses.replace(self.experiment, schedule=config)
        hyper = dataclasses.replace(self.hyper, schedule=Schedule.make(config, experiment.steps))
        return dataclasses.replace(self, experiment=experiment, hyper=hyper)

    def place(self, batch: Batch) -> Batch:
        """This host's rows of a batch, on the devices as part of the global one."""
        size = self.experiment.data.batch_size
        return sharding.place_rows(batch, self.batch_sharding, self.local_rows, size)

    def place_hyper(self) -> stepping.Hyper:
        """The run's numbers on every device, so that no step sends them again."""
        # jit, as device_put refuses devices of other processes
        return jax.jit(lambda numbers: numbers, out_shardings=self.replicated)(self.hyper)

    def compile(self, batch: Batch) -> Any:
        """The train step as an executable `(state, batch, hyper) -> (state, metrics)`.

        Nothing is made yet: it is compiled from shapes, those of (some) rows of a batch too.

        Raises:
          StepDoesNotFitError: the compiler finds that the devices' memory is too small.
        """

        def abstract(x: Any, where: NamedSharding, shape: Any = None) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape or x.shape, x.dtype, sharding=where)

        shardings = tree.unflatten(self.state_shapes, dict(self.shardings))
        state = jax.tree.map(abstract, self.state_shapes, shardings)
        size = self.experiment.data.batch_size
        rows = jax.tree.map(lambda x: abstract(x, self.batch_sharding, (size, *x.shape[1:])), batch)
        numbers = jax.tree.map(lambda x: abstract(x, self.replicated), self.hyper)

        def step_from_host(state: stepping.TrainState, *rest: Any) -> Any:
            return stepping.train_step(sharding.to_device(state, shardings), *rest)

        function = step_from_host if self.experiment.offload else stepping.train_step
        step = jax.jit(
            function, static_argnums=3, donate_argnums=0, out_shardings=(shardings, None)
        )
        lowered = step.lower(state, rows, numbers, self.step_config)
        try:
            return lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = str(error).splitlines()[0]
            raise StepDoesNotFitError(reason) from None

    def fresh_state(self) -> stepping.TrainState:
        """The state before the first step: weights of the base or random ones.

        Arrays are made under jit with their final shardings: no device holds a whole model.
        """
        method, seed = self.experiment.method, self.experiment.seed
        start_key, attach_key, _ = _keys(seed)
        parameters = self._part("model/")
        shardings = tree.unflatten(self.model_shapes, parameters)
        if self.base is None:

            def begin(start_key: jax.Array, attach_key: jax.Array) -> Transformer:
                return method.attach(
                    Transformer(start_key, self.model_config, self.stacks), attach_key
                )

            model = jax.jit(begin, out_shardings=shardings)(start_key, attach_key)
        else:
            shapes = tree.flatten(self.base_shapes)
            arrays = stacking.restore_stacked(shapes, parameters, self.base.restore)
            base_model = tree.unflatten(self.base_shapes, arrays)
            model = jax.jit(method.attach, out_shardings=shardings)(base_model, attach_key)
        begin_state = functools.partial(stepping.init_state, step_config=self.step_config)
        whole = tree.unflatten(self.state_shapes, dict(self.shardings))
        return jax.jit(begin_state, out_shardings=whole, donate_argnums=0)(model)

    def resumed_state(self, saved: Checkpoint) -> stepping.TrainState:
        """The state as a checkpoint of this run has it; what it leaves to the base from there."""
        flat = tree.flatten(self.state_shapes)
        mine = {name: flat[name] for name in self.saved_names}
        arrays = stacking.restore_stacked(mine, self.shardings, saved.restore)
        if self.base is not None and self.frozen_base:
            theirs = {name: flat[f"model/{name}"] for name in self.frozen_base}
            frozen = stacking.restore_stacked(theirs, self._part("model/"), self.base.restore)
            arrays |= {f"model/{name}": array for name, array in frozen.items()}
        return tree.unflatten(self.state_shapes, arrays)

    def _part(self, prefix: str) -> dict[str, NamedSharding]:
        return {
            name.removeprefix(prefix): where
            for name, where in self.shardings.items()
            if name.startswith(prefix)
        }


class StepDoesNotFitError(ValueError):
    """A train step that needs more memory than the devices have, by its compiler."""

    def __init__(self, reason: str):
        super().__init__(f"the step does not fit the devices' memory: {reason}")


class UnevenBatchError(ValueError):
    """A batch that the devices cannot share; `nearest` has the sizes that they can."""

    def __init__(self, micro: int, accumulation_steps: int, parts: int):
        below = micro // parts * parts
        sizes = sorted((below, below + parts), key=lambda size: abs(size - micro))
        self.nearest = [size * accumulation_steps for size in sizes if size]
        super().__init__(
            f"a micro-batch of {micro} rows does not divide over {parts} devices; change "
            f"data.batch_size (nearest: {' or '.join(map(str, self.nearest))}), "
            "accumulation_steps or mesh"
        )


def make_program(
    experiment: Experiment,
    base: Run | None,
    devices: Sequence[jax.Device] | None = None,
    mesh: sharding.AnyMesh | None = None,
) -> Program:
    """Derives everything from the experiment and the base that it starts from.

    Args:
      devices: what to arrange in the mesh, if not this machine's; they need not exist.
      mesh: in their place, for a plan that is only looked at.

    Raises:
      ValueError: method, mesh, rules or batch do not fit the model or each other.
      UnevenBatch: of these, a number of rows that does not divide over the devices.
    """
    method = experiment.method
    if experiment.adapter_dropout and not method.drops:
        raise ValueError(
            f"adapter_dropout: nothing that {method.kind} attaches drops units; set it 0"
        )
    start = experiment.model or base.model  # type: ignore[union-attr]  # Experiment checks it
    model_config = experiment.compute.apply(start)
    stacks = methods.derive_stacks(model_config, method)
    start_key, attach_key, row_key = _keys(experiment.seed)
    base_shapes = jax.eval_shape(lambda key: Transformer(key, model_config, stacks), start_key)
    if base is not None:
        names = tree.unstack_shapes(tree.flatten(base_shapes))
        what = f"parameters of {base.path} (init_from takes whole models, not adapters)"
        tree.check_names(names, base.checksums(), what)
    model_shapes = jax.eval_shape(method.attach, base_shapes, attach_key)
    trainable_names = methods.trainable(model_shapes, method)
    methods.check_full_precision(model_shapes, trainable_names)
    step_config = stepping.StepConfig(
        trainable_names,
        experiment.optimizer,
        experiment.schedule.kind,
        experiment.loss,
        experiment.accumulation_steps,
    )
    hyper = _make_hyper(experiment, row_key, trainable_names, tree.flatten(model_shapes))
    mesh = mesh or experiment.mesh.make(devices)
    _check_rows(experiment, model_config, model_shapes, mesh)
    state_shapes = jax.eval_shape(
        functools.partial(stepping.init_state, step_config=step_config), model_shapes
    )
    frozen_names = set(tree.flatten(base_shapes)) - set(trainable_names)
    return Program(
        experiment=experiment,
        model_config=model_config,
        base=base,
        mesh=mesh,
        stacks=stacks,
        base_shapes=base_shapes,
        model_shapes=model_shapes,
        state_shapes=state_shapes,
        step_config=step_config,
        hyper=hyper,
        shardings=_state_shardings(experiment, model_shapes, state_shapes, mesh),
        frozen_base=tuple(sorted(frozen_names)) if base is not None else (),
    )


def _make_hyper(
    experiment: Experiment,
    row_key: jax.Array,
    trainable_names: tuple[str, ...],
    parameters: Mapping[str, Any],
) -> stepping.Hyper:
    """The numbers of the step, which it takes as arrays."""

    def number(x: float | None) -> np.ndarray | None:
        return None if x is None else np.asarray(x, np.float32)

    return stepping.Hyper(
        key=row_key,
        schedule=Schedule.make(experiment.schedule, experiment.steps),
        learning_rate_multipliers=stepping.multipliers(
            experiment.learning_rate_rules, trainable_names, parameters, "learning_rate_rules"
        ),
        weight_decay_multipliers=stepping.multipliers(
            experiment.weight_decay_rules, trainable_names, parameters, "weight_decay_rules"
        ),
        weight_decay=np.asarray(experiment.weight_decay, np.float32),
        max_grad_norm=number(experiment.max_grad_norm),
        dropout=number(experiment.dropout or None),
        adapter_dropout=number(experiment.adapter_dropout or None),
    )


def _check_rows(
    experiment: Experiment,
    model_config: ModelConfig,
    model_shapes: Transformer,
    mesh: sharding.AnyMesh,
) -> None:
    """Checks that rows and tokens divide over the mesh, and that the model is long enough.

    Raises:
      UnevenBatch: a number of rows that does not divide over the devices.
      ValueError: a row that is too long, or does not divide.
    """
    parts = sharding.batch_shards(mesh, experiment.sharding_rules)
    micro = experiment.data.batch_size // experiment.accumulation_steps
    if micro % parts:
        raise UnevenBatchError(micro, experiment.accumulation_steps, parts)
    length, prompt = experiment.data.sequence_length, cost.tokens_in_front(model_shapes)
    row = f"data.sequence_length {length}" + (f" and {prompt} tokens of prompts" if prompt else "")
    if prompt > length:
        raise ValueError(f"{row}: a prompt may be as long as the rows behind it, not longer")
    model_config.check_length(length + prompt, row)
    if (length + prompt) % mesh.shape["sequence"]:
        raise ValueError(f"{row} does not divide over mesh.sequence={mesh.shape['sequence']}")


def _state_shardings(
    experiment: Experiment,
    model_shapes: Transformer,
    state_shapes: stepping.TrainState,
    mesh: sharding.AnyMesh,
) -> dict[str, NamedSharding]:
    """Where every leaf of the state lies: parameters by the rules, their moments with them."""
    parameters, leaves = tree.flatten(model_shapes), tree.flatten(state_shapes)
    axes = tree.parameter_axes(model_shapes)
    parameter_shardings = sharding.shardings(axes, parameters, mesh, experiment.sharding_rules)
    shardings = sharding.state_shardings(leaves, parameter_shardings, mesh)
    return shardings | sharding.host_shardings(experiment.offload, leaves, shardings)


def _keys(seed: int) -> jax.Array:
    """Random keys [3] of the start, of what is attached, and of the rows' dropout."""
    return jax.random.split(jax.random.key(seed), 3)
