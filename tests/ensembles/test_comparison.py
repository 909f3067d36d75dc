"""Agreement, confusion and intervals, against values computed by hand or by another method."""

import dataclasses

import numpy as np
import pytest

from prompt_jax.data.examples import Examples
from prompt_jax.ensembles import comparison as comparison_module
from prompt_jax.ensembles.comparison import agreement, confusion, gain_intervals, right_answers
from prompt_jax.ensembles.vote import answer_ids, comparison
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
    actual = agreement(answer_ids(answers, comparison(LABELS)))
    np.testing.assert_allclose(actual, [[1, 0.75, 0], [0.75, 1, 0.25], [0, 0.25, 1]])


def test_right_answers():
    answers = [["The cat", "dog"], ["bird", "a dog!"]]
    assert right_answers(answers, ["cat", "dog"], comparison(())).tolist() == [[True, True], [False, True]]
    assert right_answers(answers, ["cat", "dog"], comparison(LABELS)).tolist() == [[False, True], [False, False]]


def test_confusion_counts_other_answers_separately():
    targets, answers = ["no", "no", "yes", "yes", "yes"], ["no", "yes", "yes", "", "Yes"]
    assert confusion(targets, answers, LABELS).tolist() == [[1, 1, 0], [0, 1, 2]]


def answers_of(targets, accuracy, random):
    """Return answers of which about this share is correct."""
    other = {"no": "yes", "yes": "no"}
    return [t if random.random() < accuracy else other[t] for t in targets]


@pytest.fixture(scope="module")
def sample():
    """Return 2,000 targets and the answers of three members and of their vote."""
    random = np.random.default_rng(1)
    targets = [LABELS[i] for i in random.integers(2, size=2000)]
    members = [answers_of(targets, accuracy, random) for accuracy in (0.80, 0.85, 0.75)]
    vote = [max(LABELS, key=given.count) for given in zip(*members, strict=True)]
    return targets, members, vote


def test_intervals_are_those_of_the_normal_approximation(sample):
    targets, members, vote = sample
    actual = gain_intervals(examples_of(targets), members, vote, 1, "accuracy")
    right = np.array(members) == np.array(targets)
    voted = np.array(vote) == np.array(targets)
    for name, other in (("best", right[1]), ("average", right.mean(axis=0))):
        gain = voted - other.astype(float)
        half = 1.96 * gain.std() / np.sqrt(len(gain))
        np.testing.assert_allclose(actual[name], (gain.mean() - half, gain.mean() + half), atol=0.12 * half)
        unpaired = 1.96 * np.sqrt((voted.var() + other.var()) / len(gain))
        assert half < 0.9 * unpaired, "the test tells paired resamples from others"


def test_intervals_are_reproducible_and_seeded(sample):
    targets, members, vote = ([*rows[:100]] for rows in (sample[0], [m[:100] for m in sample[1]], sample[2]))
    once, again, other = (
        gain_intervals(examples_of(targets), members, vote, 1, "accuracy", seed=seed) for seed in (3, 3, 4)
    )
    assert once == again != other


def test_intervals_of_a_metric_that_is_no_mean(monkeypatch):
    """F1 by the task's function on each resample equals F1 from counts."""
    monkeypatch.setattr(comparison_module, "RESAMPLES", 500)
    random = np.random.default_rng(2)
    targets = [LABELS[i] for i in random.integers(2, size=60)]
    members = [answers_of(targets, accuracy, random) for accuracy in (0.9, 0.6)]
    examples = examples_of(targets, "f1")
    actual = gain_intervals(examples, members, members[0], 1, "f1")

    draws = np.random.default_rng(99).integers(60, size=(5000, 60))
    correct, given = np.array(targets)[draws] == "yes", [np.array(own)[draws] == "yes" for own in members]
    scores = [2 * (correct & own).sum(axis=1) / (correct.sum(axis=1) + own.sum(axis=1)) for own in given]
    expected = np.quantile(scores[0] - scores[1], [0.025, 0.975])
    np.testing.assert_allclose(actual["best"], expected, atol=0.04)


def test_each_example_keeps_its_row_in_a_resample(monkeypatch):
    """A task with postprocessing is scored by `Examples.score`. Postprocessing without effect gives equal scores."""
    monkeypatch.setattr(comparison_module, "RESAMPLES", 100)
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


def described(count, seed) -> tuple[Examples, list[list[str]]]:
    """Return examples with two or three references, and the answers of three members with similar words."""
    random = np.random.default_rng(seed)
    words = ("the", "a", "restaurant", "serves", "cheap", "food", "by", "riverside", "and", "is", "near", "family")

    def text():
        return " ".join(random.choice(words, size=random.integers(4, 9)))

    references = tuple(tuple(text() for _ in range(random.integers(2, 4))) for _ in range(count))
    members = [[f"{own[0][:cut]} {text()}" for own in references] for cut in (8, 14, 20)]
    task_format = TaskFormat("{x}", metrics=("bleu", "nist", "multi_bleu"))
    ids = [np.array([i + 2, 1], np.int32) for i in range(count)]
    first = [own[0] for own in references]
    fns = tuple(metric_fns(task_format))
    return Examples("e", "test", ids, ids, first, first, {}, task_format, fns, references=references), members


def test_intervals_of_a_corpus_metric_are_those_of_scoring_each_resample():
    examples, members = described(30, 5)
    actual = gain_intervals(examples, members, members[2], 1, "bleu", seed=7)
    random = np.random.default_rng(7)
    draws = [random.integers(30, size=30) for _ in range(1000)]

    def bleu(rows, own):
        return examples.take(rows).score([own[row] for row in rows])["bleu"]

    some = draws[:60]  # each takes as long as scoring the split
    means = np.array([[bleu(rows, own) for own in members] for rows in some])
    gains = means[:, 2] - means[:, 1]
    fast = comparison_module._scores(examples, members, "bleu", np.stack(some))
    np.testing.assert_allclose(fast, means, rtol=1e-9)
    low, high = actual["best"]
    assert 0 < low < np.median(gains) < high


def test_intervals_of_metrics_with_weights_from_all_references():
    """NIST keeps the split's weights, so the intervals are only close to those from scoring each resample."""
    examples, members = described(60, 6)
    rows = np.stack([np.random.default_rng(i).integers(60, size=60) for i in range(40)])
    fast = comparison_module._scores(examples, members, "nist", rows)
    slow = [[examples.take(draw).score([own[row] for row in draw])["nist"] for own in members] for draw in rows]
    gains, expected = fast[:, 2] - fast[:, 0], np.subtract(np.array(slow)[:, 2], np.array(slow)[:, 0])
    assert gains.mean() == pytest.approx(expected.mean(), rel=0.15)
    assert gains.std() == pytest.approx(expected.std(), rel=0.35)
    whole = comparison_module._scores(examples, members, "nist", np.arange(60)[None])[0]
    assert whole == pytest.approx([examples.score(own)["nist"] for own in members])


def test_any_reference_is_a_correct_answer():
    examples, _ = described(5, 8)
    taken = examples.take([3, 3, 0])
    assert taken.references == (examples.references[3],) * 2 + (examples.references[0],)
    second = [own[1] for own in taken.references]
    assert taken.score(second)["bleu"] == pytest.approx(1)
    assert right_answers([second], taken.expected, comparison(())).all()
    assert not right_answers([second], taken.target_texts, comparison(())).any()
