"""The rows of JSONL, CSV and TSV files, read in plain Python, one at a time. See `lines` for encodings.

- `.jsonl`: one JSON object a line.
- `.csv`: a header line, then cells separated by commas and quoted as in RFC 4180. A quoted cell may hold line breaks.
- `.tsv`: a header line, then cells separated by tabs. There are two variants. pandas, Python's csv module and Excel
  quote cells as in CSV. In other files, such as GLUE's, quotation marks are text. `_first_text_quote` decides.

Blank lines are skipped. A column without a name, such as pandas' index, is dropped. Anything else that is malformed
raises DataError with file and line.
"""

import csv
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prompt_jax.data.lines import MAX_LINE, data_error, quote, read_lines, strip_line_ending
from prompt_jax.errors import DataError

KINDS = (".jsonl", ".csv", ".tsv")

# A quoted cell of a TSV file, without line breaks.
_QUOTED = re.compile(r'(?:^|\t)("(?:[^"\t]|"")*+")(?=[\t\r\n]|$)')

# The characters that make programs quote a cell of a TSV file: Python's csv module and pandas; Excel.
_SPECIAL = (frozenset('\t\r\n"'), frozenset('\t\r\n",'))


def file_kind(path: Path, kinds: Sequence[str] = KINDS) -> str:
    """Return one of the kinds, such as `".jsonl"`, from the name of the file without a final `.gz`."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in kinds:
        raise DataError(
            f"{path}: expected a file named {', '.join(kinds[:-1])} or {kinds[-1]}, with or without .gz after it"
        )
    return suffix


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row of a file with the number of the line that it begins on, lazily and in order.

    Values are strings, or in JSONL any JSON value. All rows of a CSV or TSV file have the same columns.

    Raises:
      DataError: the file is missing or empty, or a line is broken.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".tsv": _read_tsv}
    kind, row = file_kind(path), None
    for row in readers[kind](path):
        yield row
    if row is None:
        needed = " JSON object on a line" if kind == ".jsonl" else " after a header line"
        raise DataError(f"{path}: no rows; expected at least one{needed}")


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_lines(path), 1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise data_error(f"{path}:{number}", f"broken JSON ({error})", "one JSON object a line") from error
        if not isinstance(row, dict):
            raise data_error(f"{path}:{number}", f"a JSON {type(row).__name__}", "one JSON object a line")
        yield number, row


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    return _with_header(path, _quoted_records(path, ","), "")


def _read_tsv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    hint, line = "; a cell with a tab or a line break has to be quoted", _first_text_quote(path)
    if line is None:
        return _with_header(path, _quoted_records(path, "\t"), hint)
    hint += f", and line {line} shows that quotation marks are text in this file"
    return _with_header(path, _plain_records(path, line), hint)


def _with_header(path: Path, records: Iterator["_Record"], hint: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the records after the header line as dicts; `hint` ends error messages about the number of cells."""
    header = None
    for line, text, cells in records:
        where = f"{path}:{line}"
        if not cells:
            continue
        if header is None:
            header = _header(cells, text, where)
            continue
        if len(cells) != len(header):
            raise data_error(where, f"{len(cells)} cells", f"{len(header)} ({_list_columns(header)}){hint}")
        yield line, {name: cell for name, cell in zip(header, cells, strict=True) if name}


def _header(cells: Sequence[str], text: str, where: str) -> Sequence[str]:
    names = [cell for cell in cells if cell]
    if not names or len(set(names)) != len(names):
        raise data_error(where, f"a header line with the columns {_list_columns(cells)}", "distinct names")
    if "\0" in text:
        raise data_error(where, "a header line with NUL characters", "UTF-8, or UTF-16 with a byte order mark")
    return cells


_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}
_NAMES = {",": ", or the name .csv", "\t": ", or the name .tsv", ";": ""}


def _check_separator(line: str, separator: str, where: str) -> None:
    """Raise DataError if a header line has another separator and not this one.

    Checks the line before it is parsed, since quoted cells with another separator are broken CSV.
    """
    if separator in line:
        return
    wanted = _SEPARATORS[separator]
    for other, present in _SEPARATORS.items():
        if other in line:
            raise data_error(where, f"a header line with {present} and no {wanted}", f"{wanted}{_NAMES[other]}")


