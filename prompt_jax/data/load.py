"""Load a task's split as tokenized examples.

A task is a FileTask, a registered task, or a seqio.Task. Only tasks of TFDS and seqio need TensorFlow and seqio.
"""

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from prompt_jax import metrics
from prompt_jax.checkpoints.tokenizer import Tokenizer
from prompt_jax.control_tokens import remove_marks
from prompt_jax.data.downloads import source_dataset
from prompt_jax.data.examples import Examples
from prompt_jax.data.files import FileTask
from prompt_jax.data.registry import find_task
from prompt_jax.data.row_tokenizer import Row, RowTokenizer, check_labels, new_columns
from prompt_jax.data.seqio_tasks import without_tokenization
from prompt_jax.data.text_tasks import TextTask, TokenTask
from prompt_jax.data.vocabulary import bind_vocabulary, check_t5_format
from prompt_jax.errors import DataError
from prompt_jax.task_format import NOTE_METRICS, TaskFormat


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


def load_examples(
    task: Any, tokenizer: Tokenizer, split: str, options: LoadOptions, *, on_disk: bool = False
) -> Examples:
    """Run a task's pipeline over a split and keep the result.

    If the task's metrics compare with references, rows with equal input (and note) are merged into one example with
    several references. Examples keep the order in which their inputs first appear. The split "train" is not merged.

    Args:
      task: a task, or the name of a registered one.
      tokenizer: the model's.
      split: the split's name.
      options: lengths, sample, metrics, and text before each input.
      on_disk: keep texts and token ids in a temporary file (`prompt_jax.data.stored_rows`) instead of memory. The
        examples are for training, so what only scores need is left out: `rows` and `notes`.

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
        check_labels(task.name, task_format.labels, tokenizer, options.target_length)
    merged = text and task_format is not None and bool(task_format.compared) and split != "train"
    rows: Iterable[dict[str, Any]] = _rows(task, tokenizer, split, options, limit=None if merged else options.limit)
    if merged:
        rows = _merge_references(rows)
    if options.limit is not None and (merged or not isinstance(task, FileTask)):
        grouped = split != "train" and task_format is not None and "group_exact_match" in task_format.metrics
        rows = _sampled(list(rows), options.limit, options.seed, grouped)
    labels = task_format.labels if task_format is not None and text else ()
    ending = "" if task_format is None else tokenizer.marked(task_format.segments[-1])
    lengths = options.input_length, options.target_length
    row_tokenizer = RowTokenizer(task.name, split, tokenizer, *lengths, labels, ending)
    columns, postprocess = new_columns(on_disk), getattr(task, "postprocessor", None)
    kept: list[dict[str, Any]] = []  # for scores
    for row in rows:
        row_tokenizer.append(row, columns)
        if not on_disk:
            kept.append(row)
    if not columns.inputs:
        raise DataError(f"the split {split!r} of the task {task.name!r} has no examples; expected at least one")
    notes = () if task_format is None or on_disk else _notes(task.name, kept, task_format)
    return Examples(
        name=task.name,
        split=split,
        **vars(columns),
        format=task_format if text else None,  # other tasks may use the text UNLABELED as an answer
        metric_fns=tuple(metrics.metric_fns(task_format, notes)) if task_format else _seqio_metrics(task),
        postprocess=postprocess,
        rows=tuple(kept) if postprocess else (),
        references=tuple(map(_references, kept)) if merged else (),
        notes=notes,
    )


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


def _merge_references(rows: Iterable[Row]) -> list[dict[str, Any]]:
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


def _sampled(rows: Sequence[dict[str, Any]], limit: int, seed: int, grouped: bool) -> list[dict[str, Any]]:
    """Return a random sample of at most `limit` rows, in their order. A smaller sample is a subset of a larger one.

    With `grouped` it consists of whole groups, which have equal notes. The first group is included even if it exceeds
    the limit.
    """
    members: dict[Any, list[int]] = {}
    for index, row in enumerate(rows):
        members.setdefault(row.get("note") if grouped else index, []).append(index)
    candidates = list(members.values())
    kept: list[int] = []
    for number in np.random.default_rng(seed).permutation(len(candidates)):
        if kept and len(kept) + len(candidates[number]) > limit:
            break
        kept += candidates[number]
    return [rows[index] for index in sorted(kept)]


def _seqio_metrics(task: Any) -> tuple[metrics.MetricFn, ...]:
    """Return the metrics on predictions of a plain seqio task; accuracy if it has none."""
    if len(task.metric_objs) > len(task.metric_fns):  # seqio creates an object for each function
        raise DataError(f"the task {task.name!r} has metric_objs; expected metric_fns")
    for function in task.metric_fns:
        if function not in task.predict_metric_fns:
            arguments = ", ".join(inspect.signature(function).parameters)
            raise DataError(f"a metric of {task.name!r} takes ({arguments}); expected (targets, predictions)")
    return tuple(task.metric_fns) or (metrics.accuracy,)
