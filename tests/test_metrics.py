"""Metrics against values worked out by hand."""

import pytest

from prompt_jax import metrics
from prompt_jax.task_format import METRIC_NAMES, FormatError, TaskFormat

YES_NO = ("no", "yes")
ABC = ("a", "b", "c")


def test_accuracy_counts_equal_strings_and_strips_nothing():
    assert metrics.accuracy(["yes", "no", "yes", "no"], ["yes", "yes", "Yes", "no "]) == {"accuracy": 0.25}


def test_exact_match_normalises_as_squad_does():
    targets = ["The Eiffel Tower!", "a cat", "an apple", "theory", "U.S."]
    predictions = ["eiffel  tower", "The cat", "banana", "ory", "us"]
    assert metrics.exact_match(targets, predictions) == {"exact_match": 3 / 5}


def test_f1_of_the_second_label():
    # yes: 2 hits, 1 miss, 1 false alarm: precision 2/3, recall 2/3.
    targets = ["yes", "yes", "yes", "no", "no"]
    predictions = ["yes", "yes", "no", "yes", "no"]
    assert metrics.f1(targets, predictions, labels=YES_NO) == {"f1": pytest.approx(2 / 3)}


def test_f1_counts_answers_outside_the_labels_as_wrong_on_both_sides():
    assert metrics.f1(["yes", "yes"], ["yes", "maybe"], labels=YES_NO) == {"f1": pytest.approx(2 / 3)}
    assert metrics.f1(["yes", "no"], ["yes", "maybe"], labels=YES_NO) == {"f1": pytest.approx(2 / 3)}
    assert metrics.f1(["yes", "no"], ["yes", "no"], labels=YES_NO) == {"f1": 1.0}


def test_f1_without_the_positive_class_is_zero():
    assert metrics.f1(["no"], ["no"], labels=YES_NO) == {"f1": 0.0}


def test_mean_class_f1():
    # a: 1 hit of 2 targets and 1 prediction, 2/3. b: 1 hit, 1 target, 2 predictions, 2/3. c: never, 0.
    targets, predictions = ["a", "a", "b"], ["a", "b", "b"]
    assert metrics.mean_class_f1(targets, predictions, labels=ABC) == {"mean_class_f1": pytest.approx(4 / 9)}


def test_mean_class_f1_takes_an_unknown_answer_for_a_miss_and_for_no_class():
    # a: 1 hit, 2 targets, 1 prediction, 2/3; b: 1; c: 1.
    targets, predictions = ["a", "a", "b", "c"], ["a", "d", "b", "c"]
    assert metrics.mean_class_f1(targets, predictions, labels=ABC) == {"mean_class_f1": pytest.approx(8 / 9)}


def test_invalid_is_the_share_outside_the_labels():
    assert metrics.invalid(["a"] * 4, ["a", "b", "A", ""], labels=ABC) == {"invalid": 0.5}


def compute(task_format, targets, predictions):
    return {
        name: value
        for function in metrics.metric_fns(task_format)
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


@pytest.mark.parametrize(("metric", "labels"), [("f1", ABC), ("f1", ()), ("mean_class_f1", ())])
def test_metrics_that_do_not_fit_the_labels_are_refused(metric, labels):
    with pytest.raises(ValueError, match=metric):
        metrics.metric_fns(TaskFormat("{x}", labels, metrics=(metric,)))


@pytest.mark.parametrize(("targets", "predictions"), [(["a"], ["a", "b"]), ([], [])])
def test_answers_that_cannot_be_scored_are_refused(targets, predictions):
    with pytest.raises(ValueError, match="there are"):
        metrics.accuracy(targets, predictions)


def test_an_answer_may_equal_one_of_several_targets():
    targets = [["yes", "yeah"], ["no"], "no", ["a cat", "dog"]]
    assert metrics.accuracy(targets, ["yeah", "no", "No", "The cat"]) == {"accuracy": 0.5}
    assert metrics.exact_match(targets, ["yeah", "no", "No", "The cat"]) == {"exact_match": 1.0}


def test_formats_with_metrics_of_texts():
    task_format = TaskFormat("{x}", metrics=("bleu", "exact_match", "ter"))
    assert task_format.compared == ("bleu", "ter") and TaskFormat("{x}", ABC).compared == ()
    scores = compute(task_format, [["a b c d e", "f"], ["g"]], ["a b c d e", "h"])
    assert list(scores) == ["bleu", "exact_match", "ter"]
    assert scores["exact_match"] == 0.5 and scores["ter"] == pytest.approx(1 / 4)  # of 3 and 1 words on average


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ((), ("ter", "bleu"), "ter is better when lower, .*name another first"),
        (ABC, ("accuracy", "bleu"), "the metric bleu compares texts, .*with labels the metrics are accuracy, f1"),
        ((), ("blue",), "unknown metric 'blue'; known are accuracy, .*bleu"),
    ],
)
def test_formats_with_metrics_that_make_no_sense_are_refused(labels, names, message):
    with pytest.raises(FormatError, match=message):
        TaskFormat("{x}", labels, metrics=names)


def test_which_values_are_shares():
    units = {name for name in METRIC_NAMES if not metrics.is_share(name)}
    assert units == {"nist", "cider"}
    assert metrics.is_share("invalid") and metrics.is_share("rank/accuracy") and not metrics.is_share("rank/nist")
