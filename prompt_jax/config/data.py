"""Options of the data."""

import dataclasses
from pathlib import Path
from typing import Annotated

from prompt_jax.config.constraints import BELOW_ONE, NOT_NEGATIVE, POSITIVE


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A registered task, or the user's own files."""

    task: str | None = None
    """Name of a seqio task in the tasks folder, or of a mixture of such tasks, whose rates say how often each is drawn.
    Leave out when files are given."""
    task_names: bool = False
    """Whether the short name of an input's task and a space come before it, as in T5's training on many tasks."""
    train: Path | None = None
    """The user's own training data: a .jsonl, .csv or .tsv file (also .gz)."""
    validation: Path | None = None
    """Validation file; without one, `validation_share` of the training file is held out."""
    test: Path | None = None
    """Test file."""
    validation_share: Annotated[float, BELOW_ONE] = 0.1
    """Share of the training file that is held out, by a hash of the input text."""
    template: str = "{text}"
    """Input text of a row of a file, with its columns in braces."""
    target: str = "label"
    """Column of a file with the answer: a label, its number, or free text where `labels` is empty."""
    labels: tuple[str, ...] = ()
    """Possible answers in the order of their numbers, for files."""
    metrics: tuple[str, ...] = ()
    """Names of metrics (`prompt_jax.task_format`); the first decides which prompt is the best, or their mean
    (train.best_by). Left out, the task's own, and accuracy for files."""
    train_examples: Annotated[int, POSITIVE] | None = None
    """Train on so many examples, of a mixture of each task, drawn at random; None is all. What is drawn for less is
    part of what is for more."""
    subset_seed: Annotated[int, NOT_NEGATIVE] = 0
    """Of that draw, which is the same whatever train.seed is."""
    input_length: Annotated[int, POSITIVE] | None = None
    """Longest input in tokens, end token included; what is cut is counted and reported. None is the task's own."""
    target_length: Annotated[int, POSITIVE] | None = None
    """Longest target in tokens, end token included; also the longest generated answer. None is the task's own."""
    buckets: Annotated[int, POSITIVE] = 6
    """Number of input lengths that batches are padded to, chosen for the least padding: one compilation each."""
    test_tasks: tuple[str, ...] = ()
    """Other tasks on whose test splits the trained prompts are scored as well: how they bear a shift of domain."""
