"""Correlations between targets and answers that are numbers."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from prompt_jax.metrics.answers import check_lengths

NOT_A_NUMBER = -1.0  # the value of an answer that is not a number, as in T5


def pearson(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Return Pearson's correlation of the numbers in the texts; 0 if targets or predictions are constant."""
    from scipy.stats import pearsonr

    expected, given = _numbers(targets, predictions)
    return {"pearson": 0.0 if _is_constant(expected, given) else float(pearsonr(expected, given).statistic)}


def spearman(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Return Spearman's rank correlation of the numbers in the texts; 0 if targets or predictions are constant."""
    from scipy.stats import spearmanr

    expected, given = _numbers(targets, predictions)
    return {"spearman": 0.0 if _is_constant(expected, given) else float(spearmanr(expected, given).statistic)}


def _numbers(
    targets: Sequence[str], predictions: Sequence[str]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    check_lengths(targets, predictions)
    return np.array(list(map(_number, targets))), np.array(list(map(_number, predictions)))


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return NOT_A_NUMBER
    return value if math.isfinite(value) else NOT_A_NUMBER


def _is_constant(*arrays: Float[np.ndarray, " N"]) -> bool:
    return any((array == array[0]).all() for array in arrays)
