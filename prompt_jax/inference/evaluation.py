"""Evaluation: what the model answers, and which label it finds most probable."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from prompt_jax.checkpoints.load import Model
from prompt_jax.config.decoding import Decoding
from prompt_jax.data.batches import eval_batches
from prompt_jax.data.buckets import length_buckets
from prompt_jax.data.examples import Examples, truncate
from prompt_jax.distributed.sharding import mesh_of, mesh_shape, named_sharding, to_devices, to_host
from prompt_jax.errors import UserError
from prompt_jax.inference.decoding import FROM_CHECKPOINT, compiled_generate, compiled_score, row_keys
from prompt_jax.models import check_context
from prompt_jax.models.prompt import NO_PROMPT, Prompt, check_prompt_ids, stack_prompts


class LogitsError(UserError, ArithmeticError):
    """Logits are NaN or infinite, so that scores would mean nothing."""


EVAL_BUCKETS = 4  # input lengths that batches are padded to; each is compiled once


class Shapes(NamedTuple):
    """What batches are padded to. Each (rows, length) is compiled once."""

    rows: int
    lengths: tuple[int, ...]  # ascending, in tokens


class Answers(NamedTuple):
    """Generated answers, in the order of their inputs."""

    texts: list[str]
    log_probabilities: np.ndarray  # [rows], nats: of the answers' tokens, the end token included


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of one prompt on one split, and what they come from, in the examples' order.

    Attributes:
      scores: the task's metrics on the generated answers and, for a task with labels, the same metrics with the
        most probable label as the answer, under `rank/`. In the units of `prompt_jax.metrics`.
      predictions: the generated answers; empty where `log_likelihood` is the only metric.
      label_scores: [N, C] log-probabilities of the labels in nats, or None.
      log_probabilities: [N] of the generated answers, in nats.
    """

    scores: dict[str, float]
    predictions: list[str]
    label_scores: np.ndarray | None
    log_probabilities: np.ndarray


def evaluate(
    model: Model,
    prompt: Prompt | None,
    examples: Examples,
    *,
    target_length: int,
    batch_size: int,
    rank: bool = True,
    decoding: Decoding = FROM_CHECKPOINT,
) -> Evaluation:
    """Generated answers and, for a task with labels, rank classification over the label strings.

    Args:
      model: the frozen base.
      prompt: None evaluates the base alone.
      examples: of one split.
      target_length: the most tokens of an answer.
      batch_size: examples a batch.
      rank: whether to rank the labels as well.
      decoding: how answers are generated. What is drawn for an example depends on its number.
    """
    options: Any = {"target_length": target_length, "batch_size": batch_size, "rank": rank}
    return evaluate_members(model, [prompt], examples, decoding=decoding, **options)[0]


def evaluate_members(
    model: Model,
    prompts: Sequence[Prompt | None],
    examples: Examples | Sequence[Examples],
    *,
    target_length: int,
    batch_size: int,
    rank: bool = True,
    decoding: Decoding = FROM_CHECKPOINT,
    before_batch: Callable[[], None] | None = None,
) -> list[Evaluation]:
    """`evaluate` for several prompts at once: one set of rows, (input, prompt), in batches mixed over prompts.

    Args:
      model: the frozen base.
      prompts: of one placement; lengths may differ. None is the base alone.
      examples: those of all prompts, or a list with those of each.
      target_length: the most tokens of an answer.
      batch_size: rows a batch.
      rank: whether to rank the labels as well.
      decoding: as for `evaluate`.
      before_batch: is called before each batch of answers, or of targets; what it raises ends the evaluation.

    Returns:
      what `evaluate` gives for each prompt.

    Raises:
      PromptStackError: prompts that do not go together.
      LogitsError: logits that are not finite.
      ValueError: another number of lists of examples than of prompts, or only some of them `continued`.
    """
    each = [examples] * len(prompts) if isinstance(examples, Examples) else list(examples)
    if not prompts or len(each) != len(prompts):
        raise ValueError(f"expected prompts, and examples of each; there are {len(prompts)} and {len(each)}")
    if len({own.continues_input for own in each}) > 1:
        raise ValueError("expected texts to be continued for all prompts, or for none")
    if len(prompts) > 1 and any(prompt is not None and prompt.base for prompt in prompts):
        alone = functools.partial(
            evaluate_members,
            model,
            target_length=target_length,
            batch_size=batch_size,
            rank=rank,
            decoding=decoding,
            before_batch=before_batch,
        )
        return [alone([prompt], [own])[0] for prompt, own in zip(prompts, each, strict=True)]
    stacked, ids = together(prompts)
    inputs = [row for own in each for row in own.inputs]
    owner = [number for number, own in enumerate(each) for _ in range(len(own))]
    rows: Any = {"prompt_ids": None if ids is None else ids[owner], "start_ids": None, "batch_size": batch_size}
    if each[0].continues_input:
        rows["start_ids"] = np.array([row[-1] for row in inputs])
        inputs = [row[:-1] for row in inputs]
    given, likelihoods = Answers([], np.zeros(0, np.float32)), None
    if any(own.needs_answers for own in each):
        given = answers(
            model,
            stacked,
            inputs,
            target_length=target_length,
            decoding=decoding,
            numbers=np.array([number for own in each for number in range(len(own))], np.int32),
            before_batch=before_batch,
            **rows,
        )
    if any(own.needs_log_likelihood for own in each):
        targets = [ids for own in each for ids in own.targets]
        likelihoods = target_scores(model, stacked, inputs, targets, before_batch=before_batch, **rows)
    labels = [own.format.labels if rank and own.format else () for own in each]
    ranked = own_label_scores(model, stacked, inputs, [labels[number] for number in owner], **rows)

    results, end = [], 0
    for own, own_labels in zip(each, labels, strict=True):
        mine = slice(end, end := end + len(own))
        scores = dict(own.score(given.texts[mine], None if likelihoods is None else likelihoods[mine]))
        label_scores = None
        if own_labels:
            label_scores = np.array(ranked[mine])
            best = own.score([own_labels[i] for i in label_scores.argmax(axis=1)])
            scores |= {f"rank/{name}": value for name, value in best.items() if name != "invalid"}
        results.append(Evaluation(scores, given.texts[mine], label_scores, given.log_probabilities[mine]))
    return results


