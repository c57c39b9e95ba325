"""Merging adapters into the weights that they are attached to, and unmerging them.

A merged model is a run's folder like any other base, with a certificate: the largest difference of
its outputs from the attached model's on a probe batch, and the base's fingerprint before and after.
Merging happens in float32, on the dequantised weights where the base is quantised.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import methods, sharding, tree
from research.adapters.certificate import Ingredient, MergeCertificate, MergedBase
from research.checkpoints import runs
from research.checkpoints.checkpoint import CheckpointError
from research.checkpoints.runs import Run
from research.config import schema
from research.methods import Method
from research.models import quantization
from research.models.config import ModelConfig
from research.models.layers import Linear
from research.models.sites import Weight
from research.models.transformer import Transformer

# the largest difference of outputs that a merge may make, relative to the largest output
TOLERANCE = 1e-4
PROBE = 4, 64  # rows and tokens of a probe
RESIDUALS = "kept"  # what unmerging needs, in the checkpoint of a merged model


def attached_shapes(
    config: ModelConfig, method: Method, without_head: bool = False, where: str = "the run"
) -> Transformer:
    """The abstract model with what a method attaches, in single layers.

    Args:
      without_head: whether a head for classes is left out.
      where: what errors call the run.

    Raises:
      ValueError: something of it cannot be merged into weights.
    """
    if names := method.bank_names:
        raise ValueError(f"{names} stand side by side; one model holds one of them")
    shapes = methods.abstract(config, method, methods.single_layers(config))
    for name, module in methods.places(shapes, *methods.PLACES):
        outside = not name.startswith("layers/")
        for delta in module.site.values():
            if delta.replaces and without_head:
                continue
            if delta.replaces:
                raise ValueError(
                    f"{where} says classes or a number by a head of its own, for which a base and "
                    "a GGUF file have no place: export it for transformers (graft convert export "
                    "--format hf)"
                )
            if not delta.mergeable:
                raise ValueError(
                    f"{name}: {type(delta).__name__} is no change of a weight and cannot be "
                    "merged; as an adapter beside the base it can be served"
                )
            methods.check_untied(name, outside and config.tie_embeddings)
    return shapes


class Merged:
    """The parameters of a run as those of a plain base in float32, merged a layer at a time.

    Args:
      run: a run with adapters, or a base.
      merged_run: the run that `run` was merged into; the parameters are then those of its base,
        unmerged.
      without_head: whether a head for classes is left out: it is written beside them.

    Raises:
      ValueError: something is attached that cannot be merged into weights.
    """

    def __init__(self, run: Run, merged_run: Run | None = None, without_head: bool = False):
        runs.check_parameters(run)
        self._run, self._merged_run = run, merged_run
        self._adapters = run.method.adapter_names
        # what unmerging needs beside the adapter, by name: filled as layers are read
        self.residuals: dict[str, np.ndarray] = {}
        config = run.model if merged_run is None else merged_run.model
        self._shapes = attached_shapes(config, run.method, without_head, str(run.path))
        self._layer = functools.lru_cache(maxsize=1)(self._read_layer)

    @functools.cached_property
    def _shared(self) -> Any:
        """What methods share between layers."""
        shapes = {f"methods/{n}": s for n, s in tree.flatten(self._shapes.methods).items()}
        arrays = {n.removeprefix("methods/"): a for n, a in self._read(shapes).items()}
        return tree.unflatten(self._shapes.methods, arrays)

    def __call__(self, name: str) -> np.ndarray:
        """A parameter by its single-layer name, float32."""
        if name.startswith("layers/"):
            return self._layer(int(name.split("/")[1]))[name]
        self._layer.cache_clear()  # the largest tensors lie outside
        place = name.split("/")[0]
        module = getattr(self._shapes, place)
        if name.endswith("/kernel") and isinstance(module, methods.PLACES) and module.site:
            return self._finite(name, self._fold_part(module, place)["kernel"])
        return self._finite(name, (self._merged_run or self._run).read(name)[name])

    def _finite(self, name: str, array: jax.Array | np.ndarray) -> np.ndarray:
        values = np.asarray(array, np.float32)
        # a sum is finite only if all are, and needs no second array of the size
        if not np.isfinite(values.sum(dtype=np.float64)):
            why = (
                "" if self._merged_run is None else " (a factor of zero cannot be taken out again)"
            )
            raise ValueError(f"{name} holds numbers that are not finite{why}; nothing is written")
        return values

    def _read_layer(self, layer: int) -> dict[str, np.ndarray]:
        block = self._shapes.layers[tree.stack_key(layer, 1)]
        shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), block)
        prefix = f"layers/{layer}"
        arrays = {f"{prefix}/{name}": a for name, a in self._fold_part(shapes, prefix).items()}
        return {name: self._finite(name, array) for name, array in arrays.items()}

    def _fold_part(self, part: Any, prefix: str) -> dict[str, jax.Array]:
        """The parameters of a part of the model, its sites merged (or unmerged)."""
        shapes = {f"{prefix}/{name}": shape for name, shape in tree.flatten(part).items()}
        arrays = {n.removeprefix(f"{prefix}/"): a for n, a in self._read(shapes).items()}
        module, shared = tree.unflatten(part, arrays), self._shared
        if self._merged_run is None:
            parameters, residuals = _fold(module, shared, self._adapters)
            self.residuals |= {f"{prefix}/{n}": np.asarray(a) for n, a in residuals.items()}
            return parameters
        saved_residuals = {
            adapter: self._read_residuals(module, prefix, adapter) for adapter in self._adapters
        }
        return _unfold(module, shared, saved_residuals, self._adapters)

    def _read(self, shapes: dict[str, Any]) -> dict[str, jax.Array]:
        """Arrays by name: weights of the merged model where there is one, the rest of the run."""
        shapes = sharding.shard_any_axis(shapes)
        if self._merged_run is None:
            return self._run.restore(shapes)
        attached = {n: s for n, s in shapes.items() if tree.is_attached(n)}
        weights = {n: s for n, s in shapes.items() if n not in attached}
        return self._run.restore(attached) | self._merged_run.restore(weights)

    def _read_residuals(
        self, part: Any, prefix: str, adapter: str
    ) -> dict[str, dict[str, np.ndarray]]:
        assert self._merged_run is not None
        checkpoint, residuals = self._merged_run.checkpoint, {}
        names = checkpoint.checksums()
        for place, _ in methods.places(part, *methods.PLACES):
            start = f"{RESIDUALS}/{prefix}/{place}/{adapter}/"
            arrays = checkpoint.read(*(name for name in names if name.startswith(start)))
            residuals[place] = {name.removeprefix(start): array for name, array in arrays.items()}
        return residuals


@functools.partial(jax.jit, static_argnames="adapters")
def _fold(part: Any, shared: Any, adapters: tuple[str, ...]) -> tuple[tree.Arrays, tree.Arrays]:
    """A part's plain parameters with its sites merged, and what unmerging needs beside them."""
    residuals: tree.Arrays = {}
    for adapter in adapters:
        for place, arrays in methods.merge_sites(part, adapter, shared, _weight).items():
            residuals |= {f"{place}/{adapter}/{name}": array for name, array in arrays.items()}
    return tree.flatten(quantization.dequantize(part)), residuals


