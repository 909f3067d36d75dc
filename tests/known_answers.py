"""Examples and evaluations made from given answers."""

import numpy as np

from prompt_jax.data.examples import Examples
from prompt_jax.inference.evaluation import Evaluation
from prompt_jax.metrics import metric_fns

LABELS = ("no", "yes")


def examples_of(targets, task_format) -> Examples:
    ids = [np.array([2, 1], np.int32)] * len(targets)
    texts = [f"text {i}" for i in range(len(targets))]
    return Examples("task", "test", ids, ids, texts, targets, {}, task_format, tuple(metric_fns(task_format)))


def member(examples, predictions, probabilities=None) -> Evaluation:
    """Return an evaluation as `evaluate` would, from answers and the second label's probability."""
    scores, label_scores = dict(examples.score(predictions)), None
    if probabilities is not None:
        label_scores = np.log([[1 - p, p] for p in probabilities]).astype(np.float32)
        ranked = examples.score([LABELS[p > 0.5] for p in probabilities])
        scores |= {"rank/accuracy": ranked["accuracy"]}
    return Evaluation(scores, predictions, label_scores, np.full(len(predictions), -1.0, np.float32))
