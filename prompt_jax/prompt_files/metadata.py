"""The metadata of a prompt file: JSON, possibly from a stranger, so every field is checked."""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prompt_jax.checkpoints.files import unique_names
from prompt_jax.config.convert import from_dict
from prompt_jax.errors import UserError
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prompt
from prompt_jax.task_format import TaskFormat

FORMAT_VERSION = 1

Setting = str | bool | int | float | None | list[Any]  # the list is flat


class PromptFormatError(UserError, ValueError):
    """A file is not a prompt file, or cannot be trusted. The message names the file and the problem."""


@dataclasses.dataclass(frozen=True)
class ModelId:
    """The frozen model that a prompt was trained on."""

    name: str
    revision: str | None
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class PromptMetadata:
    """The metadata of a prompt. It is only data: nothing named in it is imported, opened or downloaded.

    Attributes:
      base: the frozen model; None if the prompt was trained with other software.
      method: how the prompt was trained, e.g. "soft_prompt".
      initialization: the option that chose its initial values.
      placement: whether virtual tokens or a prefix come before or after the input.
      shift_positions, always_visible, long_rope: see `prompt_jax.models.prompt.Prefix`.
      frozen_tokens: number of a prefix's first slots that were not trained.
      task: name of the task.
      format: the task's text format.
      step: the number of optimizer steps.
      scores: the validation scores at that step, by metric.
      settings: for a member of an ensemble, the options in which it differs from the other members, e.g.
        {"train.seed": 2, "optimizer.learning_rate": 0.1}.
    """

    base: ModelId | None = None
    method: str | None = None
    initialization: str | None = None
    placement: Literal["before", "after"] = "before"
    shift_positions: bool = True
    always_visible: bool = False
    long_rope: bool | None = None
    frozen_tokens: int = 0
    task: str | None = None
    format: TaskFormat | None = None
    step: int | None = None
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Setting] = dataclasses.field(default_factory=dict)


StoredPrompt = tuple[Prompt | Delta, PromptMetadata]


def member_name(path: str | Path, number: int) -> str:
    """Return the name of an ensemble's member for messages."""
    return f"{path}, member {number}"


def find_task_mismatch(members: Sequence[PromptMetadata]) -> tuple[int, int] | None:
    """Return the numbers of two members whose tasks or formats differ, so that they cannot vote; None if all can.

    A member without a task is assumed to have the task of the others.
    """
    named = next((number for number, member in enumerate(members) if member.task is not None), 0)
    for number, member in enumerate(members):
        if member.format != members[0].format:
            return 0, number
        if member.task not in (None, members[named].task):
            return named, number
    return None


def metadata_to_json(where: str, metadata: PromptMetadata) -> str:
    """Return the JSON that a file stores, without scores that are not finite. Errors name `where`."""
    scores = {name: float(value) for name, value in metadata.scores.items() if math.isfinite(value)}
    settings = dict(metadata.settings)
    _check_settings(where, settings)
    values = dataclasses.asdict(dataclasses.replace(metadata, scores=scores, settings=settings))
    if not settings:
        del values["settings"]
    if metadata.shift_positions:  # the default
        del values["shift_positions"]
    if not metadata.always_visible:  # likewise
        del values["always_visible"]
    if metadata.long_rope is None:
        del values["long_rope"]
    if not metadata.frozen_tokens:
        del values["frozen_tokens"]
    return json.dumps({"format_version": FORMAT_VERSION, **values}, allow_nan=False)


def metadata_from_array(where: str, array: np.ndarray) -> PromptMetadata:
    """Return the checked metadata of a file's entry.

    Raises:
      PromptFormatError: names `where`, the field, and what would be right.
    """
    if array.dtype.kind != "U" or array.shape != ():
        raise PromptFormatError(f"{where}: metadata is {array.dtype} {list(array.shape)}, not one text")
    # NumPy builds a str from any 32-bit numbers, and Python may crash on it.
    codes = np.frombuffer(array.tobytes(), np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
    if (beyond := codes[codes > sys.maxunicode]).size:
        raise PromptFormatError(f"{where}: metadata has the character U+{beyond[0]:X}; Unicode ends at U+10FFFF")
    try:
        values = json.loads(str(array), parse_constant=_refuse_constant, object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise PromptFormatError(f"{where}: metadata is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise PromptFormatError(f"{where}: metadata is a JSON {type(values).__name__}, not an object")
    version = values.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise PromptFormatError(f"{where}: format version {version!r:.60}; this program reads {FORMAT_VERSION}")
    try:
        metadata = from_dict(PromptMetadata, values)
    except (UserError, RecursionError) as error:
        raise PromptFormatError(f"{where}: metadata: {error}") from error
    if not all(map(_is_finite, metadata.scores.values())):
        raise PromptFormatError(f"{where}: metadata: scores must be finite numbers, not {metadata.scores!r:.200}")
    _check_settings(where, metadata.settings)
    return metadata


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _check_settings(where: str, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        for item in value if isinstance(value, list) else [value]:
            if not (item is None or isinstance(item, str | bool) or _is_finite(item)):
                raise PromptFormatError(
                    f"{where}: the setting {name!r} is {value!r:.60}; expected a text, a finite number, true, false, "
                    "null, or a list of these"
                )


def _is_finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # JSON's integers have no limit
        return False
