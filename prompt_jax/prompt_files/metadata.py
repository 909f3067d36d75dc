"""What a prompt file says of its prompt: JSON, from strangers as well, and so checked field by field."""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prompt_jax.checkpoints.files import unique_names
from prompt_jax.errors import UserError
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prompt
from prompt_jax.task_format import TaskFormat

FORMAT_VERSION = 1
MAX_MEMBERS = 4096  # of an ensemble

Setting = str | int | float | None | list[Any]  # a JSON value that is no object, and no list of lists
_NO_SETTING = "no text, finite number, true, false, null or list of these"


class PromptFormatError(UserError, ValueError):
    """A file that is no prompt, or one that cannot be trusted; the message names the file and what is wrong."""


@dataclasses.dataclass(frozen=True)
class ModelId:
    """The frozen model that a prompt was trained on."""

    name: str
    revision: str | None
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class PromptMetadata:
    """What a prompt file says of its prompt. It is data: nothing in it is imported, opened or downloaded.

    Attributes:
      base: the frozen model; None for a foreign prompt.
      method: how the prompt was trained, e.g. "soft_prompt".
      initialization: its first values, as the configuration names them.
      placement: where virtual tokens or a prefix stand.
      shift_positions: of a prefix, see `prompt_jax.models.prompt.Prefix`.
      task: name of the task.
      format: how an example of the task becomes text.
      step: optimizer steps behind it.
      scores: on the validation split at that step, by metric.
      settings: of a member of an ensemble, in what its configuration differs from the others', by field, e.g.
        {"train.seed": 2, "optimizer.learning_rate": 0.1}.
    """

    base: ModelId | None = None
    method: str | None = None
    initialization: str | None = None
    placement: Literal["before", "after"] = "before"
    shift_positions: bool = True
    task: str | None = None
    format: TaskFormat | None = None
    step: int | None = None
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Setting] = dataclasses.field(default_factory=dict)


StoredPrompt = tuple[Prompt | Delta, PromptMetadata]


def member_name(path: str | Path, number: int) -> str:
    """What messages call a member of an ensemble file."""
    return f"{path}, member {number}"


def of_different_tasks(members: Sequence[PromptMetadata]) -> tuple[int, int] | None:
    """The numbers of two members of a file that cannot vote: for other tasks, or asked or answering in another way.

    A member that does not say its task is taken to be for that of the others.
    """
    named = next((number for number, member in enumerate(members) if member.task is not None), 0)
    for number, member in enumerate(members):
        if member.format != members[0].format:
            return 0, number
        if member.task not in (None, members[named].task):
            return named, number
    return None


def dump(where: str, metadata: PromptMetadata) -> str:
    """The metadata as a file has them; `where` is named in errors. Scores that are not finite are left out."""
    scores = {name: float(value) for name, value in metadata.scores.items() if math.isfinite(value)}
    settings = dict(metadata.settings)
    for name, value in settings.items():
        if not _is_setting(value):
            raise PromptFormatError(f"{where}: the setting {name!r} is {value!r:.60}, which is {_NO_SETTING}")
    values = dataclasses.asdict(dataclasses.replace(metadata, scores=scores, settings=settings))
    if not settings:
        del values["settings"]
    if metadata.shift_positions:  # the rule of all but a few
        del values["shift_positions"]
    return json.dumps({"format_version": FORMAT_VERSION, **values}, allow_nan=False)


def load(where: str, array: np.ndarray) -> PromptMetadata:
    """The metadata of a file's entry, checked; `where` is named in errors."""
    if array.dtype.kind != "U" or array.shape != ():
        raise PromptFormatError(f"{where}: metadata is {array.dtype} {list(array.shape)}, not one text")
    # NumPy makes a str of any 32-bit numbers, and Python then fails, or worse.
    codes = np.frombuffer(array.tobytes(), np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
    if (beyond := codes[codes > sys.maxunicode]).size:
        raise PromptFormatError(f"{where}: metadata has the character U+{beyond[0]:X}; Unicode ends at U+10FFFF")
    try:
        values = json.loads(str(array), parse_constant=_no_constant, object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise PromptFormatError(f"{where}: metadata is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise PromptFormatError(f"{where}: metadata is a JSON {type(values).__name__}, not an object")
    version = values.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise PromptFormatError(f"{where}: format version {version!r}; this program reads {FORMAT_VERSION}")
    base, task_format = values.pop("base", None), values.pop("format", None)
    if values.get("placement", "before") not in ("before", "after"):
        raise PromptFormatError(f"{where}: placement {values['placement']!r} is neither 'before' nor 'after'")
    try:
        return PromptMetadata(
            base=None if base is None else _typed(ModelId, base, "base"),
            format=None if task_format is None else _typed(TaskFormat, task_format, "format"),
            **_checked(PromptMetadata, values, "metadata"),
        )
    except (TypeError, ValueError) as error:
        raise PromptFormatError(f"{where}: {error}") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _typed(cls: type, values: Any, at: str) -> Any:
    checked = _checked(cls, values, at)
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.name not in checked:
            raise ValueError(f"{at} has no {field.name!r}")
    return cls(**checked)


# The JSON type of each field that metadata may have.
_FIELDS: dict[type, dict[str, tuple[type, ...]]] = {
    ModelId: {"name": (str,), "revision": (str, type(None)), "fingerprint": (str,)},
    TaskFormat: {
        "template": (str,),
        "labels": (list,),
        "metrics": (list,),
        "input_length": (int,),
        "target_length": (int,),
    },
    PromptMetadata: {
        "method": (str, type(None)),
        "initialization": (str, type(None)),
        "placement": (str,),
        "shift_positions": (bool,),
        "task": (str, type(None)),
        "step": (int, type(None)),
        "scores": (dict,),
        "settings": (dict,),
    },
}


def _checked(cls: type, values: Any, at: str) -> dict[str, Any]:
    """The fields of a JSON object, each known and of its type; lists of texts become tuples."""
    if not isinstance(values, dict):
        raise ValueError(f"{at} is a JSON {type(values).__name__}, not an object")
    checked = {}
    for name, value in values.items():
        kinds = _FIELDS[cls].get(name)
        if kinds is None:
            raise ValueError(f"{at} has an unknown field {name!r}")
        if not isinstance(value, kinds) or isinstance(value, bool) and bool not in kinds:
            raise ValueError(f"{at}.{name} is {value!r:.60}, not {' or '.join(kind.__name__ for kind in kinds)}")
        if isinstance(value, list):
            if not all(isinstance(item, str) for item in value):
                raise ValueError(f"{at}.{name} has an entry that is no text")
            value = tuple(value)
        elif isinstance(value, dict) and name == "settings":
            if not all(map(_is_setting, value.values())):
                raise ValueError(f"{at}.{name} has an entry that is {_NO_SETTING}")
        elif isinstance(value, dict) and not all(map(_is_number, value.values())):
            raise ValueError(f"{at}.{name} has an entry that is no number")
        checked[name] = value
    return checked


def _is_number(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(float(value))
    except OverflowError:  # JSON's integers have no limit
        return False


def _is_setting(value: Any) -> bool:
    """Whether it is a text, a finite number, a boolean or None, or a list of these."""
    if isinstance(value, list):
        return not any(isinstance(item, list) for item in value) and all(map(_is_setting, value))
    return value is None or isinstance(value, str | bool) or _is_number(value)
