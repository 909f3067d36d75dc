"""From a task's name or a user's files to tokenised examples in memory.

A task says how text becomes text, and no more: it is registered in seqio without a vocabulary, and bound to the
model's tokenizer when it is loaded, so that one task serves every model. A seqio task with a vocabulary of its own
is accepted for models that have the same one.

This is the only module of the package that needs seqio and TensorFlow, which are imported by the functions that
use them.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib.util
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from prompt_jax import metrics
from prompt_jax.data_files import DataError, FileTask, file_task
from prompt_jax.examples import Examples, cut
from prompt_jax.task_format import UNLABELLED, TaskFormat

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
    "task_names",
    "text_source",
]

_FEATURES = ("inputs", "targets")


@runtime_checkable  # for the tests, which check types as they run
class Tokenizer(Protocol):
    """What is needed of a model's tokenizer.

    Attributes:
      eos_id: the id of the end token, which `encode` does not add.
      pad_id: the id of padding.
      vocab_size: the number of ids, extra ids included.
    """

    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    def encode(self, text: str) -> Sequence[int]: ...
    def input_ids(self, text: str) -> Sequence[int]: ...
    def target_ids(self, text: str) -> Sequence[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


@runtime_checkable
class SentencePieces(Tokenizer, Protocol):
    """A tokenizer that seqio has a vocabulary for.

    Attributes:
      model_proto: the serialised SentencePiece ModelProto, without the extra ids.
      extra_ids: how many `<extra_id_N>` are added after its pieces.
    """

    @property
    def model_proto(self) -> bytes: ...
    @property
    def extra_ids(self) -> int: ...


def add_task(
    name: str,
    source: Any,
    task_format: TaskFormat,
    *,
    target: str = "label",
    preprocessors: Sequence[Callable[..., Any]] = (),
) -> Any:
    """Registers a text-to-text task in seqio.

    Args:
      name: the task's name in seqio's registry.
      source: a seqio.DataSource with the template's columns, strings or integers, and the target's.
      task_format: template, labels, metrics and lengths. It is the `task_format` of the task that is returned.
      target: the column of the answer: a string, or with labels also a class number, -1 where it is not known.
      preprocessors: functions from tf.data.Dataset to tf.data.Dataset that come before the template.

    Returns:
      The seqio.Task.
    """
    seqio = _import_seqio()
    render = functools.partial(_render, task_format=task_format, target=target)
    task = _text_task(name, source, task_format, [*preprocessors, render])
    seqio.TaskRegistry.add_provider(name, task)
    return task


def text_source(examples: Callable[[str], Iterable[tuple[str, str]]], splits: Sequence[str]) -> Any:
    """A seqio.DataSource with the columns `source` and `target` from a function of the split's name.

    The function is called when a split is loaded, and what it raises comes through.
    """
    seqio = _import_seqio()

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del shuffle_files, seed  # seqio prescribes the arguments
        return _text_dataset(examples(split), ("source", "target"))

    return seqio.FunctionDataSource(dataset, tuple(splits))


def as_seqio(task: FileTask) -> Any:
    """A task over files as a seqio.Task, for use with seqio itself; it is not registered.

    Its source gives `inputs` and `targets` as strings. load_examples takes the FileTask as it is, and does without
    TensorFlow then.
    """
    seqio = _import_seqio()

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del shuffle_files, seed  # there is one file; seqio prescribes the arguments
        return _text_dataset(task.examples(split), _FEATURES)

    return _text_task(task.name, seqio.FunctionDataSource(dataset, task.splits), task.task_format, [])


def discover_tasks(path: str | Path | None = None) -> list[str]:
    """Imports the modules that define tasks, each once in a process.

    Args:
      path: a directory, of which each `*.py` that does not begin with an underscore is imported, or one file. None
        is `tasks` in the working directory, if there is one.

    Returns:
      The names of all registered tasks, sorted.

    Raises:
      DataError: there is no such file or directory, or a module cannot be imported; names file and cause.
    """
    folder = Path("tasks" if path is None else path)
    if path is not None and not folder.exists():
        raise DataError(f"{folder}: no such file or directory; expected tasks as Python modules")
    for file in [folder] if folder.is_file() else sorted(folder.glob("[!_]*.py")):
        _import_tasks(file.resolve())
    return task_names()


def task_names() -> list[str]:
    """The names of all registered tasks, sorted."""
    return sorted(_import_seqio().TaskRegistry.names())


def find_task(name: str) -> Any:
    """The seqio.Task of this name.

    Raises:
      DataError: there is none; names those that are spelt most like it.
    """
    seqio = _import_seqio()
    names = task_names()
    if name in names:
        return seqio.TaskRegistry.get(name)
    if name in seqio.MixtureRegistry.names():
        raise DataError(f"{name!r} is a mixture; expected the name of one task")
    nearest = difflib.get_close_matches(name, names, n=3)
    if nearest:
        hint = f"did you mean {' or '.join(nearest)}?"
    else:
        hint = f"there are {', '.join(names)}" if names else "no folder of tasks was found"
    raise DataError(f"no task is called {name!r}; {hint}")


def on_this_machine(task: Any) -> bool:
    """Whether a task can be loaded without a download: whether TFDS has prepared its data, if they are from there."""
    seqio = _import_seqio()
    if not isinstance(task, seqio.Task) or not isinstance(task.source, seqio.TfdsDataSource):
        return True
    return task.source.tfds_dataset.builder.data_path.exists()


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
) -> Examples:
    """Runs a task's pipeline over a split and keeps the result in memory.

    Where the task's metrics compare with references, rows of the same input are one example, with their targets as
    its references, in the order in which the inputs first appear; but not in the split "train".

    Args:
      task: the name of a registered task, a seqio.Task, or a FileTask.
      tokenizer: the model's.
      split: the split's name.
      input_length: the longest input in tokens, end token included. What is longer is cut before its end token,
        and counted.
      target_length: the same of targets.
      limit: if given, only so many examples, drawn at random but always the same ones: sources are often sorted.
      seed: of the draw. What a smaller limit draws is part of what a larger one does.
      metric_names: instead of the metrics of the task's format, if given.

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
    if split not in task.splits:
        raise DataError(f"the task {task.name!r} has no split {split!r}; it has {', '.join(task.splits)}")
    if task_format is not None:
        _check_labels(task.name, task_format.labels, tokenizer, target_length)
    rows = list(_rows(task, tokenizer, split))
    grouped = task_format is not None and bool(task_format.compared) and split != "train"
    if grouped:
        rows = _by_input(rows)
    if limit is not None and limit < len(rows):
        rows = [rows[i] for i in sorted(np.random.default_rng(seed).permutation(len(rows))[:limit])]
    if not rows:
        raise DataError(f"the split {split!r} of the task {task.name!r} has no examples; expected at least one")
    inputs, inputs_cut = _tokens(task.name, rows, "inputs", input_length, tokenizer)
    targets, targets_cut = _tokens(task.name, rows, "targets", target_length, tokenizer)
    postprocess = None if isinstance(task, FileTask) else task.postprocessor
    examples = Examples(
        name=task.name,
        split=split,
        inputs=inputs,
        targets=targets,
        input_texts=_texts(rows, "inputs", tokenizer),
        target_texts=_texts(rows, "targets", tokenizer),
        truncated={"inputs": inputs_cut, "targets": targets_cut},
        format=task_format,
        metric_fns=tuple(metrics.metric_fns(task_format)) if task_format else _metric_fns(task),
        postprocess=postprocess,
        rows=tuple(rows) if postprocess else (),
        references=tuple(tuple(text.decode("utf-8") for text in row["references"]) for row in rows) if grouped else (),
    )
    _check_targets(examples)
    return examples


