"""What the runs of one process share, each made once: opened models and data, programs, arrays.

Trials of a study differ in a few numbers; nearly all that a run does before its first step is the
same for the next one. A run alone has a session of its own and shares with nobody. What is shared
is what a run would make for itself, so that its numbers are the same bits either way.
"""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from research import methods, tree
from research import step as stepping
from research.batch import Batch
from research.checkpoints import runs, stacking
from research.checkpoints.checkpoint import Checkpoint
from research.checkpoints.runs import Run
from research.config import schema
from research.data import run_checks, token_cache
from research.data.examples import ExampleReader
from research.data.heldout import HeldOut
from research.data.pipeline import Pipeline
from research.experiment import CheckpointConfig, Experiment
from research.models.transformer import Transformer
from research.text.tokenizer import Tokenizer
from research.training import continuation, starting
from research.training.evaluators import Evaluator, OpenEvaluator
from research.training.heldout_loss import open_heldout
from research.training.model_fields import attach_fields
from research.training.numbers import make_keys, without_numbers
from research.training.program import Program, make_program
from research.training.reference import reference_of
from research.training.teacher import check_teacher, open_teacher, teacher_of
from research.training.together import MappedProgram
from research.tree import Arrays

Value = TypeVar("Value")
Halves = tuple[Arrays, Arrays]  # of a state: the run's own leaves, and the base's frozen ones

# how many of each kind stay: those of the trials that follow each other in a study
_LIMITS = {"base": 4, "reader": 4, "data": 6, "checks": 64, "program": 8, "step": 8, "start": 8}
_LIMITS |= {"mapped": 2, "choice": 64, "evaluator": 4, "teacher": 4}


