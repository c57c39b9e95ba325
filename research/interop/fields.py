"""Fields of a model's `config.json`; what Graft does not compute is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from research.models.config import RotaryScaling

_REQUIRED = object()


class UnsupportedModelError(ValueError):
    """A model that Graft cannot hold or compute exactly; the message says what and where."""


@contextlib.contextmanager
def refuse_malformed(where: str) -> Iterator[None]:
    """Turns whatever fails while a file from elsewhere is read into one clear error.

    Raises:
      UnsupportedModelError: naming the file and what failed.
    """
    try:
        yield
    except (UnsupportedModelError, OSError):
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {str(error)[:200]}"
        raise UnsupportedModelError(
            f"{where} is not as such a file should be: {problem}"
        ) from error


class Fields:
    """The fields of a config, by name.

    Raises:
      UnsupportedModelError: a field is missing, of another type, or says what Graft does not do.
    """

    def __init__(
        self, content: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None
    ):
        self.content, self.where = content, where
        # a family's own defaults, which go before those of the calls
        self.defaults = defaults or {}
        self.names_read: set[str] = set()

    def __call__(self, name: str, default: Any = _REQUIRED) -> Any:
        """A field; null counts as not given, and the default is transformers' own."""
        self.names_read.add(name)
        value = self.content.get(name)
        value = self.defaults.get(name) if value is None else value
        if value is None:
            if default is _REQUIRED:
                raise UnsupportedModelError(f"{self.where}: the field {name!r} is missing")
            return default
        return value

    def with_defaults(self, defaults: Mapping[str, Any]) -> Fields:
        """The same fields, with a family's own defaults."""
        fields = Fields(self.content, self.where, defaults)
        fields.names_read = self.names_read
        return fields

    def unread(self) -> dict[str, Any]:
        """What is given and was not read, by name; null counts as not given."""
        return {
            name: value
            for name, value in self.content.items()
            if value is not None and name not in self.names_read
        }

    def optional(self, name: str, default: float | None) -> float | None:
        """A number over zero, where null means none and only absence the default."""
        return self.number(name, None) if name in self.content else default

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self(name, default)
        if not isinstance(value, bool):
            raise UnsupportedModelError(
                f"{self.where}: {name} is neither true nor false: {value!r:.40}"
            )
        return value

    def size(self, name: str, default: Any = _REQUIRED, largest: int = 2**31 - 1) -> Any:
        """A whole number from zero to `largest`."""
        value = self(name, default)
        if value is None:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
            raise UnsupportedModelError(
                f"{self.where}: {name} is no size up to {largest:,}: {value!r}"
            )
        return value

    def layers(self, name: str = "num_hidden_layers") -> int:
        """The number of layers, within reason: a broken file may have any."""
        return self.size(name, largest=10_000)

    def number(self, name: str, default: Any = _REQUIRED) -> Any:
        """A finite number over zero."""
        value = self(name, default)
        if value is None:
            return value
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < float("inf"):
            raise UnsupportedModelError(f"{self.where}: {name} is no number over zero: {value!r}")
        try:
            return float(value)
        except OverflowError:
            raise UnsupportedModelError(f"{self.where}: {name} is too large a number") from None

    def demand(self, name: str, default: Any, *others: Any) -> Any:
        """A field that must be the default or one of `others`."""
        value = self(name, default)
        if value != default and value not in others:
            choices = ", ".join(map(repr, dict.fromkeys((default, *others))))
            raise UnsupportedModelError(
                f"{self.where}: {name} is {value!r}; Graft computes {choices}"
            )
        return value

    def windows(self, default: list[str] | None = None) -> tuple[int, ...]:
        """The windows of all layers, as the shortest cycle: from `layer_types` and
        `sliding_window`."""
        layers = self.layers()
        window = self.size("sliding_window", 0) or 0
        kinds = {"full_attention": 0, "sliding_attention": window}
        types = self("layer_types", default) or ["full_attention"] * layers
        unknown = sorted({str(kind) for kind in types} - set(kinds))
        if unknown or len(types) < layers:
            problem = f"has unknown kinds {unknown}" if unknown else f"names {len(types)} layers"
            raise UnsupportedModelError(
                f"{self.where}: layer_types {problem}; the model has {layers}"
            )
        every = tuple(kinds[kind] for kind in types[:layers])
        return shortest_cycle(every)

    def rotary(
        self, kind: str | None = None, base_name: str = "rope_theta"
    ) -> tuple[float, RotaryScaling | None]:
        """The base of rotary frequencies and their scaling, in the old style (`rope_theta` and
        `rope_scaling`) or the new one (`rope_parameters`, for a `kind` of layers if nested).

        Args:
          base_name: the old style's name of the base.
        """
        base = self.number(base_name, 10_000.0)
        new, old = self("rope_parameters", None), self("rope_scaling", None)
        if new and old and new != old:
            raise UnsupportedModelError(
                f"{self.where}: rope_parameters and rope_scaling differ: take one of them out"
            )
        content = new or old or {}
        if not isinstance(content, Mapping):
            raise UnsupportedModelError(f"{self.where}: rope_scaling is no object: {content!r}")
        if kind is not None and isinstance(content.get(kind), Mapping):
            content = content[kind]
        fields = Fields(content, f"{self.where}: rope scaling")
        inner = fields.number("rope_theta", base)
        if self.content.get(base_name) is not None and inner != base:
            raise UnsupportedModelError(
                f"{self.where}: {base_name} is {base:g}, and rope_theta {inner:g} in the rope "
                "scaling: take one of them out"
            )
        fields.demand("partial_rotary_factor", 1.0)
        scaling = fields._scaling()
        length = self("original_max_position_embeddings", None)
        if scaling and scaling.kind == "llama3" and length not in (None, scaling.original_length):
            raise UnsupportedModelError(
                f"{self.where}: original_max_position_embeddings is {length!r}, which transformers "
                f"takes, and {scaling.original_length} in the rope scaling: take one of them out"
            )
        for name, value in fields.unread().items():
            raise UnsupportedModelError(
                f"{fields.where}: {name} is {value!r:.40}, which a rope of type "
                f"{scaling.kind if scaling else 'default'} does not have"
            )
        return inner, scaling

    def _scaling(self) -> RotaryScaling | None:
        """The scaling that the fields of a rope describe."""
        old, new = self("type", None), self("rope_type", None)
        if old and new and old != new:
            raise UnsupportedModelError(f"{self.where}: rope_type is {new!r} and type {old!r}")
        form = new or old or "default"
        if form == "default":
            return None
        if form == "linear":
            return RotaryScaling("linear", self.number("factor"))
        if form == "llama3":
            return RotaryScaling(
                "llama3",
                self.number("factor"),
                self.number("low_freq_factor"),
                self.number("high_freq_factor"),
                self.size("original_max_position_embeddings"),
            )
        raise UnsupportedModelError(f"{self.where}: {form!r} is not among default, linear, llama3")


def write_rotary(scaling: RotaryScaling | None) -> dict[str, Any] | None:
    """`rope_scaling` as transformers before and after version 5 reads it."""
    if scaling is None:
        return None
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_factor,
        "high_freq_factor": scaling.high_factor,
        "original_max_position_embeddings": scaling.original_length,
    }


def shortest_cycle(every: tuple[int, ...]) -> tuple[int, ...]:
    """The shortest start of a sequence that gives all of it when repeated."""
    for length in range(1, len(every) + 1):
        if all(every[i] == every[i % length] for i in range(len(every))):
            return every[:length]
    return every
