"""The metrics of a task, which formats are refused, and the average over a benchmark."""

import pytest

from prompt_jax import metrics
from prompt_jax.task_format import METRIC_NAMES, FormatError, TaskFormat

YES_NO = ("no", "yes")
ABC = ("a", "b", "c")


def test_the_score_of_a_benchmark_is_the_mean_of_its_tasks_means():
    scores = {
        "boolq": {"accuracy": 0.8, "invalid": 0.5, "rank/accuracy": 0.1},
        "cb": {"mean_class_f1": 0.6, "accuracy": 1.0, "invalid": 0.0},
    }
    assert metrics.benchmark_average(scores) == pytest.approx(0.8)
    # Lester et al. 2021, table 3: the vote of five prompts on T5 XXL, where SuperGLUE's is given as 91.3.
    published = {
        "boolq": [91.7],
        "cb": [100, 100],
        "copa": [100],
        "multirc": [67.1, 89.4],
        "record": [93.2, 93.9],
        "rte": [93.5],
        "wic": [77.4],
        "wsc": [96.2],
    }
    table = {task: {str(i): value for i, value in enumerate(own)} for task, own in published.items()}
    assert round(metrics.benchmark_average(table), 1) == 91.3
    with pytest.raises(ValueError, match="'rte' has no metric"):
        metrics.benchmark_average({"rte": {"invalid": 0.0}})
    with pytest.raises(ValueError, match="there are no tasks"):
        metrics.benchmark_average({})


def compute(task_format, targets, predictions, notes=()):
    return {
        name: value
        for function in metrics.metric_fns(task_format, notes)
        for name, value in function(targets, predictions).items()
    }


def test_a_format_with_labels_reports_invalid_last():
    task_format = TaskFormat("{x}", ABC, metrics=("mean_class_f1", "accuracy"))
    scores = compute(task_format, ["a", "b", "c"], ["a", "b", "x"])
    assert list(scores) == ["mean_class_f1", "accuracy", "invalid"]
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["invalid"] == pytest.approx(1 / 3)


def test_a_format_without_labels_reports_no_invalid():
    scores = compute(TaskFormat("{x}", metrics=("exact_match",)), ["The cat"], ["cat"])
    assert scores == {"exact_match": 1.0}


def test_metrics_on_notes_need_notes():
    task_format = TaskFormat("{x}", YES_NO, metrics=("f1", "group_exact_match"))
    answers = ["yes", "no"], ["yes", "yes"]
    assert list(compute(task_format, *answers)) == ["f1", "invalid"]
    scores = compute(task_format, *answers, notes=("0", "1"))
    assert scores == {"f1": pytest.approx(2 / 3), "group_exact_match": 0.5, "invalid": 0.0}


@pytest.mark.parametrize(
    ("metric", "labels"),
    [
        *(("f1", ABC), ("f1", ()), ("mean_class_f1", ()), ("matthews", ())),
        *(("pearson", ABC), ("spearman", ABC), ("referent_accuracy", ABC)),
    ],
)
def test_metrics_that_do_not_fit_the_labels_are_refused(metric, labels):
    with pytest.raises(ValueError, match=metric):
        metrics.metric_fns(TaskFormat("{x}", labels, metrics=(metric,)))


def test_formats_with_metrics_of_texts():
    task_format = TaskFormat("{x}", metrics=("bleu", "exact_match", "ter"))
    assert task_format.compared == ("bleu", "ter") and TaskFormat("{x}", ABC).compared == ()
    scores = compute(task_format, [["a b c d e", "f"], ["g"]], ["a b c d e", "h"])
    assert list(scores) == ["bleu", "exact_match", "ter"]
    assert scores["exact_match"] == 0.5 and scores["ter"] == pytest.approx(1 / 4)  # of 3 and 1 words on average


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ((), ("ter", "bleu"), "ter is better when lower, .*put another metric first"),
        ((), ("dart_ter", "dart_bleu"), "dart_ter is better when lower, .*put another metric first"),
        (ABC, ("accuracy", "bleu"), "the metric bleu compares free text, .*for tasks with labels are accuracy, f1"),
        (ABC, ("log_likelihood",), "log_likelihood is for free text, not for the labels"),
        ((), ("blue",), "unknown metric 'blue'; known are accuracy, .*bleu"),
    ],
)
def test_formats_with_incompatible_metrics_are_refused(labels, names, message):
    with pytest.raises(FormatError, match=message):
        TaskFormat("{x}", labels, metrics=names)


def test_is_share():
    units = {name for name in METRIC_NAMES if not metrics.is_share(name)}
    assert units == {"nist", "nist_perl", "cider", "log_likelihood"}
    assert metrics.is_share("invalid") and metrics.is_share("rank/accuracy") and not metrics.is_share("rank/nist")
