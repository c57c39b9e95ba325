"""One self-contained HTML page per report: tables, plots as inline SVG, samples, provenance.

The page makes no request (its content policy forbids any), runs no script, and reads well on light
and dark screens, on paper and without color vision. Whatever is not `Markup` is escaped, so text
of models, data and configs can be passed as it is.

    results = page.section("Results", table(rows, columns))
    page.write(path, "Title", results, finding="One sentence.")
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from research.reports.markup import render
from research.runtime import files

__all__ = ["Sample", "samples", "section", "write"]


@dataclass(frozen=True)
class Sample:
    """A prompt, the completion that is right, and what each model answered."""

    prompt: str
    expected: str
    # model's name -> its answer
    answers: Mapping[str, str]


def samples(items: Sequence[Sample], caption: str = "") -> Markup:
    """Prompts with the expected completion and each model's answer, marked right or wrong."""
    return render("samples.html", samples=items, caption=caption)


def section(title: str, *parts: str) -> Markup:
    """A heading and what follows it; plain strings become escaped paragraphs."""
    return render("section.html", title=title, parts=parts)


def write(
    path: str | os.PathLike[str],
    title: str,
    *sections: str,
    finding: str = "",
    provenance: Mapping[str, Any] | None = None,
    stylesheet: str = "",
) -> Path:
    """Write the page, replacing an older one only when the new one is complete.

    finding: the result in one sentence, printed under the title.
    provenance: name -> text, a mapping of texts (versions), or anything that prints as JSON
      (config); what takes several lines folds away.
    stylesheet: a template with rules for parts of this page alone, after those of page.css.
    """
    page = render(
        "page.html",
        title=title,
        sections=sections,
        finding=finding,
        provenance={name: _as_text(value) for name, value in (provenance or {}).items()},
        stylesheet=stylesheet,
    )
    path = Path(path)
    files.atomic_write(path, f"{page}\n")
    return path


def _as_text(value: Any) -> str:
    """A value of the provenance as text: a mapping of texts in one line, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and all(isinstance(v, str) for v in value.values()):
        return ", ".join(f"{key} {v}" for key, v in value.items())
    return json.dumps(value, indent=2, default=str)
