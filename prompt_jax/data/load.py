"""From a task's name or a user's files to tokenized examples in memory.

Tasks are defined and found by `prompt_jax.data.tasks`. A seqio task with a vocabulary of its own is accepted for models
that have the same one (`prompt_jax.data.vocabulary`). These two are the only modules of the package that need seqio and
TensorFlow, which are imported by the functions that use them.
"""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_jax import metrics
from prompt_jax.control_tokens import unmarked
from prompt_jax.data.examples import Examples, cut
from prompt_jax.data.files import DataError, FileTask, file_task
from prompt_jax.data.tasks import (
    add_task,
    as_seqio,
    discover_tasks,
    find_task,
    on_this_machine,
    rates_of_mixture,
    short_name,
    source_rows,
    task_names,
    text_source,
    texts_alone,
    tokenization,
)
from prompt_jax.data.vocabulary import Tokenizer, bind
from prompt_jax.task_format import NOTE_METRICS, UNLABELED, TaskFormat

__all__ = [
    "DataError",
    "Examples",
    "FileTask",
    "Tokenizer",
    "add_task",
    "as_seqio",
    "discover_tasks",
    "file_task",
    "find_task",
    "load_examples",
    "on_this_machine",
    "rates_of_mixture",
    "short_name",
    "task_names",
    "text_source",
]


def load_examples(
    task: Any,
    tokenizer: Tokenizer,
    split: str,
    *,
    input_length: int,
    target_length: int,
    limit: int | None = None,
    seed: int = 0,
    metric_names: Sequence[str] = (),
    before: str = "",
) -> Examples:
    """Runs a task's pipeline over a split and keeps the result in memory.

    Where the task's metrics compare with references, rows of the same input (and note) are one example, with their
    targets as its references, in the order in which the inputs first appear; but not in the split "train".

    Args:
      task: the name of a registered task, a seqio.Task, or a FileTask.
      tokenizer: the model's.
      split: the split's name.
      input_length: the longest input in tokens, end token included. What is longer is cut before its end token,
        and counted.
      target_length: the same of targets.
      limit: if given, only so many examples, drawn at random but always the same ones: sources are often sorted. Where
        groups of examples are scored, whole groups, in splits other than "train", up to so many.
      seed: of the draw, and of a task's preprocessors that draw random numbers. What a smaller limit draws is part of
        what a larger one does.
      metric_names: instead of the metrics of the task's format, if given.
      before: comes before each input, such as the task's name.

    Raises:
      DataError: an unknown task or split, no examples, a broken file, a target that is none of the task's labels, a
        task that does not fit the tokenizer, or metrics for one that has no format.
      FormatError: metrics that do not fit the task's labels.
    """
    task = find_task(task) if isinstance(task, str) else task
    task_format: TaskFormat | None = getattr(task, "task_format", None)
    if metric_names:
        if task_format is None:
            raise DataError(f"the task {task.name!r} has metrics of its own, and none can be chosen by name")
        task_format = dataclasses.replace(task_format, metrics=tuple(metric_names))
    as_texts = _gives_texts(task)
    if before:
        if task_format is None or not as_texts:
            raise DataError(f"the task {task.name!r} makes its tokens itself: nothing can be put before its inputs")
        task_format = dataclasses.replace(task_format, template=before + task_format.template)
    if split not in task.splits:
        raise DataError(f"the task {task.name!r} has no split {split!r}; it has {', '.join(task.splits)}")
    if task_format is not None:
        _check_labels(task.name, task_format.labels, tokenizer, target_length)
    grouped = as_texts and task_format is not None and bool(task_format.compared) and split != "train"
    lengths = {"inputs": input_length, "targets": target_length}
    rows = list(_rows(task, tokenizer, split, lengths, seed, None if grouped else limit))
    if before:
        rows = [{**row, "inputs": tokenizer.marked(before).encode() + row["inputs"]} for row in rows]
    if grouped:
        rows = _by_input(rows)
    notes = tuple(row["note"].decode("utf-8") for row in rows if task_format is not None and "note" in row)
    if task_format is not None and rows and not notes and (told := set(task_format.metrics) & set(NOTE_METRICS)):
        raise DataError(f"the task {task.name!r} has no notes, which {sorted(told)[0]} needs; choose other metrics")
    if limit is not None and limit < len(rows):
        whole = split != "train" and task_format is not None and "group_exact_match" in task_format.metrics
        kept = _drawn(notes if whole else range(len(rows)), limit, seed)
        rows, notes = [rows[i] for i in kept], tuple(notes[i] for i in kept if notes)
    if not rows:
        raise DataError(f"the split {split!r} of the task {task.name!r} has no examples; expected at least one")
    labels = task_format.labels if task_format is not None and as_texts else ()
    inputs, inputs_cut = _tokens(task.name, rows, "inputs", input_length, tokenizer)
    targets, targets_cut = _tokens(task.name, rows, "targets", target_length, tokenizer, labels)
    postprocess = None if isinstance(task, FileTask) else task.postprocessor
    examples = Examples(
        name=task.name,
        split=split,
        inputs=inputs,
        targets=targets,
        input_texts=_texts(rows, "inputs", tokenizer),
        target_texts=[unmarked(text) for text in _texts(rows, "targets", tokenizer)],
        truncated={"inputs": inputs_cut, "targets": targets_cut},
        format=task_format if as_texts else None,  # UNLABELED is a text like others in what is no answer
        metric_fns=tuple(metrics.metric_fns(task_format, notes)) if task_format else _metric_fns(task),
        postprocess=postprocess,
        rows=tuple(rows) if postprocess else (),
        references=tuple(map(_references, rows)) if grouped else (),
        notes=notes,
    )
    _check_targets(examples)
    return examples