def together(prompts: Sequence[Prompt | None]) -> tuple[Prompt | None, np.ndarray | None]:
    """Prompts as `answers` takes them: a stacked one and the id in it of each; one alone as it is, without ids."""
    some = [prompt for prompt in prompts if prompt is not None]
    if len(prompts) == 1 or not some:
        return prompts[0], None
    numbers = iter(range(len(some)))
    ids = [NO_PROMPT if prompt is None else next(numbers) for prompt in prompts]
    return stack_prompts(some), np.array(ids, np.int32)


def answers(
    model: Model,
    prompt: Prompt | None,
    inputs: Sequence[np.ndarray],
    *,
    prompt_ids: np.ndarray | None = None,
    start_ids: np.ndarray | None = None,
    target_length: int | Sequence[int],
    batch_size: int | Shapes,
    longest: int | None = None,
    decoding: Decoding = FROM_CHECKPOINT,
    numbers: np.ndarray | None = None,
    before_batch: Callable[[], None] | None = None,
) -> Answers:
    """The answer to each input.

    Args:
      model: the frozen base.
      prompt: that of all inputs, a stacked one, or None.
      inputs: token ids of each, with the end token.
      prompt_ids: [rows] of a stacked prompt: which of them each input has, -1 for none.
      start_ids: [rows] of a causal model whose texts are to be continued: the last token of each, which stands after
        its input in place of the start token. An answer is the rest of its line then.
      target_length: the most tokens of an answer; a number for all, or one for each.
      batch_size: inputs a batch; or the `batch_shapes` of more inputs than these, which were compiled for those.
      longest: at least the most tokens of any row, those of later calls included: what is compiled is compiled for it.
      decoding: how they are generated.
      numbers: [rows], by which rows draw differently; left out, 0, 1, 2...
      before_batch: is called before each batch.

    Raises:
      PromptStackError: prompt ids that do not fit the prompt.
      ContextError, ConfigError: as `generate`.
      LogitsError: logits that are not finite.
    """
    lengths = np.broadcast_to(np.asarray(target_length, np.int32), len(inputs))
    longest = longest or int(lengths.max())
    check_context(model.config, prompt, max(map(len, inputs)), longest)

    # The seed is in the key: nothing is compiled anew for another one.
    how = dataclasses.replace(decoding, seed=0)
    tokenizer, config = _tokenizer(model), model.config
    if start_ids is not None:  # a line ends with its break, as an answer does with the end token
        ends = *tokenizer.encode("\n")[:1], *(config.generation.end_ids or (config.eos_id,))
        config = dataclasses.replace(config, generation=dataclasses.replace(config.generation, end_ids=ends))
    key = None
    if decoding.temperature:
        key = to_devices(jax.random.key(decoding.seed), named_sharding(mesh_of(model.params)))

    def run(batch: dict[str, Any], prompt: Prompt | None) -> Any:
        if before_batch is not None:
            before_batch()
        own, number = batch.pop("lengths"), batch.pop("number")
        keys = None if key is None else row_keys(key, number)
        return compiled_generate(model.params, config, batch, prompt, longest, own, how, keys)

    per_row = {
        "lengths": lengths,
        "number": np.arange(len(inputs)) if numbers is None else numbers,
        "prompt_ids": prompt_ids,
        "start_ids": start_ids,
    }
    tokens, log_probabilities = _each(model, prompt, inputs, batch_size, run, per_row)
    check_finite(model, log_probabilities, prompt_ids)
    texts = [tokenizer.decode(row[:length].tolist()) for row, length in zip(tokens, lengths, strict=True)]
    if start_ids is not None:
        texts = [text.partition("\n")[0] for text in texts]
    return Answers(texts, log_probabilities)


