"""Examples in JSONL, CSV and TSV files, as input and target texts."""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_jax.control_tokens import remove_marks
from prompt_jax.data.lines import data_error, is_text, quote, read_lines, strip_line_ending
from prompt_jax.data.rows import KINDS, file_kind, read_rows
from prompt_jax.errors import DataError
from prompt_jax.storage.paths import parse_path
from prompt_jax.task_format import UNLABELED, TaskFormat

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)


def read_documents(path: Path) -> Iterator[str]:
    """Yield the documents of a `.txt` file, or the column `text` of another file, lazily and in order.

    In a `.txt` file, blank lines separate documents. The lines of a document are joined with LF.

    Raises:
      DataError: as `read_rows`, or a `.txt` file that has no text.
    """
    if file_kind(path, (".txt", *KINDS)) != ".txt":
        yield from (column_text(row, "text", f"{path}:{line}") for line, row in read_rows(path))
        return
    empty = True
    for blank, lines in itertools.groupby(map(strip_line_ending, read_lines(path)), lambda line: not line.strip()):
        if not blank:
            empty = False
            yield "\n".join(lines)
    if empty:
        raise DataError(f"{path}: no text; expected documents separated by blank lines")


def read_examples(path: Path, task_format: TaskFormat, target: str | None) -> Iterator[tuple[str, str]]:
    """Yield (input text, target text) for each row of a file, lazily and in order.

    Columns may hold text, numbers and booleans, which become text through Python's `str`. For a task with labels, the
    target is a label, its index from 0, or -1 if it is unknown. If any label is itself an integer, numbers are read as
    labels, not as indices.

    Args:
      path: the file.
      task_format: the template and the labels.
      target: the column with the targets; None if the file has no targets, which become UNLABELED.

    Raises:
      DataError: as `read_rows`; or a column is missing or not text, or a label is unknown.
    """
    for line, row in read_rows(path):
        where = f"{path}:{line}"
        answer = UNLABELED if target is None else _target(row, target, task_format.labels, where)
        yield render_row(row, task_format, where), answer


def render_row(row: Mapping[str, Any], task_format: TaskFormat, where: str) -> str:
    """Return the input text of a row. Error messages begin with `where`, the row's location.

    Raises:
      DataError: a column of the template is missing or not text.
    """
    return task_format.render({column: column_text(row, column, where) for column in task_format.columns})


def column_text(row: Mapping[str, Any], column: str, where: str) -> str:
    """Return a column of a row as text. Error messages begin with `where`, the row's location.

    Raises:
      DataError: the column is missing, or holds neither text nor a finite number nor a boolean.
    """
    if column not in row:
        names = [f"{name!r:.60}" for name in row]
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        raise data_error(where, f"no column {column!r:.60}", f"it among {', '.join(names[:20]) or 'no columns'}{more}")
    value = row[column]
    if not isinstance(value, (str, int, float)) or isinstance(value, float) and not math.isfinite(value):
        raise data_error(
            where, f"column {column!r:.60} holds {json.dumps(value)[:40]}", "text, a finite number or a boolean"
        )
    text = remove_marks(str(value))
    if not is_text(text):
        raise data_error(where, f"column {column!r:.60} holds half of a surrogate pair", "text that UTF-8 can encode")
    return text


