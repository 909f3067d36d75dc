"""How members differ, and how sure the vote's gain is. Letters of shapes: see `prompt_jax.models`; N is examples."""

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
    """Which answers are the same as their target, or as one of several."""
    expected = [{same(text) for text in references_of(target)} for target in targets]
    return np.array([[same(a) in t for a, t in zip(row, expected, strict=True)] for row in answers])


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

    A metric that is a function of a sum over examples (`metrics.CORPUS_METRICS`) is computed once and then added up for
    each resample. What it takes from all references together stays that of the whole split: the information of NIST's
    n-grams, the weights of CIDEr's, and how many references an example has for multi_bleu. Other metrics score each
    resample from its texts.

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
    """The score of each row of answers on each resample, which is given by its rows."""
    if examples.format is None or examples.postprocess is not None or metric not in CORPUS_METRICS:
        return np.array([[_score(examples, own, metric, rows) for own in answers] for rows in resamples])
    known, references = CORPUS_METRICS[metric], list(map(references_of, examples.expected))
    times = np.stack([np.bincount(rows, minlength=len(examples)) for rows in resamples]).astype(np.float64)  # [R, N]
    totals = [times @ known.statistics(references, own) for own in answers]  # [E] of [R, K]
    return np.array([[known.score(total) for total in own] for own in totals]).T


def _score(examples: Examples, answers: Sequence[str], metric: str, rows: Int[np.ndarray, " N"]) -> float:
    return examples.take(rows).score([answers[row] for row in rows])[metric]
