"""Generated answers, and the log-probabilities of labels and targets, for rows of inputs."""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from prompt_jax.checkpoints.load import Model
from prompt_jax.config.decoding import Decoding
from prompt_jax.data.examples import input_ids
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
    label_scores: list[Float[np.ndarray, " C"] | None]  # as `score_labels` returns them
    target_scores: np.ndarray | None = None  # [rows], as `score_targets` returns them


def generate_answers(
    rows: Rows,
    target_length: int,
    decoding: Decoding = FROM_CHECKPOINT,
    *,
    labels: Sequence[Sequence[str]] | None = None,
    targets: Sequence[np.ndarray] | None = None,
    lengths: Sequence[int] | None = None,
    row_numbers: np.ndarray | None = None,
) -> Answers:
    """Generate the answer to each row, and score its labels and its target.

    Each input is read once for all of it, except for the labels if some rows have more of them than others.

    Args:
      rows: the inputs and their prompts.
      target_length: the maximum number of tokens of an answer.
      decoding: how answers are generated.
      labels: the labels of each row, if they are to be scored.
      targets: the token ids of each row's target, if they are to be scored.
      lengths: the maximum of each row, if it is less than `target_length` for some rows.
      row_numbers: [rows] the numbers that determine what each row samples. The default is 0, 1, 2...

    Raises:
      PromptStackError: the prompt ids do not fit the prompt.
      ContextError, ConfigError: as `generate`.
      LogitsError: a logit is not finite.
    """
    model, labels = rows.model, [()] * len(rows) if labels is None else labels
    together = len({len(names) for names in labels}) == 1
    sets = _scored_sets(rows, labels if together else [()] * len(rows), targets)
    longest = max(target_length, 0 if sets is None else sets.longest)
    config = check_context(model.config, rows.prompt, max(map(len, rows.inputs)), longest)
    tokenizer = tokenizer_of(model)
    if rows.start_ids is not None:  # the answer ends at the end of the line
        end_ids = *tokenizer.line_break, *(config.generation.end_ids or (config.eos_id,))
        config = dataclasses.replace(config, generation=dataclasses.replace(config.generation, end_ids=end_ids))
    key = None
    if decoding.temperature:
        key = to_devices(jax.random.key(decoding.seed), named_sharding(mesh_of(model.params)))

    def run(batch: dict[str, Any], prompt: Prompt | None) -> Any:
        row_options = {name: batch.pop(name) for name in ("lengths", "row_numbers")}
        options: Any = {"max_new_tokens": target_length, "decoding": decoding, "key": key, "check": False}
        scored = None if sets is None else sets.of_batch(batch)
        result = generate_scored(model.params, config, batch, prompt, targets=scored, **options, **row_options)
        return result[: 2 if sets is None else 3]

    limits = np.full(len(rows), target_length) if lengths is None else np.asarray(lengths)
    columns = {"lengths": limits, "row_numbers": np.arange(len(rows)) if row_numbers is None else row_numbers}
    columns |= {} if sets is None else {"set": sets.numbers}
    tokens, log_probabilities, *scores = run_batches(rows, run, columns)
    for values in (log_probabilities, *scores):
        check_finite(model, values, rows.prompt_ids)
    texts = [tokenizer.decode(row[:limit].tolist()) for row, limit in zip(tokens, limits, strict=True)]
    if rows.start_ids is not None:
        texts = [text.partition("\n")[0] for text in texts]
    target_scores = None if targets is None else scores[0][:, -1]
    if not together or not any(labels):
        label_scores = score_labels(rows, labels)
    else:
        label_scores = list(scores[0][:, : len(labels[0])])
    return Answers(texts, log_probabilities, label_scores, target_scores)


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
    for count in {len(names): None for names in labels if names}:
        index = [row for row, names in enumerate(labels) if len(names) == count]
        part = rows.take(index)
        scores = _score_sets(part, _label_sets(part, [labels[row] for row in index], longest))
        for row, values in zip(index, scores, strict=True):
            results[row] = values
    return results


def score_targets(rows: Rows, targets: Sequence[np.ndarray]) -> Float[np.ndarray, " rows"]:
    """Return the log-probability, in nats, of each target as the answer to its row.

    Args:
      rows: the inputs and their prompts.
      targets: the token ids of each target, with the end token if it has one.

    Raises:
      PromptStackError, ContextError, LogitsError: as for `generate_answers`.
    """
    return _score_sets(rows, _target_sets(rows, [(ids.tobytes(), [ids]) for ids in targets]))[:, 0]


