"""The readable text of an HTML page."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_BLOCKS = {
    "address", "article", "blockquote", "body", "dd", "div", "dl", "dt", "figcaption", "figure",
    "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "main", "ol", "p", "pre", "section", "table",
    "tr", "ul",
}  # fmt: skip
_DROPPED = {
    "script", "style", "nav", "header", "footer", "aside", "form", "button", "svg", "noscript",
    "template", "head",
}  # fmt: skip
_DROPPED_CLASSES = {"headerlink", "viewcode-link", "sphinxsidebar"}
_VOID = {
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track",
    "wbr",
}  # fmt: skip


class _TextParser(HTMLParser):
    """Collects text; nesting is counted on the same tag, so unclosed other tags do no harm."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.everything: list[str] = []
        self.main: list[str] = []
        self._line_starts = True
        self._inside = {"dropped": ("", 0), "main": ("", 0), "pre": ("", 0)}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            if tag in ("br", "hr"):
                self._add("\n")
            return
        attributes = dict(attrs)
        classes = set((attributes.get("class") or "").split())
        self._enter("dropped", tag, tag in _DROPPED or bool(classes & _DROPPED_CLASSES))
        is_main = (
            tag == "main" or attributes.get("role") == "main" or attributes.get("id") == "docs-body"
        )
        self._enter("main", tag, is_main)
        self._enter("pre", tag, tag == "pre")
        if tag in _BLOCKS:
            self._add("\n")
        elif tag in ("td", "th") and not self._line_starts:
            self._add(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._add("\n")
        for region, (name, depth) in self._inside.items():
            if name == tag and depth:
                self._inside[region] = (tag, depth - 1)

    def handle_data(self, data: str) -> None:
        # Line breaks mean nothing outside of <pre>; spaces there are kept.
        if not self._inside["pre"][1]:
            data = re.sub(r"\s+", " ", data)
            data = data.lstrip() if self._line_starts else data
        self._add(data)

    def _enter(self, region: str, tag: str, starts: bool) -> None:
        name, depth = self._inside[region]
        if depth and name == tag:
            self._inside[region] = (tag, depth + 1)
        elif not depth and starts:
            self._inside[region] = (tag, 1)

    def _add(self, text: str) -> None:
        if text and not self._inside["dropped"][1]:
            self._line_starts = text.endswith("\n")
            self.everything.append(text)
            if self._inside["main"][1]:
                self.main.append(text)


def html_text(page: str) -> str:
    """Main content of an HTML page as plain text, one block per line, no run of blank lines.

    The main content is <main>, role="main" or id="docs-body"; the whole page where none exists.
    Scripts, styles, navigation, headers, footers, forms and link marks are dropped; <pre> keeps
    its line breaks and indentation.
    """
    parser = _TextParser()
    parser.feed(page)
    parser.close()
    text = "".join(parser.main) if "".join(parser.main).strip() else "".join(parser.everything)
    text = re.sub(r"[ \t\xa0]+\n", "\n", text.replace("\r\n", "\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()
