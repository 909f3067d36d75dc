"""Options of the training loop."""

import dataclasses
from typing import Annotated, Literal

from prompt_jax.config.constraints import BELOW_ONE, NOT_NEGATIVE, POSITIVE, SEED


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    steps: Annotated[int, POSITIVE] = 30_000
    """Optimizer steps."""
    epochs: Annotated[float, POSITIVE] | None = None
    """Passes over the training data; given, they and not `steps` say how long training takes."""
    batch_size: Annotated[int, POSITIVE] = 32
    """Examples a step."""
    accumulate: Annotated[int, POSITIVE] = 1
    """Parts that a batch is processed in, one after the other, to save memory; the result is the same."""
    seed: Annotated[int, SEED] = 0
    """Of initialization, data order and dropout."""
    dropout_rate: Annotated[float, BELOW_ONE] = 0.0
    """Dropout in the base while training. The paper does not state it; its code's value is 0.1. The masks depend on a
    batch's shape, so a row has other masks in another length bucket."""
    loss: Literal["token", "sentence"] = "token"
    """The loss of a batch: the mean over its target tokens, or the mean over its examples of their tokens' sum, as in
    the prefix paper's code."""
    z_loss: Annotated[float, NOT_NEGATIVE] = 1e-4
    """Weight of the squared log-normalizer of the output, which keeps logits from drifting (T5X's default)."""
    eval_every: Annotated[int, POSITIVE] = 500
    """Steps between evaluations on the validation split."""
    eval_examples: Annotated[int, POSITIVE] | None = None
    """At most so many validation examples, drawn at random but always the same; None is all."""
    test_examples: Annotated[int, POSITIVE] | None = None
    """At most so many examples of each test split, likewise; None is all."""
    eval_batch_size: Annotated[int, POSITIVE] = 64
    """Examples a batch in evaluation."""
    best_by: Literal["first", "mean"] = "first"
    """What decides which prompt is the best, and when patience ends: the task's first metric, or the mean of those that
    are shares, the higher the better (the prompt paper's choice, where a task has several). Of a mixture it is always
    the mean over its tasks."""
    patience: Annotated[int, POSITIVE] | None = None
    """Stop after so many evaluations in a row without a better one."""
    checkpoint_every: Annotated[int, POSITIVE] = 500
    """Steps between checkpoints."""
    keep_checkpoints: Annotated[int, POSITIVE] = 2
    """How many of the latest checkpoints stay."""
    log_every: Annotated[int, POSITIVE] = 10
    """Steps between lines in the logs."""
