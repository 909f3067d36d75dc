"""Agreement, confusion and intervals against values worked out by hand or another way."""

import dataclasses

import numpy as np
import pytest

from prompt_jax.ensembles.comparison import agreement, confusion, gain_intervals, right_answers
from prompt_jax.ensembles.vote import answer_ids, comparison
from prompt_jax.examples import Examples
from prompt_jax.metrics import metric_fns
from prompt_jax.task_format import TaskFormat

LABELS = ("no", "yes")


def examples_of(targets, metric="accuracy", **changes) -> Examples:
    task_format = TaskFormat("{x}", LABELS, metrics=(metric,))
    count = len(targets)
    ids = [np.array([i + 2, 1], np.int32) for i in range(count)]
    texts = [f"text {i}" for i in range(count)]
    fns = tuple(metric_fns(task_format))
    return Examples("task", "test", ids, ids, texts, list(targets), {}, task_format, fns, **changes)


def test_agreement_is_the_share_of_the_same_answers():
    answers = [["no", "no", "yes", "yes"], ["no", "yes", "yes", "yes"], ["yes", "yes", "no", "No"]]
    found = agreement(answer_ids(answers, comparison(LABELS)))
    np.testing.assert_allclose(found, [[1, 0.75, 0], [0.75, 1, 0.25], [0, 0.25, 1]])


def test_right_answers():
    answers = [["The cat", "dog"], ["bird", "a dog!"]]
    assert right_answers(answers, ["cat", "dog"], comparison(())).tolist() == [[True, True], [False, True]]
    assert right_answers(answers, ["cat", "dog"], comparison(LABELS)).tolist() == [[False, True], [False, False]]


def test_confusion_counts_what_is_no_label_apart():
    targets, answers = ["no", "no", "yes", "yes", "yes"], ["no", "yes", "yes", "", "Yes"]
    assert confusion(targets, answers, LABELS).tolist() == [[1, 1, 0], [0, 1, 2]]


def answers_of(targets, accuracy, random):
    """Answers of which about that share is right."""
    other = {"no": "yes", "yes": "no"}
    return [t if random.random() < accuracy else other[t] for t in targets]


@pytest.fixture(scope="module")
def sample():
    """2,000 targets, the answers of three members and of their vote."""
    random = np.random.default_rng(1)
    targets = [LABELS[i] for i in random.integers(2, size=2000)]
    members = [answers_of(targets, accuracy, random) for accuracy in (0.80, 0.85, 0.75)]
    vote = [max(LABELS, key=given.count) for given in zip(*members, strict=True)]
    return targets, members, vote


def test_intervals_are_those_of_the_normal_approximation(sample):
    targets, members, vote = sample
    found = gain_intervals(examples_of(targets), members, vote, 1, "accuracy")
    right = np.array(members) == np.array(targets)
    voted = np.array(vote) == np.array(targets)
    for name, other in (("best", right[1]), ("average", right.mean(axis=0))):
        gain = voted - other.astype(float)
        half = 1.96 * gain.std() / np.sqrt(len(gain))
        np.testing.assert_allclose(found[name], (gain.mean() - half, gain.mean() + half), atol=0.12 * half)
        unpaired = 1.96 * np.sqrt((voted.var() + other.var()) / len(gain))
        assert half < 0.9 * unpaired, "the test tells paired resamples from others"


def test_intervals_are_reproducible_and_seeded(sample):
    targets, members, vote = ([*rows[:100]] for rows in (sample[0], [m[:100] for m in sample[1]], sample[2]))
    once, again, other = (
        gain_intervals(examples_of(targets), members, vote, 1, "accuracy", seed=seed) for seed in (3, 3, 4)
    )
    assert once == again != other


def test_intervals_of_a_metric_that_is_no_mean():
    """F1 through the task's own function on each resample, against F1 from counts."""
    random = np.random.default_rng(2)
    targets = [LABELS[i] for i in random.integers(2, size=60)]
    members = [answers_of(targets, accuracy, random) for accuracy in (0.9, 0.6)]
    examples = examples_of(targets, "f1")
    found = gain_intervals(examples, members, members[0], 1, "f1")

    def f1(rows):
        expected, given = np.array(targets)[rows] == "yes", [np.array(m)[rows] == "yes" for m in members]
        return [2 * (expected & own).sum() / (expected.sum() + own.sum()) for own in given]

    draws = np.random.default_rng(99)
    scores = np.array([f1(draws.integers(60, size=60)) for _ in range(5000)])
    expected = np.quantile(scores[:, 0] - scores[:, 1], [0.025, 0.975])
    np.testing.assert_allclose(found["best"], expected, atol=0.04)


def test_each_example_keeps_its_row_in_a_resample():
    """A task with postprocessing is scored through Examples: as directly, where it changes nothing."""
    random = np.random.default_rng(3)
    targets = [LABELS[i] for i in random.integers(2, size=40)]
    members = [answers_of(targets, accuracy, random) for accuracy in (0.9, 0.6)]
    direct = examples_of(targets)
    rows = tuple({"target": target} for target in targets)

    def postprocess(text, example, is_target):
        return example["target"] if is_target else text

    asked = dataclasses.replace(direct, postprocess=postprocess, rows=rows, target_texts=["?"] * len(targets))
    asked = dataclasses.replace(asked, format=None)
    one, other = (gain_intervals(each, members, members[1], 0, "accuracy") for each in (direct, asked))
    assert one == {name: pytest.approx(bounds) for name, bounds in other.items()}


def test_taking_examples():
    examples = examples_of(["no", "yes", "no"], rows=({"i": 0}, {"i": 1}, {"i": 2}))
    taken = examples.take(np.array([2, 1, 1]))
    assert len(taken) == 3 and taken.input_texts == ["text 2", "text 1", "text 1"]
    assert taken.target_texts == ["no", "yes", "yes"] and [row["i"] for row in taken.rows] == [2, 1, 1]
    assert [ids[0] for ids in taken.inputs] == [ids[0] for ids in taken.targets] == [4, 3, 3]
    assert taken.score(["no", "no", "yes"])["accuracy"] == pytest.approx(2 / 3)