def _rows(
    task: Any, tokenizer: Tokenizer, split: str, lengths: Mapping[str, int], seed: int, limit: int | None
) -> Iterator[dict[str, Any]]:
    """What a task gives for each example, in the source's order, lazily; of a user's files only `limit` examples.

    Tasks of `add_task` give `inputs` and `targets` as texts, which are tokenized outside TensorFlow, because
    calling Python from its pipelines is slow. Other tasks run as they are, but step
    by step: seqio's `Task.get_dataset` passes its seed to sources that take none, and without a seed, preprocessors
    that draw random numbers would give something else each time. They are told the lengths if one of them cannot do
    without: those that can (`append_eos_after_trim`) would cut without counting.
    """
    if isinstance(task, FileTask):
        task = dataclasses.replace(task, task_format=task.task_format.marked(tokenizer.marked))
        for inputs, targets in task.examples(split, limit, seed):
            yield {"inputs": inputs.encode("utf-8"), "targets": targets.encode("utf-8")}
        return
    as_texts = _gives_texts(task)
    task = texts_alone(task, tokenizer.marked) if as_texts else bind(task, tokenizer)
    told = lengths if any(map(_needs_lengths, task.preprocessors)) else None
    dataset = source_rows(task, split)
    dataset = task.preprocess_precache(dataset, seed=seed)
    dataset = task.preprocess_postcache(dataset, sequence_length=told, seed=seed)
    if as_texts:
        for block in dataset.batch(1024).as_numpy_iterator():
            yield from (dict(zip(block, row, strict=True)) for row in zip(*block.values(), strict=True))
    else:
        yield from dataset.as_numpy_iterator()


def _gives_texts(task: Any) -> bool:
    """Whether a task leaves the tokens to the model: a FileTask, or one of `add_task`."""
    if isinstance(task, FileTask):
        return True
    last = tokenization()
    return hasattr(task, "task_format") and list(task.preprocessors[-len(last) :]) == last


def _needs_lengths(preprocessor: Any) -> bool:
    """Whether a preprocessor has an argument `sequence_length` without a default."""
    argument = inspect.signature(preprocessor).parameters.get("sequence_length")
    return argument is not None and argument.default is argument.empty


