"""Metrics that are functions of a sum over examples.

All metrics of text are of this kind: BLEU sums n-gram counts, TER sums edits, a mean sums the scores of examples. So
scoring a bootstrap sample only takes additions. Letters of shapes: N examples, K numbers that are summed.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

References = Sequence[Sequence[str]]  # one or more for each example
Statistics = Callable[[References, Sequence[str]], Float[np.ndarray, "N K"]]


@dataclasses.dataclass(frozen=True)
class CorpusMetric:
    """A metric that is a function of a sum over examples.

    Attributes:
      statistics: returns the numbers that are summed, from references and predictions.
      score: returns the score from their sum [K].
    """

    statistics: Statistics
    score: Callable[[Float[np.ndarray, " K"]], float]

    def __call__(self, references: References, predictions: Sequence[str]) -> float:
        return self.score(self.statistics(references, predictions).sum(axis=0))


def mean_of(scores: Callable[[References, Sequence[str]], Sequence[float]]) -> CorpusMetric:
    """Return the metric that is the mean of the examples' scores [N]."""

    def statistics(references: References, predictions: Sequence[str]) -> Float[np.ndarray, "N 2"]:
        values = np.asarray(scores(references, predictions), np.float64)
        return np.stack([values, np.ones_like(values)], axis=1)

    return CorpusMetric(statistics, lambda total: float(total[0] / total[1]))


def on_normalized_text(
    metric: CorpusMetric, normalize: Callable[[str], str], max_references: int | None = None
) -> CorpusMetric:
    """Return the metric on normalized texts, with only the first `max_references` references of each example."""

    def statistics(references: References, predictions: Sequence[str]) -> Float[np.ndarray, "N K"]:
        kept = [[normalize(text) for text in texts[:max_references]] for texts in references]
        return metric.statistics(kept, [normalize(text) for text in predictions])

    return CorpusMetric(statistics, metric.score)
