"""Tasks in seqio's registry: how they are defined, found and imported from a folder.

A task says how text becomes text, and no more: it is registered in seqio without a vocabulary, and bound to the
model's tokenizer when it is loaded, so that one task serves every model.

seqio and TensorFlow are imported by the functions that use them.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prompt_jax import metrics
from prompt_jax.control_tokens import CLOSE, OPEN, mark
from prompt_jax.data.files import DataError, FileTask
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
    """Registers a text-to-text task in seqio.

    Args:
      name: the task's name in seqio's registry.
      source: a seqio.DataSource with the template's columns, strings or integers, and the target's.
      task_format: template, labels, metrics and lengths. It is the `task_format` of the task that is returned.
      target: the column of the answer: a string, or with labels also a class number, -1 where it is not known.
      note: the column of what metrics are told of an example beside its answer (`task_format.NOTE_METRICS`). Rows of
        one input that have other notes are not targets of one example.
      sentinel: whether targets begin with SENTINEL, which is then part of the labels. Metrics accept an answer with
        and without it, as the prompt-tuning paper's code does.
      preprocessors: functions from tf.data.Dataset to tf.data.Dataset that come before the template.
      short_name: what `short_name` gives for it; left out, its name without the version.

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
        steps.append(_begun_with_sentinel)
        postprocess = _with_sentinel if task_format.labels else _without_sentinel
        task_format = dataclasses.replace(task_format, labels=tuple(f"{SENTINEL} {own}" for own in task_format.labels))
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
    """A seqio.DataSource with columns of texts from a function of the split's name.

    The function is called when a split is loaded, and what it raises comes through.
    """
    seqio = import_seqio()

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del shuffle_files, seed  # seqio prescribes the arguments
        return _text_dataset(examples(split), columns)

    return seqio.FunctionDataSource(dataset, tuple(splits))


def as_seqio(task: FileTask) -> Any:
    """A task over files as a seqio.Task, for use with seqio itself; it is not registered.

    Its source gives `inputs` and `targets` as strings. load_examples takes the FileTask as it is, and does without
    TensorFlow then.
    """
    seqio = import_seqio()

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del shuffle_files, seed  # there is one file; seqio prescribes the arguments
        return _text_dataset(task.examples(split), FEATURES)

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
    return sorted(import_seqio().TaskRegistry.names())


def find_task(name: str) -> Any:
    """The seqio.Task of this name.

    Raises:
      DataError: there is none; names those that are spelled most like it.
    """
    seqio = import_seqio()
    names = task_names()
    if name in names:
        return seqio.TaskRegistry.get(name)
    if name in seqio.MixtureRegistry.names():
        own = ", ".join(task.name for task in seqio.MixtureRegistry.get(name).tasks)
        raise DataError(f"{name!r} is a mixture; expected the name of one task, such as one of its own: {own}")
    nearest = difflib.get_close_matches(name, names, n=3)
    if nearest:
        hint = f"did you mean {' or '.join(nearest)}?"
    else:
        hint = f"there are {', '.join(names)}" if names else "no folder of tasks was found"
    raise DataError(f"no task is called {name!r}; {hint}")


def rates_of_mixture(name: str) -> dict[str, float] | None:
    """The names of a mixture's tasks, in alphabetical order, with their rates; None if there is no such mixture.

    Raises:
      DataError: a rate that is not positive, or a function of rates that fails.
    """
    seqio = import_seqio()
    if name not in seqio.MixtureRegistry.names():
        return None
    mixture = seqio.MixtureRegistry.get(name)
    rates: dict[str, float] = {}
    for task in mixture.tasks:
        try:
            rate = rates[task.name] = float(mixture.get_rate(task))
        except Exception as error:  # the functions are the user's, and some ask what not every source knows
            raise DataError(
                f"the mixture {name!r} has no rate of {task.name}: {type(error).__name__}: {error}; expected a number, "
                "or a function of the task that gives one (seqio.mixing_rate_num_examples needs a source that knows "
                "its num_input_examples, which text_source does not)"
            ) from error
        if not 0 < rate < math.inf:
            raise DataError(f"the mixture {name!r} has {task.name} at the rate {rate}; expected a positive number")
    return rates


