"""The metrics of a task by name, the log-likelihood of its targets, and the average over a benchmark."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prompt_jax.metrics.answers import (
    MetricFn,
    accuracy,
    corpus_score,
    exact_match,
    group_exact_match,
    mean,
    referent_accuracy,
)
from prompt_jax.metrics.correlation import pearson, spearman
from prompt_jax.metrics.labels import f1, invalid, matthews, mean_class_f1
from prompt_jax.task_format import LOG_LIKELIHOOD, NOTE_METRICS, REFERENCE_METRICS, TaskFormat

OTHER_UNITS = ("nist", "nist_perl", "cider", LOG_LIKELIHOOD)  # metrics that are neither fractions nor correlations


def metric_fns(task_format: TaskFormat, notes: Sequence[str] = ()) -> list[MetricFn]:
    """Return the functions of a task's metrics in their order, and `invalid` if the task has labels.

    All take `(targets, predictions)`, as seqio requires, except `log_likelihood`.

    Args:
      task_format: the task's format.
      notes: the notes of the examples to be scored, in their order. Without notes, NOTE_METRICS are left out.
    """
    labels = task_format.labels
    functions: dict[str, Any] = {
        "accuracy": accuracy,
        "exact_match": exact_match,
        "f1": functools.partial(f1, labels=labels),
        "mean_class_f1": functools.partial(mean_class_f1, labels=labels),
        "matthews": functools.partial(matthews, labels=labels),
        "final_answer": functools.partial(corpus_score, name="final_answer"),
        "pearson": pearson,
        "spearman": spearman,
        "group_exact_match": functools.partial(group_exact_match, notes=notes),
        "referent_accuracy": functools.partial(referent_accuracy, notes=notes),
        **{name: functools.partial(corpus_score, name=name) for name in REFERENCE_METRICS},
        LOG_LIKELIHOOD: log_likelihood,
    }
    chosen = [functions[name] for name in task_format.metrics if notes or name not in NOTE_METRICS]
    return [*chosen, functools.partial(invalid, labels=labels)] if labels else chosen


def log_likelihood(targets: Sequence[np.ndarray], scores: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return the mean log-probability of the targets' tokens in nats per token: the negative training loss.

    Args:
      targets: the token ids of each target, end token included. Only the first of several references counts.
      scores: the log-probability of each target, in nats (`prompt_jax.inference.answers.score_targets`).
    """
    total = np.asarray(scores, np.float64).sum()
    return {LOG_LIKELIHOOD: float(total / sum(map(len, targets)))}


def benchmark_average(scores: Mapping[str, Mapping[str, float]]) -> float:
    """Return the score of a benchmark such as GLUE or SuperGLUE: the mean over tasks of the mean of a task's metrics.

    Args:
      scores: values by task and metric. `invalid` and names that start with `rank/` are ignored.

    Raises:
      ValueError: no task, or a task without a metric.
    """
    means = []
    for task, values in scores.items():
        counted = [value for name, value in values.items() if name != "invalid" and not name.startswith("rank/")]
        if not counted:
            raise ValueError(f"the task {task!r} has no metric; expected at least one")
        means.append(mean(counted))
    if not means:
        raise ValueError("there are no tasks; expected the scores of at least one")
    return mean(means)


def is_share(name: str) -> bool:
    """Return whether a metric's values are fractions or correlations, which are reported in percent."""
    return name.rpartition("/")[2] not in OTHER_UNITS