def _import_seqio() -> Any:
    """seqio, with TensorFlow kept from taking the accelerators' memory, which is JAX's."""
    with contextlib.nullcontext() if "tensorflow" in sys.modules else _quiet_stderr():
        import seqio
        import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # TensorFlow is in use already, as its user has set it up
        tf.config.set_visible_devices([], "GPU")
        tf.config.set_visible_devices([], "TPU")
    return seqio


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """TensorFlow tells of the machine on the process's standard error while it is imported, whatever its settings."""
    sys.stderr.flush()
    saved, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)


def _text_dataset(examples: Iterable[tuple[str, str]], columns: Sequence[str]) -> Any:
    """A tf.data.Dataset with two columns of texts."""
    import tensorflow as tf

    kept = list(examples)  # read at once: in a generator of TensorFlow's, errors would be told as its own

    def rows() -> Iterator[dict[str, str]]:
        return (dict(zip(columns, pair, strict=True)) for pair in kept)

    return tf.data.Dataset.from_generator(rows, output_signature=dict.fromkeys(columns, tf.TensorSpec((), tf.string)))


def _text_task(name: str, source: Any, task_format: TaskFormat, preprocessors: Sequence[Callable[..., Any]]) -> Any:
    """A seqio.Task, not registered, whose preprocessors give `inputs` and `targets` as strings."""
    seqio = _import_seqio()
    placeholder = seqio.Feature(seqio.PassThroughVocabulary(size=0), add_eos=True)
    task = seqio.Task(
        name,
        source=source,
        output_features=dict.fromkeys(_FEATURES, placeholder),
        preprocessors=[*preprocessors, *_tokenisation()],
        metric_fns=metrics.metric_fns(task_format),
    )
    task.task_format = task_format
    return task


