"""The exact vote by majority, without running every member on every example.

Members run in blocks, in their order. After each block, an example is finished if its majority can no longer change
whatever the remaining members answer (`vote.decided`). A tie is never finished early, so the votes equal the full vote.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from prompt_jax.checkpoints.load import Model
from prompt_jax.data.examples import Examples
from prompt_jax.ensembles.evaluation import RankedVote, check_rule, labels_of, majority_vote, ranked_vote
from prompt_jax.ensembles.vote import NO_VOTE, answer_ids, comparison, decided
from prompt_jax.inference.answers import generate_answers, score_labels
from prompt_jax.inference.batching import Rows, batch_shapes
from prompt_jax.inference.evaluation import Evaluation, EvaluationOptions
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prompt, stack_prompts

# Runs the members with these numbers on the examples with these numbers. Returns all votes so far, [E, N], NO_VOTE
# where a member has not run.
Ask = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class EarlyEvaluation:
    """The vote alone. The members have no scores, because a member may have run on only some of the examples.

    Attributes:
      vote: equal to the full vote by majority, without `label_scores`.
      answers: [E][N] the members' generated answers, None where a member did not run.
      ranked: the members' most probable labels and the vote on them; None for a task without labels.
      saved: the share of passes (one example with one member) that were not needed: for the generated "answers" and,
        if the task has labels, for the "labels".
    """

    vote: Evaluation
    answers: list[list[str | None]]
    ranked: RankedVote | None
    saved: dict[str, float]


def evaluate_early(
    model: Model,
    prompts: Sequence[Prompt | Delta],
    examples: Examples,
    options: EvaluationOptions,
    *,
    blocks: Sequence[int] | None = None,
) -> EarlyEvaluation:
    """Compute the vote by majority, running members only on examples that are still undecided.

    Generated answers and ranked labels are two votes, each with separate undecided examples. The batches of a block mix
    all its members and all undecided examples.

    Args:
      model: the frozen base.
      prompts: the members, of one placement; lengths may differ.
      examples: the examples of one split.
      options: how members are evaluated.
      blocks: the number of members in each block; see `default_blocks`.

    Raises:
      VoteError: a task that is scored by log_likelihood alone.
    """
    check_rule("majority", examples)
    stacked = stack_prompts(prompts)
    labels = labels_of(examples)
    shape = len(prompts), len(examples)
    blocks = default_blocks(len(prompts)) if blocks is None else blocks
    same = comparison(labels, examples.has_sentinel)
    # All blocks use the shapes of the largest one, so smaller blocks need no compilation.
    shapes = batch_shapes(list(examples.inputs) * max(blocks, default=1), options.batch_size)

    def flat_rows(members: np.ndarray, numbers: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], Rows]:
        """Return each pair of a member and an example: its index in [E, N], and its row."""
        owner, index = np.repeat(members, len(numbers)), np.tile(numbers, len(members))
        inputs, ids = [examples.inputs[i] for i in index], owner.astype(np.int32)
        return (owner, index), Rows(model, stacked, inputs, ids, None, shapes, options.before_batch)

    texts = np.full(shape, None, object)
    ids = np.full(shape, NO_VOTE)
    log_probabilities = np.zeros(shape, np.float32)

    def vote_answers(members: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        pairs, rows = flat_rows(members, numbers)
        answers = generate_answers(rows, options.target_length, options.decoding, row_numbers=pairs[1])
        texts[pairs], log_probabilities[pairs] = answers.texts, answers.log_probabilities
        ids[:, numbers] = answer_ids(texts[:, numbers].tolist(), same)
        return ids

    scores = np.zeros((*shape, len(labels)), np.float32)
    label_votes = np.full(shape, NO_VOTE)

    def vote_labels(members: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        pairs, rows = flat_rows(members, numbers)
        scores[pairs] = np.array(score_labels(rows, [labels] * len(rows)))
        label_votes[pairs] = scores[pairs].argmax(axis=1)
        return label_votes

    saved = {"answers": 1 - (vote_in_blocks(*shape, vote_answers, blocks) != NO_VOTE).mean()}
    ranked = None
    if labels:
        saved["labels"] = 1 - (vote_in_blocks(*shape, vote_labels, blocks) != NO_VOTE).mean()
        ranked = ranked_vote(labels, label_votes, scores)
    answers = texts.tolist()
    vote = majority_vote(examples, answers, log_probabilities, ranked)
    return EarlyEvaluation(vote, answers, ranked, saved)


def default_blocks(members: int) -> list[int]:
    """Return a first block of the smallest majority of all members, then blocks of one."""
    first = members // 2 + 1
    return [first, *[1] * (members - first)]


def vote_in_blocks(members: int, count: int, ask: Ask, blocks: Sequence[int]) -> Int[np.ndarray, "E N"]:
    """Run members in blocks on the examples that are still undecided; return the votes, NO_VOTE where none ran.

    Args:
      members: E, the number of members.
      count: N, the number of examples.
      ask: see `Ask`.
      blocks: the number of members in each block.

    Raises:
      ValueError: the blocks do not add up to all members.
    """
    if sum(blocks) != members or min(blocks) < 1:
        raise ValueError(f"blocks of {list(blocks)} members do not add up to {members}")
    votes = np.full((members, count), NO_VOTE)
    undecided = np.arange(count)
    asked = 0
    for size in blocks:
        votes = ask(np.arange(asked, asked + size), undecided)
        asked += size
        undecided = np.flatnonzero(~decided(votes, members - asked))
        if not len(undecided):
            break
    return votes
