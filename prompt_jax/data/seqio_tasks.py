"""Tasks of this package as tasks of seqio: their pipelines in TensorFlow."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prompt_jax import metrics
from prompt_jax.control_tokens import CLOSE, OPEN, mark
from prompt_jax.data.files import FileTask
from prompt_jax.data.seqio_import import import_seqio
from prompt_jax.data.text_tasks import FEATURES, TextSource, TextTask, TfdsSource
from prompt_jax.errors import DataError
from prompt_jax.task_format import SENTINEL, UNLABELED, TaskFormat


def as_seqio(task: FileTask | TextTask) -> Any:
    """Return a task as a seqio.Task, for use with seqio itself. It is not registered.

    `load_examples` takes the task itself, and runs it without TensorFlow if it can.
    """
    seqio = import_seqio()
    tokenize = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
    result = _seqio_task(task, [*_steps(task, lambda template: template), *tokenize])
    result.task_format, result.text_task = task.task_format, task
    result.short_name = getattr(task, "short_name", None)
    return result


def without_tokenization(task: TextTask, mark_template: Callable[[str], str]) -> Any:
    """Return a task as a seqio.Task that yields text, with the control tokens of its template marked.

    Args:
      task: the task.
      mark_template: the model's `Tokenizer.marked`.
    """
    return _seqio_task(task, _steps(task, mark_template))


def seqio_source(source: Any) -> Any:
    """Return a source as a seqio.DataSource."""
    seqio = import_seqio()
    if isinstance(source, TextSource):
        return _function_source(source.examples, source.splits, source.columns)
    if not isinstance(source, TfdsSource):
        return source
    base: Any = seqio.TfdsDataSource

    class FilteredTfds(base):
        def get_dataset(self, split: Any = None, *args: Any, **options: Any) -> Any:
            dataset = super().get_dataset(split, *args, **options)
            return dataset.filter(source.filters[split]) if split in source.filters else dataset

    splits = source.splits if source.tfds_splits == {name: name for name in source.splits} else source.tfds_splits
    return FilteredTfds(source.name, splits=splits)


def _seqio_task(task: FileTask | TextTask, steps: Sequence[Callable[..., Any]]) -> Any:
    seqio = import_seqio()
    placeholder = seqio.Feature(seqio.PassThroughVocabulary(size=0), add_eos=True)
    if isinstance(task, FileTask):
        source, postprocess = _function_source(task.examples, task.splits, FEATURES), None
    else:
        source, postprocess = seqio_source(task.source), task.postprocessor
    return seqio.Task(
        task.name,
        source=source,
        output_features=dict.fromkeys(FEATURES, placeholder),
        preprocessors=list(steps),
        postprocess_fn=postprocess,
        metric_fns=[fn for fn in metrics.metric_fns(task.task_format) if fn is not metrics.log_likelihood],
    )


def _steps(task: FileTask | TextTask, mark_template: Callable[[str], str]) -> list[Callable[..., Any]]:
    """Return the preprocessors that make `inputs` and `targets` as strings."""
    if isinstance(task, FileTask):
        return []
    render = functools.partial(
        _render,
        task_format=task.task_format.marked(mark_template),
        labels=task.plain_labels,
        target=task.target,
        note=task.note,
    )
    return [*task.preprocessors, render, *([_prepend_sentinel] if task.sentinel else [])]


def _function_source(
    examples: Callable[[str], Iterable[tuple[str, ...]]], splits: Sequence[str], columns: Sequence[str]
) -> Any:
    """Return a seqio.DataSource with text columns."""
    seqio = import_seqio()
    import tensorflow as tf

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del shuffle_files, seed  # required by seqio
        rows = list(examples(split))  # read eagerly: TensorFlow would wrap exceptions that are raised in its generator

        def columns_of_rows() -> Iterator[dict[str, str]]:
            return (dict(zip(columns, texts, strict=True)) for texts in rows)

        signature = dict.fromkeys(columns, tf.TensorSpec((), tf.string))
        return tf.data.Dataset.from_generator(columns_of_rows, output_signature=signature)

    return seqio.FunctionDataSource(dataset, tuple(splits))


def _render(dataset: Any, task_format: TaskFormat, labels: Sequence[str], target: str, note: str | None) -> Any:
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
        if not labels or value.dtype == tf.string:
            return text(value)
        label = tf.gather(labels, tf.clip_by_value(value, 0, len(labels) - 1))
        in_range = (value >= 0) & (value < len(labels))
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
