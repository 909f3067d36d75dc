"""Votes: from the members' answers to one. Pure NumPy. Letters of shapes: see `prompt_jax.models`; N is examples.

The majority rule is one for ranked labels and for generated answers:

1. the answer that most members gave;
2. of several such, the one with the highest log-probability, summed over the members (nats). Of a label every member
   knows it, and all of them count. Of a generated text only those who gave it know it, and only they count;
3. of several such still, the one that the earliest member gave.

The paper votes by majority; it does not say how ties are broken.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from prompt_jax.metrics import normalize_answer
from prompt_jax.task_format import SENTINEL, without_sentinel

NO_VOTE = -1  # in place of an answer's number: this member was not asked


def majority(votes: Int[np.ndarray, "E N"], log_probabilities: Float[np.ndarray, "E N C"]) -> Int[np.ndarray, " N"]:
    """The number of the answer that wins each example, by the rule above.

    Args:
      votes: the number of each member's answer, from 0 to C - 1, or NO_VOTE.
      log_probabilities: of each answer by each member, in nats; 0 where it is to add nothing, -inf where it is
        impossible. NaN counts as -inf.

    Raises:
      ValueError: a number that is none of an answer, or an example that nobody voted on.
    """
    members, _, classes = log_probabilities.shape
    if not ((votes >= NO_VOTE) & (votes < classes)).all():
        raise ValueError(f"votes must be from 0 to {classes - 1}, or {NO_VOTE} for none")
    if (votes == NO_VOTE).all(axis=0).any():
        raise ValueError("there is an example that no member voted on")
    gave = votes[:, :, None] == np.arange(classes)  # [E, N, C]
    # In sorted order, so that the sum of equal terms is equal whoever gave which.
    sums = np.sort(_known(log_probabilities), axis=0).sum(axis=0)
    earliest = np.where(gave, np.arange(members)[:, None, None], members).min(axis=0)
    return _winners(gave.sum(axis=0), sums, earliest)


def vote_answers(
    answers: Sequence[Sequence[str | None]],
    log_probabilities: Float[np.ndarray, "E N"],
    same: Callable[[str], str],
) -> Int[np.ndarray, " N"]:
    """The member that speaks for each example: the first, in order, that gave the answer of the majority.

    Args:
      answers: [E][N] generated answers; None where a member was not asked.
      log_probabilities: of each of them, by the member that gave it, in nats.
      same: two answers are the same if this makes them equal; see `comparison`.

    Raises:
      ValueError: an example that nobody voted on.
    """
    ids = answer_ids(answers, same)
    members, count = ids.shape
    if (ids == NO_VOTE).all(axis=0).any():
        raise ValueError("there is an example that no member voted on")
    terms = _known(log_probabilities)
    order = np.argsort(terms, axis=0, kind="stable")  # see `majority`
    ids, terms = np.take_along_axis(ids, order, axis=0), np.take_along_axis(terms, order, axis=0)
    given = ids != NO_VOTE
    answer = np.broadcast_to(np.arange(count), ids.shape)[given], ids[given]
    counts, sums = np.zeros((count, members), int), np.zeros((count, members))
    np.add.at(counts, answer, 1)
    np.add.at(sums, answer, terms[given])
    return _winners(counts, sums, np.broadcast_to(np.arange(members), counts.shape))


def _known(log_probabilities: Float[np.ndarray, "E *rest"]) -> Float[np.ndarray, "E *rest"]:
    return np.nan_to_num(log_probabilities.astype(np.float64), nan=-np.inf, neginf=-np.inf)


def _winners(
    counts: Int[np.ndarray, "N C"], sums: Float[np.ndarray, "N C"], earliest: Int[np.ndarray, "N C"]
) -> Int[np.ndarray, " N"]:
    """The answer that wins each example, from how many gave each answer, the sums of its log-probabilities, and the
    first member that gave it."""
    tied = counts == counts.max(axis=1, keepdims=True)
    sums = np.where(tied, sums, -np.inf)
    tied &= sums == sums.max(axis=1, keepdims=True)
    return np.where(tied, earliest, np.iinfo(np.int64).max).argmin(axis=1)


def answer_ids(answers: Sequence[Sequence[str | None]], same: Callable[[str], str]) -> Int[np.ndarray, "E N"]:
    """Each answer's number within its example: the first member that gave the same one; NO_VOTE for None."""
    ids = np.full((len(answers), len(answers[0])), NO_VOTE)
    for example, given in enumerate(zip(*answers, strict=True)):
        first: dict[str, int] = {}
        for member, answer in enumerate(given):
            if answer is not None:
                ids[member, example] = first.setdefault(same(answer), member)
    return ids


def comparison(labels: Sequence[str], sentinel: bool = False) -> Callable[[str], str]:
    """Return what answers are compared by: themselves where the task has labels, else as SQuAD's evaluation does.

    With `sentinel` (`Examples.has_sentinel`), or where labels begin with SENTINEL, an answer is the same without it.
    """
    same = str if labels else normalize_answer
    ignored = sentinel or any(label.startswith(SENTINEL) for label in labels)
    return (lambda text: same(without_sentinel(text))) if ignored else same


def mean_probability(label_scores: Float[np.ndarray, "E N C"]) -> Float[np.ndarray, "N C"]:
    """Log of the mean over members of the labels' probabilities, in nats.

    A member's probabilities are those of the labels alone: they are divided by their sum. Otherwise a member that
    finds all labels improbable, as many would as texts, would hardly count. One that gives none of them a probability
    above 0 adds nothing.
    """
    scores = np.nan_to_num(label_scores.astype(np.float64), nan=-np.inf, neginf=-np.inf)
    total = np.logaddexp.reduce(scores, axis=2, keepdims=True)
    relative = scores - np.where(np.isneginf(total), 0.0, total)
    return np.logaddexp.reduce(relative, axis=0) - np.log(len(scores))


def decided(votes: Int[np.ndarray, "E N"], remaining: int) -> Bool[np.ndarray, " N"]:
    """Where the majority can no longer change, nor be tied, whatever the remaining members answer.

    The leader has more votes than the second and all that remain together. An answer that nobody has given yet has 0.

    Args:
      votes: numbers of answers, or NO_VOTE.
      remaining: how many members have not answered yet.
    """
    # [E, N]: how many members gave what this one gave.
    counts = np.stack([((votes == own) & (own != NO_VOTE)).sum(axis=0) for own in votes])
    leader = np.take_along_axis(votes, counts.argmax(axis=0)[None], axis=0)
    second = np.where(votes == leader, 0, counts).max(axis=0)
    return counts.max(axis=0) > second + remaining
