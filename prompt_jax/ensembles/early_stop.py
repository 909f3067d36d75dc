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
from prompt_jax.inference.answers import generate_answers
from prompt_jax.inference.batching import Rows, batch_shapes
from prompt_jax.inference.evaluation import Evaluation, EvaluationOptions
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prompt, stack_prompts

# Runs the members with these numbers on the examples with these numbers. Returns the votes so far of each question,
# [Q, E, N], NO_VOTE where a member has not run.
Ask = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class EarlyEvaluation:
    """The vote alone. The members have no scores, because a member may have run on only some of the examples.

    Attributes:
      vote: equal to the full vote by majority, without `label_scores`.
      answers: [E][N] the members' generated answers, None where a member did not run.
      ranked: the members' most probable labels and the vote on them; None for a task without labels.
      saved: the share of passes (one example with one member) that were not needed.
    """

    vote: Evaluation
    answers: list[list[str | None]]
    ranked: RankedVote | None
    saved: float


def evaluate_early(
    model: Model,
    prompts: Sequence[Prompt | Delta],
    examples: Examples,
    options: EvaluationOptions,
    *,
    blocks: Sequence[int] | None = None,
) -> EarlyEvaluation:
    """Compute the vote by majority, running members only on examples that are still undecided.

    Generated answers and ranked labels are two votes. An example is undecided while either of them is. The batches of a
    block mix all its members and all undecided examples.

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
    labels = labels_of(examples) if options.rank else ()
    shape = len(prompts), len(examples)
    blocks = default_blocks(len(prompts)) if blocks is None else blocks
    same = comparison(labels, examples.has_sentinel)
    # All blocks use the shapes of the largest one, so smaller blocks need no compilation.
    shapes = batch_shapes(list(examples.inputs) * max(blocks, default=1), options.batch_size)

    texts = np.full(shape, None, object)
    log_probabilities = np.zeros(shape, np.float32)
    scores = np.zeros((*shape, len(labels)), np.float32)
    votes = np.full((2 if labels else 1, *shape), NO_VOTE)  # of the answers and of the labels

    def ask(members: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        owner, index = np.repeat(members, len(numbers)), np.tile(numbers, len(members))
        pairs, inputs = (owner, index), [examples.inputs[i] for i in index]
        rows = Rows(model, stacked, inputs, owner.astype(np.int32), None, shapes, options.before_batch)
        row_labels = [labels] * len(rows)
        answers = generate_answers(rows, options.target_length, options.decoding, labels=row_labels, row_numbers=index)
        texts[pairs], log_probabilities[pairs] = answers.texts, answers.log_probabilities
        votes[0][:, numbers] = answer_ids(texts[:, numbers].tolist(), same)
        if labels:
            scores[pairs] = np.array(answers.label_scores)
            votes[1][pairs] = scores[pairs].argmax(axis=1)
        return votes

    vote_in_blocks(*shape, ask, blocks)
    ran = votes[0] != NO_VOTE
    ranked = ranked_vote(labels, votes[1], scores) if labels else None
    answers = texts.tolist()
    vote = majority_vote(examples, answers, log_probabilities, ranked)
    return EarlyEvaluation(vote, answers, ranked, float(1 - ran.mean()))


def default_blocks(members: int) -> list[int]:
    """Return a first block of the smallest majority of all members, then blocks of one."""
    first = members // 2 + 1
    return [first, *[1] * (members - first)]


def vote_in_blocks(members: int, count: int, ask: Ask, blocks: Sequence[int]) -> Int[np.ndarray, "Q E N"]:
    """Run members in blocks on the examples of which a vote is undecided. Return the votes, NO_VOTE where none ran.

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
    votes = np.full((1, members, count), NO_VOTE)
    undecided = np.arange(count)
    asked = 0
    for size in blocks:
        votes = ask(np.arange(asked, asked + size), undecided)
        asked += size
        undecided = np.flatnonzero(np.any([~decided(each, members - asked) for each in votes], axis=0))
        if not len(undecided):
            break
    return votes
