"""Options of the optimizer."""

import dataclasses
from typing import Annotated, Literal

from prompt_jax.config.constraints import BELOW_ONE, NOT_NEGATIVE, NOT_POSITIVE, POSITIVE, STEPS

RateUnit = Literal["absolute", "embedding_rms"]
# The prompt tuning paper's rate, and the same in units of the root mean square of T5's embeddings, 13.5.
PAPER_RATE, PAPER_RATE_IN_RMS = 0.3, 0.022


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule. Defaults follow the prompt tuning paper (Lester et al. 2021)."""

    name: Literal["adafactor", "adamw"] = "adafactor"
    """Optimizer."""
    learning_rate: Annotated[float, POSITIVE] | None = None
    """Peak learning rate in `rate_unit`. None depends on the method: 0.3, or 0.022 embedding_rms, for virtual tokens;
    0.005 for prefixes; 0.0001 for P-tuning and adapters; 5e-5 for an MLP and for weights of the base."""
    rate_unit: RateUnit | None = None
    """Unit of learning rates: absolute, or the root mean square of the base's embeddings (embedding_rms), for soft
    prompts. None means embedding_rms for soft prompts of Llama and later models, and absolute otherwise."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or linear or cosine decay to zero at the last step."""
    warmup_steps: Annotated[int, NOT_NEGATIVE, STEPS] = 0
    """Steps of linear warm-up from zero."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-5
    """Weight decay per step. AdamW multiplies it by the learning rate; Adafactor, as in T5X, does not."""
    clip_norm: Annotated[float, POSITIVE] | None = None
    """Clip gradients to this global norm. None does not clip."""
    decay_rate: Annotated[float, NOT_NEGATIVE] = 0.8
    """Adafactor: exponent of the second moment's decay."""
    parameter_scale: bool = False
    """Adafactor: scale updates by the parameter's root mean square (at least 1e-3), as in T5's training. Prompt tuning
    does not."""
    decay_offset: Annotated[int, NOT_POSITIVE, STEPS] = 0
    """Adafactor: offset of the step count. -1_100_000 reproduces the paper's code, which continued the base's count."""
    beta1: Annotated[float, BELOW_ONE] = 0.9
    """AdamW: decay rate of the first moment."""
    beta2: Annotated[float, BELOW_ONE] = 0.999
    """AdamW: decay rate of the second moment."""
