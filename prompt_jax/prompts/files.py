"""Prompt files: `.npz` of this project, and T5X's `.npy`.

A `.npz` is an ordinary NumPy archive, readable with `numpy.load(path, allow_pickle=False)`:

    encoder_tokens        [P, D] float32   virtual tokens of the encoder's (or a causal model's) input
    encoder_tokens/mask   [P] bool         which of them are used; absent when all are
    metadata              text             JSON, the fields of `PromptMetadata` and `format_version`

A `.npy` (with or without the extension, as T5X's prompt-tuning writes it) is one array [P, D], with no metadata.

Files come from strangers: no pickle is read, and sizes are checked before memory is taken for them.
"""

import dataclasses
import io
import json
import math
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prompt_jax.errors import UserError
from prompt_jax.models.hub import Model
from prompt_jax.models.prompt import Prompt, VirtualTokens
from prompt_jax.task_format import TaskFormat
from prompt_jax.whole_file import write_whole

FORMAT_VERSION = 1
_MEMBERS = {"encoder_tokens", "encoder_tokens/mask", "metadata"}
_MAX_METADATA = 1 << 20  # bytes
_MAX_RATIO = 100  # of a compressed member; random floats hardly compress, and a bomb does by over 1000


class PromptFormatError(UserError, ValueError):
    """A file that is no prompt, or one that cannot be trusted; the message names the file and what is wrong."""


