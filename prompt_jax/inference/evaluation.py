"""Evaluation of prompts on a split: generated answers, ranked labels and the likelihood of targets."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prompt_jax.checkpoints.load import Model
from prompt_jax.config.decoding import Decoding
from prompt_jax.data.examples import Examples
from prompt_jax.inference.answers import Answers, generate_answers, score_labels, score_targets
from prompt_jax.inference.batching import Rows, stack_with_ids
from prompt_jax.inference.decoding import FROM_CHECKPOINT
from prompt_jax.models.delta import Delta, merged_params
from prompt_jax.models.prompt import Prompt


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """How prompts are evaluated.

    Attributes:
      target_length: the maximum number of tokens of an answer.
      batch_size: rows per batch. A row is an example with one prompt.
      decoding: how answers are generated. Samples for an example depend on its number.
      rank: also score the labels of a task that has labels.
      loss: also compute the loss of the targets, while answers are generated.
      before_batch: called before each batch with its number (from 0) and the number of batches. An exception that it
        raises ends the evaluation.
    """

    target_length: int
    batch_size: int
    decoding: Decoding = FROM_CHECKPOINT
    rank: bool = True
    loss: bool = False
    before_batch: Callable[[int, int], None] | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of one prompt on one split, with its answers and log-probabilities in the order of the examples.

    Attributes:
      scores: the task's metrics on the generated answers. For a task with labels also `rank/METRIC`, the metrics with
        the most probable label as the answer. In the units of `prompt_jax.metrics`.
      predictions: the generated answers; empty if `log_likelihood` is the only metric.
      label_scores: [N, C] log-probabilities of the labels in nats, or None.
      log_probabilities: [N] the log-probabilities of the generated answers, in nats.
      loss: the mean cross-entropy of the targets, in nats per token, or None. Of several references, the first counts.
    """

    scores: dict[str, float]
    predictions: list[str]
    label_scores: np.ndarray | None
    log_probabilities: np.ndarray
    loss: float | None = None


def evaluate(model: Model, prompt: Prompt | Delta | None, examples: Examples, options: EvaluationOptions) -> Evaluation:
    """Evaluate one prompt, or the base alone if it is None, on the examples of a split."""
    return evaluate_members(model, [prompt], examples, options)[0]


def evaluate_members(
    model: Model,
    prompts: Sequence[Prompt | Delta | None],
    examples: Examples | Sequence[Examples],
    options: EvaluationOptions,
) -> list[Evaluation]:
    """Evaluate several prompts at once, in batches that mix rows of all prompts. Results equal `evaluate` of each.

    Args:
      model: the frozen base.
      prompts: prompts of one placement; lengths may differ. None is the base alone.
      examples: one split for all prompts, or a list with one for each prompt.
      options: how to evaluate.

    Raises:
      PromptStackError: the prompts cannot be stacked.
      LogitsError: a logit is not finite.
      ValueError: the numbers of prompts and of lists of examples differ, or only some examples are `continues_input`.
    """
    each = [examples] * len(prompts) if isinstance(examples, Examples) else list(examples)
    if not prompts or len(each) != len(prompts):
        raise ValueError(f"expected prompts, and examples of each; there are {len(prompts)} and {len(each)}")
    if len({split.continues_input for split in each}) > 1:
        raise ValueError("expected texts to be continued for all prompts, or for none")
    if any(isinstance(prompt, Delta) for prompt in prompts):  # each has its own base
        pairs = [(*merged_model(model, prompt), split) for prompt, split in zip(prompts, each, strict=True)]
        return [evaluate_members(merged, rest, [split], options)[0] for merged, rest, split in pairs]
    owner = [number for number, split in enumerate(each) for _ in range(len(split))]
    labels = [split.format.labels if options.rank and split.format else () for split in each]
    unmerged: Any = prompts
    rows = _rows(model, unmerged, each, owner, options)
    row_labels, targets = [labels[number] for number in owner], None
    if options.loss or any(split.needs_log_likelihood for split in each):
        targets = [ids for split in each for ids in split.targets]
    if any(split.needs_answers for split in each):
        numbers = np.concatenate([np.arange(len(split), dtype=np.int32) for split in each])
        length, decoding = options.target_length, options.decoding
        answers = generate_answers(rows, length, decoding, labels=row_labels, targets=targets, row_numbers=numbers)
    else:
        likelihoods = None if targets is None else score_targets(rows, targets)
        answers = Answers([], np.zeros(0, np.float32), score_labels(rows, row_labels), likelihoods)

    results, end = [], 0
    for split, names in zip(each, labels, strict=True):
        part = slice(end, end := end + len(split))
        predictions = answers.texts[part]
        likelihoods = None if answers.target_scores is None else answers.target_scores[part]
        scores = dict(split.score(predictions, likelihoods))
        ranked = np.array(answers.label_scores[part]) if names else None
        if ranked is not None:
            scores |= rank_scores(split, [names[i] for i in ranked.argmax(axis=1)])
        loss = None
        if options.loss and likelihoods is not None:
            loss = -float(likelihoods.sum(dtype=np.float64)) / sum(map(len, split.targets))
        results.append(Evaluation(scores, predictions, ranked, answers.log_probabilities[part], loss))
    return results


def merged_model(model: Model, added: Prompt | Delta | None) -> tuple[Model, list[Prompt | None]]:
    """Return the model with a Delta merged into its weights, and the prompts to evaluate it with."""
    if not isinstance(added, Delta):
        return model, [added]
    return dataclasses.replace(model, params=merged_params(model.params, added)), [None]


def rank_scores(examples: Examples, answers: Sequence[str]) -> dict[str, float]:
    """Return the metrics of most probable labels as `rank/METRIC`. A label is never invalid."""
    return {f"rank/{name}": value for name, value in examples.score(answers).items() if name != "invalid"}


def _rows(
    model: Model,
    prompts: Sequence[Prompt | None],
    each: Sequence[Examples],
    owner: Sequence[int],
    options: EvaluationOptions,
) -> Rows:
    """Return one row for each example of each prompt. `owner` is the number of each row's prompt."""
    prompt, ids = stack_with_ids(prompts)
    inputs = [row for split in each for row in split.inputs]
    start_ids = None
    if each[0].continues_input:
        start_ids = np.array([row[-1] for row in inputs])
        inputs = [row[:-1] for row in inputs]
    prompt_ids = None if ids is None else ids[owner]
    return Rows(model, prompt, inputs, prompt_ids, start_ids, options.batch_size, options.before_batch)