@dataclasses.dataclass(frozen=True)
class FileTask:
    """A task whose examples are in files. Create it with `file_task`, which documents the fields and checks them."""

    name: str
    files: Mapping[str, Path]
    task_format: TaskFormat
    target: str | None
    validation_share: float

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return (*self.files, "validation") if self.validation_share else tuple(self.files)

    def examples(self, split: str, limit: int | None = None, seed: int = 0) -> Iterator[tuple[str, str]]:
        """Yield (input text, target text) for each example of a split, lazily, in the order of its file.

        Args:
          split: the split's name.
          limit: if given, a random sample of at most this many examples. The file is read twice to save memory.
          seed: the seed of the sample.

        Raises:
          DataError: as `read_examples`, or the hold-out leaves the split empty.
        """
        if limit is not None and limit < (count := sum(1 for _ in self.examples(split))):
            import numpy as np  # not needed for `--help`

            # The same sample as `prompt_jax.data.load` takes of rows in memory.
            kept = set(np.random.default_rng(seed).permutation(count)[:limit].tolist())
            yield from (row for number, row in enumerate(self.examples(split)) if number in kept)
        elif self.validation_share and split in ("train", "validation"):
            yield from self._split_train_file(split)
        else:
            yield from read_examples(self.files[split], self.task_format, self.target)

    def _split_train_file(self, split: str) -> Iterator[tuple[str, str]]:
        path, share, empty = self.files["train"], self.validation_share, True
        fractions = []
        for inputs, targets in read_examples(path, self.task_format, self.target):
            fraction = text_fraction(remove_marks(inputs))
            if (fraction < share) == (split == "validation"):
                empty = False
                yield inputs, targets
            elif empty:
                fractions.append(fraction)
        if empty:
            amount, needed = (
                ("none", f"data.validation_share of at least {math.floor(1000 * min(fractions) + 1) / 1000}")
                if split == "validation"
                else ("all", f"data.validation_share of at most {math.floor(1000 * max(fractions)) / 1000}")
            )
            raise data_error(
                str(path),
                f"the split {split!r} of the task {self.name!r} has no examples, since data.validation_share {share:g} "
                f"holds out {amount} of {len(fractions)}",
                f"{needed}, or a file in data.validation",
            )


def file_task(
    name: str,
    files: Mapping[str, str | Path],
    task_format: TaskFormat,
    *,
    target: str | None = "label",
    validation_share: float = 0.0,
) -> FileTask:
    """Create a task from JSONL, CSV or TSV files, for `prompt_jax.data.load.load_examples`.

    The files are read when examples are loaded. Errors in them are raised then.

    Args:
      name: the task's name in reports.
      files: the file of each split: "train", "validation", "test".
      task_format: template, labels, metrics and lengths.
      target: the column with the answers; None if the files have none, so that they can only be predicted.
      validation_share: if positive, this share of the train file is held out as the split "validation". A hash of the
        normalized input text decides, so the order of the file does not matter and equal texts share a split.

    Raises:
      DataError: a file is missing or of an unknown type, or the share is invalid.
    """
    paths = {split: parse_path(path) for split, path in files.items()}
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
            "validation_share holds out part of the train file, so it needs a file for train and none for validation; "
            f"there are files for {', '.join(paths)}"
        )
    return FileTask(name, paths, task_format, target, validation_share)


def data_folder(name: str) -> Path:
    """Return `$PROMPT_JAX_DATA/name`, the folder with a data set as its authors released it.

    Raises:
      DataError: the environment variable is not set, or the folder does not exist.
    """
    root = os.environ.get("PROMPT_JAX_DATA")
    if not root:
        raise DataError(f"set PROMPT_JAX_DATA to a folder with the data set in {name}/; it is not set")
    folder = Path(root, name)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the data set in {name}/ of PROMPT_JAX_DATA")
    return folder


def normalize_text(text: str) -> str:
    """Return a text in the form in which duplicates are compared: lowercase words separated by single spaces.

    A text without words ("!!!", ":)") keeps its symbols. Otherwise all such texts would be equal.
    """
    folded = text.casefold()
    return " ".join(re.findall(r"\w+", folded)) or " ".join(folded.split())


def text_fraction(text: str) -> float:
    """Return a hash of the normalized text, uniform in [0, 1). Splits are made by it."""
    digest = hashlib.sha256(normalize_text(text).encode("utf-8")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _target(row: Mapping[str, Any], column: str, labels: Sequence[str], where: str) -> str:
    text = column_text(row, column, where)
    if not labels or text in labels:
        return text
    numbered = not any(_INTEGER.fullmatch(label) for label in labels)
    if numbered and _INTEGER.fullmatch(text) and -1 <= int(text) < len(labels):
        return UNLABELED if int(text) == -1 else labels[int(text)]
    numbers = f", or its number from 0 to {len(labels) - 1}, or -1 if not known" if numbered else ""
    raise data_error(
        where,
        f"column {column!r:.60} holds the label {quote(text)}",
        f"one of {', '.join(map(repr, labels))}{numbers}",
    )
