"""Agreement of members, and confidence intervals of the vote's gain. Shapes: see `prompt_jax.models`; N examples."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from prompt_jax.data.examples import Examples
from prompt_jax.metrics import CORPUS_METRICS, Target, references_of

RESAMPLES = 1000
CONFIDENCE = 0.95


def right_answers(
    answers: Sequence[Sequence[str]], targets: Sequence[Target], same: Callable[[str], str]
) -> Bool[np.ndarray, "E N"]:
    """Return for each answer whether it equals its target or one of several. `same` maps equal answers to one text."""
    expected = [{same(text) for text in references_of(target)} for target in targets]
    return np.array([[same(a) in t for a, t in zip(row, expected, strict=True)] for row in answers])


def agreement(ids: Int[np.ndarray, "E N"]) -> Float[np.ndarray, "E E"]:
    """Return the share of examples on which two members give the same answer. `ids` are from `vote.answer_ids`."""
    return np.stack([(ids == row).mean(axis=1) for row in ids])


def confusion(targets: Sequence[str], answers: Sequence[str], labels: Sequence[str]) -> Int[np.ndarray, "C C+1"]:
    """Count how often each label (rows) was answered with each label, or with something else (the last column)."""
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
    """Return 95 % confidence intervals of the vote's gain over the best member and over the members' average.

    Uses a paired percentile bootstrap (Efron 1979): 1,000 resamples of the examples with replacement, each of which
    scores the vote and all members. The best member is the same in all resamples.

    The statistics of a metric that is a function of a sum over examples (`metrics.CORPUS_METRICS`) are computed once
    and summed for each resample. Values that depend on all references are those of the whole split: the information of
    NIST's n-grams, CIDEr's weights, and multi_bleu's number of references. Other metrics score each resample's texts.

    Args:
      examples: the examples of one split.
      members: [E][N] the members' answers.
      vote: [N] the vote's answers.
      best: the number of the best member.
      metric: the name of one of the task's metrics.
      seed: the seed that draws the resamples.

    Returns:
      (low, high) under "best" and "average".
    """
    random, size = np.random.default_rng(seed), len(examples)
    resamples = np.stack([random.integers(size, size=size) for _ in range(RESAMPLES)])
    scores = _scores(examples, [*members, vote], metric, resamples)
    voted, others = scores[:, -1], scores[:, :-1]
    gains = {"best": voted - others[:, best], "average": voted - others.mean(axis=1)}
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    bounds = {name: np.quantile(values, tails) for name, values in gains.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


def _scores(
    examples: Examples, answers: Sequence[Sequence[str]], metric: str, resamples: Int[np.ndarray, "R N"]
) -> Float[np.ndarray, "R E"]:
    """Return the score of each row of answers on each resample. A resample is a row of example numbers."""
    if examples.format is None or examples.postprocess is not None or metric not in CORPUS_METRICS:
        return np.array([[_score(examples, row, metric, numbers) for row in answers] for numbers in resamples])
    corpus_metric, references = CORPUS_METRICS[metric], list(map(references_of, examples.expected))
    times = np.stack([np.bincount(rows, minlength=len(examples)) for rows in resamples]).astype(np.float64)  # [R, N]
    totals = [times @ corpus_metric.statistics(references, row) for row in answers]  # [E] of [R, K]
    return np.array([[corpus_metric.score(total) for total in row] for row in totals]).T


def _score(examples: Examples, answers: Sequence[str], metric: str, numbers: Int[np.ndarray, " N"]) -> float:
    return examples.take(numbers).score([answers[i] for i in numbers])[metric]
