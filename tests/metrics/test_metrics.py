"""Metrics against values worked out by hand, and correlations against SciPy's."""

import random

import numpy as np
import pytest
import scipy.stats

from prompt_jax import metrics
from prompt_jax.task_format import METRIC_NAMES, FormatError, TaskFormat

YES_NO = ("no", "yes")
ABC = ("a", "b", "c")


def test_accuracy_counts_equal_strings_and_strips_nothing():
    assert metrics.accuracy(["yes", "no", "yes", "no"], ["yes", "yes", "Yes", "no "]) == {"accuracy": 0.25}


def test_exact_match_normalizes_as_squad_does():
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


@pytest.mark.parametrize("seed", range(3))
def test_matthews_is_the_correlation_of_two_classes(seed):
    """Of two classes it is Pearson's correlation of 0 and 1, and no matter which of them is the positive one."""
    draw = random.Random(seed)
    targets = [draw.choice(YES_NO) for _ in range(50)]
    predictions = [t if draw.random() < 0.7 else draw.choice(YES_NO) for t in targets]
    expected = np.corrcoef([t == "yes" for t in targets], [p == "yes" for p in predictions])[0, 1]
    for labels in (YES_NO, YES_NO[::-1]):
        assert metrics.matthews(targets, predictions, labels=labels) == {"matthews": pytest.approx(expected)}


def test_matthews_of_more_classes_and_of_what_is_none():
    # Covariance over the root of the variances, in counts: 6 examples, 4 hits, targets 2, 2, 2.
    targets = ["a", "a", "b", "b", "c", "c"]
    predictions = ["a", "x", "b", "b", "c", "a"]
    # Predictions: a 2, b 2, c 1, none 1.
    expected = (4 * 6 - (2 * 2 + 2 * 2 + 2 * 1)) / ((36 - 12) * (36 - 10)) ** 0.5
    assert metrics.matthews(targets, predictions, labels=ABC) == {"matthews": pytest.approx(expected)}
    assert metrics.matthews(targets, targets, labels=ABC) == {"matthews": pytest.approx(1.0)}
    assert metrics.matthews(targets, ["x", "y"] * 3, labels=ABC) == {"matthews": 0.0}
    assert metrics.matthews(["a", "a"], ["a", "b"], labels=ABC) == {"matthews": 0.0}


def test_correlations_are_those_of_scipy():
    draw = random.Random(0)
    numbers = [round(draw.uniform(0, 5) * 5) / 5 for _ in range(60)]  # with ties
    others = [round((x + draw.uniform(0, 3)) * 5) / 5 for x in numbers]
    targets, predictions = ([f"{x:.1f}" for x in own] for own in (numbers, others))
    assert metrics.pearson(targets, predictions)["pearson"] == pytest.approx(scipy.stats.pearsonr(numbers, others)[0])
    expected = scipy.stats.spearmanr(numbers, others)[0]
    assert metrics.spearman(targets, predictions)["spearman"] == pytest.approx(expected)


def test_an_answer_that_is_no_number_counts_as_one_below_all():
    targets = ["1.0", "2.0", "3.0"]
    for answer in ("", "two", "nan", "inf"):
        expected = np.corrcoef([1, 2, 3], [1, -1, 3])[0, 1]
        assert metrics.pearson(targets, ["1.0", answer, " 3"]) == {"pearson": pytest.approx(expected)}
        assert metrics.spearman(targets, ["1.0", answer, "3.0"]) == {"spearman": pytest.approx(0.5)}  # ranks 2 1 3
    assert metrics.pearson(targets, ["x"] * 3) == {"pearson": 0.0}
    assert metrics.spearman(["2.0"] * 3, targets) == {"spearman": 0.0}


def test_groups_are_right_where_all_of_them_is():
    targets, predictions = ["a", "b", "a", "a", ("b", "c")], ["a", "b", "b", "a", "c"]
    notes = ["1", "2", "1", "3", "2"]  # group 1 has a wrong one
    assert metrics.group_exact_match(targets, predictions, notes=notes) == {"group_exact_match": pytest.approx(2 / 3)}
    assert metrics.group_exact_match(targets, predictions, notes=list("abcde")) == {"group_exact_match": 0.8}


@pytest.mark.parametrize(
    ("target", "prediction", "named"),
    [
        ("Mark", "mark ", True),
        ("the fuzzy bunny", "bunny", True),
        ("bunny", "His fuzzy bunny", True),
        ("Bob", "Bob's", False),
        ("Bob's hat", "Bob's", True),
        ("the city councilmen", "the demonstrators", False),
        ("her", "Mark", False),
    ],
)
def test_a_referent_is_named_by_part_of_its_words(target, prediction, named):
    for note in ("True", "False"):
        score = metrics.referent_accuracy([target], [prediction], notes=[note])
        assert score == {"referent_accuracy": float(named == (note == "True"))}


@pytest.mark.parametrize("answer", ["", " ", "the", "My this"])
def test_an_answer_without_a_word_names_nothing_and_is_wrong(answer):
    score = metrics.referent_accuracy(["Bob"] * 3, [answer] * 3, notes=["False", "False", "True"])
    assert score == {"referent_accuracy": 0.0}


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


def test_metrics_on_notes_are_there_where_notes_are():
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
        ((), ("ter", "bleu"), "ter is better when lower, .*put another metric first"),
        ((), ("dart_ter", "dart_bleu"), "dart_ter is better when lower, .*put another metric first"),
        (ABC, ("accuracy", "bleu"), "the metric bleu compares free text, .*for tasks with labels are accuracy, f1"),
        (ABC, ("log_likelihood",), "log_likelihood is for free text, not for the labels"),
        ((), ("blue",), "unknown metric 'blue'; known are accuracy, .*bleu"),
    ],
)
def test_formats_with_metrics_that_make_no_sense_are_refused(labels, names, message):
    with pytest.raises(FormatError, match=message):
        TaskFormat("{x}", labels, metrics=names)


def test_which_values_are_shares():
    units = {name for name in METRIC_NAMES if not metrics.is_share(name)}
    assert units == {"nist", "nist_perl", "cider", "log_likelihood"}
    assert metrics.is_share("invalid") and metrics.is_share("rank/accuracy") and not metrics.is_share("rank/nist")