class Session:
    """Shared by runs that follow each other in one process; see the module."""

    def __init__(self, open_evaluator: OpenEvaluator | None = None) -> None:
        """`open_evaluator`: what opens the tasks of runs that have an `evaluation`."""
        self._open_evaluator = open_evaluator
        self._values: dict[str, OrderedDict[Hashable, Any]] = {}

    def once(self, kind: str, key: Hashable, make: Callable[[], Value]) -> Value:
        """What `make` gave for the key before, else gives now; the oldest of a kind make room."""
        values = self._values.setdefault(kind, OrderedDict())
        if key not in values:
            while len(values) >= _LIMITS.get(kind, 1):  # before the new one takes memory too
                values.popitem(last=False)
            values[key] = make()
        values.move_to_end(key)
        return values[key]

    def open_base_and_tokenizer(self, experiment: Experiment) -> tuple[Run | None, Tokenizer]:
        """As `runs.open_base_and_tokenizer`, once for all runs that start there."""
        key = (experiment.init_from, experiment.tokenizer)
        return self.once("base", key, lambda: runs.open_base_and_tokenizer(experiment))

    def make_program(
        self,
        experiment: Experiment,
        base: Run | None,
        devices: Sequence[jax.Device] | None = None,
    ) -> Program:
        """As `make_program`; what runs that differ in numbers alone have in common, once."""
        here = tuple(devices or ())
        key = (_text(without_numbers(experiment)), base.fingerprint if base else None, here)
        program = self.once("program", key, lambda: make_program(experiment, base, devices))
        return program.with_numbers(experiment)

    def open_data(self, program: Program, tokenizer: Tokenizer) -> tuple[Pipeline, list[HeldOut]]:
        """The training batches, after the checks of what is in them, and the held-out ones.

        Runs whose data differ in the seed alone share tokens, examples and checks.

        Raises:
          ValueError: anything that `data.checks` and `data.run_checks` find.
        """
        experiment, cache = program.experiment, token_cache.default_cache()
        vocabulary, bank = program.model_config.vocabulary, experiment.method.bank_names
        split, limit = experiment.evaluate_split, experiment.evaluate_tokens
        sources = experiment.heldout_sources
        reader = self.once("reader", tokenizer, lambda: ExampleReader(tokenizer, cache))
        whole: tuple[Hashable, ...] = (tokenizer, _text(experiment.data), vocabulary, bank)
        fields, fingerprints = experiment.loss.model_fields, dict[str, str]()
        if (teacher := self.open_teacher(program, tokenizer)) is not None:
            fingerprints["loss.teacher"] = teacher.fingerprint
        if fields:  # rows have the numbers of one model, made on one mesh
            base = teacher or program.initial
            whole += (base.fingerprint if base else None, tuple(fields.items()))
            whole += (_text(program.model_config), tuple(program.mesh.shape.items()))

        def open_all() -> tuple[Pipeline, list[HeldOut]]:
            data = Pipeline(
                experiment.data, tokenizer, reader, vocabulary, bank, fields, fingerprints
            )
            any_seed = _text(dataclasses.replace(experiment.data, seed=0))
            key = (tokenizer, any_seed, _text(experiment.checks), split, sources)
            self.once(
                "checks",
                key,
                lambda: run_checks.check_run(data, experiment.checks, split, cache, sources),
            )
            return data, open_heldout(data, split, limit, sources)

        return self.once(
            "data", (*whole, _text(experiment.checks), split, limit, sources), open_all
        )

    def open_teacher(self, program: Program, tokenizer: Tokenizer) -> Run | None:
        """As `teacher.open_teacher`, once for all runs that it teaches; None: the loss has none.

        Raises:
          ValueError: it is no run, or one that cannot teach this one.
        """
        path = program.experiment.loss.teacher
        if path is None:
            return None
        teacher = self.once("teacher", path, lambda: open_teacher(path))
        check_teacher(program, teacher, tokenizer)
        return teacher

    def attach_model_fields(
        self, program: Program, data: Pipeline, heldout: Sequence[HeldOut]
    ) -> None:
        """Gives the data what its loss reads of the model at its start or of a teacher, as
        `model_fields.attach_fields`; inside the program's mesh."""
        if (teacher := self.open_teacher(program, data.tokenizer)) is not None:
            attach_fields(program, data, heldout, teacher_of(program, teacher))
            return
        if not program.experiment.loss.needs_reference:
            return

        def make_initial() -> Transformer:
            if (start := program.start) is not None:
                rules = program.experiment.sharding_rules
                shapes = methods.abstract(program.model_config, start.method)
                return stacking.restore_model(shapes, start.restore, program.mesh, rules)
            frozen = self._frozen_base(program)
            arrays = {**frozen, **self._restore_base(program, is_frozen=False)}
            arrays = {name.removeprefix("model/"): array for name, array in arrays.items()}
            return tree.unflatten(program.base_shapes, arrays)

        attach_fields(program, data, heldout, reference_of(program, make_initial))

    def open_evaluator(self, program: Program, data: Pipeline) -> Evaluator | None:
        """What asks the run's tasks, read once for runs that differ in numbers alone; None: it has
        none.

        Raises:
          ValueError: tasks that do not fit the run, or nothing here opens them.
        """
        experiment = program.experiment
        if not experiment.evaluation:
            return None
        if (open_evaluator := self._open_evaluator) is None:
            raise ValueError(
                "the experiment has an `evaluation`, and nothing here asks tasks: give "
                "session=Session(research.evaluation.in_training.open_tasks)"
            )
        any_seed = dataclasses.replace(without_numbers(experiment), checkpoint=CheckpointConfig())
        key = (data.tokenizer, program.signature, _text(any_seed))
        return self.once("evaluator", key, lambda: open_evaluator(program, data))

    def compile(self, program: Program, batch: Batch) -> Any:
        """As `program.compile`, once for all programs that differ in numbers alone."""
        leaves, structure = jax.tree.flatten(batch)
        shapes = tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves)
        key = (program.signature, program.experiment.data.batch_size, structure, shapes)
        return self.once("step", key, lambda: program.compile(batch))

    def open_start_data(self, program: Program, data: Pipeline) -> Pipeline | None:
        """What the run's method reads before the first step; None: nothing.

        Raises:
          ValueError: anything that `data.checks` finds, or rows that the devices cannot share.
        """
        experiment = program.experiment
        config = experiment.start_data
        if not experiment.method.batches_to_start or config is None:
            return data if experiment.method.batches_to_start else None
        starting.check_rows(program, config.batch_size)
        tokenizer, vocabulary = data.tokenizer, program.model_config.vocabulary
        reader = self.once(
            "reader", tokenizer, lambda: ExampleReader(tokenizer, token_cache.default_cache())
        )
        key = (tokenizer, _text(config), vocabulary)
        return self.once("start_data", key, lambda: Pipeline(config, tokenizer, reader, vocabulary))

    def make_state(
        self, program: Program, saved: Checkpoint | None, data: Pipeline | None = None
    ) -> Halves:
        """The state before the first step, or as a checkpoint of the run has it.

        Args:
          data: what the run trains on; None: a start that sees data is made without.
        """
        if saved:
            return self.resumed_state(program, saved)
        own, base = self.fresh_state(program)
        start_data = self.open_start_data(program, data) if data else None
        if start_data is not None and program.start is None:  # what goes on has its start
            own = starting.start_from_data(program, own, base, start_data)
        return own, base

    def compile_mapped(self, mapped: MappedProgram, batch: Batch) -> Any:
        """As `mapped.compile`, once for groups of as many trials of one program."""
        key = (mapped.program.signature, mapped.count, mapped.kind, mapped.mesh)
        return self.once("mapped", key, lambda: mapped.compile(batch))

    def fresh_state(self, program: Program) -> Halves:
        """The state before the first step: weights of the base or random ones.

        Arrays are made under jit with their final shardings: no device holds a whole model.
        """
        method, base = program.experiment.method, self._frozen_base(program)
        trainable = self._restore_base(program, is_frozen=False)
        numbers = {
            name: np.asarray(getattr(method, name), np.float32) for name in method.array_fields
        }
        key = (
            program.signature,
            program.model_config,
            program.stacks,
            without_numbers(program.experiment).method,
            program.base is None,
        )
        begin = self.once("start", key, lambda: _begin_function(program))
        own = begin(base, trainable, make_keys(program.experiment.seed), numbers)
        if earlier := self._earlier_state(program):
            own = starting.renew(program, own | earlier, base)
        return own, base

    def _earlier_state(self, program: Program) -> Arrays:
        """Of the run at which it starts: what was attached there, and its optimizer's state where
        the experiment keeps it."""
        shapes, shardings = program.state_leaves, program.shardings
        arrays: Arrays = {}
        if program.start is not None:
            arrays |= continuation.restore(program.start, "model/", shapes, shardings)
        if program.experiment.keep_optimizer and program.initial is not None:
            arrays |= continuation.restore(
                program.initial, continuation.OPTIMIZER, shapes, shardings
            )
        return arrays

    def resumed_state(self, program: Program, saved: Checkpoint) -> Halves:
        """The state as a checkpoint of the run has it; what it leaves to the base from there."""
        own, _ = program.split(program.state_leaves)
        arrays = stacking.restore_stacked(own, program.shardings, saved.restore)
        return program.swap_average(arrays), self._frozen_base(program)

    def resident_bytes(self, program: Program) -> int:
        """Bytes of one device that arrays of the program's state take there already."""
        values = self._values.get("arrays", OrderedDict())
        arrays: Arrays = values.get(_base_key(program)) or {}
        return sum(array.addressable_shards[0].data.nbytes for array in arrays.values())

    def _frozen_base(self, program: Program) -> Arrays:
        """`model/NAME` -> the base's parameters that stay as they are, which no step donates."""
        if program.base is None or not program.frozen_base:
            return {}
        key = _base_key(program)
        return self.once("arrays", key, lambda: self._restore_base(program, is_frozen=True))

    def _restore_base(self, program: Program, is_frozen: bool) -> Arrays:
        """`model/NAME` -> the base's parameters that stay as they are, or the others."""
        if program.base is None:
            return {}
        frozen_names = set(program.frozen_base)
        shapes = tree.flatten(program.base_shapes)
        names = [name for name in shapes if (name in frozen_names) == is_frozen]
        shardings = {name: program.shardings[f"model/{name}"] for name in names}
        arrays = stacking.restore_stacked(
            {name: shapes[name] for name in names}, shardings, program.base.restore
        )
        return {f"model/{name}": array for name, array in arrays.items()}


