"""Going on with what another run attached to its base, and with its optimizer's state.

`init_from` may be a tuned run. The new run then stands on the same base; what was attached there
starts where that run ended, by name, and what this run attaches beside it starts afresh.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding

from research import tree
from research.checkpoints import stacking
from research.checkpoints.runs import Run
from research.experiment import Experiment
from research.methods import Method, Several
from research.tree import Arrays

log = logging.getLogger(__name__)

OPTIMIZER = "optimizer/"


def split_start(run: Run | None) -> tuple[Run | None, Run | None]:
    """The base that a run stands on, and the run whose adapters it goes on with.

    A run that only trained some of its base's own parameters is a whole model.
    """
    if run is None or run.base is None or not run.method.adapter_names:
        return run, None
    return run.base, run


def check_method(path: object, earlier: Method, method: Method) -> None:
    """Whether a method attaches what the run at which it starts has attached, in the same way.

    Args:
      path: where that run is.
      earlier: its method.

    Raises:
      ValueError: it does not, or with other settings; the message names them.
    """
    if method.needs_start_data:
        raise ValueError(
            f"init_from: {path} has adapters that would go on, and the method {method.kind} reads "
            "`start_data` for a start of its own: merge them into a base first (graft adapters "
            "merge)"
        )
    here = _members(method)
    for name, then in _members(earlier).items():
        now = here.get(name)
        if now is None:
            raise ValueError(
                f"init_from: {path} has {then.kind} adapters ({name!r}), which the method "
                f"{method.kind} does not go on with: attach them in `method` too, or merge them "
                "into a base first (graft adapters merge)"
            )
        if now != then:
            raise ValueError(
                f"init_from: the {then.kind} adapters of {path} were attached with "
                f"{_differences(then, now)}; give `method` the same settings to go on with them"
            )


def _members(method: Method) -> dict[str, Method]:
    """The parts of a method by the name under which they attach, or by their kind."""
    parts: Iterable[Method] = method.of if isinstance(method, Several) else (method,)
    return {part.adapter or part.kind: part for part in parts}


def _differences(then: Method, now: Method) -> str:
    """What two methods of one name differ in: what was, and what is now."""
    if then.kind != now.kind:
        return f"kind {then.kind!r}, not {now.kind!r}"
    pairs = (
        (field.name, getattr(then, field.name), getattr(now, field.name))
        for field in dataclasses.fields(then)  # type: ignore[arg-type]  # every method is one
    )
    return ", ".join(f"{name} {a!r}, not {b!r}" for name, a, b in pairs if a != b)


def check_adapters(now: Run | None, then: Mapping[str, str] | None, workdir: Path) -> None:
    """Raises ValueError for a run that began with other adapters than those of `init_from` now."""
    if (now and now.fingerprint) != (then and then["fingerprint"]):
        raise ValueError(
            f"{workdir} was started from other adapters ({then['path'] if then else 'none'}) than "
            "those of `init_from`: put the config back, or choose another --workdir"
        )


def check_initial(
    initial: Run | None,
    experiment: Experiment,
    then: Experiment,
    metadata: Mapping[str, Any],
    place: Path,
) -> None:
    """Says that a run which trains every weight began with another model than `init_from` is now:
    it goes on with its own, and nothing of that is read.

    Args:
      initial: what `init_from` opens.
      then: the experiment of its checkpoint at `place`, which has this `metadata`.

    Raises:
      ValueError: `init_from` names another one than it did, or the loss needs what it began with.
    """
    now = initial.fingerprint if initial else None
    if metadata.get("initial", now) == now:
        return
    path = experiment.init_from
    if path != then.init_from or experiment.loss.needs_reference:
        raise ValueError(
            f"{place} began with another model ({then.init_from}) than `init_from` names now "
            f"({path}): put it back, or choose another --workdir"
        )
    if jax.process_index() == 0:
        log.warning(
            "%s is another model now than when the run began: the run goes on with its own weights",
            path,
        )


def check_parameters(start: Run, own_names: Iterable[str]) -> None:
    """Whether every array that the run at which it starts has of its own is this run's own too.

    Args:
      own_names: of this run's own parameters, of single layers.

    Raises:
      ValueError: one would be lost; the message names it.
    """
    extra = sorted(set(start.checkpoint.checksums("model/")) - set(own_names))
    if extra:
        raise ValueError(
            f"init_from: {start.path} trained {extra[0]}"
            + (f" and {len(extra) - 1} more" if len(extra) > 1 else "")
            + ", which does not train here and would be lost: train it too, or merge the adapters "
            "into a base first (graft adapters merge)"
        )


def restore(
    start: Run,
    prefix: str,
    shapes: Mapping[str, Any],
    shardings: Mapping[str, NamedSharding],
) -> Arrays:
    """The arrays under `prefix` that the run at which it starts has of this run's state.

    Args:
      prefix: `model/`, or `OPTIMIZER`, of which there must be some.
      shapes: leaves of this run's state, by (stacked) name.

    Raises:
      ValueError: of a stack, that run has some layers only; it has no state of this optimizer.
    """
    saved_names = {prefix + name for name in start.checkpoint.checksums(prefix)}
    names = []
    for name in shapes:
        if not name.startswith(prefix):
            continue
        layers = tree.layer_names(name)
        there = [layer for layer in layers if layer in saved_names]
        if there and len(there) < len(layers):
            missing = sorted(set(layers) - set(there))[0]
            raise ValueError(
                f"init_from: {start.path} has {there[0]} and not {missing}, which are of one stack "
                "here: attach to the same layers as it did"
            )
        if there:
            names.append(name)
    if prefix == OPTIMIZER and not names:
        raise ValueError(
            f"keep_optimizer: {start.path} holds no state of this run's optimizer: give a "
            "checkpoint, RUN/checkpoints/STEP (finished models have none), of a run with the same "
            "optimizer"
        )

    def read(abstract: Mapping[str, Any]) -> Arrays:
        return start.checkpoint.restore(abstract, partial=True)

    return stacking.restore_stacked({n: shapes[n] for n in names}, shardings, read)
