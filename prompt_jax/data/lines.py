"""Lines of text files and of standard input, read by one set of rules.

- Text is UTF-8, or UTF-16 with a byte order mark, which is not part of the text. Files named `.gz` are decompressed.
- A line ends with LF, CRLF or CR. Every other character is text, including leading and trailing spaces, tabs, NUL, form
  feed, U+0085 and U+2028.
- A line has at most MAX_LINE characters, so that a small compressed file cannot fill the memory.
"""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prompt_jax.errors import DataError

MAX_LINE = 1 << 22  # characters; tokenizing such a line takes up to 1 GB

_ENCODINGS = {
    codecs.BOM_UTF32_LE: None,  # before UTF-16: this mark begins with UTF-16's
    codecs.BOM_UTF32_BE: None,
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_EXPECTED = "UTF-8, or UTF-16 with a byte order mark"
_UNDECODED = re.compile("[\ud800-\udfff]")  # Python's substitutes for bytes that are not text


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file with their line endings, lazily and in order.

    Raises:
      DataError: the file cannot be read, is not text, or has a line that is too long. Names file and line.
    """
    try:
        with path.open("rb") as file:
            packed = path.name.lower().endswith(".gz")
            yield from stream_lines(gzip.GzipFile(fileobj=file) if packed else file, str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def stream_lines(stream: Any, name: str) -> Iterator[str]:
    """Yield the lines of a binary stream as `read_lines` does. The stream stays open; errors call it `name`."""
    number = 0
    stream = stream if hasattr(stream, "peek") else io.BufferedReader(stream)
    encoding = "utf-8"
    try:
        encoding = _encoding(stream.peek(4), name)
        text = io.TextIOWrapper(stream, encoding, errors="surrogateescape", newline="")
        try:
            while line := text.readline(MAX_LINE + 1):
                number += 1
                _check_line(line, f"{name}:{number}", encoding)
                yield line
        finally:
            text.detach()  # otherwise the stream would be closed with this reader
    except UnicodeDecodeError as error:
        raise data_error(
            f"{name}, after line {number}", f"not {encoding.upper()} ({error.reason})", _EXPECTED
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: cannot be read after line {number}: {error}") from error


def strip_line_ending(line: str) -> str:
    """Return a line without its line ending."""
    return line.removesuffix("\n").removesuffix("\r")


def is_text(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8.

    Lone surrogates cannot be encoded. Python puts them into `sys.argv` for bytes that are not UTF-8.
    """
    return text.isascii() or _UNDECODED.search(text) is None


def data_error(where: str, problem: str, expected: str) -> DataError:
    """Return a DataError whose message has these three parts."""
    return DataError(f"{where}: {problem}; expected {expected}")


def quote(text: str, limit: int = 60) -> str:
    """Return a text for an error message: quoted, escaped, and shortened to `limit` characters."""
    return repr(text if len(text) <= limit else f"{text[:limit]}…")


def _encoding(start: bytes, name: str) -> str:
    """Return the encoding of a stream that starts with these bytes."""
    for mark, encoding in _ENCODINGS.items():
        if start.startswith(mark):
            if encoding is None:
                raise data_error(name, "UTF-32", _EXPECTED)
            return encoding
    return "utf-8"


def _check_line(line: str, where: str, encoding: str) -> None:
    if len(line) > MAX_LINE:
        raise data_error(where, f"a line of more than {MAX_LINE:,} characters", "shorter lines, one example each")
    if not line.isascii() and (undecoded := _UNDECODED.search(line)):
        place = f"byte 0x{ord(undecoded[0]) & 0xFF:02x} at character {undecoded.start() + 1} of the line"
        raise data_error(where, f"not {encoding.removesuffix('-sig').upper()} ({place})", _EXPECTED)
