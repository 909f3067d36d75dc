"""Votes, against votes counted by hand and against the rule in plain Python."""

import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from prompt_jax.ensembles.vote import NO_VOTE, answer_ids, comparison, decided, majority, mean_probability, vote_answers

SAME = comparison(("yes", "no"))


def labels(votes, log_probabilities):
    return majority(np.array(votes), np.array(log_probabilities, np.float32)).tolist()


def test_the_most_frequent_label_wins_whatever_its_probability():
    # one example, three members, two labels; the second label has a far higher sum
    assert labels([[0], [0], [1]], [[[-0.6, -0.8]], [[-0.6, -0.8]], [[-50, 0]]]) == [0]


def test_a_tie_goes_to_the_higher_sum_over_all_members():
    # 0 and 1 have two votes each, 2 has one. Sums: 0: -1-1-2-2-2 = -8; 1: -2-2-1-1-1.5 = -7.5; 2: higher, and out.
    scores = [[[-1, -2, -3]], [[-1, -2, -3]], [[-2, -1, -3]], [[-2, -1, -3]], [[-2, -1.5, 0]]]
    assert labels([[0], [0], [1], [1], [2]], scores) == [1]


def test_a_tie_of_sums_goes_to_the_earliest_member():
    # votes 2, 0, 2, 0; sums equal, though added in another order they would differ in the last bit
    a, b, c = 0.1, 0.2, 0.3
    assert (a + b) + c != (c + b) + a
    scores = -np.array([[[a, 9, c]], [[b, 9, b]], [[c, 9, a]], [[1, 9, 1]]])
    assert majority(np.array([[2], [0], [2], [0]]), scores).tolist() == [2]
    assert majority(np.array([[0], [2], [2], [0]]), scores).tolist() == [0]


def test_each_example_is_voted_on_alone():
    votes = [[0, 1, 1], [1, 1, 0], [0, 0, 1]]
    assert labels(votes, np.zeros((3, 3, 2))) == [0, 1, 1]


def test_infinite_and_undefined_log_probabilities():
    inf, nan = math.inf, math.nan
    assert labels([[0], [1]], [[[-1, -9]], [[-inf, -9]]]) == [1]
    assert labels([[0], [1]], [[[-1, -9]], [[nan, -9]]]) == [1]
    assert labels([[1], [0]], [[[-inf, -inf]], [[nan, nan]]]) == [1], "by member order where nothing is possible"


def test_members_that_did_not_run_do_not_count():
    assert labels([[1], [NO_VOTE], [NO_VOTE]], np.zeros((3, 1, 2))) == [1]
    with pytest.raises(ValueError, match="no member voted"):
        labels([[0, NO_VOTE]], np.zeros((1, 2, 2)))
    for wrong in (2, -2):
        with pytest.raises(ValueError, match="from 0 to 1"):
            labels([[wrong]], np.zeros((1, 1, 2)))


def by_hand(votes, scores):
    """Apply the rule to one example, in exact arithmetic."""
    counts = Counter(vote for vote in votes if vote != NO_VOTE)
    tied = [label for label, count in counts.items() if count == max(counts.values())]
    sums = {label: math.fsum(own[label] for own in scores) for label in tied}
    tied = [label for label in tied if sums[label] == max(sums.values())]
    return min(tied, key=votes.index)


# Quarters, whose sums are exact and often equal.
quarters = st.integers(-12, 0).map(lambda number: number / 4)


@settings(max_examples=200)
@given(st.data(), st.integers(1, 7), st.integers(0, 6), st.integers(1, 4))
def test_the_rule_for_all_examples_is_that_for_each(data, members, count, classes):
    votes = data.draw(hnp.arrays(np.int64, (members, count), elements=st.integers(0, classes - 1)))
    scores = data.draw(hnp.arrays(np.float32, (members, count, classes), elements=quarters))
    won = majority(votes, scores)
    assert won.tolist() == [by_hand(votes[:, n].tolist(), scores[:, n].tolist()) for n in range(count)]


# --------------------------------------------------------------------------------------------------------------
# Generated answers


def speak(columns, log_probabilities=None, same=SAME):
    """Return the winning texts, from one list per member."""
    if log_probabilities is None:
        log_probabilities = np.zeros((len(columns), len(columns[0])))
    speakers = vote_answers(columns, np.array(log_probabilities, float), same)
    return [columns[member][example] for example, member in enumerate(speakers)]


