"""Metrics on generated answers. A metric function maps (targets, predictions) to values by name.

Answers are compared verbatim, without stripping or lowercasing (except in `exact_match`): a prompt that makes the model
answer "Positive" has not learned to answer "positive". Values are fractions in [0, 1], correlations in [-1, 1], or in
the units of `OTHER_UNITS`.
"""

from prompt_jax.metrics.answers import (
    CORPUS_METRICS,
    MetricFn,
    Target,
    accuracy,
    corpus_score,
    exact_match,
    group_exact_match,
    references_of,
    referent_accuracy,
)
from prompt_jax.metrics.correlation import pearson, spearman
from prompt_jax.metrics.labels import f1, invalid, matthews, mean_class_f1
from prompt_jax.metrics.squad import normalize_answer
from prompt_jax.metrics.task_metrics import OTHER_UNITS, benchmark_average, is_share, log_likelihood, metric_fns

__all__ = [
    "CORPUS_METRICS",
    "OTHER_UNITS",
    "MetricFn",
    "Target",
    "accuracy",
    "benchmark_average",
    "corpus_score",
    "exact_match",
    "f1",
    "group_exact_match",
    "invalid",
    "is_share",
    "log_likelihood",
    "matthews",
    "mean_class_f1",
    "metric_fns",
    "normalize_answer",
    "pearson",
    "referent_accuracy",
    "references_of",
    "spearman",
]
