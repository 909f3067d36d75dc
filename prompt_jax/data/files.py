"""A user's examples in JSONL, CSV and TSV files, which `data_rows` reads, as input and target texts."""

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

from prompt_jax.control_tokens import unmarked
from prompt_jax.data.lines import DataError, fail, is_text, read_lines, shown, without_end
from prompt_jax.data.rows import KINDS, file_kind, read_rows
from prompt_jax.storage.paths import parse_path
from prompt_jax.task_format import UNLABELED, TaskFormat

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)


def read_documents(path: Path) -> Iterator[str]:
    """Yield the documents of a `.txt` file, or the column `text` of another file, lazily and in order.

    In a `.txt` file blank lines separate documents. A document is its lines with LF between them.

    Raises:
      DataError: as read_rows, or a text file without a word.
    """
    if file_kind(path, (".txt", *KINDS)) != ".txt":
        yield from (text_of(row, "text", f"{path}:{line}") for line, row in read_rows(path))
        return
    found = False
    for blank, lines in itertools.groupby(map(without_end, read_lines(path)), lambda line: not line.strip()):
        if not blank:
            found = True
            yield "\n".join(lines)
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
      target: the column of the answers; None if there are none, which gives UNLABELED.

    Raises:
      DataError: as read_rows, or a column is missing, its value is no text, or a label is unknown.
    """
    for line, row in read_rows(path):
        where = f"{path}:{line}"
        answer = UNLABELED if target is None else _answer(row, target, task_format.labels, where)
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
        names = [f"{name!r:.60}" for name in row]
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        fail(where, f"no column {column!r:.60}", f"it among {', '.join(names[:20]) or 'no columns'}{more}")
    value = row[column]
    if not isinstance(value, (str, int, float)) or isinstance(value, float) and not math.isfinite(value):
        fail(where, f"column {column!r:.60} holds {json.dumps(value)[:40]}", "text, a finite number or a boolean")
    text = unmarked(str(value))
    if not is_text(text):
        fail(where, f"column {column!r:.60} holds half of a surrogate pair", "text that UTF-8 can write")
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

    def examples(self, split: str, limit: int | None = None, seed: int = 0) -> Iterator[tuple[str, str]]:
        """(input text, target text) of each example of a split, lazily, in the order of its file.

        Args:
          split: its name.
          limit: if given, only so many examples, drawn at random. The file is read twice, and no other row is kept.
          seed: of the draw.

        Raises:
          DataError: as read_examples, or a held-out share that leaves a split empty.
        """
        if limit is not None and limit < (count := sum(1 for _ in self.examples(split))):
            import numpy as np  # here, so that `--help` does without

            # As `prompt_jax.data.load` draws from rows in memory.
            kept = set(np.random.default_rng(seed).permutation(count)[:limit].tolist())
            yield from (row for number, row in enumerate(self.examples(split)) if number in kept)
        elif self.validation_share and split in ("train", "validation"):
            yield from self._part_of_train(split)
        else:
            yield from read_examples(self.files[split], self.task_format, self.target)

    def _part_of_train(self, split: str) -> Iterator[tuple[str, str]]:
        path, share, empty = self.files["train"], self.validation_share, True
        fractions = []
        for inputs, targets in read_examples(path, self.task_format, self.target):
            fraction = text_fraction(unmarked(inputs))
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
            fail(
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
    """A task over a user's JSONL, CSV or TSV files, to be passed to `prompt_jax.data.load.load_examples`.

    The files are read when examples are loaded, and errors in them are raised then.

    Args:
      name: what the task is called in reports.
      files: the file of each split: "train", "validation", "test".
      task_format: template, labels, metrics and lengths.
      target: the column of the answer; None if the files have none, so that they can only be predicted.
      validation_share: if positive, the share of the train file that becomes the split "validation". It is chosen
        by a hash of the input's normalized text, so it does not depend on the order of the file, and equal texts
        stay together.

    Raises:
      DataError: a file is missing or of an unknown kind, or the share makes no sense.
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


def normalize_text(text: str) -> str:
    """A text as it is compared for duplicates: lower case, words only, one space between them.

    A text without a word ("!!!", ":)") keeps its signs, or all such texts would be the same.
    """
    folded = text.casefold()
    return " ".join(re.findall(r"\w+", folded)) or " ".join(folded.split())


def text_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the normalized text alone, evenly spread: what splits are made by."""
    digest = hashlib.sha256(normalize_text(text).encode("utf-8")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _answer(row: Mapping[str, Any], column: str, labels: Sequence[str], where: str) -> str:
    text = text_of(row, column, where)
    if not labels or text in labels:
        return text
    numbered = not any(_INTEGER.fullmatch(label) for label in labels)
    if numbered and _INTEGER.fullmatch(text) and -1 <= int(text) < len(labels):
        return UNLABELED if int(text) == -1 else labels[int(text)]
    numbers = f", or its number from 0 to {len(labels) - 1}, or -1 if not known" if numbered else ""
    fail(
        where,
        f"column {column!r:.60} holds the label {shown(text)}",
        f"one of {', '.join(map(repr, labels))}{numbers}",
    )