def _base_key(program: Program) -> Hashable:
    """What the frozen parameters of its base are, and where they lie."""
    shardings = tuple((n, program.shardings[f"model/{n}"]) for n in program.frozen_base)
    return (program.base.fingerprint if program.base else None, shardings)


def _begin_function(program: Program) -> Callable[..., Arrays]:
    """`(base, trainable, keys, numbers) -> own`: the first state, from the base's arrays."""
    method, step_config = program.experiment.method, program.step_config
    shapes, config, stacks = program.base_shapes, program.model_config, program.stacks
    is_random, split = program.base is None, program.split

    def begin(base: Arrays, trainable: Arrays, keys: jax.Array, numbers: Arrays) -> Arrays:
        if is_random:
            model = Transformer(keys[0], config, stacks)
        else:
            arrays = {n.removeprefix("model/"): x for n, x in {**base, **trainable}.items()}
            model = tree.unflatten(shapes, arrays)
        numbered = dataclasses.replace(method, **numbers)
        model = numbered.attach(model, keys[1])
        return split(tree.flatten(stepping.init_state(model, step_config, numbered)))[0]

    own, _ = program.split(program.shardings)
    return jax.jit(begin, out_shardings=own, donate_argnums=1)


def _text(config: Any) -> str:
    """A config as one line, to be a key."""
    return json.dumps(schema.to_dict(config), sort_keys=True)
