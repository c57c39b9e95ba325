"""Parser of HTML pages: collects their parts, and checks that every tag is closed in order."""

from html.parser import HTMLParser

# elements without a closing tag
VOID = {"meta", "link", "br", "input"}


class Page(HTMLParser):
    """Tags, attributes and text of a page or of a part of one."""

    def __init__(self, markup: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open_tags: list[str] = []
        self.texts: list[str] = []
        self.feed(markup)
        self.close()
        assert self.open_tags == [], f"never closed: {self.open_tags}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open_tags.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def links(self) -> list[str | None]:
        """Addresses to which it refers."""
        names = {"src", "href", "action", "xlink:href"}
        return [value for name, value in self.attributes if name in names]
