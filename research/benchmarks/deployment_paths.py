"""Ways to serve several tasks in one process, on the generation loop of `graft generate`.

Whole models lie in memory side by side, and each answers its own requests. One adapter at a time is
put on a base, read when its task is asked. A bank answers requests of all tasks in one batch.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research import methods, sharding, tree
from research.adapters import banks
from research.checkpoints import runs, stacking
from research.checkpoints.runs import Run
from research.generation import decode
from research.generation.decoder import Request
from research.methods import Method
from research.models.transformer import Transformer


class Server:
    """Models in memory that answer requests of several tasks."""

    models: Sequence[Transformer]

    def groups(self, tasks: Sequence[int]) -> list[list[int]]:
        """The numbers of requests that are answered together, by the requests' tasks."""
        in_order = dict.fromkeys(tasks)
        return [[n for n, each in enumerate(tasks) if each == task] for task in in_order]

    def model(self, task: int) -> Transformer:
        """The model that answers a task."""
        raise NotImplementedError

    def adapter(self, task: int) -> int | None:
        """What a request of the task asks its model for."""
        del task
        return None


class WholeModels(Server):
    """A merged model for each task, all in memory."""

    def __init__(self, adapters: Sequence[Run], merged_models: Sequence[Run]):
        del adapters
        self.models = [runs.load_model(run, *sharding.one_device()) for run in merged_models]

    def model(self, task: int) -> Transformer:
        return self.models[task]


class AdapterSwaps(Server):
    """A base with one adapter, another one's arrays in its place when its task is asked."""

    def __init__(self, adapters: Sequence[Run], merged_models: Sequence[Run]):
        del merged_models
        self.models = [runs.load_model(adapters[0], *sharding.one_device())]
        self._adapters, self._task = adapters, 0

    def model(self, task: int) -> Transformer:
        if task != self._task:
            self.models, self._task = [put_on(self.models[0], self._adapters[task])], task
        return self.models[0]


class AdapterBank(Server):
    """A base with all adapters, of which each row of a batch uses its own."""

    def __init__(self, adapters: Sequence[Run], merged_models: Sequence[Run]):
        del merged_models
        by_name = {str(task): run for task, run in enumerate(adapters)}
        self.models = [banks.load_bank(by_name, *sharding.one_device())]

    def groups(self, tasks: Sequence[int]) -> list[list[int]]:
        return [[*range(len(tasks))]]

    def model(self, task: int) -> Transformer:
        return self.models[0]

    def adapter(self, task: int) -> int | None:
        return task


PATHS: dict[str, Callable[[Sequence[Run], Sequence[Run]], Server]] = {
    "whole_models": WholeModels,
    "adapter_swaps": AdapterSwaps,
    "adapter_bank": AdapterBank,
}


def put_on(model: Transformer, adapter: Run) -> Transformer:
    """A model with the arrays of another adapter of the same form in place of its own."""
    own = adapter.checkpoint.checksums("model/")
    leaves = tree.flatten(model)
    shapes = {n: leaf for n, leaf in leaves.items() if {*tree.layer_names(n)} <= {*own}}
    shardings = {name: leaf.sharding for name, leaf in shapes.items()}
    return tree.unflatten(
        model, leaves | stacking.restore_stacked(shapes, shardings, adapter.restore)
    )


def array_bytes(server: Server) -> int:
    """Bytes of all arrays that a server keeps in memory."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(server.models))


@dataclasses.dataclass(frozen=True)
class Answers:
    """What requests that came together were answered, in their order, and when."""

    tokens: list[list[int]]
    # of all
    seconds: float
    # until each was whole, in the order of their ends
    latencies: list[float]


def answer(server: Server, requests: Sequence[Request], tasks: Sequence[int], rows: int) -> Answers:
    """Answers requests that come at one time.

    Args:
      tasks: of each request.
      rows: requests of one model that are answered at a time.
    """
    start, latencies = time.perf_counter(), list[float]()
    tokens: list[list[int]] = [[] for _ in requests]

    def note_end() -> None:
        latencies.append(time.perf_counter() - start)

    for group in server.groups(tasks):
        own_requests = [
            dataclasses.replace(requests[number], adapter=server.adapter(tasks[number]))
            for number in group
        ]
        model = server.model(tasks[group[0]])
        completions = decode.complete(model, own_requests, min(rows, len(group)), on_end=note_end)
        for number, completion in zip(group, completions, strict=True):
            tokens[number] = completion.tokens
    return Answers(tokens, time.perf_counter() - start, latencies)


def write_adapter(base: Run, method: Method, out: Path) -> Run:
    """A run with what the method attaches to the base before it is trained.

    Raises:
      ValueError: the method attaches nothing, or does not fit the base.
    """
    stacks = methods.derive_stacks(base.model, method)
    shapes = methods.abstract(base.model, methods.Full(), stacks)
    with sharding.mesh_context(*sharding.one_device()):
        model = stacking.restore_model(shapes, base.restore, *sharding.one_device())
        leaves = tree.flatten(method.attach(model, jax.random.key(0)))
    attached = {name: np.asarray(leaf) for name, leaf in leaves.items() if tree.is_attached(name)}
    if not attached:
        raise ValueError(f"method {method.kind} attaches nothing: name a config of an adapter")
    arrays = {name: np.asarray(array) for name, array in tree.unstack(attached).items()}
    runs.write(out, base, arrays, base.model, method=method, base=base)
    return runs.open_run(out)


def model_bytes(run: Run) -> int:
    """Bytes of a run's whole model in memory; nothing is read."""
    leaves: Sequence[Any] = jax.tree.leaves(methods.abstract(run.model, run.method))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
