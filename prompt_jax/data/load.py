"""Load a task's split as tokenized examples in memory.

A task is a FileTask, a registered task, or a seqio.Task. Only tasks of TFDS and seqio need TensorFlow and seqio.
"""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_jax import metrics
from prompt_jax.checkpoints.tokenizer import Tokenizer
from prompt_jax.control_tokens import remove_marks
from prompt_jax.data.downloads import source_dataset
from prompt_jax.data.examples import Examples, input_ids, truncate
from prompt_jax.data.files import FileTask
from prompt_jax.data.registry import find_task
from prompt_jax.data.seqio_tasks import without_tokenization
from prompt_jax.data.text_tasks import TextTask, TokenTask
from prompt_jax.data.vocabulary import bind_vocabulary, check_t5_format
from prompt_jax.errors import DataError
from prompt_jax.task_format import NOTE_METRICS, UNLABELED, TaskFormat

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """How a split is tokenized and sampled.

    Attributes:
      input_length: the maximum length of an input in tokens, end token included. Longer inputs are truncated before
        their end token, and counted.
      target_length: the same limit for targets.
      limit: if given, load a random sample of at most this many examples, since sources are often sorted. For metrics
        on groups of examples, the sample consists of whole groups, except in the split "train".
      seed: the seed of the sample and of the task's random preprocessors. For one seed, a smaller sample is a subset of
        a larger one.
      metrics: names of metrics that replace those of the task's format.
      prepend: text before each input, such as the task's name.
    """

    input_length: int
    target_length: int
    limit: int | None = None
    seed: int = 0
    metrics: tuple[str, ...] = ()
    prepend: str = ""


def load_examples(task: Any, tokenizer: Tokenizer, split: str, options: LoadOptions) -> Examples:
    """Run a task's pipeline over a split and keep the result in memory.

    If the task's metrics compare with references, rows with equal input (and note) are merged into one example with
    several references. Examples keep the order in which their inputs first appear. The split "train" is not merged.

    Args:
      task: a task, or the name of a registered one.
      tokenizer: the model's.
      split: the split's name.
      options: lengths, sample, metrics, and text before each input.

    Raises:
      DataError: an unknown task or split, no examples, a malformed file, a target that is not one of the labels, a task
        that does not fit the tokenizer, or metrics for a task without a format.
      FormatError: metrics that do not fit the task's labels.
      MissingPackage: the task needs seqio or TensorFlow, which is not installed.
    """
    task = find_task(task) if isinstance(task, str) else getattr(task, "text_task", task)
    text = isinstance(task, FileTask | TextTask)
    task_format = _task_format(task, options, text)
    if split not in task.splits:
        raise DataError(f"the task {task.name!r} has no split {split!r}; it has {', '.join(task.splits)}")
    if task_format is not None:
        _check_labels(task.name, task_format.labels, tokenizer, options.target_length)
    merged = text and task_format is not None and bool(task_format.compared) and split != "train"
    rows = list(_rows(task, tokenizer, split, options, limit=None if merged else options.limit))
    if merged:
        rows = _merge_references(rows)
    notes = () if task_format is None else _notes(task.name, rows, task_format)
    if options.limit is not None and options.limit < len(rows):
        grouped = split != "train" and task_format is not None and "group_exact_match" in task_format.metrics
        kept = _sample(notes if grouped else range(len(rows)), options.limit, options.seed)
        rows, notes = [rows[i] for i in kept], tuple(notes[i] for i in kept if notes)
    if not rows:
        raise DataError(f"the split {split!r} of the task {task.name!r} has no examples; expected at least one")
    labels = task_format.labels if task_format is not None and text else ()
    ending = "" if task_format is None else tokenizer.marked(task_format.segments[-1])
    inputs, inputs_truncated = _token_ids(task.name, rows, "inputs", options.input_length, tokenizer, ending=ending)
    targets, targets_truncated = _token_ids(task.name, rows, "targets", options.target_length, tokenizer, labels)
    postprocess = getattr(task, "postprocessor", None)
    examples = Examples(
        name=task.name,
        split=split,
        inputs=inputs,
        targets=targets,
        input_texts=_texts(rows, "inputs", tokenizer),
        target_texts=[remove_marks(target) for target in _texts(rows, "targets", tokenizer)],
        truncated={"inputs": inputs_truncated, "targets": targets_truncated},
        format=task_format if text else None,  # other tasks may use the text UNLABELED as an answer
        metric_fns=tuple(metrics.metric_fns(task_format, notes)) if task_format else _seqio_metrics(task),
        postprocess=postprocess,
        rows=tuple(rows) if postprocess else (),
        references=tuple(map(_references, rows)) if merged else (),
        notes=notes,
    )
    _check_targets(examples)
    return examples


