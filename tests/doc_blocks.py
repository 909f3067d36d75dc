"""The code blocks of README.md, CONTRIBUTING.md and docs/, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
# RESULTS.md and plans.md are written by tools, and tested with them.
PAGES = [
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
    if not path.is_symlink()
]
LANGUAGES = ("bash", "console", "python")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S)
_NOTE = re.compile(r"<!-- (not tested|excerpt): (.+) -->\n *\Z")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
      note: ("not tested", the reason) or ("excerpt", a file), from a comment on the line before the block; or None.
    """

    page: str
    line: int
    language: str
    text: str
    note: tuple[str, str] | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    page = path.read_text(encoding="utf-8")
    for match in _FENCE.finditer(page):
        note = _NOTE.search(page[: match.start()])
        line = page[: match.start()].count("\n") + 1
        yield Block(path.name, line, match["language"], match["text"], note and (note[1], note[2]))


ALL = [block for path in PAGES for block in blocks(path)]


def commands(block: Block) -> list[list[str]]:
    """Return the words of each command of a bash or console block. Of a console block, output is left out."""
    text = re.sub(r"\\\n\s*", "", block.text)
    lines = [line.strip() for line in text.splitlines()]
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    parts = (part for line in lines for part in _split(shlex.shlex(line, posix=True, punctuation_chars="&|<>")))
    return [part for part in parts if part]


def _split(words: shlex.shlex) -> Iterator[list[str]]:
    """Split a line's words at `&&` and `|`, and leave out redirections."""
    words.whitespace_split = True
    command: list[str] = []
    for word in (remaining := iter(words)):
        if word in ("&&", "|"):
            yield command
            command = []
        elif set(word) <= set("<>"):
            next(remaining)
        else:
            command.append(word)
    yield command
