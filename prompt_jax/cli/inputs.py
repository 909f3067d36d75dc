"""The inputs of `predict`: texts, or rows with the template's columns, from arguments, a file or standard input."""

import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prompt_jax.data.files import render_row
from prompt_jax.data.lines import is_text, read_lines, stream_lines, strip_line_ending
from prompt_jax.data.rows import KINDS, read_rows
from prompt_jax.errors import DataError, UserError
from prompt_jax.task_format import TaskFormat


def read_inputs(words: Sequence[str], file: Path | None) -> Iterator[tuple[str, Any]]:
    """Yield each input's location and content: a text, or a row if the file has columns.

    Each argument, and each line of standard input or of a text file, is one text, even if it is empty. Only line ends
    are removed.

    Raises:
      UserError: there are both arguments and a file, or an argument is not UTF-8.
      DataError: there is no input, or the file is invalid (see `read_lines` and `read_rows`).
    """
    if words and file is not None:
        raise UserError(f"there are inputs as arguments and in --input {file}; use only one of them")
    if words:
        for number, word in enumerate(words, 1):
            if not is_text(word):
                raise UserError(f"input {number}: the argument {word!r:.60} is not text; expected UTF-8")
            yield f"input {number}", word
        return
    suffix = "" if file is None else Path(file.name.lower().removesuffix(".gz")).suffix
    if file is not None and suffix in KINDS:
        yield from ((f"{file}:{number}", row) for number, row in read_rows(file))
        return
    if suffix == ".json":
        raise DataError(
            f"{file}: expected a file named .jsonl with one JSON object a line, or .txt with one text a line"
        )
    name = "standard input" if file is None else str(file)
    lines = stream_lines(_standard_input(), name) if file is None else read_lines(file)
    number = 0
    for number, line in enumerate(lines, 1):
        yield f"{name}:{number}", strip_line_ending(line)
    if not number:
        raise DataError(f"{name}: no input; expected a text on each line")


def _standard_input() -> Any:
    """Return standard input as a binary stream, which does not depend on the locale."""
    if sys.stdin is None:  # closed
        return io.BytesIO()
    return sys.stdin.buffer if hasattr(sys.stdin, "buffer") else io.BytesIO(sys.stdin.read().encode("utf-8"))


def input_texts(inputs: Iterable[tuple[str, Any]], task_format: TaskFormat) -> Iterator[str]:
    """Yield the rendered text of each input. With several columns, a text must be a JSON object."""
    columns = task_format.columns
    for where, line in inputs:
        if len(columns) == 1 and isinstance(line, str):
            yield task_format.render({columns[0]: line})
        else:
            yield render_row(as_row(line, where, f"a JSON object with {', '.join(columns)}"), task_format, where)


def as_row(line: Any, where: str, wanted: str) -> dict[str, Any]:
    """Return a row unchanged, or parse a text as a JSON object.

    Raises:
      UserError: the text is not a JSON object; the message contains `wanted`.
    """
    if not isinstance(line, str):
        return line
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: expected {wanted}; {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected {wanted}, not a JSON {type(row).__name__}")
    return row