def short_name(name: str) -> str:
    """What a task is called before its inputs where several are asked together, as T5 has it: `rte`.

    It is what `add_task` was told, or the name up to its version: `glue_rte` of `glue_rte_v002`.
    """
    registry = import_seqio().TaskRegistry
    told = getattr(registry.get(name), "short_name", None) if name in registry.names() else None
    words = name.split("_")
    version = next((n for n, word in enumerate(words) if n and word[:1] == "v" and word[1:].isdecimal()), len(words))
    return told or "_".join(words[:version])


def on_this_machine(task: Any) -> bool:
    """Whether a task can be loaded without a download: whether TFDS has prepared its data, if they are from there."""
    builder = _tfds_builder(task)
    return builder is None or builder.data_path.exists()


def source_rows(task: Any, split: str) -> Any:
    """The tf.data.Dataset of a split of a seqio.Task's source, in its order. TFDS's data are downloaded if need be.

    Raises:
      DataError: they cannot be; names the data set, the folder where they are looked for, and the reason.
    """
    if on_this_machine(task):
        return task.source.get_dataset(split=split, shuffle=False)
    builder = _tfds_builder(task)
    try:
        _check_reachable(builder)
        return task.source.get_dataset(split=split, shuffle=False)
    except Exception as error:  # of requests, TFDS and the data set's own code
        raise DataError(
            f"the data of {task.name}, TFDS's {task.source.tfds_dataset.name}, are not in {builder.data_dir_root} "
            f"(set TFDS_DATA_DIR if they are elsewhere), and cannot be downloaded: {_reason(error)}"
        ) from error


def _tfds_builder(task: Any) -> Any:
    """What TFDS prepares a task's data with; None if they are from elsewhere, or each split from another data set."""
    seqio = import_seqio()
    if not isinstance(task, seqio.Task) or not isinstance(task.source, seqio.TfdsDataSource):
        return None
    loader = task.source.tfds_dataset
    return loader.builder if loader.tfds_splits is None else None


# Where TFDS looks first, for what its authors have prepared.
_PREPARED = "https://storage.googleapis.com/tfds-data"


def _check_reachable(builder: Any) -> None:
    """Asks a data set's hosts once whether they are there, as TFDS goes on for minutes where there is no network.

    One that answers, whatever it says, will do, and so will a file that was downloaded before: TFDS is to try then.

    Raises:
      requests.ConnectionError: no host can be reached.
    """
    import requests  # which TFDS downloads with

    urls = [url for url in builder.url_infos or () if url.startswith("http")]
    noted = "".join(path.read_text() for path in builder.data_dir_root.glob("downloads/*.INFO"))  # of each download
    if any(url in noted for url in urls):
        return
    failure = None
    hosts = {urlsplit(url).netloc: url for url in (*urls, _PREPARED)} if urls else {}
    for url in hosts.values():
        try:
            requests.head(url, timeout=(10, None))  # seconds to connect, and as long as TFDS would wait for an answer
            return
        except requests.ConnectionError as error:
            failure = error
    if failure is not None:
        raise failure


