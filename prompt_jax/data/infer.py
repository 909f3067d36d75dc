"""Infers the format of a file of examples: its columns, and whether its answers are labels."""

import dataclasses
import re
from pathlib import Path

from prompt_jax.data.files import column_text
from prompt_jax.data.rows import read_rows
from prompt_jax.errors import DataError

# Names that the column of answers and that of texts often have, the most frequent first.
TARGETS = ("label", "target", "answer", "output", "completion", "response", "summary")
TEXTS = ("text", "input", "sentence", "inputs")

# Answers are labels if there are few, and each has several rows on average.
MAX_LABELS, ROWS_PER_LABEL = 20, 5

_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Inferred:
    """The inferred format of a file of examples.

    Attributes:
      template: the input, with column names in braces.
      target: the column with the answers.
      labels: the distinct answers, sorted; empty for free text.
      rows: number of rows.
      longest: bytes of the longest answer.
    """

    template: str
    target: str
    labels: tuple[str, ...]
    rows: int
    longest: int

    @property
    def numbered(self) -> bool:
        """Whether the labels are numbers, which may stand for classes."""
        return bool(self.labels) and all(map(_INTEGER.fullmatch, self.labels))


def infer(path: Path, *, template: str | None = None, target: str | None = None) -> Inferred:
    """Read all rows of a file and return its format.

    Args:
      path: a JSONL, CSV or TSV file.
      template: the template, if it is known.
      target: the column with the answers, if it is known.

    Raises:
      DataError: as `read_rows`, or the columns are not clear, or an answer is missing.
    """
    answers: set[str] = set()
    rows = longest = 0
    for line, row in read_rows(path):
        where = f"{path}:{line}"
        if not rows:
            target = target or _target(path, list(row))
            template = template or _template(path, list(row), target)
        assert target is not None
        answer = column_text(row, target, where)
        if not answer.strip():
            raise DataError(f"{where}: column {target!r:.60} is empty; expected the answer to the row")
        rows, longest = rows + 1, max(longest, len(answer.encode()))
        if len(answers) <= MAX_LABELS:
            answers.add(answer)
    assert target is not None and template is not None  # a file has rows
    few = 1 < len(answers) <= min(MAX_LABELS, rows // ROWS_PER_LABEL)
    labels = sorted(answers) if few else []
    if all(map(_INTEGER.fullmatch, labels)):
        labels.sort(key=int)
    return Inferred(template, target, tuple(labels), rows, longest)


def _target(path: Path, columns: list[str]) -> str:
    for name in TARGETS:
        if name in columns:
            return name
    raise DataError(f"{path}: the columns are {_listed(columns)}; name the one with the answers with --target")


def _template(path: Path, columns: list[str], target: str) -> str:
    others = [name for name in columns if name != target]
    for name in TEXTS if len(others) > 1 else others:
        if name in others:
            return f"{{{name}}}"
    example = " ".join(f"{name}: {{{name}}}" for name in others[:4]) or "{text}"
    raise DataError(
        f"{path}: the columns are {_listed(columns)}; say how they make up the input with --template, e.g. "
        f'--template "{example}"'
    )


def _listed(columns: list[str]) -> str:
    more = f" and {len(columns) - 20} more" if len(columns) > 20 else ""
    return ", ".join(f"{name:.60}" for name in columns[:20]) + more
