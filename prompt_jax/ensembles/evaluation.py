"""Score an ensemble: each member, and the vote (Lester et al. 2021, table 3)."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from prompt_jax.checkpoints.load import Model
from prompt_jax.data.examples import Examples
from prompt_jax.ensembles.comparison import agreement, confusion, gain_intervals, right_answers
from prompt_jax.ensembles.vote import NO_VOTE, answer_ids, comparison, majority, mean_probability, vote_answers
from prompt_jax.errors import UserError
from prompt_jax.inference.evaluation import Evaluation, EvaluationOptions, evaluate_members, rank_scores
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prompt

VoteRule = Literal["majority", "mean-probability"]


class VoteError(UserError, ValueError):
    """The members cannot vote by this rule."""


@dataclasses.dataclass(frozen=True)
class RankedVote:
    """The most probable labels, in the order of the examples.

    Attributes:
      members: [E][N] each member's most probable label, None where it did not run.
      vote: [N] the label that wins.
    """

    members: list[list[str | None]]
    vote: list[str]


@dataclasses.dataclass(frozen=True)
class EnsembleEvaluation:
    """The scores of several prompts and of their vote on one split, and the answers behind them.

    Attributes:
      vote_rule: `majority` votes twice: on the generated answers, for the task's metrics, and on each member's most
        probable label, for the metrics `rank/METRIC`. `mean-probability` takes the label with the highest mean of the
        members' probabilities (see `vote.mean_probability`), and yields only the metrics `rank/METRIC`.
      members: each member's evaluation, in order.
      answers: [E][N] the members' votes: generated answers or, under mean-probability, most probable labels.
      vote: the vote's scores, with its answers as `predictions`. `label_scores` are the logs of the labels' mean
        probability under both rules, None for a task without labels. `log_probabilities` are those of the member
        whose answer is shown, or the log of the label's mean probability.
      ranked: the members' most probable labels and the vote on them; None for a task without labels.
      metric: the metric of `best` and `intervals`: the vote's first one.
      average: the mean of the members' scores.
      best: the member with the highest score; the first one of a tie.
      oracle: the share of examples that at least one member answers correctly. Answers are compared as in the vote.
      agreement: [E, E] the share of examples on which two members give the same answer.
      confusion: [E + 1, C, C + 1] for the members in order and then the vote: how often each label (rows) was answered
        with each label, or with something else (the last column). None for a task without labels.
      intervals: 95 % confidence intervals of the vote's score minus the best member's, under "best", and minus the
        average, under "average"; see `comparison.gain_intervals`.
    """

    vote_rule: VoteRule
    members: list[Evaluation]
    answers: list[list[str]]
    vote: Evaluation
    ranked: RankedVote | None
    metric: str
    average: dict[str, float]
    best: int
    oracle: float
    agreement: np.ndarray
    confusion: np.ndarray | None
    intervals: dict[str, tuple[float, float]]

    def summary(self) -> dict[str, Any]:
        """Return the results as JSON values, without the members' scores."""
        return {
            "vote_rule": self.vote_rule,
            "vote": self.vote.scores,
            "average": self.average,
            "best": self.best,
            "oracle": self.oracle,
            "agreement": self.agreement.tolist(),
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
        }


def evaluate_ensemble(
    model: Model,
    prompts: Sequence[Prompt | Delta],
    examples: Examples,
    options: EvaluationOptions,
    vote: VoteRule = "majority",
    *,
    seed: int = 0,
) -> EnsembleEvaluation:
    """Evaluate all members on the examples, in batches that mix members, and let them vote.

    Args:
      model: the frozen base.
      prompts: the members, of one placement; lengths may differ.
      examples: the examples of one split.
      options: how members are evaluated.
      vote: the rule.
      seed: the seed of the bootstrap.

    Raises:
      VoteError: mean-probability for a task without labels, or a task that is scored by log_likelihood alone.
    """
    check_rule(vote, examples)
    return combine(evaluate_members(model, prompts, examples, options), examples, vote, seed=seed)


def combine(
    members: Sequence[Evaluation], examples: Examples, vote: VoteRule = "majority", *, seed: int = 0
) -> EnsembleEvaluation:
    """Let members vote after their evaluation on these examples. Arguments and errors as for `evaluate_ensemble`."""
    check_rule(vote, examples)
    labels = labels_of(examples)
    same = comparison(labels, examples.has_sentinel)
    answers, voted, ranked = _vote(members, examples, labels, vote)
    metric = next(iter(voted.scores))
    best = int(np.argmax(np.nan_to_num([member.scores[metric] for member in members], nan=-np.inf)))
    everyone = [*answers, voted.predictions]
    return EnsembleEvaluation(
        vote_rule=vote,
        members=list(members),
        answers=answers,
        vote=voted,
        ranked=ranked,
        metric=metric,
        average={name: float(np.mean([member.scores[name] for member in members])) for name in members[0].scores},
        best=best,
        oracle=float(right_answers(answers, examples.expected, same).any(axis=0).mean()),
        agreement=agreement(answer_ids(answers, same)),
        confusion=np.stack([label_confusion(examples, row) for row in everyone]) if labels else None,
        intervals=gain_intervals(examples, answers, voted.predictions, best, metric.removeprefix("rank/"), seed=seed),
    )