def _reason(error: BaseException) -> str:
    """What an error goes back to, in a line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def import_seqio() -> Any:
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


def _text_dataset(examples: Iterable[tuple[str, ...]], columns: Sequence[str]) -> Any:
    """A tf.data.Dataset with columns of texts."""
    import tensorflow as tf

    kept = list(examples)  # read at once: in a generator of TensorFlow's, errors would be told as its own

    def rows() -> Iterator[dict[str, str]]:
        return (dict(zip(columns, texts, strict=True)) for texts in kept)

    return tf.data.Dataset.from_generator(rows, output_signature=dict.fromkeys(columns, tf.TensorSpec((), tf.string)))


def _text_task(
    name: str,
    source: Any,
    task_format: TaskFormat,
    preprocessors: Sequence[Callable[..., Any]],
    postprocess: Callable[..., Any] | None = None,
) -> Any:
    """A seqio.Task, not registered, whose preprocessors give `inputs` and `targets` as strings."""
    seqio = import_seqio()
    placeholder = seqio.Feature(seqio.PassThroughVocabulary(size=0), add_eos=True)
    task = seqio.Task(
        name,
        source=source,
        output_features=dict.fromkeys(FEATURES, placeholder),
        preprocessors=[*preprocessors, *tokenization()],
        postprocess_fn=postprocess,
        metric_fns=[function for function in metrics.metric_fns(task_format) if function is not metrics.log_likelihood],
    )
    task.task_format = task_format
    return task


def _render(dataset: Any, task_format: TaskFormat, target: str, note: str | None) -> Any:
    """The columns of each row as `inputs`, `targets` and perhaps `note`, strings, by operations of TensorFlow."""
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
        return tf.strings.regex_replace(value, f"[{OPEN}{CLOSE}]", "")  # data have no control tokens

    def answer(value: Any) -> Any:
        if not task_format.labels or value.dtype == tf.string:
            return text(value)
        known = tf.gather(task_format.labels, tf.clip_by_value(value, 0, len(task_format.labels) - 1))
        in_range = (value >= 0) & (value < len(task_format.labels))
        return tf.where(in_range, known, tf.where(value == -1, UNLABELED, text(value)))

    def row(columns: Mapping[str, Any]) -> dict[str, Any]:
        segments = task_format.segments
        parts = [text(columns[part]) if place % 2 else part for place, part in enumerate(segments)]
        texts = {"inputs": tf.strings.join(parts), "targets": answer(columns[target])}
        return texts | ({"note": text(columns[note])} if note else {})

    return dataset.map(row)


def _begun_with_sentinel(dataset: Any) -> Any:
    """Rendered rows whose targets begin with SENTINEL where they are known."""
    import tensorflow as tf

    def row(columns: Mapping[str, Any]) -> dict[str, Any]:
        text = columns["targets"]
        begun = tf.strings.join([f"{mark(SENTINEL)} ", text])
        return {**columns, "targets": tf.where(text == UNLABELED, text, begun)}

    return dataset.map(row)


def _without_sentinel(text: str | Sequence[str], example: Any = None, is_target: bool = False) -> Any:
    """Return free text, or each of several references, as metrics compare it."""
    del example, is_target  # seqio prescribes the arguments
    return without_sentinel(text) if isinstance(text, str) else tuple(map(without_sentinel, text))


def _with_sentinel(text: str, example: Any = None, is_target: bool = False) -> str:
    """Return the answer of a task with labels as its label is written."""
    del example, is_target  # seqio prescribes the arguments
    return f"{SENTINEL} {without_sentinel(text)}"


def _import_tasks(file: Path) -> None:
    """Imports one file of tasks, unless it has been. One that fails leaves nothing behind."""
    seqio = import_seqio()
    module_name = f"_prompt_jax_tasks_{hashlib.sha256(str(file).encode()).hexdigest()[:16]}"
    if module_name in sys.modules:
        return
    before = [(registry, set(registry.names())) for registry in (seqio.TaskRegistry, seqio.MixtureRegistry)]
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise DataError(f"{file}: expected a Python module, a file named .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        for registry, names in before:
            for name in set(registry.names()) - names:
                registry.remove(name)
        raise DataError(f"{file}: the tasks cannot be imported: {type(error).__name__}: {error}") from error


def texts_alone(task: Any, marked: Callable[[str], str]) -> Any:
    """A task of add_task without its last steps, so that it gives texts, and with its template's control tokens marked.

    Args:
      task: the seqio.Task.
      marked: `Tokenizer.marked` of the model.
    """

    def step(own: Any) -> Any:
        if not isinstance(own, functools.partial) or own.func is not _render:
            return own
        return functools.partial(own, task_format=own.keywords["task_format"].marked(marked))

    steps = task.preprocessors[: -len(tokenization())]
    return task.replace(preprocessors=[step(own) for own in steps])


def tokenization() -> list[Callable[..., Any]]:
    """The last steps of a task that is registered by add_task."""
    seqio = import_seqio()
    return [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
