"""A user's examples in JSONL, CSV and TSV files, read in plain Python, one row at a time.

What is accepted, for each kind of file (all UTF-8, with or without a byte order mark, also gzipped as `.gz`):

- `.jsonl`: one JSON object a line.
- `.csv`: a header line, cells separated by commas and quoted as RFC 4180 has it; a cell may hold line breaks.
- `.tsv`: a header line, cells separated by tabs, nothing quoted (IANA's text/tab-separated-values): a quotation
  mark is text, and a cell can hold neither a tab nor a line break.

Blank lines are skipped. Anything else that is wrong is a DataError with the file and the line.
"""

import csv
import dataclasses
import gzip
import hashlib
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from prompt_jax.errors import UserError
from prompt_jax.paths import as_path
from prompt_jax.task_format import UNLABELLED, TaskFormat

_KINDS = (".jsonl", ".csv", ".tsv")
_INTEGER = re.compile(r"[+-]?[0-9]+", re.ASCII)


class DataError(UserError, ValueError):
    """Something is wrong with the data a user named; the message says what, where, and what was expected."""


def file_kind(path: Path, kinds: Sequence[str] = _KINDS) -> str:
    """One of the kinds, such as `".jsonl"`, from the name of the file without a final `.gz`."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in kinds:
        raise DataError(
            f"{path}: expected a file named {', '.join(kinds[:-1])} or {kinds[-1]}, with or without .gz after it"
        )
    return suffix


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file with the number of the line each begins on, lazily and in order.

    Values are strings, and in JSONL whatever JSON holds. All rows of a CSV or TSV file have the same columns.

    Raises:
      DataError: the file is missing or empty, or a line is broken.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".tsv": _read_tsv}
    row = None
    for row in readers[file_kind(path)](path):
        yield row
    if row is None:
        raise DataError(f"{path}: no rows; expected at least one{_shape_of(path)}")


def read_documents(path: Path) -> Iterator[str]:
    """The texts of a `.txt` file, which empty lines part, or of the column `text` of another, lazily and in order.

    Raises:
      DataError: as read_rows, or a text file without a word.
    """
    if file_kind(path, (".txt", *_KINDS)) != ".txt":
        yield from (text_of(row, "text", f"{path}:{line}") for line, row in read_rows(path))
        return
    found = False
    for blank, lines in itertools.groupby(_lines(path), lambda line: not line.strip()):
        if not blank:
            found = True
            yield "".join(lines).strip()
    if not found:
        raise DataError(f"{path}: no text; expected documents with an empty line between them")


def read_examples(path: Path, task_format: TaskFormat, target: str | None) -> Iterator[tuple[str, str]]:
    """(input text, target text) of each row of a file, lazily and in order.

    The template's columns and the target's may hold text, numbers and booleans, which become text as Python's `str`
    writes them. For a task with labels the target is a label's string or its class number, counted from 0, and -1
    where it is not known. Where a label is itself an integer, numbers are taken as labels' strings only.

    Args:
      path: the file.
      task_format: the template and the labels.
      target: the column of the answers; None if there are none, which gives UNLABELLED.

    Raises:
      DataError: as read_rows, or a column is missing, its value is no text, or a label is unknown.
    """
    for line, row in read_rows(path):
        where = f"{path}:{line}"
        answer = UNLABELLED if target is None else _answer(row, target, task_format.labels, where)
        yield render(row, task_format, where), answer


def render(row: Mapping[str, Any], task_format: TaskFormat, where: str) -> str:
    """The input text of a row; `where` it is from is named in errors.

    Raises:
      DataError: a column of the template is missing, or its value is no text.
    """
    return task_format.render({column: text_of(row, column, where) for column in task_format.columns})


def text_of(row: Mapping[str, Any], column: str, where: str) -> str:
    """A column of a row as text; `where` it is from is named in errors.

    Raises:
      DataError: there is none, or it holds neither text nor a number or boolean.
    """
    if column not in row:
        _fail(where, f"no column {column!r}", f"it among {', '.join(map(repr, row)) or 'no columns'}")
    value = row[column]
    if not isinstance(value, (str, int, float)):
        _fail(where, f"column {column!r} holds {json.dumps(value)[:40]}", "text, a number or a boolean")
    text = str(value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        _fail(where, f"column {column!r} holds half of a surrogate pair", "text that UTF-8 can write")
    return text


@dataclasses.dataclass(frozen=True)
class FileTask:
    """A task over a user's files; `file_task` makes and checks it.

    Attributes:
      name: what the task is called in reports.
      files: the file of each split.
      task_format: template, labels, metrics and lengths.
      target: the column of the answer, or None.
      validation_share: the share of the train file that is the split "validation".
    """

    name: str
    files: Mapping[str, Path]
    task_format: TaskFormat
    target: str | None
    validation_share: float

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits there are."""
        return (*self.files, "validation") if self.validation_share else tuple(self.files)

    def examples(self, split: str) -> Iterator[tuple[str, str]]:
        """(input text, target text) of each example of a split, lazily, in the order of its file.

        Raises:
          DataError: as read_examples.
        """
        share = self.validation_share if split in ("train", "validation") else 0.0
        path = self.files["train" if share else split]
        for inputs, targets in read_examples(path, self.task_format, self.target):
            if not share or (text_fraction(inputs) < share) == (split == "validation"):
                yield inputs, targets


