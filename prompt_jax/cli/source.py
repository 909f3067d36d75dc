"""Which examples the user means: those of a task, or of a file."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_jax.cli.common import chosen_format
from prompt_jax.errors import UserError
from prompt_jax.task_format import NAMED_INPUTS, TaskFormat

if TYPE_CHECKING:
    from prompt_jax.checkpoints.load import Model
    from prompt_jax.data.examples import Examples
    from prompt_jax.ensembles.members import LoadedPrompt


@dataclasses.dataclass(frozen=True)
class Source:
    """Examples with their answers."""

    task: str | None = None
    """A task of the tasks folder, instead of the one that the prompt was trained on."""
    data: Path | None = None
    """A .jsonl, .csv or .tsv file of your own, instead of a task; read with the prompt's template and labels."""
    target: str = "label"
    """The column of --data with the answers."""
    template: str | None = None
    """Input text of a row of --data, with its columns in braces; the prompt's own if left out."""
    labels: tuple[str, ...] | None = None
    """Possible answers of --data in the order of their numbers; the prompt's own if left out."""
    split: str = "test"
    """The split of the task."""
    tasks: Path | None = None
    """Folder or file with seqio tasks; `tasks` in the working directory if there is one."""
    limit: int | None = None
    """Only so many examples, drawn at random but always the same."""


def check_source(source: Source, metrics: tuple[str, ...] | None = None) -> None:
    """Raises UserError for a task beside a file, and for options that say how --data is read where there is none."""
    if source.task is not None and source.data is not None:
        raise UserError(f"--task {source.task} and --data {source.data} both say what is asked; give one of them")
    given = {"template": source.template, "labels": source.labels, "metrics": metrics}
    if source.data is None and (ignored := [f"--{name}" for name, value in given.items() if value is not None]):
        raise UserError(f"{' and '.join(ignored)} say how --data is read, which is not given; a task has its own")


def read_examples(
    source: Source, members: Sequence["LoadedPrompt"], model: "Model", metrics: tuple[str, ...] | None = None
) -> tuple["Examples", int]:
    """The examples that the user names, or those of the task that the prompts were trained on; the length of answers.

    What prompts say is taken from the first that says it.
    """
    from prompt_jax.data.downloads import is_downloaded
    from prompt_jax.data.files import file_task
    from prompt_jax.data.load import LoadOptions, load_examples
    from prompt_jax.data.registry import discover_tasks, find_task, mixture_rates, short_name, task_names

    first = next((member for member in members if member.metadata.format is not None), members[0])
    path, own, before = first.path, first.metadata.format, ""
    if source.data is not None:
        if own is None and source.template is None:
            raise UserError(f"{path} has no template, which --data needs; give one with --template")
        own = chosen_format(own, source.template, source.labels, metrics)
        task: Any = file_task(source.data.name, {source.split: source.data}, own, target=source.target)
    else:
        name = source.task or next((member.metadata.task for member in members if member.metadata.task), None)
        if name is None:
            raise UserError(f"{path} does not say what it was trained on; give --task NAME or --data FILE")
        discover_tasks(source.tasks)
        if source.task is None and (rates := mixture_rates(name)) is not None:
            raise UserError(
                f"{path} was trained on {name}, a mixture; say with --task which of its tasks is asked: "
                f"{', '.join(rates)}"
            )
        if source.task is None and name not in task_names():
            raise UserError(
                f"{path} was trained on {name}, which is no task here; give --data FILE, --task NAME or --tasks DIR"
            )
        task = find_task(name)
        if source.task is None and not is_downloaded(task):
            raise UserError(f"the data of {name} are not on this machine; to download them, say --task {name}")
        theirs = getattr(task, "task_format", None)
        if theirs is not None and _asked_by_name(members, theirs):
            before = f"{short_name(name)} "
        if source.task is None and own is not None and theirs is not None and own.template != before + theirs.template:
            warnings.warn(
                f"{path} was trained with the template {own.template!r}; {name} has {theirs.template!r}",
                stacklevel=2,
            )
        own = theirs if source.task is not None else own or theirs
    lengths = own or TaskFormat("{inputs}")
    assert model.tokenizer is not None  # check_base
    options = LoadOptions(
        lengths.input_length, lengths.target_length, limit=source.limit, metrics=metrics or (), prepend=before
    )
    examples = load_examples(task, model.tokenizer, source.split, options)
    if examples.unlabeled and source.data is None and source.split == "test" and "validation" in task.splits:
        raise UserError(
            f"{examples.name}, test: {examples.unlabeled} of {len(examples)} examples have no label, or no answer, as "
            "benchmarks keep those to themselves; give --split validation"
        )
    return examples, lengths.target_length


def _asked_by_name(members: Sequence["LoadedPrompt"], asked: TaskFormat) -> bool:
    """Whether the prompts were trained with the names of tasks before the inputs (`data.task_names`).

    A template tells it beside that of the task which the prompt was trained on or, where that is not known here, of the
    one that is asked. Prompts that do not say their task, or their template, are taken to fit.

    Raises:
      UserError: some were, and some were not.
    """
    from prompt_jax.data.registry import find_task, short_name, task_names

    known: list[tuple[LoadedPrompt, bool]] = []
    for member in members:
        own, task = member.metadata.format, member.metadata.task
        if own is None or task is None and own.template != NAMED_INPUTS:
            continue
        start = f"{short_name(task or '')} "
        theirs = getattr(find_task(task), "task_format", None) if task in task_names() else None
        named = own.template in (NAMED_INPUTS, start + (theirs or asked).template)
        if theirs is not None and not theirs.template.startswith(start):  # whatever it was when it was trained on
            named = named or own.template.startswith(start)
        known.append((member, named))
    for member, named in known[1:]:
        first, other = known[0]
        if named != other:
            with_name, without = (member, first) if named else (first, member)
            raise UserError(
                f"{with_name} was trained with the names of tasks before the inputs, {without} without: all members "
                "are asked in the same words. Evaluate each alone, or say how with --data FILE --template TEXT"
            )
    return bool(known) and known[0][1]