@dataclasses.dataclass(frozen=True)
class Base:
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
      placement: where virtual tokens stand.
      task: name of the task.
      format: how an example of the task becomes text.
      step: optimizer steps behind it.
      scores: on the validation split at that step, by metric.
    """

    base: Base | None = None
    method: str | None = None
    initialization: str | None = None
    placement: Literal["before", "after"] = "before"
    task: str | None = None
    format: TaskFormat | None = None
    step: int | None = None
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)


def save_prompt(
    path: str | Path,
    prompt: Prompt,
    metadata: PromptMetadata | None = None,
    *,
    format: Literal["npz", "npy"] | None = None,
) -> None:
    """Writes a prompt as `.npz`, or without its metadata as `.npy`; by the path's extension if no format is given.

    The file appears whole or not at all.

    Raises:
      PromptFormatError: values that are not finite, another extension, or a `.npy` that cannot hold the prompt.
    """
    path = Path(path)
    tokens = prompt.encoder_tokens
    if tokens is None:
        raise PromptFormatError(f"{path}: the prompt is empty")
    embeddings = np.asarray(tokens.embeddings, np.float32)
    _check_values(path, "encoder_tokens", embeddings)
    mask = None if tokens.mask is None else np.asarray(tokens.mask, bool)
    if mask is not None and not mask.any():
        raise PromptFormatError(f"{path}: none of the prompt's {len(mask)} slots is used")

    format = format or {".npz": "npz", ".npy": "npy"}.get(path.suffix)  # type: ignore[assignment]
    if format == "npy":
        if mask is not None:
            embeddings = embeddings[mask]
        if tokens.placement != "before":
            warnings.warn(f"{path}: a .npy does not say that the tokens go {tokens.placement} the input", stacklevel=2)
        write_whole(path, lambda file: np.save(file, embeddings))
    elif format == "npz":
        metadata = dataclasses.replace(metadata or PromptMetadata(), placement=tokens.placement)
        arrays = {"encoder_tokens": embeddings, "metadata": np.array(_dump(metadata))}
        if mask is not None:
            arrays["encoder_tokens/mask"] = mask
        write_whole(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]  # its stub wants allow_pickle there
    else:
        raise PromptFormatError(f"{path}: name it .npz or .npy, or say which format it is to have")


def load_prompt(path: str | Path, model: Model | None = None, *, allow_other_base: bool = False) -> Prompt:
    """Reads a prompt file, and checks that it belongs to the model if one is given.

    Raises:
      PromptFormatError: not a prompt file, a damaged one, or one of another base (unless `allow_other_base`).
      FileNotFoundError: no such file.
    """
    prompt, metadata = read_prompt(path)
    if model is not None:
        check_base(path, prompt, metadata, model, allow_other_base=allow_other_base)
    return prompt


def read_prompt(path: str | Path) -> tuple[Prompt, PromptMetadata]:
    """Reads a prompt file with its metadata. Raises as `load_prompt`."""
    path = Path(path)
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        try:
            if magic == b"PK\x03\x04":
                return _read_npz(path, file)
            if magic == b"\x93NUM":
                size = path.stat().st_size
                embeddings = _as_float32(path, "the array", _read_array(path, "the array", file, size))
                return Prompt(VirtualTokens(embeddings)), PromptMetadata()
        except PromptFormatError:
            raise
        except Exception as error:  # NumPy's and zipfile's readers raise many kinds on a damaged file
            raise PromptFormatError(f"{path}: damaged: {type(error).__name__}: {error}") from error
    raise PromptFormatError(f"{path}: neither a NumPy archive (.npz) nor a NumPy array (.npy)")


def check_base(
    path: str | Path,
    prompt: Prompt,
    metadata: PromptMetadata,
    model: Model,
    *,
    allow_other_base: bool = False,
) -> None:
    """Checks that a prompt was trained on this model: by the fingerprint, or by shapes where it has none.

    Raises:
      PromptFormatError: another base; the message names both.
    """
    tokens = prompt.encoder_tokens
    width = model.params["embedding"].shape[1]
    if tokens is not None and tokens.embeddings.shape[1] != width:
        raise PromptFormatError(
            f"{path}: its virtual tokens have width {tokens.embeddings.shape[1]}; {model.name} has {width}"
        )
    if metadata.base is None:
        warnings.warn(
            f"{path} does not say which base it was trained on; only its shapes were checked against {model.name}",
            stacklevel=3,
        )
    elif metadata.base.fingerprint != model.fingerprint and not allow_other_base:
        raise PromptFormatError(
            f"{path} was trained on {_named(metadata.base)}, not on "
            f"{_named(Base(model.name, model.revision, model.fingerprint))}; load its own base, or allow another "
            "explicitly (--allow-other-base, or allow_other_base=True)"
        )


def _named(base: Base) -> str:
    return f"{base.name}{f'@{base.revision}' if base.revision else ''} ({base.fingerprint[:19]})"


# --------------------------------------------------------------------------------------------------------------
# Reading


def _read_npz(path: Path, file: io.BufferedIOBase) -> tuple[Prompt, PromptMetadata]:
    with zipfile.ZipFile(file) as archive:
        names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
        unknown, twice = set(names) - _MEMBERS, {name for name in names if names.count(name) > 1}
        if unknown or twice:
            raise PromptFormatError(
                f"{path}: unexpected entry {sorted(unknown | twice)[0]!r}; "
                f"a prompt has {', '.join(sorted(_MEMBERS))}, each at most once"
            )
        if "encoder_tokens" not in names:
            raise PromptFormatError(f"{path}: there is no encoder_tokens in it")
        arrays = {
            name: _read_member(path, name, archive, info) for name, info in zip(names, archive.infolist(), strict=True)
        }

    metadata = _load_metadata(path, arrays["metadata"]) if "metadata" in arrays else PromptMetadata()
    embeddings = _as_float32(path, "encoder_tokens", arrays["encoder_tokens"])
    mask = arrays.get("encoder_tokens/mask")
    if mask is not None and (mask.dtype != bool or mask.shape != embeddings.shape[:1]):
        raise PromptFormatError(
            f"{path}: encoder_tokens/mask is {mask.dtype} {mask.shape}, not bool {embeddings.shape[:1]}"
        )
    if mask is not None and not mask.any():
        raise PromptFormatError(f"{path}: none of the prompt's {len(mask)} slots is used")
    return Prompt(VirtualTokens(embeddings, mask, metadata.placement)), metadata


def _read_member(path: Path, name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.file_size > _MAX_RATIO * max(info.compress_size, 1):
        raise PromptFormatError(f"{path}: {name} unpacks to {info.file_size} bytes from {info.compress_size}")
    if name == "metadata" and info.file_size > 4 * _MAX_METADATA:
        raise PromptFormatError(f"{path}: metadata of {info.file_size} bytes")
    with archive.open(info) as member:
        array = _read_array(path, name, member, info.file_size)  # type: ignore[arg-type]  # a ZipExtFile is one
        member.read()  # to the end, where zipfile compares the checksum
        return array


def _read_array(path: Path, name: str, file: io.BufferedIOBase, size: int) -> np.ndarray:
    """Reads one array of the `.npy` format that fills `size` bytes, having compared the two first."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise PromptFormatError(f"{path}: {name} has the .npy version {version}")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    expected = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or min(shape, default=0) < 0 or size - file.tell() != expected:
        raise PromptFormatError(f"{path}: {name} claims {dtype} {shape} and has {size - file.tell()} bytes of data")
    array = np.frombuffer(file.read(expected), dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _as_float32(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f" or array.ndim != 2 or 0 in array.shape:
        raise PromptFormatError(
            f"{path}: {name} is {array.dtype} {list(array.shape)}; a prompt is a float array [P, D]"
        )
    with np.errstate(over="ignore"):  # what overflows float32 is found below
        array = np.array(array, np.float32, order="C")
    _check_values(path, name, array)
    return array


def _check_values(path: Path, name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise PromptFormatError(f"{path}: {name} has {count} values that are not finite")


# --------------------------------------------------------------------------------------------------------------
# Metadata


def _dump(metadata: PromptMetadata) -> str:
    scores = {name: float(value) for name, value in metadata.scores.items()}
    values = dataclasses.asdict(dataclasses.replace(metadata, scores=scores))
    return json.dumps({"format_version": FORMAT_VERSION, **values}, allow_nan=False)


def _load_metadata(path: Path, array: np.ndarray) -> PromptMetadata:
    if array.dtype.kind != "U" or array.shape != ():
        raise PromptFormatError(f"{path}: metadata is {array.dtype} {list(array.shape)}, not one text")
    try:
        values = json.loads(str(array), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PromptFormatError(f"{path}: metadata is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise PromptFormatError(f"{path}: metadata is a JSON {type(values).__name__}, not an object")
    version = values.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise PromptFormatError(f"{path}: format version {version!r}; this program reads {FORMAT_VERSION}")
    base, task_format = values.pop("base", None), values.pop("format", None)
    if values.get("placement", "before") not in ("before", "after"):
        raise PromptFormatError(f"{path}: placement {values['placement']!r} is neither 'before' nor 'after'")
    try:
        return PromptMetadata(
            base=None if base is None else _typed(Base, base, "base"),
            format=None if task_format is None else _typed(TaskFormat, task_format, "format"),
            **_checked(PromptMetadata, values, "metadata"),
        )
    except (TypeError, ValueError) as error:
        raise PromptFormatError(f"{path}: {error}") from error


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
    Base: {"name": (str,), "revision": (str, type(None)), "fingerprint": (str,)},
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
        "task": (str, type(None)),
        "step": (int, type(None)),
        "scores": (dict,),
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
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{at}.{name} is {value!r:.60}, not {' or '.join(kind.__name__ for kind in kinds)}")
        if isinstance(value, list):
            if not all(isinstance(item, str) for item in value):
                raise ValueError(f"{at}.{name} has an entry that is no text")
            value = tuple(value)
        elif isinstance(value, dict) and not all(map(_is_number, value.values())):
            raise ValueError(f"{at}.{name} has an entry that is no number")
        checked[name] = value
    return checked


def _is_number(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(float(value))
    except OverflowError:  # JSON's integers have no limit
        return False