def file_task(
    name: str,
    files: Mapping[str, str | Path],
    task_format: TaskFormat,
    *,
    target: str | None = "label",
    validation_share: float = 0.0,
) -> FileTask:
    """A task over a user's JSONL, CSV or TSV files, to be passed to `prompt_jax.data.load_examples`.

    The files are read when examples are loaded, and errors in them are raised then.

    Args:
      name: what the task is called in reports.
      files: the file of each split: "train", "validation", "test".
      task_format: template, labels, metrics and lengths.
      target: the column of the answer; None if the files have none, so that they can only be predicted.
      validation_share: if positive, the share of the train file that becomes the split "validation". It is chosen
        by a hash of the input's normalised text, so it does not depend on the order of the file, and equal texts
        stay together.

    Raises:
      DataError: a file is missing or of an unknown kind, or the share makes no sense.
    """
    paths = {split: as_path(path) for split, path in files.items()}
    for split, path in paths.items():
        file_kind(path)
        if not path.is_file():
            raise DataError(f"{path}: no such file; expected the examples of the split {split!r}")
    if not paths:
        raise DataError(f"the task {name!r} names no file; expected one for train, validation or test")
    if not 0 <= validation_share < 1:
        raise DataError(f"validation_share must be at least 0 and less than 1, not {validation_share}")
    if validation_share and ("validation" in paths or "train" not in paths):
        raise DataError(
            f"validation_share takes examples from the file of train, and needs that there is none for "
            f"validation; there are files for {', '.join(paths)}"
        )
    return FileTask(name, paths, task_format, target, validation_share)


def data_folder(name: str) -> Path:
    """The folder of a data set that tasks read as it was released: `name` in the folder that PROMPT_JAX_DATA names.

    Raises:
      DataError: the environment variable is not set, or there is no such folder.
    """
    root = os.environ.get("PROMPT_JAX_DATA")
    if not root:
        raise DataError(f"set PROMPT_JAX_DATA to a folder with the data set in {name}/; it is not set")
    folder = Path(root, name)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the data set in {name}/ of PROMPT_JAX_DATA")
    return folder


def normalise_text(text: str) -> str:
    """A text as it is compared for duplicates: lower case, words only, one space between them.

    A text without a word ("!!!", ":)") keeps its signs, or all such texts would be the same.
    """
    folded = text.casefold()
    return " ".join(re.findall(r"\w+", folded)) or " ".join(folded.split())


def text_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the normalised text alone, evenly spread: what splits are made by."""
    digest = hashlib.sha256(normalise_text(text).encode("utf-8")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file, with their ends, decoded one by one so that an error has its line."""
    number = 0
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(gzip.GzipFile(fileobj=file) if path.name.endswith(".gz") else file, 1):
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        _fail(f"{path}:{number}", f"not UTF-8 ({error.reason} at byte {error.start} of the line)", "UTF-8 text")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read after line {number}: {error}") from error


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            _fail(f"{path}:{number}", f"broken JSON ({error})", "one JSON object a line")
        if not isinstance(row, dict):
            _fail(f"{path}:{number}", f"a JSON {type(row).__name__}", "one JSON object a line")
        yield number, row


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(_lines(path), strict=True)
    header = None
    while True:
        line = reader.line_num + 1  # of the record's first line: a quoted cell may go on over several
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            _fail(f"{path}:{line}", f"broken CSV ({error})", 'cells separated by commas, quoted with "')
        if not cells:
            continue
        if header is None:
            header = _header(cells, f"{path}:{line}")
        else:
            yield line, _row(header, cells, f"{path}:{line}", "")


def _read_tsv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    header = None
    for number, line in enumerate(_lines(path), 1):
        cells = line.removesuffix("\n").removesuffix("\r").split("\t")
        if cells == [""]:
            continue
        if header is None:
            header = _header(cells, f"{path}:{number}")
        else:
            hint = "; TSV has no quoting, a text with tabs or line breaks needs CSV or JSONL"
            yield number, _row(header, cells, f"{path}:{number}", hint)


def _header(cells: Sequence[str], where: str) -> Sequence[str]:
    if "" in cells or len(set(cells)) != len(cells):
        _fail(where, f"a header line with the columns {list(cells)}", "distinct names that are not empty")
    return cells


def _row(header: Sequence[str], cells: Sequence[str], where: str, hint: str) -> dict[str, Any]:
    if len(cells) != len(header):
        _fail(where, f"{len(cells)} cells", f"{len(header)} ({', '.join(header)}){hint}")
    return dict(zip(header, cells, strict=True))


def _answer(row: Mapping[str, Any], column: str, labels: Sequence[str], where: str) -> str:
    text = text_of(row, column, where)
    if not labels or text in labels:
        return text
    numbered = not any(_INTEGER.fullmatch(label) for label in labels)
    if numbered and _INTEGER.fullmatch(text) and -1 <= int(text) < len(labels):
        return UNLABELLED if int(text) == -1 else labels[int(text)]
    numbers = f", or its number from 0 to {len(labels) - 1}, or -1 if not known" if numbered else ""
    _fail(
        where,
        f"column {column!r} holds the label {text!r}",
        f"one of {', '.join(map(repr, labels))}{numbers}",
    )


def _class_numbers(labels: Sequence[str]) -> dict[str, str]:
    return {"-1": UNLABELLED} | {str(number): label for number, label in enumerate(labels)}


def _shape_of(path: Path) -> str:
    return " JSON object on a line" if file_kind(path) == ".jsonl" else " after a header line"


def _fail(where: str, found: str, expected: str) -> NoReturn:
    raise DataError(f"{where}: {found}; expected {expected}")
