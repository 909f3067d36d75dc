"""Generated answers, and the log-probabilities of labels and targets, for rows of inputs."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from prompt_jax.checkpoints.load import Model
from prompt_jax.config.decoding import Decoding
from prompt_jax.data.examples import truncate
from prompt_jax.distributed.sharding import mesh_of, named_sharding, to_devices
from prompt_jax.errors import UserError
from prompt_jax.inference.batching import Rows, run_batches
from prompt_jax.inference.decoding import FROM_CHECKPOINT, generate_scored, score
from prompt_jax.models import check_context
from prompt_jax.models.prompt import Prompt


class LogitsError(UserError, ArithmeticError):
    """Some logits are NaN or infinite, so scores would be meaningless."""


class Answers(NamedTuple):
    """Generated answers, in the order of their inputs."""

    texts: list[str]
    log_probabilities: np.ndarray  # [rows], in nats: of the answers' tokens including the end token


def generate_answers(
    rows: Rows,
    target_length: int,
    decoding: Decoding = FROM_CHECKPOINT,
    *,
    lengths: Sequence[int] | None = None,
    row_numbers: np.ndarray | None = None,
) -> Answers:
    """Generate the answer to each row.

    Args:
      rows: the inputs and their prompts.
      target_length: the maximum number of tokens of an answer.
      decoding: how answers are generated.
      lengths: the maximum of each row, if it is less than `target_length` for some rows.
      row_numbers: [rows] the numbers that determine what each row samples. The default is 0, 1, 2...

    Raises:
      PromptStackError: the prompt ids do not fit the prompt.
      ContextError, ConfigError: as `generate`.
      LogitsError: a logit is not finite.
    """
    model = rows.model
    check_context(model.config, rows.prompt, max(map(len, rows.inputs)), target_length)
    tokenizer, config = tokenizer_of(model), model.config
    if rows.start_ids is not None:  # the answer ends at the end of the line
        end_ids = *tokenizer.encode("\n")[:1], *(config.generation.end_ids or (config.eos_id,))
        config = dataclasses.replace(config, generation=dataclasses.replace(config.generation, end_ids=end_ids))
    key = None
    if decoding.temperature:
        key = to_devices(jax.random.key(decoding.seed), named_sharding(mesh_of(model.params)))

    def run(batch: dict[str, Any], prompt: Prompt | None) -> Any:
        row_options = {name: batch.pop(name) for name in ("lengths", "row_numbers")}
        options: Any = {"max_new_tokens": target_length, "decoding": decoding, "key": key, "check": False}
        return generate_scored(model.params, config, batch, prompt, **options, **row_options)

    limits = np.full(len(rows), target_length) if lengths is None else np.asarray(lengths)
    columns = {"lengths": limits, "row_numbers": np.arange(len(rows)) if row_numbers is None else row_numbers}
    tokens, log_probabilities = run_batches(rows, run, columns)
    check_finite(model, log_probabilities, rows.prompt_ids)
    texts = [tokenizer.decode(row[:limit].tolist()) for row, limit in zip(tokens, limits, strict=True)]
    if rows.start_ids is not None:
        texts = [text.partition("\n")[0] for text in texts]
    return Answers(texts, log_probabilities)


def score_labels(
    rows: Rows, labels: Sequence[Sequence[str]], *, longest: int | None = None
) -> list[Float[np.ndarray, " C"] | None]:
    """Return the log-probabilities, in nats, of each row's labels as its answer; None for a row without labels.

    An end token is part of the label unless the rows continue texts. Rows with equally many labels share batches.

    Args:
      rows: the inputs and their prompts.
      labels: the labels of each row.
      longest: pad labels to at least this many tokens, to reuse programs that were compiled for longer ones.

    Raises:
      PromptStackError, ContextError, LogitsError: as for `generate_answers`.
    """
    results: list[np.ndarray | None] = [None] * len(rows)
    end = None if rows.start_ids is None else -1
    for count in {len(names): None for names in labels if names}:
        index = [row for row, names in enumerate(labels) if len(names) == count]
        sets = {names: number for number, names in enumerate(dict.fromkeys(tuple(labels[row]) for row in index))}
        ids = [[label_ids(rows.model, label)[:end] for label in names] for names in sets]
        numbers = np.array([sets[tuple(labels[row])] for row in index])
        for row, scores in zip(index, _score_sets(rows.take(index), _padded(ids, longest), numbers), strict=True):
            results[row] = scores
    return results


def score_targets(rows: Rows, targets: Sequence[np.ndarray]) -> Float[np.ndarray, " rows"]:
    """Return the log-probability, in nats, of each target as the answer to its row.

    Args:
      rows: the inputs and their prompts.
      targets: the token ids of each target, with the end token if it has one.

    Raises:
      PromptStackError, ContextError, LogitsError: as for `generate_answers`.
    """
    distinct = {ids.tobytes(): ids for ids in targets}  # members share their targets
    number = {key: i for i, key in enumerate(distinct)}
    numbers = np.array([number[ids.tobytes()] for ids in targets])
    return _score_sets(rows, _padded([[ids] for ids in distinct.values()]), numbers)[:, 0]


def label_ids(model: Model, label: str) -> list[int]:
    """Return the token ids of a label as an answer, with the end token."""
    tokenizer = tokenizer_of(model)
    return tokenizer.target_ids(tokenizer.marked(label))


def tokenize(model: Model, texts: Sequence[str], length: int) -> tuple[list[np.ndarray], int]:
    """Return the token ids of input texts, truncated to `length` as in training, and how many were truncated."""
    tokenizer = tokenizer_of(model)
    whole = [tokenizer.input_ids(text) for text in texts]
    return [truncate(ids, length, tokenizer.eos_id) for ids in whole], sum(len(ids) > length for ids in whole)


def tokenizer_of(model: Model) -> Any:
    """Return the model's tokenizer. Raises UserError if it has none."""
    if model.tokenizer is None:
        raise UserError(f"the model {model.name} has no tokenizer (spiece.model, tokenizer.json or vocab.json)")
    return model.tokenizer


