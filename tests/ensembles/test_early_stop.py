"""Early stop gives the votes of all members, for any votes, probabilities and blocks."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from prompt_jax.ensembles.early_stop import default_blocks, evaluate_early, vote_in_blocks
from prompt_jax.ensembles.evaluation import evaluate_ensemble
from prompt_jax.ensembles.vote import NO_VOTE, answer_ids, comparison, majority, vote_answers
from prompt_jax.inference import answers
from prompt_jax.inference.evaluation import EvaluationOptions

quarters = st.integers(-12, 0).map(lambda number: number / 4)


@st.composite
def ensembles(draw):
    """Draw votes [E, N] for C labels, log-probabilities [E, N, C], and blocks with sum E, or None for the default."""
    members, count, classes = draw(st.integers(1, 9)), draw(st.integers(1, 8)), draw(st.integers(1, 4))
    votes = draw(hnp.arrays(np.int64, (members, count), elements=st.integers(0, classes - 1)))
    scores = draw(hnp.arrays(np.float32, (members, count, classes), elements=quarters))
    ends = sorted(draw(st.sets(st.integers(1, members))) | {members})
    return votes, scores, draw(st.sampled_from([np.diff([0, *ends]).tolist(), None]))


class Asked:
    """Members with known votes; records which members ran on which examples."""

    def __init__(self, votes):
        self.votes, self.seen, self.calls = votes, np.full(votes.shape, NO_VOTE), []

    def __call__(self, members, rows):
        pairs = np.ix_(members, rows)
        assert (self.seen[pairs] == NO_VOTE).all(), "asked twice"
        self.seen[pairs] = self.votes[pairs]
        self.calls.append((members.tolist(), rows.tolist()))
        return self.seen[None]


@settings(max_examples=300)
@given(ensembles())
def test_votes_on_labels_are_those_of_all_members(ensemble):
    votes, scores, blocks = ensemble
    (early,) = vote_in_blocks(*votes.shape, Asked(votes), blocks or default_blocks(len(votes)))
    known = np.where((early == NO_VOTE)[:, :, None], 0, scores)  # scores are unknown where a member did not run
    np.testing.assert_array_equal(majority(early, known), majority(votes, scores))


@settings(max_examples=300)
@given(ensembles())
def test_votes_on_texts_are_those_of_all_members(ensemble):
    numbers, scores, blocks = ensemble
    same = comparison(())
    words = np.array([["cat", "the Cat", "a dog", "dog"][n] for n in numbers.ravel()], object).reshape(numbers.shape)
    spoken = scores[:, :, 0]
    asked = Asked(answer_ids(words.tolist(), same))
    (early,) = vote_in_blocks(*numbers.shape, asked, blocks or default_blocks(len(numbers)))
    heard = np.where(early == NO_VOTE, None, words)
    all_votes, early_votes = (vote_answers(texts.tolist(), spoken, same) for texts in (words, heard))
    np.testing.assert_array_equal(early_votes, all_votes)


def test_examples_drop_out_once_decided():
    # Three of five agree at once on the first example, after the fourth on the second, never on the third.
    votes = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 0, 3], [1, 1, 4]])
    asked = Asked(votes)
    (early,) = vote_in_blocks(5, 3, asked, default_blocks(5))
    assert asked.calls == [([0, 1, 2], [0, 1, 2]), ([3], [1, 2]), ([4], [2])]
    assert (early == NO_VOTE).sum() == 3
    asked = Asked(votes[:, :1])
    vote_in_blocks(5, 1, asked, [3, 2])
    assert len(asked.calls) == 1


def test_an_example_is_undecided_while_one_of_its_votes_is():
    answers, labels = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0]]), np.array([[0, 0, 0], [0, 1, 0], [0, 1, 1]])
    calls = []

    def ask(members, rows):
        calls.append((members.tolist(), rows.tolist()))
        return np.where(np.arange(3)[:, None] <= members[-1], np.stack([answers, labels]), NO_VOTE)

    vote_in_blocks(3, 3, ask, [2, 1])
    assert calls == [([0, 1], [0, 1, 2]), ([2], [1, 2])]


def test_blocks():
    assert [default_blocks(members) for members in (1, 2, 3, 5)] == [[1], [2], [2, 1], [3, 1, 1]]
    for wrong in ([], [3], [2, 3], [5, -1], [4, 0]):
        with pytest.raises(ValueError, match="do not add up to 4"):
            vote_in_blocks(4, 1, Asked(np.zeros((4, 1), int)), wrong)


# --------------------------------------------------------------------------------------------------------------
# On a model


OPTIONS = EvaluationOptions(target_length=12, batch_size=8)


def asked_of(votes, blocks) -> np.ndarray:
    """Return [E, N], whether a member must run on an example, computed from all votes by the definition."""
    members, count = votes.shape
    asked, end = np.zeros(votes.shape, bool), 0
    for size in blocks:
        for n in range(count):
            so_far = Counter(votes[:end, n].tolist()).most_common()
            first, second = ([count for _, count in so_far] + [0, 0])[:2]
            asked[end : end + size, n] = not end or first <= second + members - end
        end += size
    return asked


def votes_of(full, examples):
    """Return the numbers of the members' answers and of their most probable labels."""
    texts, ranked = np.array(full.answers), np.stack([own.label_scores.argmax(axis=1) for own in full.members])
    return np.unique(texts, return_inverse=True)[1].reshape(texts.shape), ranked


def test_early_stop_gives_the_full_vote(tiny, prompts, examples):
    full = evaluate_ensemble(tiny, prompts, examples, OPTIONS)
    for blocks in (None, [2, 3]):
        early = evaluate_early(tiny, prompts, examples, OPTIONS, blocks=blocks)
        assert early.vote.predictions == full.vote.predictions and early.vote.scores == full.vote.scores
        np.testing.assert_allclose(early.vote.log_probabilities, full.vote.log_probabilities, rtol=1e-4)
        asked = np.any([asked_of(votes, blocks or [3, 1, 1]) for votes in votes_of(full, examples)], axis=0)
        for actual, of_all in ((early.answers, full.answers), (early.ranked.members, full.ranked.members)):
            assert actual == np.where(asked, np.array(of_all), None).tolist()
        assert early.saved == pytest.approx(1 - asked.mean())
        assert blocks or 0 < early.saved <= 0.4
        assert early.ranked.vote == full.ranked.vote


def test_early_stop_compiles_for_all_blocks_at_once(tiny, prompts, examples, monkeypatch):
    examples = examples.take([*range(12)])
    votes = votes_of(evaluate_ensemble(tiny, prompts, examples, OPTIONS), examples)
    asked = np.any([asked_of(each, (3, 1, 1)) for each in votes], axis=0)
    shapes, real = [], answers.generate_scored

    def spy(params, config, batch, *rest, **options):
        shapes.append(batch["inputs"].shape)
        return real(params, config, batch, *rest, **options)

    monkeypatch.setattr(answers, "generate_scored", spy)
    evaluate_early(tiny, prompts, examples, OPTIONS)
    blocks = [asked[:3].sum(), asked[3].sum(), asked[4].sum()]
    assert all(blocks), "each block was asked something"
    assert len(set(shapes)) == 1 and len(shapes) == sum(-(-rows // 8) for rows in blocks)
