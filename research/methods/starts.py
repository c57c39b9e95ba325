"""The ways in which a LoRA can start, by name. A new one is a line here."""

from typing import TYPE_CHECKING, Literal

from research.methods.eva import Explained
from research.methods.low_rank import LowRank
from research.methods.pissa import Principal

STARTS: dict[str, type[LowRank]] = {"zero": LowRank, "pissa": Principal, "eva": Explained}

# the type of a field that holds such a name
if TYPE_CHECKING:
    Start = str
else:
    Start = Literal[tuple(STARTS)]
