"""HTML from the Jinja templates beside this file, with every text escaped.

    render("section.html", title="A & B", parts=["a < b", Markup("<b>bold</b>")])

`Markup` is text that is HTML already: a template's output, or what a caller vouches for. All other
text is escaped, so text of models, data and configs can be passed as it is.
"""

from __future__ import annotations

import functools
from typing import Any

import jinja2
from markupsafe import Markup


@functools.cache
def environment() -> jinja2.Environment:
    """Environment of this package's templates; a missing value is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("research.reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def render(template: str, **values: Any) -> Markup:
    """The output of a template of this package, as markup for another one."""
    return Markup(environment().get_template(template).render(values))
