"""How members differ, and how sure the vote's gain is. Letters of shapes: see `prompt_jax.models`; N is examples."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from prompt_jax import metrics
from prompt_jax.examples import Examples

RESAMPLES = 1000
CONFIDENCE = 0.95

# Metrics that are the mean over examples of what each example is worth alone.
_MEANS: dict[str, metrics.MetricFn] = {"accuracy": metrics.accuracy, "exact_match": metrics.exact_match}


def right_answers(
    answers: Sequence[Sequence[str]], targets: Sequence[str], same: Callable[[str], str]
) -> Bool[np.ndarray, "E N"]:
    """Which answers are the same as their target."""
    expected = [same(target) for target in targets]
    return np.array([[same(a) == t for a, t in zip(row, expected, strict=True)] for row in answers])


def agreement(ids: Int[np.ndarray, "E N"]) -> Float[np.ndarray, "E E"]:
    """The share of examples on which two members give the same answer, from `vote.answer_ids`."""
    return np.stack([(ids == own).mean(axis=1) for own in ids])


def confusion(targets: Sequence[str], answers: Sequence[str], labels: Sequence[str]) -> Int[np.ndarray, "C C+1"]:
    """How often each label (rows) was answered with each label, or with what is no label (the last column)."""
    number = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels) + 1), np.int64)
    np.add.at(counts, ([number[t] for t in targets], [number.get(a, len(labels)) for a in answers]), 1)
    return counts


def gain_intervals(
    examples: Examples,
    members: Sequence[Sequence[str]],
    vote: Sequence[str],
    best: int,
    metric: str,
    *,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % confidence intervals of the vote's score minus the best member's, and minus the members' average.

    A percentile bootstrap (Efron 1979), paired: each of 1,000 resamples of the examples, with replacement, scores the
    vote and all members. Which member is the best is not chosen anew.

    Args:
      examples: of one split.
      members: [E][N] their answers.
      vote: [N] the vote's answers.
      best: the best member.
      metric: the name of one of the task's metrics.
      seed: of the resamples.

    Returns:
      (low, high) under "best" and "average".
    """
    score = _scorer(examples, [*members, vote], metric)
    random = np.random.default_rng(seed)
    scores = np.stack([score(random.integers(len(examples), size=len(examples))) for _ in range(RESAMPLES)])
    voted, others = scores[:, -1], scores[:, :-1]
    gains = {"best": voted - others[:, best], "average": voted - others.mean(axis=1)}
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    bounds = {name: np.quantile(values, tails) for name, values in gains.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


def _scorer(examples: Examples, answers: Sequence[Sequence[str]], metric: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function from the rows of a resample to the score on it of each row of answers."""
    mean = _MEANS.get(metric)
    if mean in examples.metric_fns and examples.postprocess is None:
        pairs = [zip(examples.target_texts, row, strict=True) for row in answers]
        worth = np.array([[mean([target], [answer])[metric] for target, answer in row] for row in pairs])
        return lambda rows: worth[:, rows].mean(axis=1)

    def score(rows: np.ndarray) -> np.ndarray:
        resample = examples.take(rows)
        return np.array([resample.score([row[i] for i in rows])[metric] for row in answers])

    return score
