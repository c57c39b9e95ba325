"""A run before anything is computed: its model, its step, and where its arrays lie.

Everything here is abstract (names, shapes, shardings): a mistake costs nothing, and a plan can be
printed for any mesh. `research.training.session` makes or reads the arrays.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from research import methods, sharding, tree
from research import step as stepping
from research.batch import Batch
from research.checkpoints.runs import Run
from research.experiment import Experiment
from research.models.config import ModelConfig
from research.models.transformer import Transformer
from research.optim.schedules import Schedule, ScheduleConfig
from research.training import continuation, cost
from research.training.numbers import make_hyper, make_keys, method_without_numbers


@dataclasses.dataclass(frozen=True)
class Program:
    """A run, abstractly; made by `make_program`."""

    experiment: Experiment
    model_config: ModelConfig
    base: Run | None
    # the run on that base whose adapters this one goes on with; None: it attaches its own
    start: Run | None
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
    def initial(self) -> Run | None:
        """What `init_from` opens: adapters on a base, or a whole model; None: random weights."""
        return self.start or self.base

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
        flops = cost.flops_per_token(
            self.model_config, self.model_shapes, self.step_config.trainable, length
        )
        if not self.step_config.loss.reads_nll:
            return flops
        head = cost.forward_flops(self.model_config, self.model_shapes).head
        return dataclasses.replace(flops, forward=flops.forward + head)  # its pass more

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
        tokens, numbers = abstract(shape, np.int32), abstract(shape, np.float32)
        kind = data.objective.example_kind
        model_fields = self.experiment.loss.model_fields.items()
        bank = self.experiment.method.bank_names
        has_prefix = any(objective.bidirectional for objective in data.all_objectives)
        return Batch(
            tokens=tokens,
            targets=tokens,
            weights=numbers,
            segments=tokens,
            positions=tokens,
            prefix=abstract(shape, np.bool_) if has_prefix else None,
            adapter=abstract(shape[:1], np.int32) if bank else None,
            roles=tokens if kind in ("pairs", "labelled answers") else None,
            values=numbers if kind in ("rollouts", "numbers") else None,
            **{name: abstract((*shape, *rest), dtype) for name, (rest, dtype) in model_fields},
        )

    @functools.cached_property
    def local_rows(self) -> np.ndarray:
        """The numbers of the rows that this host feeds; hosts whose devices share rows feed the
        same ones."""
        return sharding.local_rows(self.batch_sharding, self.experiment.data.batch_size)

    def with_numbers(self, experiment: Experiment) -> Program:
        """The same program with the numbers of another experiment, see `numbers.without_numbers`.

        Raises:
          ValueError: a rule that matches nothing.
        """
        row_key, names = make_keys(experiment.seed)[2], self.step_config.trainable
        hyper = make_hyper(experiment, row_key, names, tree.flatten(self.model_shapes))
        return dataclasses.replace(self, experiment=experiment, hyper=hyper)

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
        return jax.jit(_as_they_are, out_shardings=self.replicated)(self.hyper)

    def compile(self, batch: Batch) -> Any:
        """The train step as an executable `(own, base, batch, hyper) -> (own, metrics)`.

        `own` and `base` are the two halves of the state by name, see `saved_names`: the base's
        frozen parameters are read only, so that several runs may share them. Nothing is made yet:
        it is compiled from shapes, those of (some) rows of a batch too.

        Raises:
          StepDoesNotFitError: the compiler finds that the devices' memory is too small.
        """

        def abstract(x: Any, where: NamedSharding, shape: Any = None) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape or x.shape, x.dtype, sharding=where)

        leaves = self.state_leaves
        state = {name: abstract(x, self.shardings[name]) for name, x in leaves.items()}
        own, base = self.split(state)
        size = self.experiment.data.batch_size
        rows = jax.tree.map(lambda x: abstract(x, self.batch_sharding, (size, *x.shape[1:])), batch)
        numbers = jax.tree.map(lambda x: abstract(x, self.replicated), self.hyper)
        own_shardings = {name: self.shardings[name] for name in own}
        step = jax.jit(self.step, donate_argnums=0, out_shardings=(own_shardings, None))
        return compile_lowered(step.lower(own, base, rows, numbers))

    @property
    def state_leaves(self) -> tree.Arrays:
        """The abstract leaves of the state, by name."""
        return tree.flatten(self.state_shapes)

    @property
    def step(self) -> Callable[..., tuple[tree.Arrays, stepping.Metrics]]:
        """The train step on the two halves of the state, to be traced."""

        def train_step(
            own: tree.Arrays, base: tree.Arrays, batch: Batch, hyper: stepping.Hyper
        ) -> tuple[tree.Arrays, stepping.Metrics]:
            arrays = {**own, **base}
            if self.experiment.offload:
                shardings = {name: self.shardings[name] for name in arrays}
                arrays = sharding.to_device(arrays, shardings)
            state = tree.unflatten(self.state_shapes, arrays)
            state, metrics = stepping.train_step(state, batch, hyper, self.step_config)
            return self.split(tree.flatten(state))[0], metrics

        return train_step

    def split(self, arrays: Mapping[str, Any]) -> tuple[tree.Arrays, tree.Arrays]:
        """Leaves of the state by name: this run's own, and the base's that stay as they are."""
        names = {f"model/{name}" for name in self.frozen_base}
        return (
            {name: leaf for name, leaf in arrays.items() if name not in names},
            {name: leaf for name, leaf in arrays.items() if name in names},
        )

    def model(self, own: tree.Arrays, base: tree.Arrays) -> Transformer:
        """The model of a state."""
        return tree.unflatten(self.state_shapes, {**own, **base}).model

    def swap_average(self, own: tree.Arrays) -> tree.Arrays:
        """The same arrays with the average of the weights in the place of the weights, and the
        other way round: what is measured and saved, and what goes on training."""
        names = [name for name in self.step_config.trainable if f"average/{name}" in own]
        swapped = {f"model/{name}": own[f"average/{name}"] for name in names}
        return {**own, **swapped, **{f"average/{name}": own[f"model/{name}"] for name in names}}

    @functools.cached_property
    def signature(self) -> Hashable:
        """What its executables depend on, beside the rows of a batch: equal for programs that
        differ in numbers alone."""
        leaves, structure = jax.tree.flatten((self.state_shapes, self.hyper))
        return (
            self.step_config,
            structure,
            tuple((leaf.shape, leaf.dtype) for leaf in leaves),
            tuple(self.shardings.items()),
            self.frozen_base,
            self.experiment.sharding_rules,
            self.experiment.offload,
        )


def compile_lowered(lowered: Any) -> Any:
    """Compiles; raises StepDoesNotFitError where the devices' memory is too small."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise StepDoesNotFitError(str(error).splitlines()[0]) from None


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
    """Derives everything from the experiment and the run that it starts from.

    Args:
      base: what `init_from` opens: a whole model, or adapters on one, see `continuation`.
      devices: what to arrange in the mesh, if not this machine's; they need not exist.
      mesh: in their place, for a plan that is only looked at.

    Raises:
      ValueError: method, mesh, rules or batch do not fit the model or each other.
      UnevenBatch: of these, a number of rows that does not divide over the devices.
    """
    method = experiment.method
    base, start_run = continuation.split_start(base)
    if start_run is not None:
        continuation.check_method(start_run.path, start_run.method, method)
    if experiment.adapter_dropout and not method.drops:
        raise ValueError(
            f"adapter_dropout: nothing that {method.kind} attaches drops units; set it 0"
        )
    start = experiment.model or base.model  # type: ignore[union-attr]  # Experiment checks it
    model_config = experiment.compute.apply(start)
    stacks = methods.derive_stacks(model_config, method)
    start_key, attach_key, row_key = make_keys(experiment.seed)
    base_shapes = jax.eval_shape(lambda key: Transformer(key, model_config, stacks), start_key)
    if base is not None:
        names = tree.unstack_shapes(tree.flatten(base_shapes))
        tree.check_names(names, base.checksums(), f"parameters of {base.path}")
    model_shapes = jax.eval_shape(method.attach, base_shapes, attach_key)
    trainable_names = methods.trainable(model_shapes, method)
    methods.check_full_precision(model_shapes, trainable_names)
    step_config = stepping.StepConfig(
        trainable_names,
        experiment.optimizer,
        experiment.schedule.kind,
        experiment.loss.without_numbers(),
        experiment.accumulation_steps,
        experiment.average_decay is not None,
        method_without_numbers(method) if method.has_hooks else None,
    )
    hyper = make_hyper(experiment, row_key, trainable_names, tree.flatten(model_shapes))
    mesh = mesh or experiment.mesh.make(devices)
    _check_rows(experiment, model_config, model_shapes, mesh)
    state_shapes = jax.eval_shape(
        functools.partial(stepping.init_state, step_config=step_config), model_shapes
    )
    frozen_names = set(tree.flatten(base_shapes)) - set(trainable_names)
    own_shapes = {n: x for n, x in tree.flatten(model_shapes).items() if n not in frozen_names}
    if start_run is not None:
        continuation.check_parameters(start_run, tree.unstack_shapes(own_shapes))
    return Program(
        experiment=experiment,
        model_config=model_config,
        base=base,
        start=start_run,
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


def _as_they_are(numbers: stepping.Hyper) -> stepping.Hyper:
    """One function object for all programs, so that jit compiles it once."""
    return numbers


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