def label_confusion(examples: Examples, answers: Sequence[str]) -> Int[np.ndarray, "C C+1"]:
    """Count how often each label (rows) was answered with each label, or with something else (the last column)."""
    labels = labels_of(examples)
    same = comparison(labels, examples.has_sentinel)
    targets, given, label_texts = (list(map(same, texts)) for texts in (examples.target_texts, answers, labels))
    return confusion(targets, given, label_texts)


def labels_of(examples: Examples) -> tuple[str, ...]:
    """Return the labels of the examples' task; an empty tuple for free text."""
    return examples.format.labels if examples.format else ()


def check_rule(vote: VoteRule, examples: Examples) -> None:
    """Raise VoteError if the rule does not apply to these examples."""
    if not examples.needs_answers:
        raise VoteError(
            f"{examples.name} is scored by log_likelihood alone, and there are no answers to vote on; add another "
            "metric, or score the members without a vote"
        )
    if vote == "mean-probability" and not labels_of(examples):
        raise VoteError(
            f"{examples.name} has no labels, and a vote by mean-probability needs their probabilities; vote by majority"
        )


def _vote(
    members: Sequence[Evaluation], examples: Examples, labels: Sequence[str], vote: VoteRule
) -> tuple[list[list[str]], Evaluation, RankedVote | None]:
    """Return the members' votes, the result of the vote, and the vote on most probable labels."""
    scores = [member.label_scores for member in members if member.label_scores is not None]
    label_scores = np.stack(scores) if scores else None
    ranked = None if label_scores is None else ranked_vote(labels, label_scores.argmax(axis=2), label_scores)
    means = None if label_scores is None else mean_probability(label_scores)
    if vote == "majority":
        given = [member.predictions for member in members]
        log_probabilities = np.stack([member.log_probabilities for member in members])
        voted = majority_vote(examples, given, log_probabilities, ranked)
        return given, dataclasses.replace(voted, label_scores=means), ranked
    if label_scores is None or means is None:
        raise VoteError("a vote by mean-probability needs members that were evaluated with rank=True")
    answers = [labels[i] for i in means.argmax(axis=1)]
    voted = Evaluation(rank_scores(examples, answers), answers, means, means.max(axis=1))
    probable = [[labels[i] for i in row] for row in label_scores.argmax(axis=2)]
    return probable, voted, RankedVote([list(row) for row in probable], answers)


def ranked_vote(
    labels: Sequence[str], votes: Int[np.ndarray, "E N"], label_scores: Float[np.ndarray, "E N C"]
) -> RankedVote:
    """Return the vote by majority on most probable labels.

    Args:
      labels: the labels of the task.
      votes: the number of each member's most probable label, or NO_VOTE.
      label_scores: the labels' log-probabilities in nats, 0 where a member did not run.
    """
    members = [[None if i == NO_VOTE else labels[i] for i in row] for row in votes]
    return RankedVote(members, [labels[i] for i in majority(votes, label_scores)])


def ranked_alone(examples: Examples, result: Evaluation) -> RankedVote | None:
    """Return the `ranked_vote` of a single prompt; None if no labels were ranked."""
    if result.label_scores is None:
        return None
    scores = result.label_scores[None]
    return ranked_vote(labels_of(examples), scores.argmax(axis=2), scores)


def majority_vote(
    examples: Examples,
    answers: Sequence[Sequence[str | None]],
    log_probabilities: Float[np.ndarray, "E N"],
    ranked: RankedVote | None,
) -> Evaluation:
    """Return the vote by majority on generated answers, with the scores of both votes.

    Args:
      examples: the examples of one split.
      answers: [E][N] generated answers, None where a member did not run.
      log_probabilities: the log-probabilities of these answers, in nats.
      ranked: the vote on most probable labels; None without labels.
    """
    labels = labels_of(examples)
    speakers = vote_answers(answers, log_probabilities, comparison(labels, examples.has_sentinel))
    predictions = [answers[member][example] for example, member in enumerate(speakers)]
    scores = dict(examples.score(predictions))
    if ranked is not None:
        scores |= rank_scores(examples, ranked.vote)
    return Evaluation(scores, predictions, None, log_probabilities[speakers, np.arange(len(examples))])