def _render(dataset: Any, task_format: TaskFormat, target: str) -> Any:
    """The columns of each row as `inputs` and `targets`, strings, by operations of TensorFlow."""
    import tensorflow as tf

    spec = dataset.element_spec
    for column in (*task_format.columns, target):
        if column not in spec:
            raise DataError(f"no column {column!r} in the source; expected it among {', '.join(spec)}")
        if spec[column].dtype != tf.string and not spec[column].dtype.is_integer:
            kind = spec[column].dtype.name
            raise DataError(f"column {column!r} of the source is {kind}; expected strings or integers")

    def text(value: Any) -> Any:
        return value if value.dtype == tf.string else tf.strings.as_string(value)

    def answer(value: Any) -> Any:
        if not task_format.labels or value.dtype == tf.string:
            return text(value)
        known = tf.gather(task_format.labels, tf.clip_by_value(value, 0, len(task_format.labels) - 1))
        in_range = (value >= 0) & (value < len(task_format.labels))
        return tf.where(in_range, known, tf.where(value == -1, UNLABELLED, text(value)))

    def row(columns: Mapping[str, Any]) -> dict[str, Any]:
        segments = task_format.segments
        parts = [text(columns[part]) if place % 2 else part for place, part in enumerate(segments)]
        return {"inputs": tf.strings.join(parts), "targets": answer(columns[target])}

    return dataset.map(row)


