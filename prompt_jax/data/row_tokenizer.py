"""Tokenize a task's rows, one at a time, into the columns of its examples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prompt_jax.checkpoints.tokenizer import Tokenizer
from prompt_jax.control_tokens import remove_marks
from prompt_jax.data.examples import input_ids, truncate
from prompt_jax.data.stored_rows import RowFile, StoredTexts, StoredTokens
from prompt_jax.errors import DataError
from prompt_jax.task_format import UNLABELED

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Columns:
    """Columns of `prompt_jax.data.examples.Examples`. Create them with `new_columns`."""

    inputs: Any  # a list, or StoredTokens
    targets: Any
    input_texts: Any  # a list, or StoredTexts
    target_texts: Any
    truncated: dict[str, int]


def new_columns(on_disk: bool) -> Columns:
    """Return columns without rows, in memory or in a temporary file."""
    truncated = {"inputs": 0, "targets": 0}
    if not on_disk:
        return Columns([], [], [], [], truncated)
    file = RowFile()
    return Columns(StoredTokens(file), StoredTokens(file), StoredTexts(file), StoredTexts(file), truncated)


@dataclasses.dataclass(frozen=True, eq=False)
class RowTokenizer:
    """Tokenizes the rows of one split.

    Attributes:
      task: the task's name.
      split: the split's name.
      tokenizer: the model's.
      input_length: the maximum number of tokens of an input, end token included.
      target_length: the same limit for targets.
      labels: the targets that the task allows besides UNLABELED; empty for any. Like a template, a label may contain
        control tokens.
      ending: the template's text after the last column; as for `input_ids`.
    """

    task: str
    split: str
    tokenizer: Tokenizer
    input_length: int
    target_length: int
    labels: tuple[str, ...]
    ending: str = ""

    def append(self, row: Row, columns: Columns) -> None:
        """Tokenize a row and append it to the columns.

        Raises:
          DataError: the row has no token ids, ids outside the embedding table, or a target that is not a label.
        """
        (inputs, inputs_truncated), targets = self._inputs(row), self._token_ids(row, "targets")
        target_text = remove_marks(self._text(row, "targets"))
        if self.labels and target_text not in self.labels and target_text != UNLABELED:
            raise DataError(
                f"example {len(columns.targets)} of {self.task}, {self.split}, has the target {target_text!r}; "
                f"expected one of {', '.join(map(repr, self.labels))}"
            )
        columns.truncated["inputs"] += inputs_truncated
        columns.truncated["targets"] += len(targets) > self.target_length
        columns.inputs.append(inputs)
        columns.targets.append(truncate(targets, self.target_length, self.tokenizer.eos_id))
        columns.input_texts.append(self._text(row, "inputs"))
        columns.target_texts.append(target_text)

    def _inputs(self, row: Row) -> tuple[np.ndarray, bool]:
        """Return the token ids of the input after truncation, and whether it was truncated."""
        value = row.get("inputs")
        if isinstance(value, bytes):
            return input_ids(self.tokenizer, value.decode("utf-8"), self.input_length, self.ending)
        ids = self._token_ids(row, "inputs")
        return truncate(ids, self.input_length, self.tokenizer.eos_id), len(ids) > self.input_length

    def _token_ids(self, row: Row, feature: str) -> np.ndarray:
        """Return the token ids of a target, or those that the task gives, before truncation [T_i]."""
        value = row.get(feature)
        if isinstance(value, bytes):
            text = value.decode("utf-8")
            text = self.tokenizer.marked(text) if text in self.labels else text
            value = np.array(self.tokenizer.target_ids(text), np.int32)
        ids = np.asarray(value)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise DataError(
                f"the task {self.task!r} gives {feature} of type {ids.dtype} and shape {ids.shape}; expected token ids "
                "[T] (its preprocessors should end with seqio.preprocessors.tokenize and append_eos)"
            )
        if outside := ids[(ids < 0) | (ids >= self.tokenizer.rows)].tolist():
            raise DataError(
                f"the task {self.task!r} gives {feature} with the token id {outside[0]}; expected ids from 0 to "
                f"{self.tokenizer.rows - 1}, the rows of the model's embedding table"
            )
        return ids

    def _text(self, row: Row, feature: str) -> str:
        """Return a feature's text before tokenization, or decoded if the task does not keep it."""
        value = row.get(f"{feature}_pretokenized", row[feature])
        if isinstance(value, bytes):
            return value.decode("utf-8")
        return self.tokenizer.decode([int(i) for i in value])


def check_labels(task: str, labels: Sequence[str], tokenizer: Tokenizer, target_length: int) -> None:
    """Raise DataError if the model cannot generate a label in full, since its answers would always be wrong."""
    for label in labels:
        ids = list(tokenizer.target_ids(tokenizer.marked(label)))
        if (written := tokenizer.decode(ids)) != label:
            raise DataError(
                f"the task {task!r} has the label {label!r}, which the model's tokenizer can only write as "
                f"{written!r}; expected labels that survive tokenization"
            )
        if len(ids) > target_length:
            raise DataError(
                f"the label {label!r} of the task {task!r} has {len(ids)} tokens with its end token; "
                f"expected at most target_length, {target_length}"
            )
