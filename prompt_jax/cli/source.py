"""Options that choose examples from a task or a file, and a function that reads them."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_jax.cli.common import override_format
from prompt_jax.errors import UserError
from prompt_jax.report.terminal import Activity
from prompt_jax.task_format import NAMED_INPUTS, TaskFormat

if TYPE_CHECKING:
    from prompt_jax.checkpoints.load import Model
    from prompt_jax.data.examples import Examples
    from prompt_jax.ensembles.members import LoadedPrompt


@dataclasses.dataclass(frozen=True)
class ExampleOptions:
    """Labeled examples from a task or a file."""

    task: str | None = None
    """Task in the tasks folder. None means the task that the prompt was trained on."""
    data: Path | None = None
    """Your .jsonl, .csv or .tsv file, instead of a task. It is read with the prompt's template and labels."""
    target: str = "label"
    """Column of --data with the answers."""
    template: str | None = None
    """Template for the rows of --data, with column names in braces. None means the prompt's."""
    labels: tuple[str, ...] | None = None
    """Possible answers of --data, in the order of their numbers. None means the prompt's."""
    split: str = "test"
    """Split of the task."""
    tasks: Path | None = None
    """Folder or file with tasks. None means `tasks` in the working directory, if it exists."""
    limit: int | None = None
    """Maximum number of examples. They are drawn at random with a fixed seed."""


def check_source(source: ExampleOptions, metrics: tuple[str, ...] | None = None) -> None:
    """Raise UserError for --task together with --data, and for options of --data without it."""
    if source.task is not None and source.data is not None:
        raise UserError(f"--task {source.task} and --data {source.data} both choose the examples; give one of them")
    given = {"template": source.template, "labels": source.labels, "metrics": metrics}
    if source.data is None and (ignored := [f"--{name}" for name, value in given.items() if value is not None]):
        raise UserError(f"{' and '.join(ignored)} say how --data is read, and --data is missing; a task has its own")


def read_examples(
    source: ExampleOptions, members: Sequence["LoadedPrompt"], model: "Model", metrics: tuple[str, ...] | None = None
) -> tuple["Examples", int]:
    """Return the examples that the user chose, or the examples of the prompts' task, and the maximum answer length.

    Options that are not set come from the first prompt whose metadata has them.
    """
    with Activity("reading examples"):
        return _read_examples(source, members, model, metrics)


def _read_examples(
    source: ExampleOptions, members: Sequence["LoadedPrompt"], model: "Model", metrics: tuple[str, ...] | None
) -> tuple["Examples", int]:
    from prompt_jax.data.downloads import is_downloaded
    from prompt_jax.data.files import file_task
    from prompt_jax.data.load import LoadOptions, load_examples
    from prompt_jax.data.registry import discover_tasks, find_task, mixture_rates, short_name, task_names

    first = next((member for member in members if member.metadata.format is not None), members[0])
    path, task_format, before = first.path, first.metadata.format, ""
    if source.data is not None:
        if task_format is None and source.template is None:
            raise UserError(f"{path} has no template, which --data needs; give one with --template")
        task_format = override_format(task_format, source.template, source.labels, metrics)
        task: Any = file_task(source.data.name, {source.split: source.data}, task_format, target=source.target)
    else:
        name = source.task or next((member.metadata.task for member in members if member.metadata.task), None)
        if name is None:
            raise UserError(f"{path} does not say which task it was trained on; give --task NAME or --data FILE")
        discover_tasks(source.tasks)
        if source.task is None and (rates := mixture_rates(name)) is not None:
            raise UserError(
                f"{path} was trained on {name}, a mixture; choose one of its tasks with --task: {', '.join(rates)}"
            )
        if source.task is None and name not in task_names():
            raise UserError(
                f"{path} was trained on {name}, which is not in the tasks folder; give --data FILE, --task NAME or "
                "--tasks DIR"
            )
        task = find_task(name)
        if source.task is None and not is_downloaded(task):
            raise UserError(f"the data of {name} are not on this machine; to download them, give --task {name}")
        registered = getattr(task, "task_format", None)
        if registered is not None and _trained_with_task_names(members, registered):
            before = f"{short_name(name)} "
        if source.task is not None or task_format is None:
            task_format = registered
        elif registered is not None and task_format.template != before + registered.template:
            warnings.warn(
                f"{path} was trained with the template {task_format.template!r}; {name} has {registered.template!r}",
                stacklevel=2,
            )
    lengths = task_format or TaskFormat("{inputs}")
    assert model.tokenizer is not None  # check_model
    options = LoadOptions(
        lengths.input_length, lengths.target_length, limit=source.limit, metrics=metrics or (), prepend=before
    )
    examples = load_examples(task, model.tokenizer, source.split, options)
    if examples.unlabeled and source.data is None and source.split == "test" and "validation" in task.splits:
        raise UserError(
            f"{examples.name}, test: {examples.unlabeled} of {len(examples)} examples have no label, or no answer, "
            "because benchmarks keep those of the test split secret; give --split validation"
        )
    return examples, lengths.target_length


def _trained_with_task_names(members: Sequence["LoadedPrompt"], evaluated: TaskFormat) -> bool:
    """Return whether the prompts were trained with task names before the inputs (`data.task_names`).

    Compares a prompt's template with the template of its task, or with `evaluated` if its task is not registered.
    Prompts without a task or template are ignored.

    Raises:
      UserError: only some of the prompts were.
    """
    from prompt_jax.data.registry import find_task, short_name, task_names

    known: list[tuple[LoadedPrompt, bool]] = []
    for member in members:
        stored, task = member.metadata.format, member.metadata.task
        if stored is None or task is None and stored.template != NAMED_INPUTS:
            continue
        start = f"{short_name(task or '')} "
        registered = getattr(find_task(task), "task_format", None) if task in task_names() else None
        named = stored.template in (NAMED_INPUTS, start + (registered or evaluated).template)
        if registered is not None and not registered.template.startswith(start):  # the task's template may have changed
            named = named or stored.template.startswith(start)
        known.append((member, named))
    for member, named in known[1:]:
        first, other = known[0]
        if named != other:
            with_name, without = (member, first) if named else (first, member)
            raise UserError(
                f"{with_name} was trained with the names of tasks before the inputs, {without} without: all members "
                "must read the same inputs. Evaluate each alone, or use --data FILE --template TEXT"
            )
    return bool(known) and known[0][1]