# --------------------------------------------------------------------------------------------------------------
# A record: the line on which it begins, its text, and its cells. A blank line has no cells.

_Record = tuple[int, str, list[str]]


class _BrokenQuotes(DataError):
    """The record that begins on `line` is not quoted as in RFC 4180."""

    def __init__(self, message: str, line: int):
        super().__init__(message)
        self.line = line


def _quoted_records(path: Path, separator: str) -> Iterator[_Record]:
    record_lines: list[str] = []

    def lines() -> Iterator[str]:
        size = 0
        for number, line in enumerate(read_lines(path), 1):
            if number == 1:
                _check_separator(line, separator, f"{path}:1")
            size = len(line) + (size if record_lines else 0)
            if size > MAX_LINE:
                raise csv.Error(f"more than {MAX_LINE:,} characters in one row: a quotation mark may be missing")
            record_lines.append(line)
            yield line

    reader = csv.reader(lines(), delimiter=separator, strict=True)
    while True:
        begin = reader.line_num + 1
        record_lines.clear()
        limit = csv.field_size_limit(MAX_LINE)  # a global of the csv module, so it is restored
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = {",": "CSV", "\t": "TSV"}[separator]
            expected = f'cells separated by {_SEPARATORS[separator]}, quoted with "'
            raise _BrokenQuotes(f"{path}:{begin}: broken {what} ({error}); expected {expected}", begin) from error
        finally:
            csv.field_size_limit(limit)
        yield begin, "".join(record_lines), cells


def _plain_records(path: Path, text_quote: int) -> Iterator[_Record]:
    """Yield the records of a TSV file in which quotation marks are text, as the line `text_quote` shows."""
    warned = False
    for number, line in enumerate(read_lines(path), 1):
        if number == 1:
            _check_separator(line, "\t", f"{path}:1")
        if not warned and '""' in line and (cell := _doubled(line)) is not None:
            warned = True
            warnings.warn(
                f"{path}:{number}: the cell {quote(cell)} looks quoted, but quotation marks are read as text, since no "
                f"program that quotes cells writes line {text_quote}. Fix that line, or use a .csv or .jsonl file",
                stacklevel=2,
            )
        text = strip_line_ending(line)
        yield number, line, text.split("\t") if text else []


def _doubled(line: str) -> str | None:
    """Return the first quoted cell of a line in which quotation marks are doubled."""
    cells = (match[1] for match in _QUOTED.finditer(line))
    return next((cell for cell in cells if '""' in cell[1:-1]), None)


def _first_text_quote(path: Path) -> int | None:
    """Return the first line that shows quotation marks to be text in a TSV file; None if cells are quoted.

    Cells are quoted if the header is, or if one program (`_SPECIAL`) would have quoted exactly the cells that are
    quoted. Programs differ on empty cells.
    """
    header: Sequence[str] | None = None
    programs, all_quoted = list(_SPECIAL), False
    try:
        for line, text, cells in _quoted_records(path, "\t"):
            if not cells:
                continue
            quoted = _quoted_cells(text, cells)
            if header is None:
                header, all_quoted = cells, all(quoted)
            if '"' in text and len(cells) != len(header):
                return line
            if not all_quoted:
                programs = [special for special in programs if _quotes_exactly(special, cells, quoted)]
                if not programs:
                    return line
    except _BrokenQuotes as error:
        return error.line
    return None


def _quotes_exactly(special: frozenset[str], cells: Sequence[str], quoted: Sequence[bool]) -> bool:
    """Return whether exactly the cells with a special character are quoted. Empty cells do not count."""
    return all(not cell or is_quoted != special.isdisjoint(cell) for cell, is_quoted in zip(cells, quoted, strict=True))


def _quoted_cells(text: str, cells: Sequence[str]) -> list[bool]:
    """Return which cells of a record are quoted in its text."""
    if '"' not in text:
        return [False] * len(cells)
    quoted, place = [], 0
    for cell in cells:
        quoted.append(text.startswith('"', place))
        place += len(cell) + 1 + (2 + cell.count('"') if quoted[-1] else 0)
    return quoted


def _list_columns(names: Sequence[str]) -> str:
    """Return the names of the first columns for an error message."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(f"{name:.40}" for name in names[:10]) + more
