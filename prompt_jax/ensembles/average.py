"""Weighted means of prompts: averages, interpolation and extrapolation."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from prompt_jax.errors import UserError
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prompt, check_stackable, used_arrays


class AverageError(UserError, ValueError):
    """Prompts that cannot be averaged, or weights that do not fit them."""


def average_prompts(
    prompts: Sequence[Prompt | Delta], weights: Sequence[float] | None = None, names: Sequence[str] | None = None
) -> Prompt:
    """Return the elementwise weighted mean of prompts, in float32 (summed in float64) and without a mask.

    Virtual tokens have no canonical order, so averaging only makes sense for prompts that share an initialization, such
    as checkpoints of a run or prompts trained from the same file.

    Args:
      prompts: two or more, of the same parts and sizes.
      weights: one for each prompt, with sum 1. Weights below 0 or above 1 extrapolate. The default is equal weights.
      names: the prompts' names in error messages. The default is their numbers.

    Raises:
      AverageError: the weights do not fit, or the prompts have different lengths.
      PromptStackError: the prompts have different parts, placements or widths.
    """
    names = names or [f"prompt {number}" for number in range(len(prompts))]
    if len(prompts) < 2:
        raise AverageError(f"an average needs two or more prompts, and there is {len(prompts)}")
    check_stackable(prompts, names)
    weights = [1 / len(prompts)] * len(prompts) if weights is None else list(weights)
    if len(weights) != len(prompts):
        raise AverageError(f"{len(weights)} weights for {len(prompts)} prompts ({', '.join(names)}); give one for each")
    if not math.isclose(sum(weights), 1, abs_tol=1e-6):  # written so that NaN fails
        raise AverageError(f"the weights {', '.join(map(str, weights))} add up to {sum(weights):g}; expected 1")
    parts: dict[str, Any] = {}
    first: Any
    for kind, first in prompts[0].parts.items():
        arrays = [used_arrays(prompt.parts[kind]) for prompt in prompts]
        lengths = [each[first.arrays[0]].shape[first.axes.index("P")] for each in arrays]
        for name, length in zip(names, lengths, strict=True):
            if length != lengths[0]:
                raise AverageError(
                    f"{names[0]} has {lengths[0]} slots of {kind}, and {name} {length}; expected equal lengths"
                )
        means = {
            name: sum(weight * each[name].astype(np.float64) for weight, each in zip(weights, arrays, strict=True))
            for name in first.arrays
        }
        parts[kind] = first.replace(mask=None, **{name: np.asarray(mean, np.float32) for name, mean in means.items()})
    return Prompt(**parts)
