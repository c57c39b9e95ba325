"""What a source is, and the settings that kinds of sources share."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from research.config.schema import Count, Positive, PositiveNumber, Share
from research.config.suggestions import suggestion
from research.data.sources import formats
from research.data.sources.transforms import TransformConfig


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source and its share of the mixture; each kind has a dataclass with its own fields."""

    # Name in statistics and metrics.
    name: str
    _: dataclasses.KW_ONLY
    # Split that is trained on.
    split: str = "train"
    # Share of the rows of every batch, relative to the other sources (see `mixture`).
    weight: float = 1.0
    # Times that it is read at most; None: as often as the mixture says.
    max_epochs: PositiveNumber | None = None
    # What each of its tokens counts in the training loss, beside those of other sources.
    loss_weight: PositiveNumber = 1.0
    # Of a bank of adapters: the one that this source's rows use and train.
    adapter: str | None = None

    @property
    def kind(self) -> str:
        """Its name in the registry and in configs."""
        raise NotImplementedError

    @property
    def license(self) -> str | None:
        """The license of its texts, where the source says it."""
        return None

    def open(self, split: str) -> "Source":
        """Opens a split.

        Raises:
            ValueError: the source has no such split.
            FileNotFoundError: the file or folder is not there.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class RecordsConfig(SourceConfig):
    """A source of records, whatever holds them."""

    _: dataclasses.KW_ONLY
    # Wanted field -> field in the file, such as {"text": "content"}; unnamed fields keep theirs.
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # One of `research.data.sources.formats.FORMATS`; None: what the first records look like.
    format: str | None = None
    # Fields of records that mean nothing for training, as regular expressions that match whole
    # names, after `fields` and `transforms`: ("score", "category"), or (".*",) for all that the
    # format does not read. Others that are no metadata are refused.
    unused_fields: tuple[str, ...] = ()
    # Classification with numbers as labels: the word that is said for label 0, 1, ...
    label_words: tuple[str, ...] = ()
    # Share of the records that may be unreadable, or not of the format; they are left out and
    # counted.
    bad_lines: Share = 0.0
    # What happens to each record after `fields`, in order; see `research.data.sources.transforms`.
    transforms: tuple[TransformConfig, ...] = ()
    # The same of the split that is trained on alone, after those: augmentation, wrong labels.
    training_transforms: tuple[TransformConfig, ...] = ()
    # Most records that are trained on, drawn by `sample_seed`; a smaller number draws some of
    # those that a larger one does. None: all. Other splits stay whole.
    max_records: Positive | None = None
    sample_seed: Count = 0

    def __post_init__(self) -> None:
        known = [name for name in formats.FORMATS if name != "other"]
        if self.format is not None and self.format not in known:
            raise ValueError(
                f"Source {self.name!r} has the unknown format {self.format!r}"
                f"{suggestion(self.format, known)}"
            )
        formats.UnusedFields(self.unused_fields)
        if len(set(self.label_words)) < len(self.label_words):
            raise ValueError(
                f"Source {self.name!r} has the same word for two labels: {self.label_words}"
            )


@dataclasses.dataclass(frozen=True)
class FilesConfig(RecordsConfig):
    """Records in files, on a disk or in a bucket."""

    # A file or a pattern (`part-*.jsonl`), on a disk or in a bucket (`gs://`, `s3://`). `{split}`
    # in it is replaced by the name of the split.
    path: str


class Source(Protocol):
    """Random access to examples."""

    name: str

    @property
    def fingerprint(self) -> str:
        """Identifies the content."""
        ...

    @property
    def acceptance(self) -> Mapping[str, Any]:
        """What decides which records are refused or left out, as JSON.

        What was read under other settings, or by other rules, was never looked at under these.
        """
        ...

    @property
    def format(self) -> str:
        """One of `research.data.sources.formats.FORMATS`, or "prepared"."""
        ...

    @property
    def bad_lines(self) -> int:
        """How many records were left out because they cannot be read."""
        ...

    @property
    def note(self) -> str:
        """What a plan says of how its records are changed."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...
