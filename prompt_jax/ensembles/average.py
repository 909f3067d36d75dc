"""Prompts of prompts: means, and points between them or beyond."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from prompt_jax.errors import UserError
from prompt_jax.models.prompt import Prompt, check_stackable, used_arrays


class AverageError(UserError, ValueError):
    """Prompts that cannot be added up, or weights that do not fit them; the message says what would be right."""


def average_prompts(
    prompts: Sequence[Prompt], weights: Sequence[float] | None = None, names: Sequence[str] | None = None
) -> Prompt:
    """The weighted mean of prompts, number by number, added up in float64; the result is float32 and has no mask.

    The order of virtual tokens is arbitrary: those of two prompts trained from different first values have nothing to
    do with each other, and their mean need not be worth anything. It is for prompts that come from one, as checkpoints
    of a run or what was trained from the same file.

    Args:
      prompts: two or more, of the same parts and sizes.
      weights: of each, which add up to 1; outside 0 and 1 they lead beyond the prompts. Left out, all are equal.
      names: what errors call the prompts; by their numbers if left out.

    Raises:
      AverageError: weights that do not fit, or prompts of different lengths.
      PromptStackError: prompts of different parts, placement or width.
    """
    names = names or [f"prompt {number}" for number in range(len(prompts))]
    if len(prompts) < 2:
        raise AverageError(f"an average is of two prompts or more, and there is {len(prompts)}")
    check_stackable(prompts, names)
    weights = [1 / len(prompts)] * len(prompts) if weights is None else list(weights)
    if len(weights) != len(prompts):
        raise AverageError(f"{len(weights)} weights for {len(prompts)} prompts ({', '.join(names)}); give one for each")
    if not math.isclose(sum(weights), 1, abs_tol=1e-6):  # said so that NaN fails
        raise AverageError(f"the weights {', '.join(map(str, weights))} add up to {sum(weights):g}, and should to 1")
    parts: dict[str, Any] = {}
    first: Any
    for kind, first in prompts[0].parts.items():
        arrays = [used_arrays(prompt.parts[kind]) for prompt in prompts]
        for name, own in zip(names[1:], arrays[1:], strict=True):
            a, b = (each[first.arrays[0]].shape[first.axes.index("P")] for each in (arrays[0], own))
            if a != b:
                raise AverageError(f"{names[0]} has {a} slots of {kind}, and {name} {b}; an average is of one length")
        means = {
            name: sum(weight * own[name].astype(np.float64) for weight, own in zip(weights, arrays, strict=True))
            for name in first.arrays
        }
        parts[kind] = first.replace(mask=None, **{name: np.asarray(mean, np.float32) for name, mean in means.items()})
    return Prompt(**parts)
