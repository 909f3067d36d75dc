"""A parser for HTML reports."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """The elements and texts of a page. Fails if tags do not match or if the page loads anything."""

    VOID = {"meta", "link", "br", "img", "hr", "input", "wbr"}

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"
        assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in self.elements}
        assert not re.search(r"url\((?!#)|@import|(?:src|href)=\"(?!#)", text)
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text.append(data)

    def count(self, tag: str, **attributes: str) -> int:
        return sum(
            name == tag and all(actual.get(key) == value for key, value in attributes.items())
            for name, actual in self.elements
        )

    def labeled(self, tag: str) -> list[str | None]:
        """Return the `aria-label` of each element of a kind."""
        return [attributes.get("aria-label") for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        """Return the text in one line. Task names may contain a line break after an underscore."""
        return " ".join(" ".join(self.text).split()).replace("_ ", "_")