@functools.partial(jax.jit, static_argnames="adapters")
def _unfold(part: Any, shared: Any, residuals: Any, adapters: tuple[str, ...]) -> tree.Arrays:
    """The inverse of `_fold`; `residuals` by adapter and place."""
    for adapter in reversed(adapters):
        methods.unmerge_sites(part, adapter, shared, _weight, residuals[adapter])
    return tree.flatten(quantization.dequantize(part))


def _weight(module: Any) -> Weight:
    """The weight of a place that owns its kernel."""
    return module.weight() if isinstance(module, Linear) else Weight(module.kernel[...])


def merge(
    run: Run, out: str | Path, progress: Callable[[str], None] = lambda name: None
) -> MergeCertificate:
    """Writes a run's model, adapters merged, as a base of its own.

    Args:
      progress: called with the name of each parameter when it is merged.

    Returns:
      The certificate, which lies beside the model too.

    Raises:
      ValueError: nothing is attached or it cannot be merged, numbers that are not finite,
        outputs that differ by more than `TOLERANCE`, or another base than before; nothing is
        written.
      FileExistsError: the folder holds a model.
    """
    runs.check_free(out)
    if run.base is None:
        raise ValueError(f"{run.path} is a whole model: nothing is attached to a base")
    weights = Merged(run)
    attached_outputs = _outputs(runs.load_model(_in_float32(run), *sharding.one_device()))
    arrays = {}
    for name in parameter_names(run.model):
        arrays[name] = jnp.asarray(weights(name))
        progress(name)
    config = run.model.full_precision
    difference = np.abs(_outputs(_model(config, arrays)) - attached_outputs).max()
    largest = np.abs(attached_outputs).max()
    if not difference <= TOLERANCE * largest:
        raise ValueError(
            f"the merged model's outputs differ by {difference:.3g} of {largest:.3g} from the "
            "attached model's; nothing is written"
        )
    fingerprint_after = _fingerprint_after(run.base)
    base_path, before = run.base.permanent_path, run.base.fingerprint
    certificate = MergeCertificate(
        adapter=Ingredient(str(run.path), run.fingerprint),
        method=schema.to_dict(run.method),
        base=MergedBase(base_path, before, fingerprint_after, tuple(run.model.storage_kinds)),
        merged_in="float32, on dequantised weights" if run.model.storage else "float32",
        probe="{} rows of {} random tokens".format(*_probe_size(config)),
        largest_difference=float(difference),
        largest_output=float(largest),
    )
    residuals = {f"{RESIDUALS}/{name}": array for name, array in weights.residuals.items()}
    certificate.write(out)  # first, so that no merged model is ever without it
    runs.write(
        out,
        run,
        arrays,
        config,
        experiment=run.experiment,
        extra_metadata={"merged": certificate.to_json()},
        extra_arrays=residuals,
    )
    return certificate