def _task_format(task: Any, options: LoadOptions, text: bool) -> TaskFormat | None:
    """Return a task's format with the metrics and the template of the options; None for a plain seqio task."""
    task_format: TaskFormat | None = getattr(task, "task_format", None)
    if options.metrics:
        if task_format is None:
            raise DataError(f"the task {task.name!r} has its own metrics; none can be chosen by name")
        task_format = dataclasses.replace(task_format, metrics=options.metrics)
    if options.prepend:
        if task_format is None or not text:
            raise DataError(f"the task {task.name!r} makes its own tokens; no text can be prepended to its inputs")
        task_format = dataclasses.replace(task_format, template=options.prepend + task_format.template)
    return task_format


def _rows(
    task: Any, tokenizer: Tokenizer, split: str, options: LoadOptions, limit: int | None
) -> Iterator[dict[str, Any]]:
    """Yield a task's rows, as text in UTF-8 or as token ids, in order and lazily.

    For a FileTask, yield only a sample of `limit` rows. Text is tokenized outside TensorFlow, whose pipelines call
    Python slowly. A plain seqio task runs unchanged, but step by step: seqio's `Task.get_dataset` passes a seed to
    sources that take none, and without a seed random preprocessors would differ between runs.
    """
    if isinstance(task, TokenTask):
        check_t5_format(task.name, tokenizer)
        for pair in task.examples(split, tokenizer, options.input_length, options.target_length, options.seed):
            inputs, targets = (np.append(ids, tokenizer.eos_id) for ids in pair)
            yield {"inputs": inputs, "targets": targets}
    elif isinstance(task, FileTask | TextTask):
        prepend = tokenizer.marked(options.prepend).encode("utf-8")
        for row in _text_rows(task, tokenizer, split, options, limit):
            yield {**row, "inputs": prepend + row["inputs"]}
    else:
        yield from _seqio_rows(bind_vocabulary(task, tokenizer), split, options).as_numpy_iterator()


def _text_rows(
    task: FileTask | TextTask, tokenizer: Tokenizer, split: str, options: LoadOptions, limit: int | None
) -> Iterator[dict[str, Any]]:
    """Yield rows of text in UTF-8 in order, lazily; only a sample of `limit` rows for a FileTask."""
    if isinstance(task, FileTask):
        task = dataclasses.replace(task, task_format=task.task_format.marked(tokenizer.marked))
        for inputs, targets in task.examples(split, limit, options.seed):
            yield {"inputs": inputs.encode("utf-8"), "targets": targets.encode("utf-8")}
    elif not task.needs_seqio:
        for row in task.rows(split, tokenizer.marked):
            yield {name: text.encode("utf-8") for name, text in row.items()}
    else:
        dataset = _seqio_rows(without_tokenization(task, tokenizer.marked), split, options)
        for block in dataset.batch(1024).as_numpy_iterator():
            yield from (dict(zip(block, values, strict=True)) for values in zip(*block.values(), strict=True))


def _seqio_rows(task: Any, split: str, options: LoadOptions) -> Any:
    """Return the tf.data.Dataset of a seqio.Task's split after its preprocessors."""
    # Preprocessors with optional lengths, such as `append_eos_after_trim`, would truncate without counting.
    needed = any(map(_requires_lengths, task.preprocessors))
    lengths = {"inputs": options.input_length, "targets": options.target_length} if needed else None
    dataset = source_dataset(task, split)
    dataset = task.preprocess_precache(dataset, seed=options.seed)
    return task.preprocess_postcache(dataset, sequence_length=lengths, seed=options.seed)