def _references(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(unmarked(text.decode("utf-8")) for text in row["references"])


def _by_input(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each input and note, the first that has it, with the targets of all of them as `references`."""
    kept: dict[tuple[bytes, bytes], dict[str, Any]] = {}
    for row in rows:
        first = kept.setdefault((row["inputs"], row.get("note", b"")), {**row, "references": []})
        first["references"].append(row["targets"])
    return list(kept.values())


def _drawn(groups: Sequence[Any], limit: int, seed: int) -> list[int]:
    """The places of at most `limit` rows, in order: those of the first groups of a random order that fit, at least one.

    `groups` has the group of each row. What a smaller limit gives is part of what a larger one does.
    """
    members: dict[Any, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    own = list(members.values())
    kept: list[int] = []
    for number in np.random.default_rng(seed).permutation(len(own)):
        if kept and len(kept) + len(own[number]) > limit:
            break
        kept += own[number]
    return sorted(kept)


def _tokens(
    task: str,
    rows: Sequence[Mapping[str, Any]],
    feature: str,
    length: int,
    tokenizer: Tokenizer,
    labels: Sequence[str] = (),
) -> tuple[list[np.ndarray], int]:
    """The ids of a feature, int32 [T_i], at most `length` with the end token kept; and how many were cut.

    A text that is one of the `labels` may have control tokens, as a template.
    """
    marked = {label: tokenizer.marked(label) for label in labels}
    result, longer = [], 0
    for row in rows:
        value = row.get(feature)
        if isinstance(value, bytes):
            text = value.decode("utf-8")
            text = marked.get(text, text)
            value = tokenizer.input_ids(text) if feature == "inputs" else tokenizer.target_ids(text)
        ids = np.asarray(value)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise DataError(
                f"the task {task!r} gives {feature} of type {ids.dtype} and shape {ids.shape}; expected token ids "
                "[T] (its preprocessors should end with seqio.preprocessors.tokenize and append_eos)"
            )
        if outside := ids[(ids < 0) | (ids >= tokenizer.rows)].tolist():
            raise DataError(
                f"the task {task!r} gives {feature} with the token id {outside[0]}; expected ids from 0 to "
                f"{tokenizer.rows - 1}, the rows of the model's embedding table"
            )
        result.append(cut(ids, length, tokenizer.eos_id))
        longer += len(ids) > length
    return result, longer


def _texts(rows: Sequence[Mapping[str, Any]], feature: str, tokenizer: Tokenizer) -> list[str]:
    """A feature's texts, as they were before tokenization where the task keeps them."""
    key = f"{feature}_pretokenized"
    values = [row.get(key, row[feature]) for row in rows]
    return [
        value.decode("utf-8") if isinstance(value, bytes) else tokenizer.decode([int(i) for i in value])
        for value in values
    ]


def _check_labels(task: str, labels: Sequence[str], tokenizer: Tokenizer, target_length: int) -> None:
    """A label that the model cannot write, or not whole, would be counted as wrong for ever."""
    for label in labels:
        ids = list(tokenizer.target_ids(tokenizer.marked(label)))
        if (written := tokenizer.decode(ids)) != label:
            raise DataError(
                f"the task {task!r} has the label {label!r}, which the model's tokenizer can only write as "
                f"{written!r}; expected labels that survive tokenization"
            )
        if len(ids) > target_length:
            raise DataError(
                f"the label {label!r} of the task {task!r} has {len(ids)} tokens with its end token; "
                f"expected at most target_length, {target_length}"
            )


def _check_targets(examples: Examples) -> None:
    if not (examples.format and examples.format.labels):
        return
    allowed = {*examples.format.labels, UNLABELED}
    for number, text in enumerate(examples.target_texts):
        if text not in allowed:
            raise DataError(
                f"example {number} of {examples.name}, {examples.split}, has the target {text!r}; expected one of "
                f"{', '.join(map(repr, examples.format.labels))}"
            )


def _metric_fns(task: Any) -> tuple[metrics.MetricFn, ...]:
    """The metrics on predictions of a task without a format, or equality with the target where it has none."""
    if len(task.metric_objs) > len(task.metric_fns):  # seqio makes an object of each function
        raise DataError(f"the task {task.name!r} has metric_objs; expected metric_fns")
    for function in task.metric_fns:
        if function not in task.predict_metric_fns:
            arguments = ", ".join(inspect.signature(function).parameters)
            raise DataError(f"a metric of {task.name!r} takes ({arguments}); expected (targets, predictions)")
    return tuple(task.metric_fns) or (metrics.accuracy,)
