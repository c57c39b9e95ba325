"""The question in other words: a handful of templates, of which the best on validation stays."""

import dataclasses

from research.decisions.rungs.base import LeftOut, Place, Rung
from research.decisions.ways import Way


def ways(place: Place) -> list[Way]:
    best = place.incumbent
    others = [template for template in place.templates if template != best.template]
    if not others:
        raise LeftOut("there is one template alone")
    return [
        dataclasses.replace(best, name=template.name, rung=RUNG.name, template=template)
        for template in others
    ]


RUNG = Rung("instructions", ways)
