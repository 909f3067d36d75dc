"""What the verbs share: the base of a prompt, its task's format, and what is said to the user."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_jax.config.model import Dtype
from prompt_jax.errors import MissingPackage, UserError
from prompt_jax.report.terminal import escape_control_characters
from prompt_jax.task_format import TaskFormat

if TYPE_CHECKING:
    from prompt_jax.checkpoints.load import Model
    from prompt_jax.models.delta import Delta
    from prompt_jax.models.prompt import Prompt
    from prompt_jax.prompt_files.io import PromptMetadata

# What a prompt file may name as its base, to be looked for on this machine: a name on the hub, and a commit.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class BaseOptions:
    """Which base a prompt file is used with."""

    model: str | None = None
    """Name or folder of the base. Without it the one that the prompt file names is used if it is on this machine:
    nothing is downloaded or opened because a file says so."""
    revision: str | None = None
    """Branch, tag or commit of --model on the hub."""
    dtype: Dtype = "float32"
    """Of the base's weights and the activations."""
    allow_other_base: bool = False
    """Use the prompt although it was trained on another base."""


def load_base(path: Path, metadata: "PromptMetadata", base: BaseOptions) -> "Model":
    """The base that the user names, or the one that the prompt file names if it is on this machine."""
    from prompt_jax.checkpoints.load import load_model

    if base.model is not None:
        return load_model(base.model, base.dtype, base.revision)
    if metadata.base is None:
        raise UserError(f"{path} does not say which base it was trained on; name it with --model")
    name, revision = metadata.base.name, metadata.base.revision
    is_hub_id = len(name) <= 96 and _HUB_NAME.fullmatch(name) and (revision is None or _COMMIT.fullmatch(revision))
    if name != "demo" and (not is_hub_id or Path(name).exists()):
        raise UserError(
            f"{path} was trained on {name}, which is no name on the hub; if you trust it, say --model {name}"
        )
    try:
        return load_model(name, base.dtype, revision, local_files_only=True)
    except MissingPackage:
        raise
    except UserError as error:
        raise UserError(
            f"{path} was trained on {name}, which is not on this machine. To download it, say --model {name}"
        ) from error


def check_base(
    path: Path, prompt: "Prompt | Delta", metadata: "PromptMetadata", model: "Model", base: BaseOptions
) -> None:
    from prompt_jax.prompt_files.io import check_base

    if model.tokenizer is None:
        raise UserError(f"the model {model.name} has no tokenizer (spiece.model, tokenizer.json or vocab.json)")
    check_base(path, prompt, metadata, model, allow_other_base=base.allow_other_base)


def chosen_format(
    own: TaskFormat | None,
    template: str | None,
    labels: tuple[str, ...] | None,
    metrics: tuple[str, ...] | None,
) -> TaskFormat:
    """The prompt's own task format, or one of a single column, with what the user says instead."""
    base = own or TaskFormat("{text}")
    given: dict[str, Any] = {"template": template, "labels": labels, "metrics": metrics}
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})


def check_member(number: int | None, file: Path, count: int) -> None:
    """That a file of so many prompts has the one that --member names."""
    if number is not None and not 0 <= number < count:
        has = "a single prompt, number 0" if count == 1 else f"{count} prompts, numbered from 0 to {count - 1}"
        raise UserError(f"--member {number}: {file} has {has}")


def check_positive(**options: int | None) -> None:
    for name, value in options.items():
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be positive, not {value}")


def print_error(text: str, status: int) -> int:
    print(f"prompt-jax: {escape_control_characters(text)}", file=sys.stderr)
    return status


def show(text: str) -> None:
    """Print text for a person, with control characters escaped: it may be from a model or an untrusted file."""
    print(escape_control_characters(text))
