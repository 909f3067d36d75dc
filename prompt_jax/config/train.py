"""Options of the training loop."""

import dataclasses
from typing import Annotated, Literal

from prompt_jax.config.constraints import BELOW_ONE, NOT_NEGATIVE, POSITIVE, SEED, STEPS


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    steps: Annotated[int, POSITIVE, STEPS] = 30_000
    """Number of optimizer steps."""
    epochs: Annotated[float, POSITIVE] | None = None
    """Number of passes over the training data. If set, it replaces `steps`."""
    batch_size: Annotated[int, POSITIVE] = 32
    """Examples in a step."""
    accumulate: Annotated[int, POSITIVE] = 1
    """Process each batch in this many parts, to save memory (gradient accumulation). The result is the same."""
    seed: Annotated[int, SEED] = 0
    """Seed of initialization, data order and dropout."""
    dropout_rate: Annotated[float, BELOW_ONE] = 0.0
    """Dropout rate of the base during training. The paper's code uses 0.1. Masks depend on the batch's shape, so they
    differ between length buckets."""
    loss: Literal["token", "sentence"] = "token"
    """token: mean over target tokens. sentence: mean over examples of the sum over tokens, as in the prefix tuning
    paper's code."""
    z_loss: Annotated[float, NOT_NEGATIVE] = 1e-4
    """Weight of the squared log-normalizer in the loss, which keeps logits from drifting. The default is T5X's."""
    eval_every: Annotated[int, POSITIVE] = 500
    """Steps between evaluations on the validation split."""
    eval_examples: Annotated[int, POSITIVE] | None = None
    """Maximum number of validation examples, drawn at random with a fixed seed. None uses all."""
    test_examples: Annotated[int, POSITIVE] | None = None
    """Maximum number of examples of each test split, drawn at random with a fixed seed. None uses all."""
    eval_batch_size: Annotated[int, POSITIVE] = 64
    """Maximum number of examples in a batch in evaluation. There are fewer if the devices' memory requires it."""
    best_by: Literal["first", "mean"] = "first"
    """Score that selects the best prompt and ends `patience`: the task's first metric, or the mean of its metrics that
    are fractions (the prompt tuning paper's choice). For a mixture, the mean over its tasks."""
    patience: Annotated[int, POSITIVE] | None = None
    """Stop after this many evaluations without improvement. None never stops early."""
    checkpoint_every: Annotated[int, POSITIVE] = 500
    """Steps between checkpoints."""
    keep_checkpoints: Annotated[int, POSITIVE] = 2
    """Number of latest checkpoints to keep."""
    log_every: Annotated[int, POSITIVE] = 10
    """Steps between log lines."""
    trackers: tuple[Literal["wandb"], ...] = ()
    """Experiment trackers, in addition to TensorBoard: wandb (Weights & Biases; pip install '.[wandb]')."""
