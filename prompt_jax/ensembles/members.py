"""Reads the members of an ensemble from prompt files and checks that they can vote together."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prompt_jax.errors import UserError
from prompt_jax.experiment import settings_text
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prompt
from prompt_jax.prompt_files.io import PromptMetadata, member_name, read_prompts


class MemberError(UserError, ValueError):
    """The prompts do not belong in one ensemble."""


@dataclasses.dataclass(frozen=True)
class LoadedPrompt:
    """A prompt and the file it was read from.

    Attributes:
      path: the file.
      number: the number of the prompt in the file; None if it is the only one.
      prompt: the prompt.
      metadata: the metadata of the prompt in the file.
    """

    path: Path
    number: int | None
    prompt: Prompt | Delta
    metadata: PromptMetadata

    def __str__(self) -> str:
        return str(self.path) if self.number is None else member_name(self.path, self.number)

    @property
    def settings(self) -> str:
        """The settings in which the prompt differs from the other members of its run."""
        return settings_text(self.metadata.settings)


def prompt_file(path: Path) -> Path:
    """Return the best prompt in the folder of a run, and any other path unchanged."""
    if path.suffix in (".npz", ".npy") or not path.is_dir():
        return path
    if (path / "best.npz").is_file():
        return path / "best.npz"
    if (path / "config.json").is_file() and (path / "checkpoints").is_dir():
        raise UserError(f"{path} has no best.npz yet; the run writes it at its first evaluation")
    return path


def read_members(paths: Sequence[Path]) -> list[LoadedPrompt]:
    """Return all prompts of files and of runs (see `prompt_file`), in order.

    Raises PromptFormatError if a file or a member is damaged.
    """
    members = []
    for path in map(prompt_file, paths):
        pairs = read_prompts(path)
        numbers = range(len(pairs)) if len(pairs) > 1 else [None]
        members += [LoadedPrompt(path, number, *pair) for number, pair in zip(numbers, pairs, strict=True)]
    return members


def check_distinct(paths: Sequence[Path]) -> None:
    """Raise MemberError if a file is named twice, because its prompts would vote twice."""
    named: dict[Path, Path] = {}
    for path in paths:
        first = named.get(path.resolve())
        if first is not None:
            problem = f"{path} is named twice" if first == path else f"{first} and {path} are one file"
            raise MemberError(f"{problem}; its prompts would count twice in the average and in the vote: name it once")
        named[path.resolve()] = path


def member_names(members: Sequence[LoadedPrompt]) -> list[str]:
    """Return names that distinguish the members: their files, if there are several, and their settings."""
    several = len({member.path for member in members}) > 1
    return [", ".join(filter(None, [str(member) if several else "", member.settings])) for member in members]


def check_one_base(members: Sequence[LoadedPrompt]) -> None:
    """Raise MemberError if two members were trained on different bases, as far as their files say."""
    known = [(member, base) for member in members if (base := member.metadata.base) is not None]
    for member, base in known[1:]:
        first, other = known[0]
        if base.fingerprint != other.fingerprint:
            raise MemberError(
                f"{first} was trained on {other.name} ({other.fingerprint[:19]}), {member} on {base.name} "
                f"({base.fingerprint[:19]}); one base runs all members, so leave one of them out (or use "
                "--allow-other-base to run them anyway)"
            )


def check_one_task(
    members: Sequence[LoadedPrompt], *, task_given: bool, template_given: bool, labels_given: bool
) -> None:
    """Check that the members have the same task, template and labels. Missing metadata counts as equal.

    Args:
      members: the members of the ensemble.
      task_given: the user names the task to evaluate on, so members may have been trained on others.
      template_given: the user's task or template replaces the members' templates.
      labels_given: the user's labels replace the members' labels.

    Raises:
      MemberError: the members differ in labels, task or template.
    """
    formats = [member.metadata.format for member in members]
    labels = [format and frozenset(format.labels) for format in formats]
    if not task_given and (pair := _different([member.metadata.task for member in members])):
        a, b = (f"{members[i]} was trained on {members[i].metadata.task} ({_answers(members[i])})" for i in pair)
        raise MemberError(
            f"{a}; {b}: for different tasks. Evaluate each alone (use --member NUMBER for an ensemble's file), or give "
            "the task for all of them with --task NAME or --data FILE"
        )
    if not labels_given and (pair := _different(labels)):
        a, b = (f"{members[i]} answers with {_answers(members[i])}" for i in pair)
        raise MemberError(
            f"{a}; {b}: members of one vote need the same labels. Give the labels with --data FILE --labels LABEL..., "
            "or leave one of the members out (`prompt-jax export FILE DEST --member NUMBER` takes one from an "
            "ensemble's file)"
        )
    templates = [format and format.template for format in formats]
    if not template_given and (pair := _different(templates)):
        a, b = (f"{members[i]} was trained with the template {templates[i]!r}" for i in pair)
        raise MemberError(
            f"{a}; {b}: all members need the same template. Give it with --task NAME or with --data FILE "
            "--template TEXT"
        )


def warn_of_lengths(members: Sequence[LoadedPrompt]) -> None:
    """Warn if members were trained with different lengths. The first known lengths are used for all."""
    lengths = [
        format and f"{format.input_length} tokens of input and {format.target_length} of answer"
        for format in (member.metadata.format for member in members)
    ]
    if pair := _different(lengths):
        a, b = pair
        warnings.warn(
            f"{members[b]} was trained with at most {lengths[b]}; it runs with those of {members[a]}, {lengths[a]}",
            stacklevel=2,
        )


def _different(values: Sequence[Any]) -> tuple[int, int] | None:
    """Return the indices of the first value that is not None and of the first later value that differs from it."""
    known = [(number, value) for number, value in enumerate(values) if value is not None]
    return next(((known[0][0], number) for number, value in known if value != known[0][1]), None)


def _answers(member: LoadedPrompt) -> str:
    labels = member.metadata.format.labels if member.metadata.format else ()
    return f"the labels {', '.join(labels)}" if labels else "any text"
