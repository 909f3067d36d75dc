"""Options of the data."""

import dataclasses
from pathlib import Path
from typing import Annotated

from prompt_jax.config.constraints import BELOW_ONE, NOT_NEGATIVE, POSITIVE


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The training data: a registered task, or your files."""

    task: str | None = None
    """Name of a task or mixture in the tasks folder. None if you give files."""
    task_names: bool = False
    """Prepend the short name of its task to each input, as in T5's multitask training."""
    train: Path | None = None
    """Your training file: .jsonl, .csv or .tsv, optionally .gz."""
    validation: Path | None = None
    """Your validation file. None holds out `validation_share` of the training file."""
    test: Path | None = None
    """Your test file."""
    validation_share: Annotated[float, BELOW_ONE] = 0.1
    """Share of the training file to hold out, chosen by a hash of the input text."""
    template: str = "{text}"
    """Template of the input for files, with column names in braces."""
    target: str = "label"
    """Column with the answer: a label or its number, or free text if `labels` is empty."""
    labels: tuple[str, ...] = ()
    """Possible answers for files, in the order of their numbers."""
    metrics: tuple[str, ...] = ()
    """Names of metrics (see `prompt_jax.task_format`). The first or their mean selects the best prompt (train.best_by).
    Empty means the task's metrics, or accuracy for files."""
    train_examples: Annotated[int, POSITIVE] | None = None
    """Number of training examples (of each task of a mixture), drawn at random; None uses all. Smaller subsets are part
    of larger ones."""
    subset_seed: Annotated[int, NOT_NEGATIVE] = 0
    """Seed for drawing `train_examples`, independent of train.seed."""
    input_length: Annotated[int, POSITIVE] | None = None
    """Maximum input length in tokens, with the end token. Longer inputs are truncated; a causal model keeps the
    template's text after the last column. None is the task's length."""
    target_length: Annotated[int, POSITIVE] | None = None
    """Maximum length of targets and generated answers in tokens, including the end token. None is the task's length."""
    buckets: Annotated[int, POSITIVE] = 6
    """Number of input lengths that batches are padded to. More buckets mean less padding but more compilations."""
    test_tasks: tuple[str, ...] = ()
    """Further tasks whose test splits the trained prompts are scored on, to measure domain transfer."""
