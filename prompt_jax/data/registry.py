"""Registered tasks and mixtures: add them, import the modules that define them, and find them by name.

Tasks and mixtures in seqio's registries are found as well, once seqio has been imported. The other way round, tasks of
this package join seqio's registry then, for mixtures of seqio.
"""

import dataclasses
import difflib
import hashlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prompt_jax.checkpoints.tokenizer import Tokenizer
from prompt_jax.data.seqio_import import INSTALL, PACKAGES, import_seqio
from prompt_jax.data.seqio_tasks import as_seqio
from prompt_jax.data.text_tasks import TextTask, TokenTask
from prompt_jax.errors import DataError
from prompt_jax.task_format import SENTINEL, TaskFormat

Rates = Mapping[str, float]

_tasks: dict[str, TextTask | TokenTask] = {}
_mixtures: dict[str, Rates | Callable[[], Rates]] = {}

_IMPORTS_SEQIO = re.compile(rf"^(?:import|from) (?:{'|'.join(PACKAGES)})\b", re.MULTILINE)


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
) -> TextTask:
    """Register a text-to-text task.

    Args:
      name: the task's name.
      source: rows with the columns of the template and the target, strings or integers: `text_source`, `tfds_source`,
        or a seqio.DataSource.
      task_format: template, labels, metrics and lengths. The returned task has it as its attribute `task_format`.
      target: the column with the answer: a string or, for a task with labels, also a class index, -1 if unknown.
      note: a column that metrics need in addition to the answer (`task_format.NOTE_METRICS`). Rows with equal inputs
        and different notes stay separate examples.
      sentinel: whether targets begin with SENTINEL, which then is part of the labels. As in the prompt-tuning paper's
        code, metrics accept answers with and without it.
      preprocessors: functions from tf.data.Dataset to tf.data.Dataset that run before the template is filled in. They
        need TensorFlow.
      short_name: overrides the default of `registry.short_name`, the task's name without its version.

    Raises:
      DataError: another task or mixture has this name.
    """
    if sentinel:
        labels = tuple(f"{SENTINEL} {label}" for label in task_format.labels)
        task_format = dataclasses.replace(task_format, labels=labels)
    task = TextTask(name, source, task_format, target, note, sentinel, tuple(preprocessors), short_name)
    _check_new(name)
    _tasks[name] = task
    _join_seqio([task])
    return task


def add_token_task(
    name: str,
    examples: Callable[[str, Tokenizer, int, int, int], Iterable[tuple[np.ndarray, np.ndarray]]],
    splits: Sequence[str],
    task_format: TaskFormat,
) -> TokenTask:
    """Register a task for T5 models that makes token ids itself.

    Args:
      name: the task's name.
      examples: maps (split, tokenizer, input length, target length, seed) to pairs of input and target ids, without end
        tokens. The lengths include them.
      splits: the names of the splits.
      task_format: metrics and lengths. Its template is not used.

    Raises:
      DataError: another task or mixture has this name.
    """
    _check_new(name)
    _tasks[name] = task = TokenTask(name, examples, tuple(splits), task_format)
    return task


def add_mixture(name: str, rates: Rates | Callable[[], Rates]) -> None:
    """Register a mixture of tasks, for multitask training.

    Args:
      name: the mixture's name.
      rates: the sampling rate of each task by name, or a function that returns them, called when the mixture is used.

    Raises:
      DataError: another task or mixture has this name.
    """
    _check_new(name)
    _mixtures[name] = rates


def discover_tasks(path: str | Path | None = None) -> list[str]:
    """Import the modules that define tasks, each once per process.

    Args:
      path: a Python file, or a folder whose `*.py` files are imported unless their name starts with an underscore. None
        is the folder `tasks` in the working directory, if it exists.

    Returns:
      The names of all registered tasks, sorted.

    Raises:
      DataError: the path does not exist, or a module cannot be imported. Names file and cause.
    """
    folder = Path("tasks" if path is None else path)
    if path is not None and not folder.exists():
        raise DataError(f"{folder}: no such file or directory; expected tasks as Python modules")
    for file in [folder] if folder.is_file() else sorted(folder.glob("[!_]*.py")):
        _import_tasks(file.resolve())
    return task_names()


def task_names() -> list[str]:
    """Return the names of all registered tasks, sorted."""
    return sorted({*_tasks, *_seqio_names("TaskRegistry")})


