"""Helpers for several verbs: loading a prompt's base, task formats, and output."""

import dataclasses
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_jax.checkpoints.packaged import PACKAGED
from prompt_jax.config.model import Dtype
from prompt_jax.errors import MissingPackage, UserError
from prompt_jax.report.terminal import Activity, escape_control_characters
from prompt_jax.task_format import TaskFormat

if TYPE_CHECKING:
    from prompt_jax.checkpoints.load import Model
    from prompt_jax.ensembles.members import LoadedPrompt
    from prompt_jax.models.delta import Delta
    from prompt_jax.models.prompt import Prompt
    from prompt_jax.prompt_files.io import PromptMetadata

# A prompt file may name its base by a name on the Hub and a commit. Other names are not opened unless the user agrees.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class BaseOptions:
    """The base that a prompt file is used with."""

    model: str | None = None
    """Name or folder of the base. None means the one the prompt file names, if it has been downloaded before."""
    revision: str | None = None
    """Branch, tag or commit of --model on the Hugging Face Hub."""
    dtype: Dtype = "float32"
    """Type of the base's weights and of activations. int8, fp8 and int4 quantize the weights."""
    allow_other_base: bool = False
    """Use the prompt even if it was trained on another base."""


def load_base(path: Path, metadata: "PromptMetadata", base: BaseOptions) -> "Model":
    """Load the base that the user names, or else the one that the prompt file names, if it is on this machine.

    Nothing is downloaded, and no folder is opened, only because a prompt file names it.
    """
    if base.model is not None:
        return load_named_base(base.model, base.dtype, base.revision)
    if metadata.base is None:
        raise UserError(f"{path} does not say which base it was trained on; name it with --model")
    name, revision = metadata.base.name, metadata.base.revision
    is_hub_id = len(name) <= 96 and _HUB_NAME.fullmatch(name) and (revision is None or _COMMIT.fullmatch(revision))
    if name not in PACKAGED and (not is_hub_id or Path(name).exists()):
        raise UserError(
            f"{path} was trained on {name}, which is no name on the hub; if you trust it, say --model {name}"
        )
    try:
        return load_named_base(name, base.dtype, revision, local_files_only=True)
    except MissingPackage:
        raise
    except UserError as error:
        raise UserError(
            f"{path} was trained on {name}, which is not on this machine. To download it, say --model {name}"
        ) from error


def load_named_base(
    name: str, dtype: Dtype = "float32", revision: str | None = None, *, local_files_only: bool = False
) -> "Model":
    """Load a base by its name or folder, with a line on the terminal."""
    with Activity(f"loading {name}"):
        from prompt_jax.checkpoints.load import load_model

        return load_model(name, dtype, revision, local_files_only=local_files_only)


def check_model(
    path: Path, prompt: "Prompt | Delta", metadata: "PromptMetadata", model: "Model", base: BaseOptions
) -> None:
    """Raise UserError unless the model has a tokenizer and is the base that the prompt was trained on."""
    from prompt_jax.prompt_files.io import check_base

    check_tokenizer(model)
    check_base(path, prompt, metadata, model, allow_other_base=base.allow_other_base)


def check_tokenizer(model: "Model") -> None:
    """Raise UserError if the model has no tokenizer."""
    if model.tokenizer is None:
        raise UserError(f"the model {model.name} has no tokenizer (spiece.model, tokenizer.json or vocab.json)")


def override_format(
    stored: TaskFormat | None,
    template: str | None,
    labels: tuple[str, ...] | None,
    metrics: tuple[str, ...] | None,
) -> TaskFormat:
    """Return the prompt's task format (by default with the column `text`), with the fields that the user sets."""
    base = stored or TaskFormat("{text}")
    given: dict[str, Any] = {"template": template, "labels": labels, "metrics": metrics}
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})


def read_chosen(files: Sequence[Path], number: int | None) -> list["LoadedPrompt"]:
    """Read the prompts of files and runs: all, or of an ensemble only the member that --member names."""
    with Activity("reading prompts"):
        from prompt_jax.ensembles.members import check_distinct, prompt_file, read_members

        check_distinct([prompt_file(path) for path in files])
        members = read_members(files)
    return choose_members(members, number)


def choose_members(members: Sequence["LoadedPrompt"], number: int | None) -> list["LoadedPrompt"]:
    """Return all prompts, or of each ensemble only the member with this number.

    Raises:
      UserError: there is no such member. The message lists those that there are.
    """
    counts = Counter(member.path for member in members)
    if number is None:
        return list(members)
    if number != 0 and set(counts.values()) == {1}:
        raise UserError(f"--member {number}: {members[0].path} has a single prompt, number 0")
    chosen = [member for member in members if member.number in (None, number)]
    if missing := [path for path in counts if path not in {member.path for member in chosen}]:
        names = [
            f"{member.number} ({member.settings})" if member.settings else str(member.number)
            for member in members
            if member.path == missing[0]
        ]
        shown = ", ".join(names[:16]) + (", ..." if len(names) > 16 else "")
        raise UserError(f"--member {number}: {missing[0]} has {len(names)} prompts: {shown}")
    return chosen


def check_new(dest: Path, overwrite: bool) -> None:
    """Raise UserError if the file exists and may not be overwritten. Writers of folders check that they are empty."""
    if not overwrite and not dest.is_dir() and dest.exists():
        raise UserError(f"{dest} exists already; add --overwrite to replace it")


def check_positive(**options: int | None) -> None:
    """Raise UserError for an option that is set and not positive."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be positive, not {value}")


def print_error(text: str, status: int) -> int:
    """Print an error to standard error, and return the exit status."""
    print_note(text)
    return status


def print_note(text: str) -> None:
    """Print a note to standard error."""
    print(f"prompt-jax: {escape_control_characters(text)}", file=sys.stderr)


def print_escaped(text: str) -> None:
    """Print text to standard output with control characters escaped, because models and files are not trusted."""
    print(escape_control_characters(text))
