"""Reader of a page for tests: its text and its tags."""

from __future__ import annotations

from html.parser import HTMLParser

EVIL = '<script>alert("x")</script>'
"""Text that a person may type as the name of a class."""

VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Text, attributes and balance of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.html, self.text = text, ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def ids(self) -> set[str | None]:
        return {attributes["id"] for _, attributes in self.tags if "id" in attributes}

    def values(self, tag: str, attribute: str) -> list[str]:
        return [
            attributes.get(attribute) or ""
            for name, attributes in self.tags
            if name == tag
        ]
