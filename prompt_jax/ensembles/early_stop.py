"""The vote by majority without asking every member about every example. Exact.

Members are asked in blocks, in their order. After each block those examples drop out whose majority can no longer
change, whatever the members to come would answer (`vote.decided`). A tie is only left where all members were asked, so
that the votes are those of the full vote, ties included.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from prompt_jax.checkpoints.load import Model
from prompt_jax.config.decoding import Decoding
from prompt_jax.data.examples import Examples
from prompt_jax.ensembles.evaluation import RankedVote, check_rule, labels_of, majority_vote, ranked_vote
from prompt_jax.ensembles.vote import NO_VOTE, answer_ids, comparison, decided
from prompt_jax.inference.decoding import FROM_CHECKPOINT
from prompt_jax.inference.evaluation import Evaluation, answers, batch_shapes, label_scores
from prompt_jax.models.prompt import Prompt, stack_prompts

# Asks some members (their numbers) about some examples (theirs), and gives all votes so far, [E, N], NO_VOTE where a
# member has not been asked.
Ask = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class EarlyEvaluation:
    """The vote alone; the members' own scores are not known, since none need have been asked about all examples.

    Attributes:
      vote: as the full vote by majority has it, without `label_scores`.
      answers: [E][N] the members' generated answers, None where one was not asked.
      ranked: the members' most probable labels and the vote on them; None for a task without labels.
      saved: the share of passes (an example with one member's prompt) that were not needed, for the generated
        "answers" and, where the task has labels, for the "labels".
    """

    vote: Evaluation
    answers: list[list[str | None]]
    ranked: RankedVote | None
    saved: dict[str, float]


def evaluate_early(
    model: Model,
    prompts: Sequence[Prompt],
    examples: Examples,
    *,
    target_length: int,
    batch_size: int,
    decoding: Decoding = FROM_CHECKPOINT,
    blocks: Sequence[int] | None = None,
) -> EarlyEvaluation:
    """The vote by majority, asking members only about examples that are still undecided.

    Generated answers and ranked labels are two votes, each with its own undecided examples. A block's rows, all its
    members over all these examples, are run in one flat pass.

    Args:
      model: the frozen base.
      prompts: the members, of one placement; lengths may differ.
      examples: of one split.
      target_length: the most tokens of an answer.
      batch_size: rows a batch.
      decoding: how answers are generated.
      blocks: how many members are asked at a time; the first are as many as can decide anything, a majority of
        all, and then one at a time if left out.

    Raises:
      VoteError: a task that is scored by log_likelihood alone.
    """
    check_rule("majority", examples)
    stacked = stack_prompts(prompts)
    labels = labels_of(examples)
    shape = len(prompts), len(examples)
    blocks = default_blocks(len(prompts)) if blocks is None else blocks
    same = comparison(labels, examples.has_sentinel)
    # Of the largest block there can be: the others have nothing to compile.
    shapes = batch_shapes(list(examples.inputs) * max(blocks, default=1), batch_size)

    options: Any = {"target_length": target_length, "decoding": decoding}

    texts = np.full(shape, None, object)
    ids = np.full(shape, NO_VOTE)
    log_probabilities = np.zeros(shape, np.float32)

    def speak(members: np.ndarray, rows: np.ndarray) -> np.ndarray:
        asked, inputs, prompt_ids = _flat(members, rows, examples)
        given = answers(model, stacked, inputs, prompt_ids=prompt_ids, batch_size=shapes, numbers=asked[1], **options)
        texts[asked], log_probabilities[asked] = given.texts, given.log_probabilities
        ids[:, rows] = answer_ids(texts[:, rows].tolist(), same)
        return ids

    scores = np.zeros((*shape, len(labels)), np.float32)
    label_votes = np.full(shape, NO_VOTE)

    def rank(members: np.ndarray, rows: np.ndarray) -> np.ndarray:
        asked, inputs, prompt_ids = _flat(members, rows, examples)
        scores[asked] = label_scores(model, stacked, inputs, labels, prompt_ids=prompt_ids, batch_size=shapes)
        label_votes[asked] = scores[asked].argmax(axis=1)
        return label_votes

    saved = {"answers": 1 - (ask_early(*shape, speak, blocks) != NO_VOTE).mean()}
    ranked = None
    if labels:
        saved["labels"] = 1 - (ask_early(*shape, rank, blocks) != NO_VOTE).mean()
        ranked = ranked_vote(labels, label_votes, scores)
    given = texts.tolist()
    vote = majority_vote(examples, given, log_probabilities, ranked)
    return EarlyEvaluation(vote, given, ranked, saved)


def default_blocks(members: int) -> list[int]:
    """As many members as can decide anything, a majority of all, and then one at a time."""
    first = members // 2 + 1
    return [first, *[1] * (members - first)]


def ask_early(members: int, count: int, ask: Ask, blocks: Sequence[int]) -> Int[np.ndarray, "E N"]:
    """Asks members in blocks about the examples that are still undecided; gives the votes, NO_VOTE where not asked.

    Args:
      members: E, how many there are.
      count: N, how many examples.
      ask: see `Ask`.
      blocks: how many members are asked at a time.

    Raises:
      ValueError: blocks that do not make up all members.
    """
    if sum(blocks) != members or min(blocks) < 1:
        raise ValueError(f"blocks of {list(blocks)} members do not make up {members}")
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


def _flat(members: np.ndarray, rows: np.ndarray, examples: Examples):
    """Every member with every row: where each pair stands in [E, N], its input, and its prompt's number."""
    prompt_ids, index = np.repeat(members, len(rows)), np.tile(rows, len(members))
    return (prompt_ids, index), [examples.inputs[i] for i in index], prompt_ids.astype(np.int32)
