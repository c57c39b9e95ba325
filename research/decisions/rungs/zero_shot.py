"""Asking a base as it is, with the task's own words."""

from research.decisions.rungs.base import Place, Rung
from research.decisions.ways import Way


def ways(place: Place) -> list[Way]:
    several = len(place.bases) > 1
    return [
        Way(
            name=f"zero-shot, {base.name}" if several else "zero-shot",
            rung=RUNG.name,
            base=base,
            template=place.templates[0],
        )
        for base in place.bases
    ]


RUNG = Rung("zero-shot", ways)