def _requires_lengths(preprocessor: Any) -> bool:
    """Return whether a preprocessor has a parameter `sequence_length` without a default."""
    parameter = inspect.signature(preprocessor).parameters.get("sequence_length")
    return parameter is not None and parameter.default is parameter.empty


def _merge_references(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the first row of each input and note, with the targets of all its rows as `references`."""
    merged: dict[tuple[bytes, bytes], dict[str, Any]] = {}
    for row in rows:
        first = merged.setdefault((row["inputs"], row.get("note", b"")), {**row, "references": []})
        first["references"].append(row["targets"])
    return list(merged.values())


def _references(row: Row) -> tuple[str, ...]:
    return tuple(remove_marks(text.decode("utf-8")) for text in row["references"])


def _notes(task: str, rows: Sequence[Row], task_format: TaskFormat) -> tuple[str, ...]:
    """Return the notes of all rows, or none.

    Raises:
      DataError: a metric needs notes, and the task has none.
    """
    notes = tuple(row["note"].decode("utf-8") for row in rows if "note" in row)
    if rows and not notes and (needed := set(task_format.metrics) & set(NOTE_METRICS)):
        raise DataError(f"the task {task!r} has no notes, which {sorted(needed)[0]} needs; choose other metrics")
    return notes


def _sample(groups: Sequence[Any], limit: int, seed: int) -> list[int]:
    """Return the sorted indices of a random sample of at most `limit` rows, which consists of whole groups.

    `groups` has the group of each row. The first group is included even if it exceeds the limit. A smaller sample is a
    subset of a larger one.
    """
    members: dict[Any, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    candidates = list(members.values())
    kept: list[int] = []
    for number in np.random.default_rng(seed).permutation(len(candidates)):
        if kept and len(kept) + len(candidates[number]) > limit:
            break
        kept += candidates[number]
    return sorted(kept)


def _token_ids(
    task: str,
    rows: Sequence[Row],
    feature: str,
    length: int,
    tokenizer: Tokenizer,
    labels: Sequence[str] = (),
    ending: str = "",
) -> tuple[list[np.ndarray], int]:
    """Return the token ids of a feature, int32 [T_i] with T_i at most `length`, and how many rows were truncated.

    Like a template, a text that is one of the `labels` may contain control tokens. `ending`: as for `input_ids`.
    """
    marked = {label: tokenizer.marked(label) for label in labels}
    result, truncated = [], 0
    for row in rows:
        value = row.get(feature)
        if isinstance(value, bytes) and feature == "inputs":
            ids, was_truncated = input_ids(tokenizer, value.decode("utf-8"), length, ending)
            result.append(ids)
            truncated += was_truncated
            continue
        if isinstance(value, bytes):
            text = value.decode("utf-8")
            value = np.array(tokenizer.target_ids(marked.get(text, text)), np.int32)
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
        result.append(truncate(ids, length, tokenizer.eos_id))
        truncated += len(ids) > length
    return result, truncated


def _texts(rows: Sequence[Row], feature: str, tokenizer: Tokenizer) -> list[str]:
    """Return a feature's texts before tokenization, or decoded if the task does not keep them."""
    values = [row.get(f"{feature}_pretokenized", row[feature]) for row in rows]
    return [
        value.decode("utf-8") if isinstance(value, bytes) else tokenizer.decode([int(i) for i in value])
        for value in values
    ]


def _check_labels(task: str, labels: Sequence[str], tokenizer: Tokenizer, target_length: int) -> None:
    """Raise DataError if the model cannot generate a label in full, since its answers would always be wrong."""
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


def _seqio_metrics(task: Any) -> tuple[metrics.MetricFn, ...]:
    """Return the metrics on predictions of a plain seqio task; accuracy if it has none."""
    if len(task.metric_objs) > len(task.metric_fns):  # seqio creates an object for each function
        raise DataError(f"the task {task.name!r} has metric_objs; expected metric_fns")
    for function in task.metric_fns:
        if function not in task.predict_metric_fns:
            arguments = ", ".join(inspect.signature(function).parameters)
            raise DataError(f"a metric of {task.name!r} takes ({arguments}); expected (targets, predictions)")
    return tuple(task.metric_fns) or (metrics.accuracy,)
