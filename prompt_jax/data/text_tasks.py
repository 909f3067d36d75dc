"""Text-to-text tasks in seqio: `add_task` registers one from a template.

To add a task, write a file in the folder `tasks`, or in any folder or file that `--tasks` names:

    def examples(split):
        yield "a gripping film", "positive"

    add_task(
        "reviews",
        text_source(examples, ("train", "validation"), columns=("text", "label")),
        TaskFormat("review: {text}", labels=("negative", "positive")),
    )

Such a task yields text. It has no vocabulary until it is loaded with a model's tokenizer, so one task serves every
model.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prompt_jax import metrics
from prompt_jax.control_tokens import CLOSE, OPEN, mark
from prompt_jax.data.files import FileTask
from prompt_jax.data.seqio_import import import_seqio
from prompt_jax.errors import DataError
from prompt_jax.task_format import SENTINEL, UNLABELED, TaskFormat, without_sentinel

FEATURES = ("inputs", "targets")


def add_task(
    name: str,
    source: Any,
    task_format: TaskFormat,
    *,
    target: str = "label",
    note: str | None = None,
    sentinel: bool = False,
    preprocessors: Sequence[Callable[..., Any]] = (),
    short_name: str | None = None,
) -> Any:
    """Register a text-to-text task in seqio.

    Args:
      name: the task's name in seqio's registry.
      source: a seqio.DataSource with the columns of the template and the target, strings or integers.
      task_format: template, labels, metrics and lengths. The returned task has it as its attribute `task_format`.
      target: the column with the answer: a string or, for a task with labels, also a class index, -1 if unknown.
      note: a column that metrics need in addition to the answer (`task_format.NOTE_METRICS`). Rows with equal inputs
        and different notes stay separate examples.
      sentinel: whether targets begin with SENTINEL, which then is part of the labels. As in the prompt-tuning paper's
        code, metrics accept answers with and without it.
      preprocessors: functions from tf.data.Dataset to tf.data.Dataset that run before the template is filled in.
      short_name: overrides the default of `registry.short_name`, the task's name without its version.

    Returns:
      The seqio.Task.
    """
    seqio = import_seqio()
    steps: list[Callable[..., Any]] = [
        *preprocessors,
        functools.partial(_render, task_format=task_format, target=target, note=note),
    ]
    postprocess = None
    if sentinel:
        steps.append(_prepend_sentinel)
        postprocess = _with_sentinel if task_format.labels else _without_sentinel
        labels = tuple(f"{SENTINEL} {label}" for label in task_format.labels)
        task_format = dataclasses.replace(task_format, labels=labels)
    task = _text_task(name, source, task_format, steps, postprocess)
    if short_name is not None:
        task.short_name = short_name
    seqio.TaskRegistry.add_provider(name, task)
    return task


def text_source(
    examples: Callable[[str], Iterable[tuple[str, ...]]],
    splits: Sequence[str],
    columns: Sequence[str] = ("source", "target"),
) -> Any:
    """Return a seqio.DataSource with text columns, from a function that maps a split's name to its rows.

    The function is called when a split is loaded. Its exceptions propagate unchanged.
    """
    seqio = import_seqio()

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del shuffle_files, seed  # required by seqio
        return _text_dataset(examples(split), columns)

    return seqio.FunctionDataSource(dataset, tuple(splits))


def as_seqio(task: FileTask) -> Any:
    """Return a FileTask as a seqio.Task, for use with seqio itself. It is not registered.

    Its source has `inputs` and `targets` as strings. `load_examples` takes the FileTask itself, without TensorFlow.
    """
    seqio = import_seqio()

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del shuffle_files, seed  # required by seqio
        return _text_dataset(task.examples(split), FEATURES)

    return _text_task(task.name, seqio.FunctionDataSource(dataset, task.splits), task.task_format, [])


def yields_text(task: Any) -> bool:
    """Return whether a task leaves tokenization to the model: a FileTask, or a task of `add_task`."""
    if isinstance(task, FileTask):
        return True
    last = _tokenization_steps()
    return hasattr(task, "task_format") and list(task.preprocessors[-len(last) :]) == last


def without_tokenization(task: Any, mark_template: Callable[[str], str]) -> Any:
    """Return a task of `add_task` that yields text, with the control tokens of its template marked.

    Args:
      task: the seqio.Task.
      mark_template: the model's `Tokenizer.marked`.
    """

    def with_marks(step: Any) -> Any:
        if not isinstance(step, functools.partial) or step.func is not _render:
            return step
        return functools.partial(step, task_format=step.keywords["task_format"].marked(mark_template))

    steps = task.preprocessors[: -len(_tokenization_steps())]
    return task.replace(preprocessors=[with_marks(step) for step in steps])


def _tokenization_steps() -> list[Callable[..., Any]]:
    """Return the last preprocessors of a task of `add_task`."""
    seqio = import_seqio()
    return [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]


def _text_dataset(examples: Iterable[tuple[str, ...]], columns: Sequence[str]) -> Any:
    """Return a tf.data.Dataset with text columns."""
    import tensorflow as tf

    rows = list(examples)  # read eagerly: TensorFlow would wrap exceptions that are raised in its generator

    def columns_of_rows() -> Iterator[dict[str, str]]:
        return (dict(zip(columns, texts, strict=True)) for texts in rows)

    signature = dict.fromkeys(columns, tf.TensorSpec((), tf.string))
    return tf.data.Dataset.from_generator(columns_of_rows, output_signature=signature)


def _text_task(
    name: str,
    source: Any,
    task_format: TaskFormat,
    preprocessors: Sequence[Callable[..., Any]],
    postprocess: Callable[..., Any] | None = None,
) -> Any:
    """Return an unregistered seqio.Task from preprocessors that yield `inputs` and `targets` as strings."""
    seqio = import_seqio()
    placeholder = seqio.Feature(seqio.PassThroughVocabulary(size=0), add_eos=True)
    task = seqio.Task(
        name,
        source=source,
        output_features=dict.fromkeys(FEATURES, placeholder),
        preprocessors=[*preprocessors, *_tokenization_steps()],
        postprocess_fn=postprocess,
        metric_fns=[function for function in metrics.metric_fns(task_format) if function is not metrics.log_likelihood],
    )
    task.task_format = task_format
    return task


def _render(dataset: Any, task_format: TaskFormat, target: str, note: str | None) -> Any:
    """Fill in the template with TensorFlow operations: rows have `inputs`, `targets` and, if given, `note` as text."""
    import tensorflow as tf

    spec = dataset.element_spec
    for column in (*task_format.columns, target, *([note] if note else [])):
        if column not in spec:
            raise DataError(f"no column {column!r} in the source; expected it among {', '.join(spec)}")
        if spec[column].dtype != tf.string and not spec[column].dtype.is_integer:
            kind = spec[column].dtype.name
            raise DataError(f"column {column!r} of the source is {kind}; expected strings or integers")

    def text(value: Any) -> Any:
        if value.dtype != tf.string:
            return tf.strings.as_string(value)
        return tf.strings.regex_replace(value, f"[{OPEN}{CLOSE}]", "")  # data has no control tokens

    def answer(value: Any) -> Any:
        if not task_format.labels or value.dtype == tf.string:
            return text(value)
        label = tf.gather(task_format.labels, tf.clip_by_value(value, 0, len(task_format.labels) - 1))
        in_range = (value >= 0) & (value < len(task_format.labels))
        return tf.where(in_range, label, tf.where(value == -1, UNLABELED, text(value)))

    def row(columns: Mapping[str, Any]) -> dict[str, Any]:
        segments = task_format.segments
        parts = [text(columns[part]) if place % 2 else part for place, part in enumerate(segments)]
        texts = {"inputs": tf.strings.join(parts), "targets": answer(columns[target])}
        return texts | ({"note": text(columns[note])} if note else {})

    return dataset.map(row)


def _prepend_sentinel(dataset: Any) -> Any:
    """Prepend SENTINEL to the targets of rendered rows, except to UNLABELED."""
    import tensorflow as tf

    def row(columns: Mapping[str, Any]) -> dict[str, Any]:
        text = columns["targets"]
        prepended = tf.strings.join([f"{mark(SENTINEL)} ", text])
        return {**columns, "targets": tf.where(text == UNLABELED, text, prepended)}

    return dataset.map(row)


def _without_sentinel(text: str | Sequence[str], example: Any = None, is_target: bool = False) -> Any:
    """Return an answer in free text, or each of several references, without SENTINEL."""
    del example, is_target  # required by seqio
    return without_sentinel(text) if isinstance(text, str) else tuple(map(without_sentinel, text))


def _with_sentinel(text: str, example: Any = None, is_target: bool = False) -> str:
    """Return the answer to a task with labels in the form of its labels, with SENTINEL."""
    del example, is_target  # required by seqio
    return f"{SENTINEL} {without_sentinel(text)}"
