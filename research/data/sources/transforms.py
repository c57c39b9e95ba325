"""Transforms: what happens to each record of a source between its file and its labelled format.

A transform is a small frozen dataclass, `transform(record) -> record | None`; None drops the
record. They run in the order in which a config lists them, after the source's `fields` are renamed.
A new one is a class here and a line in `TRANSFORMS`, or a class in a file of one's own, which a
config names:

    transforms=[dict(kind="python", path="mine.py:Summaries", settings=dict(sentences=2))]
"""

import dataclasses
import functools
import hashlib
import json
import re
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from research.config.schema import Count, by_kind, one_of, to_dict
from research.config.user_code import errors_with_line, load_file

Record = dict[str, Any]


class Transform:
    """A change of records; each is a frozen dataclass with a `kind: Literal[...]` of its own."""

    # Its name in the registry and in configs.
    kind: str
    # Whether it may drop records: then all of a source are looked at when it is opened.
    drops: ClassVar[bool] = False

    @property
    def key(self) -> Any:
        """What its results depend on, as JSON: part of the source's fingerprint."""
        return to_dict(self)

    @property
    def reads(self) -> frozenset[str]:
        """Fields whose content it writes or acts on: they are not lost where no format has them."""
        return frozenset()

    @property
    def writes(self) -> frozenset[str]:
        """Fields that it writes anew: what a record has under their names would be lost."""
        return frozenset()

    def __call__(self, record: Record) -> Record | None:
        """The changed record, or None to drop it.

        Raises:
            ValueError: it does not fit the record.
        """
        raise NotImplementedError


def _text(record: Record, field: str) -> str:
    if field not in record:
        raise ValueError(f"there is no field {field!r}, only {sorted(record)}.")
    if not isinstance(record[field], str):
        raise ValueError(f"field {field!r} must be text, not {type(record[field]).__name__}.")
    return record[field]


@functools.lru_cache(maxsize=64)
def _names(template: str) -> tuple[str, ...]:
    """Fields that a format string writes."""
    parts = string.Formatter().parse(template)
    return tuple(re.split(r"[.\[]", path)[0] for _, path, _, _ in parts if path is not None)


@dataclasses.dataclass(frozen=True)
class Template(Transform):
    """New fields, written from those that a record has.

    `dict(kind="template", fields=dict(prompt="{question}\\n{context}", completion="{answer}"))`
    """

    # New field -> a format string over the record's fields; `{{` is a brace.
    fields: Mapping[str, str]
    # Fields that are removed after it.
    remove: tuple[str, ...] = ()
    kind: Literal["template"] = "template"

    def __post_init__(self) -> None:
        for name, template in self.fields.items():
            try:
                list(string.Formatter().parse(template))
            except ValueError as error:
                raise ValueError(f"fields.{name}: no format string: {error}") from None

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(name for template in self.fields.values() for name in _names(template))

    @property
    def writes(self) -> frozenset[str]:
        return frozenset(self.fields) - self.reads - frozenset(self.remove)

    def __call__(self, record: Record) -> Record:
        texts = {}
        for name, template in self.fields.items():
            for field in _names(template):
                if record.get(field) is None:
                    raise ValueError(f"there is no field {field!r}, only {sorted(record)}.")
            try:
                texts[name] = template.format_map(record)
            except (LookupError, AttributeError, TypeError, ValueError) as error:
                raise ValueError(f"the template of {name!r} does not fit: {error!r}.") from None
        return {k: v for k, v in (record | texts).items() if k not in self.remove}


@dataclasses.dataclass(frozen=True)
class Clean(Transform):
    """Text fields without white space at their ends, and in lower case if asked."""

    fields: tuple[str, ...]
    strip: bool = True
    lower: bool = False
    kind: Literal["clean"] = "clean"

    def __call__(self, record: Record) -> Record:
        texts = {field: _text(record, field) for field in self.fields}
        if self.strip:
            texts = {field: text.strip() for field, text in texts.items()}
        if self.lower:
            texts = {field: text.lower() for field, text in texts.items()}
        return record | texts


@dataclasses.dataclass(frozen=True)
class Filter(Transform):
    """Drops records by the text of one field."""

    field: str
    # A regular expression that the text must contain; None: any text.
    pattern: str | None = None
    # One that it must not contain.
    without: str | None = None
    # Characters that it must have at least, and at most.
    min_length: Count = 0
    max_length: Count | None = None
    kind: Literal["filter"] = "filter"

    drops: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, pattern in (("pattern", self.pattern), ("without", self.without)):
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise ValueError(f"{name}: no regular expression: {error}") from None

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.field})

    def __call__(self, record: Record) -> Record | None:
        text = _text(record, self.field)
        fits = self.min_length <= len(text) and (
            self.max_length is None or len(text) <= self.max_length
        )
        if self.pattern is not None:
            fits = fits and re.search(self.pattern, text) is not None
        if self.without is not None:
            fits = fits and re.search(self.without, text) is None
        return record if fits else None


@dataclasses.dataclass(frozen=True)
class Python(Transform):
    """A class of a file of one's own; its source text is part of the fingerprint."""

    # `path/to/file.py:ClassName`. Its objects take a record and return one, or None.
    path: str
    # What the class is made with.
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: Literal["python"] = "python"

    drops: ClassVar[bool] = True

    def __post_init__(self) -> None:
        file, _, name = self.path.rpartition(":")
        if not file.endswith(".py") or not name.isidentifier():
            raise ValueError(f"path: write it as path/to/file.py:ClassName, not {self.path!r}")

    @property
    def key(self) -> Any:
        file, _, name = self.path.rpartition(":")
        # Wherever the file lies.
        return to_dict(self) | {"path": name, "source": _digest(file)}

    def __call__(self, record: Record) -> Record | None:
        file, _, name = self.path.rpartition(":")
        transform = _load(file, name, json.dumps(to_dict(self)["settings"]), _modified(file))
        with errors_with_line(file):
            result = transform(record)
        if result is not None and not isinstance(result, dict):
            raise ValueError(
                f"{self.path} must return a dict or None, not {type(result).__name__}."
            )
        return result


def _digest(file: str) -> str:
    """sha256 of a user's file."""
    _modified(file)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _modified(file: str) -> int:
    """When a user's file was changed last."""
    try:
        return Path(file).stat().st_mtime_ns
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {file}, which a transform names.") from None


@functools.lru_cache(maxsize=64)  # Not in the config, which other processes are sent.
def _load(file: str, name: str, settings: str, modified: int) -> Callable[[Record], Record | None]:
    """An object of a class of a user's file; `modified` makes a changed file another entry."""
    del modified
    module = load_file(file)
    if not hasattr(module, name):
        raise ValueError(f"{file} has no class {name!r}.")
    try:
        return getattr(module, name)(**json.loads(settings))
    except TypeError as error:
        raise ValueError(f"{file}:{name}: the settings do not fit: {error}") from error


TRANSFORMS: dict[str, type[Transform]] = by_kind(
    Template,
    Clean,
    Filter,
    Python,
)
# One of them, told apart by its `kind`.
TransformConfig: Any = one_of(TRANSFORMS.values())
