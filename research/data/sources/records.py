"""The part that all sources of records share, whatever holds them."""

import array
import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from research.config.suggestions import suggestion
from research.data.sources import contents, formats
from research.data.sources.base import RecordsConfig
from research.data.sources.files import File
from research.runtime.expansion import check_record

# Records that are looked at to tell the format.
_LOOK = 64
# Bad lines that an error names.
_MAX_ERRORS = 5


def decode_text(value: Any) -> Any:
    """Bytes (as TFDS gives text) and numpy scalars become `str` and Python numbers."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.tolist()
    if isinstance(value, list):
        return [decode_text(item) for item in value]
    if isinstance(value, dict):
        return {key: decode_text(item) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _without_nulls(value: Any) -> Any:
    """A value whose mappings have no null: a column's struct has every field of all its rows."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return value


@dataclasses.dataclass(frozen=True)
class _Selection:
    """The records that are read of all."""

    rows: np.ndarray  # [n] int64
    # How many could be read, before some of them were drawn.
    readable: int
    # Those that are left out because they cannot be read; the others were dropped.
    bad_lines: int


class Records:
    """Common part: the field map, decoding, the format, bad lines, and errors that name a place."""

    def __init__(
        self,
        config: RecordsConfig,
        split: str,
        records: Any,
        fingerprint: Callable[[], str],
        place: Callable[[int], str],
        *,
        files: Sequence[File] = (),
        null_is_absent: bool = False,
    ):
        """Records of a split.

        Args:
          config: the source.
          split: which split.
          records: what is read, with `len()` and `[i]`, which gives a mapping.
          fingerprint: identifies their content.
          place: says where a record stands.
          files: those that hold them.
          null_is_absent: whether their structs have null where a record lacks a field, as Arrow's.
        """
        self.name = f"{config.name}:{split}"
        self._config = config
        self._is_trained = split == config.split
        training_transforms = config.training_transforms if self._is_trained else ()
        self._transforms = config.transforms + training_transforms
        self._max_records = config.max_records if self._is_trained else None
        transforms = config.transforms + config.training_transforms
        used_names = [name for transform in transforms for name in transform.reads]
        self._unused = formats.UnusedFields(config.unused_fields, used_names)
        self._records = records
        self._compute_fingerprint = fingerprint
        self._place = place
        self._files, self._null_is_absent = files, null_is_absent

    @functools.cached_property
    def fingerprint(self) -> str:
        config = self._config
        content = f"{self._compute_fingerprint()} {json.dumps(dict(config.fields), sort_keys=True)}"
        if config.format or config.label_words:
            content += f" {json.dumps([config.format, config.label_words])}"
        if self._transforms:
            keys = [transform.key for transform in self._transforms]
            content += f" {json.dumps(keys, sort_keys=True)}"
        if self._max_records is not None:
            content += f" {self._max_records} records, seed {config.sample_seed}"
        if config.unused_fields and config.bad_lines:  # they decide which records are left out
            content += f" unused {json.dumps(config.unused_fields)}"
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def acceptance(self) -> Mapping[str, Any]:
        """The rules' number, and the settings that are not part of the fingerprint."""
        config = self._config
        transforms = config.transforms + config.training_transforms
        return {
            "rules": formats.RULES,
            "unused_fields": list(config.unused_fields),
            "used_names": sorted({name for transform in transforms for name in transform.reads}),
            "bad_lines": config.bad_lines,
        }

    @functools.cached_property
    def format(self) -> str:
        """As configured, or what the first records look like.

        Raises:
            ValueError: they differ (unless bad lines are tolerated: then most decide), or there
              are label words and nothing to label.
        """
        name = self._config.format or self._detect()
        if self._config.label_words and name != "classification":
            raise ValueError(
                f"Source {self.name!r} has label_words, but its records are of the format "
                f"{name!r}, without fields 'text' and 'label' (a whole number or "
                "text): name them in `fields`."
            )
        return name

    def _detect(self) -> str:
        indices_by_format: dict[str, list[int]] = {}
        for index in range(len(self._records)):
            with contextlib.suppress(ValueError):  # Said when the record is read.
                if (record := self._read(index)) is not None:
                    indices_by_format.setdefault(formats.name_format(record), []).append(index)
            count = sum(map(len, indices_by_format.values()))
            if count == _LOOK or (index + 1 >= _LOOK and count):
                break
        if len(indices_by_format) > 1 and not self._config.bad_lines:
            places = [
                f"{self._place(rows[0])} is {name!r}" for name, rows in indices_by_format.items()
            ]
            raise ValueError(
                f"Source {self.name!r} has records of several formats: {', '.join(places)}. Set "
                "its `format`, or leave one kind of them out."
            )
        return max(
            indices_by_format, key=lambda name: len(indices_by_format[name]), default="other"
        )

    @functools.cached_property
    def _selection(self) -> _Selection | None:
        """The records that are read, where some may be left out."""
        self._check_unused_fields()
        tolerant = self._config.bad_lines > 0
        if not tolerant and not any(transform.drops for transform in self._transforms):
            if self._max_records is None:
                return None
            return self._sample(np.arange(len(self._records)), 0)
        good, errors = array.array("q"), list[str]()
        rows = range(len(self._records))
        for row in tqdm(rows, f"check {self.name}", unit="row", leave=False, disable=None):
            try:
                if self._example(row) is not None:
                    good.append(row)
            except ValueError as error:
                if not tolerant:
                    raise self._unreadable(error) from error
                errors.append(str(error) if len(errors) < _MAX_ERRORS else "")
        share = len(errors) / max(1, len(rows))
        if share > self._config.bad_lines:
            first = "\n  ".join(errors[:_MAX_ERRORS])
            raise ValueError(
                f"Source {self.name!r}: {len(errors)} of {len(rows)} records cannot be read, "
                f"{share:.2%}; bad_lines allows {self._config.bad_lines:.2%}. The first:\n  {first}"
            )
        if not good and errors:  # also where all may be bad
            raise ValueError(
                f"Source {self.name!r}: none of {len(rows)} records can be read. The first:\n  "
                + "\n  ".join(errors[:_MAX_ERRORS])
            )
        if not good and rows:
            raise ValueError(f"Source {self.name!r}: its transforms drop all {len(rows)} records.")
        return self._sample(np.frombuffer(good, np.int64), len(errors))

    def _check_unused_fields(self) -> None:
        """Raises ValueError if one of them is in no record that is trained on: it is misspelt.

        Records are read until each pattern has matched, which is mostly the first one.
        """
        if not self._unused.idle or not self._is_trained or self.format == "other":
            return
        fields, others = set[str](), set[str]()
        for row in range(len(self._records)):
            with contextlib.suppress(ValueError):  # said when the record is read
                fields |= (self._read(row) or {}).keys()
            others = fields - formats.FORMATS[self.format].reads
            self._unused.select(others)
            if not self._unused.idle:
                return
        if fields:
            pattern = min(self._unused.idle)
            raise ValueError(
                f"Source {self.name!r}: unused_fields has {pattern!r}, which matches no field that "
                f"records of the format {self.format} have beside it{suggestion(pattern, others)}"
            )

    def _sample(self, rows: np.ndarray, bad_lines: int) -> _Selection:
        """At most `max_records` of the rows, in their order."""
        sampled = rows
        if self._max_records is not None and self._max_records < len(rows):
            order = np.random.default_rng(self._config.sample_seed).permutation(len(rows))
            sampled = np.sort(rows[order[: self._max_records]])
        return _Selection(sampled, len(rows), bad_lines)

    @staticmethod
    def _unreadable(error: ValueError) -> ValueError:
        if isinstance(error, contents.FileError):
            return error
        text = str(error) if str(error).endswith((".", "?")) else f"{error}."
        return ValueError(f"{text} Mend it, or leave a share of such records out: `bad_lines`.")

    def place(self, index: int) -> str:
        """Where a record stands: its file and line, or row."""
        return self._place(index if self._selection is None else int(self._selection.rows[index]))

    @property
    def bad_lines(self) -> int:
        return 0 if self._selection is None else self._selection.bad_lines

    def check_unchanged(self) -> None:
        """Looks whether the files are as they were found; what is kept under the fingerprint must
        be what it identifies.

        Raises:
          FileError: one was changed, replaced or removed meanwhile.
        """
        for file in self.files:
            file.check_unchanged()

    @property
    def files(self) -> Sequence[File]:
        """The files that records are read from, as they were found."""
        return self._files

    @property
    def note(self) -> str:
        selection = self._selection
        notes = [f"{len(self._files):,} files"] if len(self._files) > 1 else []
        readable = len(self._records) if selection is None else selection.readable
        if self._transforms:
            dropped = len(self._records) - readable - self.bad_lines
            kinds = ", ".join(transform.kind for transform in self._transforms)
            notes.append(
                f"transforms {kinds}" + (f" ({dropped:,} records dropped)" if dropped else "")
            )
        if self._config.unused_fields:
            notes.append(f"without {', '.join(self._config.unused_fields)}")
        if self._max_records is not None:
            notes.append(f"{len(self):,} of {readable:,} records")
        return ", ".join(notes)

    def __len__(self) -> int:
        return len(self._records) if self._selection is None else len(self._selection.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._selection is not None:
            index = int(self._selection.rows[index])
        try:
            example = self._example(index)
        except ValueError as error:
            if self._config.bad_lines:
                raise
            raise self._unreadable(error) from error
        assert example is not None  # Those that are dropped are not in the selection.
        return example

    def _example(self, index: int) -> dict[str, Any] | None:
        """A record with the fields of its format; None: a transform drops it."""
        example = self._read(index)
        if example is None:
            return None
        form = formats.FORMATS[self.format]
        try:
            if self._null_is_absent:
                read_fields = form.reads.intersection(example)
                example |= {name: _without_nulls(example[name]) for name in read_fields}
            converted = form.read(example, self._config.label_words)
            formats.check_fields(example, converted, form, self._unused, self._config.name)
        except ValueError as error:
            raise ValueError(f"{self._place(index)}: {error} (format {self.format})") from error
        except RecursionError:
            raise ValueError(f"{self._place(index)}: a field is nested too deeply") from None
        # what is set to be unused, or of another format, is read by no objective either
        if form.reads and (self._config.format or self._config.unused_fields):
            hidden = formats.OF_OBJECTIVES - form.reads
            example = {k: v for k, v in example.items() if k not in hidden}
        if form.replaces:
            example = {k: v for k, v in example.items() if k not in form.reads}
        return {**example, **converted}

    def _read(self, index: int) -> dict[str, Any] | None:
        """A record with its fields renamed, after all transforms."""
        record, fields = self._records[index], self._config.fields
        for value in record.values():
            if isinstance(value, str | bytes):
                check_record(len(value), self._place(index))
        try:
            example = {key: decode_text(value) for key, value in record.items()}
        except UnicodeDecodeError as error:
            head = error.object[: contents.HEAD]
            what = contents.describe(head, "text") or f"{error}; {contents.ENCODING}"
            raise ValueError(f"{self._place(index)}: not UTF-8 text: {what}") from error
        except RecursionError:
            raise ValueError(f"{self._place(index)}: a field is nested too deeply") from None
        for there in fields.values():
            if there not in example:
                raise ValueError(
                    f"{self._place(index)}: there is no field {there!r}{suggestion(there, example)}"
                )
        renamed = {name: example[there] for name, there in fields.items()}
        others = {k: v for k, v in example.items() if k not in fields.values()}
        try:
            self._check_overwritten(others, renamed, "fields")
        except ValueError as error:
            raise ValueError(f"{self._place(index)}: {error}") from error
        example = {**others, **renamed}
        for transform in self._transforms:
            try:
                result = transform(example)
                new_values = {name: result[name] for name in transform.writes} if result else {}
                self._check_overwritten(example, new_values, "its template")
            except ValueError as error:
                raise ValueError(
                    f"{self._place(index)}: {error} (transform {transform.kind})"
                ) from error
            if result is None:
                return None
            example = result
        return example

    def _check_overwritten(self, old: dict[str, Any], new: dict[str, Any], writer: str) -> None:
        formats.check_overwritten(old, new, self._unused, writer, self._config.name)