def test_only_those_who_gave_a_text_add_to_its_log_probability():
    # "no" and "yes" have two votes each, with sums -1 - 5 and -2 - 2. The fifth member's score counts for neither.
    answers = [["no"], ["yes"], ["no"], ["yes"], ["perhaps"]]
    assert speak(answers, [[-1], [-2], [-5], [-2], [-0.1]]) == ["yes"]
    assert speak(answers, [[-1], [-2], [-2], [-2], [-0.1]]) == ["no"]
    assert speak(answers, [[-1], [-2], [-3], [-2], [-0.1]]) == ["no"], "the earliest member"
    assert speak(answers, [[-1], [-2], [-math.inf], [-2], [-0.1]]) == ["yes"]
    assert speak(answers, [[-1], [-2], [math.nan], [-2], [-0.1]]) == ["yes"]


def test_counting_takes_memory_in_proportion_to_the_members():
    members, count = 400, 20
    answers = [[f"answer {(member * example) % 97}" for example in range(count)] for member in range(members)]
    log_probabilities = -np.random.default_rng(0).random((members, count))
    tracemalloc.start()
    speakers = vote_answers(answers, log_probabilities, SAME)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * members * count * 50, "an array [E, N, E] has 400 times E N"
    for example, speaker in enumerate(speakers):
        given = [own[example] for own in answers]
        sums = {
            text: math.fsum(p for p, a in zip(log_probabilities[:, example], given, strict=True) if a == text)
            for text, n in Counter(given).items()
            if n == max(Counter(given).values())
        }
        assert given[speaker] == max(sums, key=sums.get) and speaker == given.index(given[speaker])


def test_somebody_must_have_answered():
    with pytest.raises(ValueError, match="no member voted"):
        speak([["no", None], ["no", None]])


def test_labels_are_compared_as_they_are():
    assert speak([["Yes"], ["yes"], ["yes"], ["Yes"], ["Yes"]]) == ["Yes"]
    assert speak([["no"], ["Yes."], ["yes"]]) == ["no"]


def test_texts_are_compared_as_in_squad_and_returned_as_the_first_member_wrote_them():
    free = comparison(())
    assert speak([["a dog"], ["The Eiffel Tower!"], ["eiffel tower"]], same=free) == ["The Eiffel Tower!"]
    assert answer_ids([["a dog", "x"], ["The Tower", "X."], ["tower", None]], free).tolist() == [
        [0, 0],
        [1, 0],
        [1, NO_VOTE],
    ]


# --------------------------------------------------------------------------------------------------------------
# Mean probability


def test_mean_probability():
    # member 0: 1/4 and 3/4 of what it gives the labels at all, 0.04; member 1: 0.9 and 0.1
    scores = np.log(np.array([[[0.01, 0.03]], [[0.9, 0.1]]]))
    np.testing.assert_allclose(np.exp(mean_probability(scores)), [[(0.25 + 0.9) / 2, (0.75 + 0.1) / 2]], rtol=1e-12)


def test_mean_probability_of_impossible_labels():
    scores = np.array([[[-math.inf, -1.0]], [[math.nan, -math.inf]]])
    np.testing.assert_allclose(mean_probability(scores), [[-math.inf, math.log(0.5)]])
    far = np.array([[[-2000.0, -2001.0]]], np.float32)
    np.testing.assert_allclose(np.exp(mean_probability(far)).sum(), 1, rtol=1e-12)


# --------------------------------------------------------------------------------------------------------------
# Decided examples


@pytest.mark.parametrize(
    ("votes", "remaining", "expected"),
    [
        ([0, 0, 0], 2, True),  # 3 > 0 + 2
        ([0, 0, 0], 3, False),  # the others could all give the same new one
        ([0, 0, 1], 1, False),  # 2 against 1 + 1: a tie is possible
        ([0, 0, 0, 1], 1, True),
        ([0, 0, 1, 1], 0, False),  # tied
        ([5, 5, NO_VOTE, NO_VOTE], 1, True),
        ([NO_VOTE, NO_VOTE], 0, False),
        ([2], 0, True),
    ],
)
def test_decided(votes, remaining, expected):
    assert decided(np.array(votes)[:, None], remaining).tolist() == [expected]
