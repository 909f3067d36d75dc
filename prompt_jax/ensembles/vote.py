"""Votes on the members' answers, in NumPy. Shapes: see `prompt_jax.models`; N examples.

The same majority rule serves ranked labels and generated answers:

1. The answer that most members gave wins.
2. A tie goes to the answer with the highest log-probability in nats, summed over members. For a label, all members
   count. For a generated text, only the members that gave it count, because the others did not score it.
3. A remaining tie goes to the answer of the earliest member.

The paper votes by majority but does not say how ties are broken.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from prompt_jax.metrics import normalize_answer
from prompt_jax.task_format import SENTINEL, without_sentinel

NO_VOTE = -1  # the answer number of a member that did not run


def majority(votes: Int[np.ndarray, "E N"], log_probabilities: Float[np.ndarray, "E N C"]) -> Int[np.ndarray, " N"]:
    """Return the number of the answer that wins each example, by the rule above.

    Args:
      votes: the number of each member's answer, from 0 to C - 1, or NO_VOTE.
      log_probabilities: the log-probability of each answer under each member, in nats. Use 0 for a member that should
        not count and -inf for an impossible answer. NaN counts as -inf.

    Raises:
      ValueError: a number is out of range, or no member voted on an example.
    """
    members, _, classes = log_probabilities.shape
    if not ((votes >= NO_VOTE) & (votes < classes)).all():
        raise ValueError(f"votes must be from 0 to {classes - 1}, or {NO_VOTE} for none")
    if (votes == NO_VOTE).all(axis=0).any():
        raise ValueError("there is an example that no member voted on")
    gave = votes[:, :, None] == np.arange(classes)  # [E, N, C]
    # Summed in sorted order, so that the order of members does not change the rounding.
    sums = np.sort(_known(log_probabilities), axis=0).sum(axis=0)
    earliest = np.where(gave, np.arange(members)[:, None, None], members).min(axis=0)
    return _winners(gave.sum(axis=0), sums, earliest)


def vote_answers(
    answers: Sequence[Sequence[str | None]],
    log_probabilities: Float[np.ndarray, "E N"],
    same: Callable[[str], str],
) -> Int[np.ndarray, " N"]:
    """Return, for each example, the first member that gave the majority's answer.

    Args:
      answers: [E][N] generated answers; None where a member did not run.
      log_probabilities: the log-probability of each answer under the member that gave it, in nats.
      same: maps equal answers to one text; see `comparison`.

    Raises:
      ValueError: no member voted on an example.
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
    """Return the answer that wins each example.

    The arguments are, for each answer, the number of members that gave it, the sum of its log-probabilities, and the
    first member that gave it.
    """
    tied = counts == counts.max(axis=1, keepdims=True)
    sums = np.where(tied, sums, -np.inf)
    tied &= sums == sums.max(axis=1, keepdims=True)
    return np.where(tied, earliest, np.iinfo(np.int64).max).argmin(axis=1)


def answer_ids(answers: Sequence[Sequence[str | None]], same: Callable[[str], str]) -> Int[np.ndarray, "E N"]:
    """Return each answer's number: the first member that gave the same answer to the example; NO_VOTE for None."""
    ids = np.full((len(answers), len(answers[0])), NO_VOTE)
    for example, given in enumerate(zip(*answers, strict=True)):
        first: dict[str, int] = {}
        for member, answer in enumerate(given):
            if answer is not None:
                ids[member, example] = first.setdefault(same(answer), member)
    return ids


def comparison(labels: Sequence[str], sentinel: bool = False) -> Callable[[str], str]:
    """Return a function that maps equal answers to one text.

    Labels are compared exactly, free text as in SQuAD's evaluation. With `sentinel` (`Examples.has_sentinel`), or if
    labels begin with SENTINEL, the sentinel is ignored.
    """
    same = str if labels else normalize_answer
    ignored = sentinel or any(label.startswith(SENTINEL) for label in labels)
    return (lambda text: same(without_sentinel(text))) if ignored else same


def mean_probability(label_scores: Float[np.ndarray, "E N C"]) -> Float[np.ndarray, "N C"]:
    """Return the log of the labels' probabilities averaged over members, in nats.

    Each member's probabilities are first normalized over the labels. Otherwise a member that finds all labels
    improbable as texts would hardly count. A member that gives all labels probability 0 adds nothing.
    """
    scores = np.nan_to_num(label_scores.astype(np.float64), nan=-np.inf, neginf=-np.inf)
    total = np.logaddexp.reduce(scores, axis=2, keepdims=True)
    relative = scores - np.where(np.isneginf(total), 0.0, total)
    return np.logaddexp.reduce(relative, axis=0) - np.log(len(scores))


def decided(votes: Int[np.ndarray, "E N"], remaining: int) -> Bool[np.ndarray, " N"]:
    """Return the examples whose majority can neither change nor be tied, whatever the remaining members answer.

    An example is decided if its leading answer has more votes than the second answer and all remaining members
    combined.

    Args:
      votes: numbers of answers, or NO_VOTE.
      remaining: the number of members that have not answered yet.
    """
    # [E, N]: the number of members that gave the same answer as this one.
    counts = np.stack([((votes == row) & (row != NO_VOTE)).sum(axis=0) for row in votes])
    leader = np.take_along_axis(votes, counts.argmax(axis=0)[None], axis=0)
    second = np.where(votes == leader, 0, counts).max(axis=0)
    return counts.max(axis=0) > second + remaining
