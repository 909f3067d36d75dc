"""Which bytes are which text: the lines of files and of standard input, read by one set of rules.

- Text is UTF-8, or UTF-16 with a byte order mark. The mark is not part of the text. A name that ends with `.gz` is
  read through gzip.
- A line ends with LF, CRLF or CR. Every other character is text: spaces at either end, tabs, NUL, form feed, U+0085 and
  U+2028 among them.
- A line has at most MAX_LINE characters, so that a small compressed file cannot fill the memory.
"""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from prompt_jax.errors import UserError

MAX_LINE = 1 << 22  # characters; tokenizing so many takes up to 1 GB

_ENCODINGS = {
    codecs.BOM_UTF32_LE: None,  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: None,
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_EXPECTED = "UTF-8, or UTF-16 with a byte order mark"
_UNDECODED = re.compile("[\ud800-\udfff]")  # what Python puts in the place of bytes that are no text


class DataError(UserError, ValueError):
    """Something is wrong with the data a user named; the message says what, where, and what was expected."""


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file with their ends, lazily and in order.

    Raises:
      DataError: the file cannot be read, is not text, or has a line that is too long; names file and line.
    """
    try:
        with path.open("rb") as file:
            packed = path.name.lower().endswith(".gz")
            yield from stream_lines(gzip.GzipFile(fileobj=file) if packed else file, str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def stream_lines(stream: Any, name: str) -> Iterator[str]:
    """Yield the lines of a binary stream, as `read_lines`. It stays open, and errors call it by `name`."""
    number = 0
    stream = stream if hasattr(stream, "peek") else io.BufferedReader(stream)
    encoding = "utf-8"
    try:
        encoding = _encoding(stream.peek(4), name)
        text = io.TextIOWrapper(stream, encoding, errors="surrogateescape", newline="")
        try:
            while line := text.readline(MAX_LINE + 1):
                number += 1
                _check(line, f"{name}:{number}", encoding)
                yield line
        finally:
            text.detach()  # or it would be closed with this reader
    except UnicodeDecodeError as error:
        fail(f"{name}, after line {number}", f"not {encoding.upper()} ({error.reason})", _EXPECTED)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: cannot be read after line {number}: {error}") from error


def without_end(line: str) -> str:
    """Return the text of a line."""
    return line.removesuffix("\n").removesuffix("\r")


def is_text(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8.

    Lone surrogates cannot. Python puts them into `sys.argv` for bytes that are not UTF-8.
    """
    return text.isascii() or _UNDECODED.search(text) is None


def fail(where: str, found: str, expected: str) -> NoReturn:
    """Raise DataError with the three parts of a message."""
    raise DataError(f"{where}: {found}; expected {expected}")


def shown(text: str, limit: int = 60) -> str:
    """Return a text of the data for an error message: in quotation marks, with escapes, and shortened."""
    return repr(text if len(text) <= limit else f"{text[:limit]}…")


def _encoding(start: bytes, name: str) -> str:
    """Return the encoding of a stream that begins with these bytes."""
    for mark, encoding in _ENCODINGS.items():
        if start.startswith(mark):
            if encoding is None:
                fail(name, "UTF-32", _EXPECTED)
            return encoding
    return "utf-8"


def _check(line: str, where: str, encoding: str) -> None:
    if len(line) > MAX_LINE:
        fail(where, f"a line of more than {MAX_LINE:,} characters", "one example a line, and shorter ones")
    if not line.isascii() and (undecoded := _UNDECODED.search(line)):
        place = f"byte 0x{ord(undecoded[0]) & 0xFF:02x} at character {undecoded.start() + 1} of the line"
        fail(where, f"not {encoding.removesuffix('-sig').upper()} ({place})", _EXPECTED)
