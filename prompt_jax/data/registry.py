"""Tasks and mixtures in seqio's registry: import their modules, and find them by name."""

import difflib
import hashlib
import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

from prompt_jax.data.seqio_import import import_seqio
from prompt_jax.errors import DataError


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
    return sorted(import_seqio().TaskRegistry.names())


def find_task(name: str) -> Any:
    """Return the seqio.Task of this name.

    Raises:
      DataError: no task has this name. Suggests similar names.
    """
    seqio = import_seqio()
    names = task_names()
    if name in names:
        return seqio.TaskRegistry.get(name)
    if name in seqio.MixtureRegistry.names():
        parts = ", ".join(task.name for task in seqio.MixtureRegistry.get(name).tasks)
        raise DataError(f"{name!r} is a mixture; expected the name of one task, such as one of its tasks: {parts}")
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
    seqio = import_seqio()
    if name not in seqio.MixtureRegistry.names():
        return None
    mixture = seqio.MixtureRegistry.get(name)
    rates: dict[str, float] = {}
    for task in mixture.tasks:
        try:
            rate = rates[task.name] = float(mixture.get_rate(task))
        except Exception as error:  # the user's function may need attributes that not every source has
            raise DataError(
                f"the mixture {name!r} has no rate of {task.name}: {type(error).__name__}: {error}; expected a number, "
                "or a function of the task that returns one (seqio.mixing_rate_num_examples needs a source with "
                "num_input_examples, which text_source does not have)"
            ) from error
        if not 0 < rate < math.inf:
            raise DataError(f"the mixture {name!r} has {task.name} at the rate {rate}; expected a positive number")
    return rates


def short_name(name: str) -> str:
    """Return the name that T5 prepends to a task's inputs in multitask training, such as `rte`.

    It is the `short_name` given to `add_task`, or the name up to its version: `glue_rte` for `glue_rte_v002`.
    """
    registry = import_seqio().TaskRegistry
    given = getattr(registry.get(name), "short_name", None) if name in registry.names() else None
    words = name.split("_")
    version = next((n for n, word in enumerate(words) if n and word[:1] == "v" and word[1:].isdecimal()), len(words))
    return given or "_".join(words[:version])


def _import_tasks(file: Path) -> None:
    """Import a file of tasks, unless it is imported already. If the import fails, unregister its tasks."""
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
