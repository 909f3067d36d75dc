"""The initial virtual tokens of prompt tuning."""

import jax
import jax.numpy as jnp
import numpy as np

from prompt_jax.methods.soft_prompt import PromptTuning

KEY = jax.random.key(0)


def init(model, labels=(), **options) -> np.ndarray:
    tokens = PromptTuning(**options).initialize(KEY, model, labels)["encoder_tokens"]
    assert tokens.dtype == jnp.float32
    return np.asarray(tokens)