def label_ids(model: Model, label: str) -> list[int]:
    """Return the token ids of a label as an answer, with the end token."""
    tokenizer = tokenizer_of(model)
    return tokenizer.target_ids(tokenizer.marked(label))


def tokenize(model: Model, texts: Sequence[str], length: int, template: str = "") -> tuple[list[np.ndarray], int]:
    """Return the token ids of input texts, truncated to `length` as in training, and how many were truncated.

    `template`: with which the texts were written.
    """
    tokenizer = tokenizer_of(model)
    ending = tokenizer.marked(template.rpartition("}")[2])
    pairs = [input_ids(tokenizer, text, length, ending) for text in texts]
    return [ids for ids, _ in pairs], sum(truncated for _, truncated in pairs)


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


class _TargetSets(NamedTuple):
    """Distinct sets of C targets, padded on the right, and the number of each row's set."""

    ids: Int[Array, "C N T"]
    mask: Bool[Array, "C N T"]
    numbers: Int[np.ndarray, " rows"]

    @property
    def longest(self) -> int:
        return self.ids.shape[2]

    def of_batch(self, batch: dict[str, Any]) -> tuple[Array, Array]:
        """Return the targets of a batch's rows and their mask. Removes the column `set`, their numbers."""
        return _chosen_sets(self.ids, self.mask, batch.pop("set"))


@jax.jit  # indexing outside of a compiled function would copy constants to the device for each batch
def _chosen_sets(
    ids: Int[Array, "C N T"], mask: Bool[Array, "C N T"], numbers: Int[Array, " B"]
) -> tuple[Int[Array, "C B T"], Bool[Array, "C B T"]]:
    return ids[:, numbers], mask[:, numbers]


def _scored_sets(
    rows: Rows, labels: Sequence[Sequence[str]], targets: Sequence[np.ndarray] | None
) -> _TargetSets | None:
    """Return each row's labels, and last its target. All rows have equally many labels. None if there is nothing."""
    if targets is None:
        return _label_sets(rows, labels) if any(labels) else None
    ids = _ids_of_labels(rows, labels)
    pairs = [(tuple(names), target) for names, target in zip(labels, targets, strict=True)]
    return _target_sets(rows, [((names, target.tobytes()), [*ids[names], target]) for names, target in pairs])


def _label_sets(rows: Rows, labels: Sequence[Sequence[str]], longest: int | None = None) -> _TargetSets:
    """Return the labels as targets. All rows have equally many."""
    ids = _ids_of_labels(rows, labels)
    return _target_sets(rows, [(tuple(names), ids[tuple(names)]) for names in labels], longest)


def _ids_of_labels(rows: Rows, labels: Sequence[Sequence[str]]) -> dict[tuple[str, ...], list[list[int]]]:
    """Return the token ids of each distinct tuple of labels; if rows continue texts, as words without an end token."""
    tokenizer = tokenizer_of(rows.model)

    def ids(label: str) -> list[int]:
        return label_ids(rows.model, label) if rows.start_ids is None else tokenizer.word_ids(tokenizer.marked(label))

    return {tuple(names): [ids(label) for label in names] for names in labels}


def _target_sets(
    rows: Rows, named: Sequence[tuple[Hashable, Sequence[Any]]], longest: int | None = None
) -> _TargetSets:
    """Return each row's targets, which are stored once for all rows that give them the same name."""
    distinct = dict(named)  # members of an ensemble share their targets
    number = {name: i for i, name in enumerate(distinct)}
    longest = max([longest or 0, *(len(ids) for targets in distinct.values() for ids in targets)])
    padded = np.zeros((len(named[0][1]), len(distinct), longest), np.int32)
    mask = np.zeros(padded.shape, bool)
    for name, targets in distinct.items():
        for i, ids in enumerate(targets):
            padded[i, number[name], : len(ids)], mask[i, number[name], : len(ids)] = ids, True
    ids, used = to_devices((padded, mask), named_sharding(mesh_of(rows.model.params)))
    return _TargetSets(ids, used, np.array([number[name] for name, _ in named]))


def _score_sets(rows: Rows, sets: _TargetSets) -> Float[np.ndarray, "rows C"]:
    """Return the log-probabilities of each row's targets."""
    model = rows.model
    config = check_context(model.config, rows.prompt, max(map(len, rows.inputs)), sets.longest)

    def run(batch: dict[str, Any], prompt: Prompt | None) -> Any:
        targets, mask = sets.of_batch(batch)
        return (score(model.params, config, batch, prompt, targets, mask, check=False),)

    (scores,) = run_batches(rows, run, {"set": sets.numbers})
    check_finite(model, scores, rows.prompt_ids)
    return scores
