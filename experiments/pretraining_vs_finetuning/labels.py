"""Wrong labels in the training split, for the question of quality against quantity."""

import dataclasses
import hashlib
from typing import Any


@dataclasses.dataclass
class WrongLabels:
    """Gives a share of the records another label; which ones, and which, their text decides."""

    share: float
    labels: tuple[str, ...]

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        digest = hashlib.blake2b(record["prompt"].encode(), digest_size=8).digest()
        place = int.from_bytes(digest[:4], "big") / 2**32  # in [0, 1)
        if place >= self.share:
            return record
        others = [label for label in self.labels if label != record["completion"]]
        return record | {"completion": others[int.from_bytes(digest[4:], "big") % len(others)]}
