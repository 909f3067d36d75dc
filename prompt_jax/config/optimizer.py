"""Options of the optimizer."""

import dataclasses
from typing import Annotated, Literal

from prompt_jax.config.constraints import BELOW_ONE, NOT_NEGATIVE, NOT_POSITIVE, POSITIVE


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule. The defaults are the prompt-tuning paper's."""

    name: Literal["adafactor", "adamw"] = "adafactor"
    """The algorithm."""
    learning_rate: Annotated[float, POSITIVE] = 0.3
    """The highest rate of the schedule."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay, or go to zero at the last step, linearly or along a cosine."""
    warmup_steps: Annotated[int, NOT_NEGATIVE] = 0
    """Steps in which the rate rises linearly from zero."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-5
    """Adafactor: share of a parameter lost per step whatever the rate, as in T5X. AdamW: times the rate."""
    clip_norm: Annotated[float, POSITIVE] | None = None
    """Gradients of a larger global norm are scaled down to it."""
    decay_rate: Annotated[float, NOT_NEGATIVE] = 0.8
    """Adafactor's exponent of the second moment's decay."""
    parameter_scale: bool = False
    """Adafactor: multiply updates by the root mean square of what they are added to, at least 1e-3. T5 is trained and
    tuned so; prompts are not."""
    decay_offset: Annotated[int, NOT_POSITIVE] = 0
    """Adafactor: counts steps from here. -1_100_000 reproduces the paper's code, which went on counting from the
    base's checkpoint, so that its updates stayed clipped."""
    beta1: Annotated[float, BELOW_ONE] = 0.9
    """AdamW."""
    beta2: Annotated[float, BELOW_ONE] = 0.999
    """AdamW."""
