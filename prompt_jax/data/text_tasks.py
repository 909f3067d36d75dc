"""Text-to-text tasks as Python objects: a source of rows, a template, and the column with the answer.

To add a task, write a file in the folder `tasks`, or in any folder or file that `--tasks` names:

    def examples(split):
        yield "a gripping film", "positive"

    add_task(
        "reviews",
        text_source(examples, ("train", "validation"), columns=("text", "label")),
        TaskFormat("review: {text}", labels=("negative", "positive")),
    )

Such a task yields text. It has no tokens until it is loaded with a model's tokenizer, so one task serves every model.
Only sources of TFDS and seqio, and preprocessors, need TensorFlow:
`prompt_jax.data.seqio_tasks` runs those.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_jax.checkpoints.tokenizer import Tokenizer
from prompt_jax.control_tokens import mark
from prompt_jax.data.files import column_text, render_row
from prompt_jax.task_format import SENTINEL, UNLABELED, TaskFormat, without_sentinel

FEATURES = ("inputs", "targets")


@dataclasses.dataclass(frozen=True)
class TextSource:
    """Rows from a Python function. Create it with `text_source`."""

    examples: Callable[[str], Iterable[tuple[str, ...]]]
    splits: tuple[str, ...]
    columns: tuple[str, ...]

    def rows(self, split: str) -> Iterator[dict[str, str]]:
        """Yield the rows of a split, lazily and in order."""
        return (dict(zip(self.columns, values, strict=True)) for values in self.examples(split))


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A data set of TensorFlow Datasets. Create it with `tfds_source`."""

    name: str
    tfds_splits: Mapping[str, str]
    filters: Mapping[str, Callable[[Any], Any]]

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return tuple(self.tfds_splits)


def text_source(
    examples: Callable[[str], Iterable[tuple[str, ...]]],
    splits: Sequence[str],
    columns: Sequence[str] = ("source", "target"),
) -> TextSource:
    """Return a source with text columns, from a function that maps a split's name to its rows.

    The function is called when a split is loaded. Its exceptions propagate unchanged.
    """
    return TextSource(examples, tuple(splits), tuple(columns))


def tfds_source(
    name: str, splits: Sequence[str] | Mapping[str, str], filters: Mapping[str, Callable[[Any], Any]] | None = None
) -> TfdsSource:
    """Return a data set of TensorFlow Datasets as a source, without importing TensorFlow.

    Args:
      name: the data set with its version, such as `glue/rte:2.0.0`.
      splits: the names of the splits, or the name in TFDS for each name of a split.
      filters: for some splits, a function of a row's tensors that returns whether the row is kept.
    """
    renamed = dict(splits) if isinstance(splits, Mapping) else {split: split for split in splits}
    return TfdsSource(name, renamed, dict(filters or {}))


@dataclasses.dataclass(frozen=True)
class TextTask:
    """A task that yields text. Create it with `add_task`, which documents the fields."""

    name: str
    source: Any
    task_format: TaskFormat  # with SENTINEL in its labels, if targets begin with it
    target: str = "label"
    note: str | None = None
    sentinel: bool = False
    preprocessors: tuple[Callable[..., Any], ...] = ()
    short_name: str | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return tuple(self.source.splits)

    @property
    def needs_seqio(self) -> bool:
        """Whether rows come from seqio or TFDS, or pass through functions of TensorFlow."""
        return bool(self.preprocessors) or not isinstance(self.source, TextSource)

    @property
    def plain_labels(self) -> tuple[str, ...]:
        """The labels without SENTINEL."""
        labels = self.task_format.labels
        return tuple(label.removeprefix(f"{SENTINEL} ") for label in labels) if self.sentinel else labels

    @property
    def postprocessor(self) -> Callable[..., Any] | None:
        """The function that metrics apply to answers and targets, as in seqio."""
        if not self.sentinel:
            return None
        return _with_sentinel if self.task_format.labels else _drop_sentinel

    def rows(self, split: str, mark_template: Callable[[str], str]) -> Iterator[dict[str, str]]:
        """Yield `inputs`, `targets` and, if given, `note` of each row of a split as text, lazily and in order.

        Args:
          split: the split's name.
          mark_template: the model's `Tokenizer.marked`.

        Raises:
          DataError: a column is missing, or is not text.
        """
        task_format = self.task_format.marked(mark_template)
        for number, row in enumerate(self.source.rows(split)):
            where = f"the task {self.name!r}, split {split!r}, row {number}"
            texts = {"inputs": render_row(row, task_format, where), "targets": self._answer(row, where)}
            yield texts | ({"note": column_text(row, self.note, where)} if self.note else {})

    def _answer(self, row: Mapping[str, Any], where: str) -> str:
        text, value, labels = column_text(row, self.target, where), row[self.target], self.plain_labels
        if labels and isinstance(value, int) and -1 <= value < len(labels):
            text = UNLABELED if value == -1 else labels[value]
        return f"{mark(SENTINEL)} {text}" if self.sentinel and text != UNLABELED else text


@dataclasses.dataclass(frozen=True)
class TokenTask:
    """A task that makes token ids itself. Create it with `add_token_task`, which documents the fields."""

    name: str
    examples: Callable[[str, Tokenizer, int, int, int], Iterable[tuple[np.ndarray, np.ndarray]]]
    splits: tuple[str, ...]
    task_format: TaskFormat
    short_name: str | None = None


def _drop_sentinel(text: str | Sequence[str], example: Any = None, is_target: bool = False) -> Any:
    """Return an answer in free text, or each of several references, without SENTINEL."""
    del example, is_target  # required by seqio
    return without_sentinel(text) if isinstance(text, str) else tuple(map(without_sentinel, text))


def _with_sentinel(text: str, example: Any = None, is_target: bool = False) -> str:
    """Return the answer to a task with labels in the form of its labels, with SENTINEL."""
    del example, is_target  # required by seqio
    return f"{SENTINEL} {without_sentinel(text)}"