def find_task(name: str) -> Any:
    """Return the task of this name: a TextTask, a TokenTask or a seqio.Task.

    Raises:
      DataError: no task has this name. Suggests similar names.
    """
    if name in _tasks:
        return _tasks[name]
    if name in _seqio_names("TaskRegistry"):
        return import_seqio().TaskRegistry.get(name)
    names = task_names()
    if (rates := mixture_rates(name)) is not None:
        raise DataError(
            f"{name!r} is a mixture; expected the name of one task, such as one of its tasks: {', '.join(rates)}"
        )
    nearest = difflib.get_close_matches(name, names, n=3)
    if nearest:
        hint = f"did you mean {' or '.join(nearest)}?"
    else:
        hint = f"there are {', '.join(names)}" if names else "no tasks are registered; expected a folder of tasks"
    raise DataError(f"no task is called {name!r}; {hint}")


def mixture_rates(name: str) -> dict[str, float] | None:
    """Return the rate of each task of a mixture, by task name in alphabetical order; None if it is not a mixture.

    Raises:
      DataError: a rate is not positive, or the function that computes it fails.
    """
    if name in _mixtures:
        given = _mixtures[name]
        rates = {task: float(rate) for task, rate in sorted((given() if callable(given) else given).items())}
    elif name in _seqio_names("MixtureRegistry"):
        rates = _seqio_rates(name)
    else:
        return None
    for task, rate in rates.items():
        if not 0 < rate < math.inf:
            raise DataError(f"the mixture {name!r} has {task} at the rate {rate}; expected a positive number")
    return rates


def short_name(name: str) -> str:
    """Return the name that T5 prepends to a task's inputs in multitask training, such as `rte`.

    It is the `short_name` given to `add_task`, or the name up to its version: `glue_rte` for `glue_rte_v002`.
    """
    given = getattr(find_task(name), "short_name", None) if name in task_names() else None
    words = name.split("_")
    version = next((n for n, word in enumerate(words) if n and word[:1] == "v" and word[1:].isdecimal()), len(words))
    return given or "_".join(words[:version])


def restore_point() -> Callable[[], None]:
    """Return a function that unregisters all tasks and mixtures that are registered after this call."""
    tasks, mixtures = dict(_tasks), dict(_mixtures)
    kinds = ("TaskRegistry", "MixtureRegistry")
    seqio_names = {kind: {*_seqio_names(kind), *tasks} for kind in kinds}

    def restore() -> None:
        for kind in kinds:
            for name in _seqio_names(kind) - seqio_names[kind]:
                getattr(import_seqio(), kind).remove(name)
        for registry, before in ((_tasks, tasks), (_mixtures, mixtures)):
            for name in registry.keys() - before.keys():
                del registry[name]

    return restore


def _check_new(name: str) -> None:
    if name in task_names() or name in {*_mixtures, *_seqio_names("MixtureRegistry")}:
        raise DataError(f"a task or mixture is already called {name!r}; expected another name")


def _seqio_names(kind: str) -> set[str]:
    """Return the names in one of seqio's registries; none if seqio has not been imported."""
    seqio = sys.modules.get("seqio")
    return set() if seqio is None else set(getattr(seqio, kind).names())


def _join_seqio(tasks: Iterable[TextTask | TokenTask]) -> None:
    """Register tasks in seqio as well, if it has been imported."""
    if (seqio := sys.modules.get("seqio")) is None:
        return
    for task in tasks:
        if isinstance(task, TextTask) and task.name not in seqio.TaskRegistry.names():
            seqio.TaskRegistry.add_provider(task.name, as_seqio(task))


def _seqio_rates(name: str) -> dict[str, float]:
    mixture = import_seqio().MixtureRegistry.get(name)
    rates: dict[str, float] = {}
    for task in mixture.tasks:
        try:
            rates[task.name] = float(mixture.get_rate(task))
        except Exception as error:  # the user's function may need attributes that not every source has
            raise DataError(
                f"the mixture {name!r} has no rate of {task.name}: {type(error).__name__}: {error}; expected a number, "
                "or a function of the task that returns one (seqio.mixing_rate_num_examples needs a source with "
                "num_input_examples, which text_source does not have)"
            ) from error
    return rates


def _import_tasks(file: Path) -> None:
    """Import a file of tasks, unless it is imported already. If the import fails, unregister its tasks."""
    module_name = f"_prompt_jax_tasks_{hashlib.sha256(str(file).encode()).hexdigest()[:16]}"
    if module_name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise DataError(f"{file}: expected a Python module, a file named .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    restore = restore_point()
    try:
        if _IMPORTS_SEQIO.search(file.read_text(encoding="utf-8")):
            import_seqio()
            _join_seqio(_tasks.values())
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        restore()
        hint = f"; {INSTALL}" if isinstance(error, ModuleNotFoundError) and error.name in PACKAGES else ""
        raise DataError(f"{file}: the tasks cannot be imported: {type(error).__name__}: {error}{hint}") from error
