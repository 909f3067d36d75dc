"""Metrics of whole answers, against values computed by hand."""

import pytest

from prompt_jax import metrics


def test_accuracy_compares_verbatim():
    assert metrics.accuracy(["yes", "no", "yes", "no"], ["yes", "yes", "Yes", "no "]) == {"accuracy": 0.25}


def test_exact_match_normalizes_as_squad_does():
    targets = ["The Eiffel Tower!", "a cat", "an apple", "theory", "U.S."]
    predictions = ["eiffel  tower", "The cat", "banana", "ory", "us"]
    assert metrics.exact_match(targets, predictions) == {"exact_match": 3 / 5}


def test_a_group_is_correct_if_all_its_answers_are():
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
def test_an_answer_without_words_is_incorrect(answer):
    score = metrics.referent_accuracy(["Bob"] * 3, [answer] * 3, notes=["False", "False", "True"])
    assert score == {"referent_accuracy": 0.0}


@pytest.mark.parametrize(("targets", "predictions"), [(["a"], ["a", "b"]), ([], [])])
def test_answers_that_cannot_be_scored_are_refused(targets, predictions):
    with pytest.raises(ValueError, match="there are"):
        metrics.accuracy(targets, predictions)


def test_an_answer_may_equal_one_of_several_targets():
    targets = [["yes", "yeah"], ["no"], "no", ["a cat", "dog"]]
    assert metrics.accuracy(targets, ["yeah", "no", "No", "The cat"]) == {"accuracy": 0.5}
    assert metrics.exact_match(targets, ["yeah", "no", "No", "The cat"]) == {"exact_match": 1.0}
