"""Evaluation: what the model answers, and which label it finds most probable."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from prompt_jax.batches import eval_batches, length_buckets
from prompt_jax.data import Examples
from prompt_jax.decoding import generate, score
from prompt_jax.models.hub import Model
from prompt_jax.models.prompt import Prompt

EVAL_BUCKETS = 4  # input lengths that batches are padded to; each is compiled once


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of one prompt on one split, and what they come from, in the examples' order.

    Attributes:
      scores: the task's metrics on the generated answers and, for a task with labels, the same metrics with the
        most probable label as the answer, under `rank/`. Fractions between 0 and 1.
      predictions: the generated answers.
      label_scores: [N, C] log-probabilities of the labels in nats, or None.
    """

    scores: dict[str, float]
    predictions: list[str]
    label_scores: np.ndarray | None


def evaluate(
    model: Model, prompt: Prompt | None, examples: Examples, *, target_length: int, batch_size: int, rank: bool = True
) -> Evaluation:
    """Greedy exact answers and, for a task with labels, rank classification over the label strings.

    Args:
      model: the frozen base.
      prompt: None evaluates the base alone.
      examples: of one split.
      target_length: the most tokens of an answer.
      batch_size: examples a batch.
      rank: whether to rank the labels as well.
    """
    predictions = answers(model, prompt, examples, target_length=target_length, batch_size=batch_size)
    scores = dict(examples.score(predictions))
    labels = examples.format.labels if examples.format else ()
    if not (rank and labels):
        return Evaluation(scores, predictions, None)
    ranked = label_scores(model, prompt, examples, labels, batch_size=batch_size)
    best = [labels[i] for i in ranked.argmax(axis=1)]
    scores |= {f"rank/{name}": value for name, value in examples.score(best).items() if name != "invalid"}
    return Evaluation(scores, predictions, ranked)


def answers(
    model: Model, prompt: Prompt | None, examples: Examples, *, target_length: int, batch_size: int
) -> list[str]:
    """The greedy answer to each example."""

    def run(batch: dict[str, Any]) -> Any:
        return generate(model.params, model.config, batch, prompt, max_new_tokens=target_length)

    return [model.tokenizer.decode(tokens.tolist()) for tokens in _each(model, examples, batch_size, run)]


def label_scores(
    model: Model, prompt: Prompt | None, examples: Examples, labels: Sequence[str], *, batch_size: int
) -> np.ndarray:
    """Log-probability in nats of each label, end token included, as the answer to each example, [N, C]."""
    ids = [[*model.tokenizer.encode(label), model.tokenizer.eos_id] for label in labels]
    targets = np.zeros((len(ids), max(map(len, ids))), np.int32)
    mask = np.zeros(targets.shape, bool)
    for row, label in enumerate(ids):
        targets[row, : len(label)], mask[row, : len(label)] = label, True

    def run(batch: dict[str, Any]) -> Any:
        return score(model.params, model.config, batch, prompt, targets, mask)

    return np.stack(_each(model, examples, batch_size, run))


def _each(model: Model, examples: Examples, batch_size: int, run: Callable[[dict[str, Any]], Any]) -> list[np.ndarray]:
    """Runs all examples in batches of like lengths; gives the result rows in the examples' order."""
    results: list[Any] = [None] * len(examples)
    pending: tuple[np.ndarray, Any] | None = None

    def collect() -> None:
        if pending is not None:
            index, rows = pending
            for i, row in zip(index, jax.device_get(rows), strict=True):
                if i >= 0:  # rows that fill the last batch have index -1
                    results[i] = row

    lengths = [len(ids) for ids in examples.inputs]
    buckets = length_buckets(lengths, EVAL_BUCKETS, max(lengths))
    for batch in eval_batches(examples, batch_size, buckets, model.config.pad_id, model.config.start_id):
        index = batch.pop("index")
        running = run(jax.device_put(batch))
        collect()  # the batch before, while this one runs
        pending = (index, running)
    collect()
    return results