def label_scores(
    model: Model,
    prompt: Prompt | None,
    inputs: Sequence[np.ndarray],
    labels: Sequence[str],
    *,
    prompt_ids: np.ndarray | None = None,
    batch_size: int | Shapes,
) -> np.ndarray:
    """Log-probability in nats of each label, end token included, as the answer to each input, [rows, C].

    Arguments and errors as for `answers`.
    """
    each = [labels] * len(inputs)
    return np.array(own_label_scores(model, prompt, inputs, each, prompt_ids=prompt_ids, batch_size=batch_size))


def own_label_scores(
    model: Model,
    prompt: Prompt | None,
    inputs: Sequence[np.ndarray],
    labels: Sequence[Sequence[str]],
    *,
    prompt_ids: np.ndarray | None = None,
    start_ids: np.ndarray | None = None,
    batch_size: int | Shapes,
    longest: int | None = None,
) -> list[np.ndarray | None]:
    """`label_scores` where each row has labels of its own; None for a row without any.

    Rows with the same number of labels are in batches together, whatever their labels are.

    Args:
      model, prompt, inputs, prompt_ids, batch_size: as for `answers`.
      start_ids: as for `answers`; labels are scored without their end tokens then.
      labels: of each input.
      longest: at least the most tokens of any label, as for `answers`.
    """
    results: list[np.ndarray | None] = [None] * len(inputs)
    end = None if start_ids is None else -1
    for count in {len(own): None for own in labels if own}:
        rows = [row for row, own in enumerate(labels) if len(own) == count]
        sets = {tuple(labels[row]): None for row in rows}
        number = {own: i for i, own in enumerate(sets)}
        scored = _scored(
            model,
            prompt,
            [inputs[row] for row in rows],
            _padded([[label_ids(model, label)[:end] for label in own] for own in sets], longest),
            np.array([number[tuple(labels[row])] for row in rows]),
            prompt_ids=None if prompt_ids is None else prompt_ids[rows],
            start_ids=None if start_ids is None else start_ids[rows],
            batch_size=batch_size,
        )
        for row, scores in zip(rows, scored, strict=True):
            results[row] = scores
    return results


def target_scores(
    model: Model,
    prompt: Prompt | None,
    inputs: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    *,
    prompt_ids: np.ndarray | None = None,
    start_ids: np.ndarray | None = None,
    batch_size: int | Shapes,
    before_batch: Callable[[], None] | None = None,
) -> Float[np.ndarray, " N"]:
    """Log-probability in nats of each target as the answer to its input.

    Args:
      model, prompt, inputs, prompt_ids, start_ids, batch_size, before_batch: as for `answers`.
      targets: token ids of each, with the end token where there is one.
    """
    sets = {ids.tobytes(): ids for ids in targets}  # members share their targets
    number = {key: i for i, key in enumerate(sets)}
    return _scored(
        model,
        prompt,
        inputs,
        _padded([[ids] for ids in sets.values()]),
        np.array([number[ids.tobytes()] for ids in targets]),
        prompt_ids=prompt_ids,
        start_ids=start_ids,
        batch_size=batch_size,
        before_batch=before_batch,
    )[:, 0]


def label_ids(model: Model, label: str) -> list[int]:
    """Token ids of a label as an answer, with the end token."""
    tokenizer = _tokenizer(model)
    return tokenizer.target_ids(tokenizer.marked(label))


def _padded(
    sets: Sequence[Sequence[Sequence[int] | np.ndarray]], longest: int | None = None
) -> tuple[Int[np.ndarray, "C N T"], Bool[np.ndarray, "C N T"]]:
    """The ids of N sets of C answers each, padded on the right, and which of them count."""
    longest = max([longest or 0, *(len(ids) for own in sets for ids in own)])
    targets = np.zeros((len(sets[0]), len(sets), longest), np.int32)
    mask = np.zeros(targets.shape, bool)
    for number, own in enumerate(sets):
        for i, ids in enumerate(own):
            targets[i, number, : len(ids)], mask[i, number, : len(ids)] = ids, True
    return targets, mask