def check_finite(
    model: Model, log_probabilities: Float[np.ndarray, "rows *C"], prompt_ids: np.ndarray | None = None
) -> None:
    """Raise LogitsError if a log-probability is NaN: generation and scoring return NaN if a logit is not finite.

    Args:
      model: the base. The error names its weights that are not finite.
      log_probabilities: the log-probabilities of answers or targets.
      prompt_ids: [rows] each row's index in a stacked prompt.
    """
    wrong = np.isnan(log_probabilities).reshape(len(log_probabilities), -1).any(axis=1)
    if not wrong.any():
        return
    which = ""
    if prompt_ids is not None:
        named = sorted({int(number) for number in prompt_ids[wrong]})
        which = " with " + ", ".join("no prompt" if number < 0 else f"prompt {number}" for number in named)
    weights = [
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} ({count} value{'s' * (count > 1)})"
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.params)
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and (count := int((~jnp.isfinite(leaf)).sum()))
    ]
    if weights:
        more = f" and {len(weights) - 5} more" if len(weights) > 5 else ""
        why = f"the base has weights that are NaN or infinite, in {', '.join(weights[:5])}{more}; expected another copy"
    else:
        why = (
            "the base's weights are finite; expected a prompt with smaller values, or, if the model runs in reduced "
            "precision, float32 (--dtype, or --model.dtype of train)"
        )
    raise LogitsError(f"{model.name}: the logits of {wrong.sum()} of {len(wrong)} rows{which} are not finite: {why}")


def _padded(
    sets: Sequence[Sequence[Sequence[int] | np.ndarray]], longest: int | None = None
) -> tuple[Int[np.ndarray, "C N T"], Bool[np.ndarray, "C N T"]]:
    """Return N sets of C targets, padded on the right, and their mask."""
    longest = max([longest or 0, *(len(ids) for targets in sets for ids in targets)])
    padded = np.zeros((len(sets[0]), len(sets), longest), np.int32)
    mask = np.zeros(padded.shape, bool)
    for number, targets in enumerate(sets):
        for i, ids in enumerate(targets):
            padded[i, number, : len(ids)], mask[i, number, : len(ids)] = ids, True
    return padded, mask


def _score_sets(
    rows: Rows,
    sets: tuple[Int[np.ndarray, "C N T"], Bool[np.ndarray, "C N T"]],
    numbers: Int[np.ndarray, " rows"],
) -> Float[np.ndarray, "rows C"]:
    """Return the log-probabilities of a set of targets for each row. `numbers` selects each row's set."""
    model = rows.model
    check_context(model.config, rows.prompt, max(map(len, rows.inputs)), sets[0].shape[2])
    placed = to_devices(sets, named_sharding(mesh_of(model.params)))

    def run(batch: dict[str, Any], prompt: Prompt | None) -> Any:
        number = batch.pop("set")
        targets, mask = (array[:, number] for array in placed)
        return (score(model.params, model.config, batch, prompt, targets, mask, check=False),)

    (scores,) = run_batches(rows, run, {"set": numbers})
    check_finite(model, scores, rows.prompt_ids)
    return scores
