"""Evaluation: what the model answers, and which label it finds most probable."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prompt_jax.batches import eval_batches, length_buckets
from prompt_jax.decoding import generate, score
from prompt_jax.errors import UserError
from prompt_jax.examples import Examples
from prompt_jax.models.hub import Model
from prompt_jax.models.prompt import Prompt
from prompt_jax.models.tokenizer import Tokenizer

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
    predictions = answers(model, prompt, examples.inputs, target_length=target_length, batch_size=batch_size)
    scores = dict(examples.score(predictions))
    labels = examples.format.labels if examples.format else ()
    if not (rank and labels):
        return Evaluation(scores, predictions, None)
    ranked = label_scores(model, prompt, examples.inputs, labels, batch_size=batch_size)
    best = [labels[i] for i in ranked.argmax(axis=1)]
    scores |= {f"rank/{name}": value for name, value in examples.score(best).items() if name != "invalid"}
    return Evaluation(scores, predictions, ranked)


def answers(
    model: Model, prompt: Prompt | None, inputs: Sequence[np.ndarray], *, target_length: int, batch_size: int
) -> list[str]:
    """The greedy answer to each input, given as token ids."""

    def run(batch: dict[str, Any]) -> Any:
        return generate(model.params, model.config, batch, prompt, max_new_tokens=target_length)

    decode = _tokenizer(model).decode
    return [decode(tokens.tolist()) for tokens in _each(model, inputs, batch_size, run)]


def label_scores(
    model: Model, prompt: Prompt | None, inputs: Sequence[np.ndarray], labels: Sequence[str], *, batch_size: int
) -> np.ndarray:
    """Log-probability in nats of each label, end token included, as the answer to each input, [N, C]."""
    tokenizer = _tokenizer(model)
    ids = [[*tokenizer.encode(label), tokenizer.eos_id] for label in labels]
    targets = np.zeros((len(ids), max(map(len, ids))), np.int32)
    mask = np.zeros(targets.shape, bool)
    for row, label in enumerate(ids):
        targets[row, : len(label)], mask[row, : len(label)] = label, True

    def run(batch: dict[str, Any]) -> Any:
        return score(model.params, model.config, batch, prompt, targets, mask)

    return np.stack(_each(model, inputs, batch_size, run))


def tokenise(model: Model, texts: Sequence[str], length: int) -> tuple[list[np.ndarray], int]:
    """Token ids of texts with the end token, cut to `length` as training inputs are; and how many were cut."""
    tokenizer = _tokenizer(model)
    whole = [tokenizer.encode(text) for text in texts]
    rows = [np.array([*ids[: length - 1], tokenizer.eos_id], np.int32) for ids in whole]
    return rows, sum(len(ids) >= length for ids in whole)


def _tokenizer(model: Model) -> Tokenizer:
    if model.tokenizer is None:
        raise UserError(f"the model {model.name} has no tokenizer (spiece.model or tokenizer.json)")
    return model.tokenizer


def write_predictions(path: Path, examples: Examples, result: Evaluation, before: Evaluation | None = None) -> None:
    """One JSON object an example: input, target, prediction, the labels' log-probabilities (nats) where there are
    labels, and under `before` what another model answered."""
    labels = examples.format.labels if examples.format else ()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for i, prediction in enumerate(result.predictions):
            line: dict[str, Any] = {"input": examples.input_texts[i], "target": examples.target_texts[i]}
            if before is not None:
                line["before"] = before.predictions[i]
            line["prediction"] = prediction
            scores = None if result.label_scores is None else result.label_scores[i].tolist()
            line["label_scores"] = None if scores is None else dict(zip(labels, scores, strict=True))
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _each(
    model: Model, inputs: Sequence[np.ndarray], batch_size: int, run: Callable[[dict[str, Any]], Any]
) -> list[np.ndarray]:
    """Runs all inputs in batches of like lengths; gives the result rows in the inputs' order."""
    lengths = [len(ids) for ids in inputs]
    batch_size = min(batch_size, 1 << (len(inputs) - 1).bit_length())  # one text does not cost what 64 do
    buckets = length_buckets(lengths, EVAL_BUCKETS, -(-max(lengths) // 8) * 8)
    results: list[Any] = [None] * len(inputs)
    pending: tuple[np.ndarray, Any] | None = None

    def collect() -> None:
        if pending is not None:
            index, rows = pending
            for i, row in zip(index, jax.device_get(rows), strict=True):
                if i >= 0:  # rows that fill the last batch have index -1
                    results[i] = row

    for batch in eval_batches(inputs, batch_size, buckets, model.config.pad_id):
        index = batch.pop("index")
        running = run(jax.device_put(batch))
        collect()  # the batch before, while this one runs
        pending = (index, running)
    collect()
    return results
