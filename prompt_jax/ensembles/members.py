"""The members of an ensemble from prompt files, and whether they can vote together."""

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
    """Prompts that do not belong in one ensemble; the message names two of them, and what would be right."""


@dataclasses.dataclass(frozen=True)
class LoadedPrompt:
    """A prompt and where it was read from.

    Attributes:
      path: its file.
      number: its place in that file; None if the file has no other.
      prompt: the prompt.
      metadata: what the file says of it.
    """

    path: Path
    number: int | None
    prompt: Prompt | Delta
    metadata: PromptMetadata

    def __str__(self) -> str:
        return str(self.path) if self.number is None else member_name(self.path, self.number)

    @property
    def settings(self) -> str:
        """In what it differs from the other members of its run."""
        return settings_text(self.metadata.settings)


def read_members(paths: Sequence[Path]) -> list[LoadedPrompt]:
    """All prompts of all files, in order. Raises PromptFormatError for a file or a member that is damaged."""
    members = []
    for path in paths:
        read = read_prompts(path)
        numbers = range(len(read)) if len(read) > 1 else [None]
        members += [LoadedPrompt(path, number, *pair) for number, pair in zip(numbers, read, strict=True)]
    return members


def check_distinct(paths: Sequence[Path]) -> None:
    """Raises MemberError if one file is named twice: its prompts would vote twice."""
    named: dict[Path, Path] = {}
    for path in paths:
        first = named.get(path.resolve())
        if first is not None:
            both = f"{path} is named twice" if first == path else f"{first} and {path} are one file"
            raise MemberError(f"{both}; its prompts would count twice in the average and in the vote: name it once")
        named[path.resolve()] = path


def member_names(members: Sequence[LoadedPrompt]) -> list[str]:
    """How the members are told apart: by their files if there are several, and by their settings."""
    several = len({member.path for member in members}) > 1
    return [", ".join(filter(None, [str(member) if several else "", member.settings])) for member in members]


def check_one_base(members: Sequence[LoadedPrompt]) -> None:
    """Raises MemberError if two members say that they were trained on different bases."""
    known = [(member, base) for member in members if (base := member.metadata.base) is not None]
    for member, base in known[1:]:
        first, other = known[0]
        if base.fingerprint != other.fingerprint:
            raise MemberError(
                f"{first} was trained on {other.name} ({other.fingerprint[:19]}), {member} on {base.name} "
                f"({base.fingerprint[:19]}); one base runs all members, so leave one of them out (or, to use them "
                "with another base all the same, say --allow-other-base)"
            )


def check_one_task(
    members: Sequence[LoadedPrompt], *, task_given: bool, template_given: bool, labels_given: bool
) -> None:
    """Checks that the members answer one question, asked in the same words.

    What a file does not say is taken to fit.

    Args:
      members: of the ensemble.
      task_given: whether the user says what to evaluate on; it need not be what a member was trained on then.
      template_given: whether that says how an input is written.
      labels_given: whether that says what the answers are.

    Raises:
      MemberError: members of different labels, tasks or templates.
    """
    formats = [member.metadata.format for member in members]
    labels = [format and frozenset(format.labels) for format in formats]
    if not task_given and (pair := _different([member.metadata.task for member in members])):
        a, b = (f"{members[i]} was trained on {members[i].metadata.task} ({_answers(members[i])})" for i in pair)
        raise MemberError(
            f"{a}; {b}: for different tasks. Evaluate each alone (of an ensemble's file with --member NUMBER), or say "
            "what to evaluate all of them on with --task NAME or --data FILE"
        )
    if not labels_given and (pair := _different(labels)):
        a, b = (f"{members[i]} answers with {_answers(members[i])}" for i in pair)
        raise MemberError(
            f"{a}; {b}: members of one vote need the same labels. Say what to vote on with --data FILE --labels "
            "LABEL..., or leave one of them out (`prompt-jax export FILE DEST --member NUMBER` takes one from an "
            "ensemble's file)"
        )
    templates = [format and format.template for format in formats]
    if not template_given and (pair := _different(templates)):
        a, b = (f"{members[i]} was trained with the template {templates[i]!r}" for i in pair)
        raise MemberError(
            f"{a}; {b}: all members are asked in the same words. Say which with --task NAME, or with --data FILE "
            "--template TEXT"
        )


def warn_of_lengths(members: Sequence[LoadedPrompt]) -> None:
    """Warns of members that were trained with other lengths than the first that says, whose are used for all."""
    lengths = [
        format and f"{format.input_length} tokens of input and {format.target_length} of answer"
        for format in (member.metadata.format for member in members)
    ]
    if pair := _different(lengths):
        a, b = pair
        warnings.warn(
            f"{members[b]} was trained with at most {lengths[b]}; it is run with those of {members[a]}, {lengths[a]}",
            stacklevel=2,
        )


def _different(values: Sequence[Any]) -> tuple[int, int] | None:
    """The numbers of the first value that is known, and of the first one after it that is another."""
    known = [(number, value) for number, value in enumerate(values) if value is not None]
    return next(((known[0][0], number) for number, value in known if value != known[0][1]), None)


def _answers(member: LoadedPrompt) -> str:
    labels = member.metadata.format.labels if member.metadata.format else ()
    return f"the labels {', '.join(labels)}" if labels else "any text"