def _import_tasks(file: Path) -> None:
    """Imports one file of tasks, unless it has been. One that fails leaves none of its tasks behind."""
    seqio = _import_seqio()
    module_name = f"_prompt_jax_tasks_{hashlib.sha256(str(file).encode()).hexdigest()[:16]}"
    if module_name in sys.modules:
        return
    before = set(seqio.TaskRegistry.names())
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise DataError(f"{file}: expected a Python module, a file named .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        for name in set(seqio.TaskRegistry.names()) - before:
            seqio.TaskRegistry.remove(name)
        raise DataError(f"{file}: the tasks cannot be imported: {type(error).__name__}: {error}") from error


def _bind(task: Any, tokenizer: Tokenizer) -> Any:
    """The task with the model's vocabulary in place of its placeholder or its own equal one."""
    seqio = _import_seqio()
    features = task.output_features
    if not all(feature in features for feature in _FEATURES):
        raise DataError(f"the task {task.name!r} has the features {', '.join(features)}; expected inputs and targets")
    for feature in _FEATURES:
        own = features[feature].vocabulary
        if not isinstance(own, seqio.PassThroughVocabulary) and not _same_vocabulary(own, tokenizer):
            raise DataError(
                f"the {feature} of the task {task.name!r} have a vocabulary that is not the model's: {own}; "
                f"expected the model's, or seqio.PassThroughVocabulary, which is replaced by it"
            )
    if not isinstance(tokenizer, SentencePieces):
        raise DataError(
            f"the task {task.name!r} makes its tokens itself, and this model has others around source and target; "
            "register it with prompt_jax.data.add_task, which leaves the tokens to the model"
        )
    vocabulary = _vocabulary(tokenizer)
    bound = {name: dataclasses.replace(features[name], vocabulary=vocabulary) for name in _FEATURES}
    return task.replace(output_features=bound)


def _vocabulary(tokenizer: Tokenizer) -> Any:
    """The model's tokenizer as a seqio.Vocabulary.

    seqio's own SentencePieceVocabulary tokenises in TensorFlow, where equally likely pieces are chosen otherwise than
    by SentencePiece in Python ("Hmmm", "Nooooo": 10 of 2,578 tweets). With this one all tasks have the ids that the
    tokenizer gives, and tokenizers need not be SentencePiece.
    """
    seqio = _import_seqio()
    import tensorflow as tf

    base: Any = seqio.Vocabulary

    class ModelVocabulary(base):
        bos_id = None
        eos_id = tokenizer.eos_id
        pad_id = tokenizer.pad_id
        unk_id = None
        _base_vocab_size = vocab_size = tokenizer.vocab_size

        def _encode(self, s: str) -> list[int]:
            return list(tokenizer.encode(s))

        def _decode(self, ids: Sequence[int]) -> str:
            return tokenizer.decode(ids)

        def _encode_tf(self, s: Any) -> Any:
            def encode(text: bytes) -> np.ndarray:
                return np.array(tokenizer.encode(text.decode("utf-8")), np.int32)

            ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
            ids.set_shape([None])
            return ids

        def _decode_tf(self, ids: Any) -> Any:
            return tf.numpy_function(lambda i: tokenizer.decode(i.tolist()), [ids], tf.string, stateful=False)

    return ModelVocabulary(extra_ids=getattr(tokenizer, "extra_ids", 0))


def _same_vocabulary(own: Any, tokenizer: Tokenizer) -> bool:
    """Whether a task's vocabulary has the tokenizer's pieces and rules, wherever it was read from."""
    seqio = _import_seqio()
    if not isinstance(own, seqio.SentencePieceVocabulary) or not isinstance(tokenizer, SentencePieces):
        return False
    from sentencepiece import sentencepiece_model_pb2

    def identity(serialised: bytes) -> tuple[Any, ...]:
        proto = sentencepiece_model_pb2.ModelProto.FromString(serialised)
        rules = proto.normalizer_spec
        return (
            [(piece.piece, piece.score, piece.type) for piece in proto.pieces],
            proto.trainer_spec.model_type,
            (rules.precompiled_charsmap, rules.add_dummy_prefix, rules.remove_extra_whitespaces),
        )

    with tempfile.TemporaryDirectory() as directory:  # seqio adds the extra ids to a model that it reads from a file
        path = Path(directory, hashlib.sha256(tokenizer.model_proto).hexdigest())
        path.write_bytes(tokenizer.model_proto)
        model = seqio.SentencePieceVocabulary(str(path), extra_ids=tokenizer.extra_ids).sp_model
    return identity(own.sp_model) == identity(model)


def _rows(task: Any, tokenizer: Tokenizer, split: str) -> Iterator[dict[str, Any]]:
    """What a task gives for each example, in the source's order, lazily.

    Tasks that have a format give `inputs` and `targets` as texts, which are tokenised without TensorFlow: calling
    Python from its pipelines takes twenty times as long as SentencePiece does. Other tasks run as they are, but step
    by step: seqio's `Task.get_dataset` passes its seed to sources that take none, and without a seed, preprocessors
    that draw random numbers would give something else each time.
    """
    if isinstance(task, FileTask):
        for inputs, targets in task.examples(split):
            yield {"inputs": inputs.encode("utf-8"), "targets": targets.encode("utf-8")}
        return
    has_format = hasattr(task, "task_format")
    if has_format:
        task = task.replace(preprocessors=task.preprocessors[: -len(_tokenisation())])
    else:
        task = _bind(task, tokenizer)
    dataset = task.source.get_dataset(split=split, shuffle=False)
    dataset = task.preprocess_precache(dataset, seed=0)
    dataset = task.preprocess_postcache(dataset, sequence_length=None, seed=0)
    if has_format:
        for block in dataset.batch(1024).as_numpy_iterator():
            yield from ({"inputs": x, "targets": y} for x, y in zip(*map(block.get, _FEATURES), strict=True))
    else:
        yield from dataset.as_numpy_iterator()


def _by_input(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each input, the first that has it, with the targets of all of them as `references`."""
    references: dict[bytes, list[bytes]] = {}
    for row in rows:
        references.setdefault(row["inputs"], []).append(row["targets"])
    return [{"inputs": text, "targets": own[0], "references": own} for text, own in references.items()]


def _tokenisation() -> list[Callable[..., Any]]:
    """The last steps of a task that is registered by add_task."""
    seqio = _import_seqio()
    return [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]


def _tokens(
    task: str, rows: Sequence[Mapping[str, Any]], feature: str, length: int, tokenizer: Tokenizer
) -> tuple[list[np.ndarray], int]:
    """The ids of a feature, int32 [T_i], at most `length` with the end token kept; and how many were cut."""
    result, longer = [], 0
    for row in rows:
        value = row.get(feature)
        if isinstance(value, bytes):
            text = value.decode("utf-8")
            value = tokenizer.input_ids(text) if feature == "inputs" else tokenizer.target_ids(text)
        ids = np.asarray(value)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise DataError(
                f"the task {task!r} gives {feature} of type {ids.dtype} and shape {ids.shape}; expected token ids "
                "[T] (its preprocessors should end with seqio.preprocessors.tokenize and append_eos)"
            )
        result.append(cut(ids, length, tokenizer.eos_id))
        longer += len(ids) > length
    return result, longer


def _texts(rows: Sequence[Mapping[str, Any]], feature: str, tokenizer: Tokenizer) -> list[str]:
    """A feature's texts, as they were before tokenisation where the task keeps them."""
    key = f"{feature}_pretokenized"
    values = [row.get(key, row[feature]) for row in rows]
    return [
        value.decode("utf-8") if isinstance(value, bytes) else tokenizer.decode([int(i) for i in value])
        for value in values
    ]


def _check_labels(task: str, labels: Sequence[str], tokenizer: Tokenizer, target_length: int) -> None:
    """A label that the model cannot write, or not whole, would be counted as wrong for ever."""
    for label in labels:
        ids = list(tokenizer.target_ids(label))
        if (written := tokenizer.decode(ids)) != label:
            raise DataError(
                f"the task {task!r} has the label {label!r}, which the model's tokenizer can only write as "
                f"{written!r}; expected labels that survive tokenisation"
            )
        if len(ids) > target_length:
            raise DataError(
                f"the label {label!r} of the task {task!r} has {len(ids)} tokens with its end token; "
                f"expected at most target_length, {target_length}"
            )


def _check_targets(examples: Examples) -> None:
    if not (examples.format and examples.format.labels):
        return
    allowed = {*examples.format.labels, UNLABELLED}
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