def _scored(
    model: Model,
    prompt: Prompt | None,
    inputs: Sequence[np.ndarray],
    targets: tuple[Int[np.ndarray, "C N T"], Bool[np.ndarray, "C N T"]],
    numbers: Int[np.ndarray, " rows"],
    *,
    prompt_ids: np.ndarray | None,
    start_ids: np.ndarray | None,
    batch_size: int | Shapes,
    before_batch: Callable[[], None] | None = None,
) -> Float[np.ndarray, "rows C"]:
    """Log-probability of each answer of the set whose number an input has; `targets` are `_padded`."""
    check_context(model.config, prompt, max(map(len, inputs)), targets[0].shape[2])
    placed = to_devices(targets, named_sharding(mesh_of(model.params)))

    def run(batch: dict[str, Any], prompt: Prompt | None) -> Any:
        if before_batch is not None:
            before_batch()
        own = batch.pop("targets")
        return (compiled_score(model.params, model.config, batch, prompt, *(x[:, own] for x in placed)),)

    per_row = {"targets": numbers, "prompt_ids": prompt_ids, "start_ids": start_ids}
    (scored,) = _each(model, prompt, inputs, batch_size, run, per_row)
    check_finite(model, scored, prompt_ids)
    return scored


def check_finite(
    model: Model, log_probabilities: Float[np.ndarray, "rows *C"], prompt_ids: np.ndarray | None = None
) -> None:
    """Raise LogitsError if there is a NaN, which decoding and scoring give where a logit is not finite.

    Args:
      model: the base, whose weights are looked through for the message.
      log_probabilities: of answers or targets.
      prompt_ids: [rows] of a stacked prompt, as for `answers`.
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


def batch_shapes(inputs: Sequence[np.ndarray], batch_size: int) -> Shapes:
    """The shapes that pad these inputs least, of at most `batch_size` rows and EVAL_BUCKETS lengths."""
    lengths = [len(ids) for ids in inputs]
    rows = min(batch_size, 1 << (len(inputs) - 1).bit_length())  # one text does not cost what 64 do
    return Shapes(rows, length_buckets(lengths, EVAL_BUCKETS, -(-max(lengths) // 8) * 8))


def tokenize(model: Model, texts: Sequence[str], length: int) -> tuple[list[np.ndarray], int]:
    """Token ids of texts as inputs, cut to `length` as training inputs are; and how many were cut."""
    tokenizer = _tokenizer(model)
    whole = [tokenizer.input_ids(text) for text in texts]
    return [truncate(ids, length, tokenizer.eos_id) for ids in whole], sum(len(ids) > length for ids in whole)


def _tokenizer(model: Model) -> Any:
    if model.tokenizer is None:
        raise UserError(f"the model {model.name} has no tokenizer (spiece.model, tokenizer.json or vocab.json)")
    return model.tokenizer


def _each(
    model: Model,
    prompt: Prompt | None,
    inputs: Sequence[np.ndarray],
    batch_size: int | Shapes,
    run: Callable[[dict[str, Any], Prompt | None], Any],
    per_row: dict[str, np.ndarray | None],
) -> list[np.ndarray]:
    """Runs all inputs in batches of like lengths, `per_row` values with them; gives each of the result's arrays with
    its rows in the inputs' order.

    Where the base is on several devices, each has its share of a batch's rows.
    """
    own = {name: np.asarray(values, np.int32) for name, values in per_row.items() if values is not None}
    check_prompt_ids(prompt, own.get("prompt_ids"), len(inputs))
    shapes = batch_size if isinstance(batch_size, Shapes) else batch_shapes(inputs, batch_size)
    if (mesh := mesh_of(model.params)) is not None:
        groups = mesh_shape(mesh)["ensemble"] * mesh_shape(mesh)["data"]
        shapes = shapes._replace(rows=-(-shapes.rows // groups) * groups)
    placed = to_devices(prompt, named_sharding(mesh))
    results: list[Any] = []
    pending: tuple[np.ndarray, Any] | None = None

    def collect() -> None:
        if pending is not None:
            index, arrays = pending
            results.append((index, to_host(arrays)))

    for batch in eval_batches(inputs, *shapes, model.config.pad_id):
        index = batch.pop("index")
        # 0 where the index is -1: such a row ends at once.
        batch |= {name: np.where(index < 0, 0, values[index]) for name, values in own.items()}
        running = run(to_devices(batch, named_sharding(mesh, "rows")), placed)
        collect()  # the batch before, while this one runs
        pending = (index, running)
    collect()
    index = np.concatenate([index for index, _ in results])
    order = np.argsort(index, kind="stable")[np.sum(index < 0) :]  # rows that fill the last batch have index -1
    return [np.concatenate(parts)[order] for parts in zip(*(arrays for _, arrays in results), strict=True)]