def _fingerprint_after(base: Run) -> str:
    """The fingerprint of a base's files as they are now.

    Raises:
      ValueError: they are not those that were opened.
    """
    what = f"the base {base.path} was replaced while it was read"
    try:
        fingerprint = runs.recompute_fingerprint(base)
    except CheckpointError as error:
        raise ValueError(f"{what}, and nothing is written: {error}") from error
    if fingerprint != base.fingerprint:
        raise ValueError(
            f"{what}, and nothing is written: its fingerprint was {base.fingerprint[:16]} and is "
            f"{fingerprint[:16]}"
        )
    return fingerprint


def unmerge(
    merged: Run, adapter: Run, out: str | Path, progress: Callable[[str], None] = lambda name: None
) -> dict[str, float]:
    """Writes the base that a merged model was made of, to rounding.

    Args:
      merged: the run that `merge` wrote.
      adapter: the run that was merged.
      progress: called with the name of each parameter when it is unmerged.

    Returns:
      How far it is from the base, weight by weight: `largest_difference` and `largest_weight`.

    Raises:
      ValueError: the model is not merged, or of another adapter, or it cannot be undone (a factor
        of zero, weights of the base that trained); nothing is written.
      FileExistsError: the folder holds a model.
    """
    runs.check_free(out)
    MergeCertificate.of(merged).check_adapter(merged, adapter)
    assert adapter.base is not None
    model = methods.abstract(adapter.model, adapter.method)
    trainable_names = methods.trainable(model, adapter.method)
    of_the_base = [name for name in trainable_names if not tree.is_attached(name)]
    if of_the_base:
        raise ValueError(
            f"{adapter.method.kind} changed weights of the base itself ({of_the_base[0]}), which "
            f"no adapter holds. The base is still in {adapter.base.path}; nothing is written"
        )
    weights, base_weights = Merged(adapter, merged), Merged(adapter.base)
    arrays, difference, largest = {}, 0.0, 0.0
    for name in parameter_names(merged.model):
        weight, expected = weights(name), base_weights(name)
        arrays[name] = jnp.asarray(weight)
        difference = max(difference, float(np.abs(weight - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
        progress(name)
    if not difference <= TOLERANCE * largest:
        raise ValueError(
            f"taken apart, the weights differ by {difference:.3g} of {largest:.3g} from the "
            f"base's, which is still in {adapter.base.path}; nothing is written"
        )
    report = {"largest_difference": difference, "largest_weight": largest}
    base, facts = adapter.base, {"unmerged": report}
    runs.write(out, base, arrays, merged.model, experiment=base.experiment, extra_metadata=facts)
    return report


def abstract_base(config: ModelConfig) -> Transformer:
    """The shapes of a plain base; nothing is computed."""
    return jax.eval_shape(functools.partial(Transformer, config=config), jax.random.key(0))


def parameter_names(config: ModelConfig) -> list[str]:
    """A plain base's parameters by single-layer name, layer after layer."""
    return list(tree.unstack_shapes(tree.flatten(abstract_base(config.full_precision))))


def _model(config: ModelConfig, arrays: Mapping[str, Any]) -> Transformer:
    """A plain base with these parameters, by single-layer name."""
    config = dataclasses.replace(config, compute_dtype="float32")
    shapes = abstract_base(config)
    return tree.unflatten(shapes, tree.restack(arrays, tree.flatten(shapes)))


def _in_float32(run: Run) -> Run:
    return dataclasses.replace(run, model=dataclasses.replace(run.model, compute_dtype="float32"))


def _outputs(model: Transformer) -> np.ndarray:
    """Logits [B,S,V] of the probe: random tokens, the same for every model of a vocabulary."""
    return np.asarray(_probe(model))


def _probe_size(config: ModelConfig) -> tuple[int, int]:
    rows, tokens = PROBE
    return rows, min(tokens, config.learned_positions or tokens)


@jax.jit
def _probe(model: Transformer) -> jax.Array:
    size = _probe_size(model.config)
    tokens = jax.random.randint(jax.random.key(0), size, 0, model.config.vocabulary)
    positions = jnp.broadcast_to(jnp.arange(size[1]), size)
    states, _ = model.hidden(tokens, jnp.ones(size, jnp.int32), positions)
    return model.logits(states)
