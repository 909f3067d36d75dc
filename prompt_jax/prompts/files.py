"""Prompt files: `.npz` of this project, with one prompt or an ensemble, and T5X's `.npy`.

A `.npz` is an ordinary NumPy archive, readable with `numpy.load(path, allow_pickle=False)`:

    encoder_tokens        [P, D] float32   virtual tokens of the encoder's (or a causal model's) input
    encoder_tokens/mask   [P] bool         which of them are used; absent when all are
    metadata              text             JSON, the fields of `PromptMetadata` and `format_version`

An ensemble has these entries for each member, under its number: `0/encoder_tokens`, `0/metadata`, `1/encoder_tokens`
and so on without gaps. Its members have one placement and width, so that they can be stacked.

A `.npy` (with or without the extension, as T5X's prompt-tuning writes it) is one array [P, D], with no metadata.

Files come from strangers: no pickle is read, and sizes are checked before memory is taken for them.
"""

import contextlib
import dataclasses
import io
import json
import math
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from prompt_jax.errors import UserError
from prompt_jax.models.hub import Model
from prompt_jax.models.prompt import Prompt, PromptStackError, VirtualTokens, check_stackable, stack_prompts
from prompt_jax.task_format import TaskFormat
from prompt_jax.whole_file import write_whole

FORMAT_VERSION = 1
_ENTRIES = {"encoder_tokens", "encoder_tokens/mask", "metadata"}  # of a prompt
_MEMBER_ENTRY = re.compile(r"(0|[1-9][0-9]*)/(.*)", re.ASCII)
_MAX_MEMBERS = 4096
_MAX_METADATA = 1 << 20  # bytes
# Of bytes in memory to bytes in the file. Random floats hardly compress, and a bomb does by over 1000; members of an
# ensemble are padded to the longest when they are stacked.
_MAX_RATIO = 100

Setting = str | int | float | None | list[Any]  # a JSON value that is no object, and no list of lists
_NO_SETTING = "no text, finite number, true, false, null or list of these"


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
      settings: of a member of an ensemble, in what its configuration differs from the others', by field, e.g.
        {"train.seed": 2, "optimizer.learning_rate": 0.1}.
    """

    base: Base | None = None
    method: str | None = None
    initialization: str | None = None
    placement: Literal["before", "after"] = "before"
    task: str | None = None
    format: TaskFormat | None = None
    step: int | None = None
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Setting] = dataclasses.field(default_factory=dict)


Member = tuple[Prompt, PromptMetadata]


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
    arrays = _arrays(str(path), prompt, metadata or PromptMetadata())
    format = format or {".npz": "npz", ".npy": "npy"}.get(path.suffix)  # type: ignore[assignment]
    if format == "npz":
        _write_npz(path, arrays)
    elif format == "npy":
        assert prompt.encoder_tokens is not None  # _arrays
        placement, mask = prompt.encoder_tokens.placement, arrays.get("encoder_tokens/mask")
        if placement != "before":
            warnings.warn(f"{path}: a .npy does not say that the tokens go {placement} the input", stacklevel=2)
        embeddings = arrays["encoder_tokens"] if mask is None else arrays["encoder_tokens"][mask]
        write_whole(path, lambda file: np.save(file, embeddings))
    else:
        raise PromptFormatError(f"{path}: name it .npz or .npy, or say which format it is to have")


def save_ensemble(path: str | Path, prompts: Sequence[Prompt], metadata: Sequence[PromptMetadata]) -> None:
    """Writes the members of an ensemble as one `.npz`. The file appears whole or not at all.

    Args:
      path: of the file.
      prompts: at least one, each [P_i, D]; of one placement and width.
      metadata: of each member.

    Raises:
      PromptFormatError: no members or too many, values that are not finite, or another extension.
      PromptStackError: members that do not go together.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise PromptFormatError(f"{path}: an ensemble is a .npz; one of its members can be a .npy (--member)")
    if not 1 <= len(prompts) <= _MAX_MEMBERS:
        raise PromptFormatError(f"{path}: an ensemble has from 1 to {_MAX_MEMBERS} members, not {len(prompts)}")
    check_stackable(prompts, [member_name(path, number) for number in range(len(prompts))])
    arrays: dict[str, np.ndarray] = {}
    for number, (prompt, own) in enumerate(zip(prompts, metadata, strict=True)):
        entries = _arrays(member_name(path, number), prompt, own)
        arrays |= {f"{number}/{name}": array for name, array in entries.items()}
    _write_npz(path, arrays)


def load_prompt(path: str | Path, model: Model | None = None, *, allow_other_base: bool = False) -> Prompt:
    """Reads a prompt file, and checks that it belongs to the model if one is given.

    An ensemble's is the stacked Prompt, which needs `prompt_ids` in the batch: a member's number for each row.

    Raises:
      PromptFormatError: not a prompt file, a damaged one, or one of another base (unless `allow_other_base`).
      FileNotFoundError: no such file.
    """
    contents = _read(Path(path))
    if model is not None:
        check_bases(path, contents.members, model, allow_other_base=allow_other_base)
    prompts = [prompt for prompt, _ in contents.members]
    return stack_prompts(prompts) if contents.ensemble else prompts[0]


def read_prompt(path: str | Path) -> tuple[Prompt, PromptMetadata]:
    """Reads the file of a single prompt with its metadata.

    Raises:
      PromptFormatError: not a prompt file, a damaged one, or an ensemble's.
      FileNotFoundError: no such file.
    """
    contents = _read(Path(path))
    if contents.ensemble:
        raise PromptFormatError(
            f"{path} is an ensemble of {len(contents.members)} prompts, where one is expected. `prompt-jax export "
            "--member NUMBER` writes one of them as a file of its own; in Python read_prompts reads them all"
        )
    return contents.members[0]


def read_prompts(path: str | Path) -> list[Member]:
    """Reads the prompts of a file with their metadata: the members of an ensemble, or a single one.

    Raises:
      PromptFormatError: not a prompt file, or a damaged one; of a member, it names which.
      FileNotFoundError: no such file.
    """
    return _read(Path(path)).members


def member_name(path: str | Path, number: int) -> str:
    """What messages call a member of an ensemble file."""
    return f"{path}, member {number}"


def check_bases(path: str | Path, members: Sequence[Member], model: Model, *, allow_other_base: bool = False) -> None:
    """`check_base` of the prompts of one file."""
    checked: set[Base | None] = set()
    for number, (prompt, metadata) in enumerate(members):
        if metadata.base not in checked:  # the widths are one
            checked.add(metadata.base)
            name = path if len(members) == 1 else member_name(path, number)
            check_base(name, prompt, metadata, model, allow_other_base=allow_other_base)


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
            stacklevel=4,
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
# Writing


def _arrays(where: str, prompt: Prompt, metadata: PromptMetadata) -> dict[str, np.ndarray]:
    """The entries of one prompt, checked."""
    tokens = prompt.encoder_tokens
    if tokens is None:
        raise PromptFormatError(f"{where}: the prompt is empty")
    embeddings = np.asarray(tokens.embeddings, np.float32)
    if embeddings.ndim != 2:
        raise PromptFormatError(f"{where}: a prompt is [P, D], not {embeddings.shape}; save_ensemble writes several")
    _check_values(where, "encoder_tokens", embeddings)
    mask = None if tokens.mask is None else np.asarray(tokens.mask, bool)
    if mask is not None and not mask.any():
        raise PromptFormatError(f"{where}: none of the prompt's {len(mask)} slots is used")
    metadata = dataclasses.replace(metadata, placement=tokens.placement)
    arrays = {"encoder_tokens": embeddings, "metadata": np.array(_dump(where, metadata))}
    return arrays if mask is None else {**arrays, "encoder_tokens/mask": mask}


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    write_whole(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]  # its stub wants allow_pickle there


# --------------------------------------------------------------------------------------------------------------
# Reading


class _Contents(NamedTuple):
    members: list[Member]
    ensemble: bool  # whether the file is one of an ensemble, which may have a single member


def _read(path: Path) -> _Contents:
    with path.open("rb") as file, _named_damage(str(path)):
        magic = file.read(4)
        file.seek(0)
        if magic == b"PK\x03\x04":
            return _read_npz(path, file)
        if magic == b"\x93NUM":
            array = _read_array(str(path), "the array", file, path.stat().st_size)
            prompt = Prompt(VirtualTokens(_as_float32(str(path), "the array", array)))
            return _Contents([(prompt, PromptMetadata())], False)
    raise PromptFormatError(f"{path}: neither a NumPy archive (.npz) nor a NumPy array (.npy)")


@contextlib.contextmanager
def _named_damage(where: str) -> Iterator[None]:
    """Makes one error of the many kinds that NumPy's and zipfile's readers raise on a damaged file."""
    try:
        yield
    except PromptFormatError:
        raise
    except Exception as error:
        raise PromptFormatError(f"{where}: damaged: {type(error).__name__}: {error}") from error


def _read_npz(path: Path, file: io.BufferedIOBase) -> _Contents:
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if len(entries) < len(archive.infolist()):
            counts = Counter(info.filename.removesuffix(".npy") for info in archive.infolist())
            twice = counts.most_common(1)[0][0]
            raise PromptFormatError(f"{path}: a second entry {twice!r}; each comes at most once")
        if not any(_MEMBER_ENTRY.fullmatch(name) for name in entries):
            return _Contents([_read_entries(str(path), archive, entries)], False)
        members = []
        for number, own in enumerate(_by_member(path, entries)):
            where = member_name(path, number)
            with _named_damage(where):
                members.append(_read_entries(where, archive, own))
    _check_together(path, members)
    return _Contents(members, True)


def _by_member(path: Path, entries: Mapping[str, zipfile.ZipInfo]) -> list[dict[str, zipfile.ZipInfo]]:
    """The entries of each member of an ensemble, by their names without its number."""
    members: dict[int, dict[str, zipfile.ZipInfo]] = {}
    for name, info in entries.items():
        match = _MEMBER_ENTRY.fullmatch(name)
        if match is None:
            raise PromptFormatError(f"{path}: unexpected entry {name!r} among those of an ensemble's members")
        if len(match[1]) > 4 or int(match[1]) >= _MAX_MEMBERS:
            raise PromptFormatError(f"{path}: entry {name!r:.40}; an ensemble has at most {_MAX_MEMBERS} members")
        members.setdefault(int(match[1]), {})[match[2]] = info
    missing = next((number for number in range(len(members)) if number not in members), None)
    if missing is not None:
        raise PromptFormatError(f"{path}: there is no member {missing}, but a member {max(members)}")
    return [members[number] for number in range(len(members))]


def _read_entries(where: str, archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]) -> Member:
    """The prompt of these entries, which are named without a member's number."""
    if unknown := entries.keys() - _ENTRIES:
        raise PromptFormatError(
            f"{where}: unexpected entry {min(unknown)!r}; a prompt has {', '.join(sorted(_ENTRIES))}"
        )
    if "encoder_tokens" not in entries:
        raise PromptFormatError(f"{where}: there is no encoder_tokens in it")
    arrays = {name: _read_entry(where, name, archive, info) for name, info in entries.items()}
    metadata = _load_metadata(where, arrays["metadata"]) if "metadata" in arrays else PromptMetadata()
    embeddings = _as_float32(where, "encoder_tokens", arrays["encoder_tokens"])
    mask = arrays.get("encoder_tokens/mask")
    if mask is not None and (mask.dtype != bool or mask.shape != embeddings.shape[:1]):
        raise PromptFormatError(
            f"{where}: encoder_tokens/mask is {mask.dtype} {mask.shape}, not bool {embeddings.shape[:1]}"
        )
    if mask is not None and not mask.any():
        raise PromptFormatError(f"{where}: none of the prompt's {len(mask)} slots is used")
    return Prompt(VirtualTokens(embeddings, mask, metadata.placement)), metadata


def _check_together(path: Path, members: Sequence[Member]) -> None:
    """Refuses members that cannot be stacked, or would take out of all proportion more memory than they do alone."""
    prompts = [prompt for prompt, _ in members]
    try:
        check_stackable(prompts, [member_name(path, number) for number in range(len(prompts))])
    except PromptStackError as error:
        raise PromptFormatError(str(error)) from error
    lengths = [len(prompt.encoder_tokens.embeddings) for prompt in prompts]  # type: ignore[union-attr]  # files have them
    if len(lengths) * max(lengths) > _MAX_RATIO * sum(lengths):
        raise PromptFormatError(
            f"{member_name(path, int(np.argmax(lengths)))} has {max(lengths)} virtual tokens, and all {len(lengths)} "
            f"have {sum(lengths)}; stacked they would take over {_MAX_RATIO} times the memory"
        )


def _read_entry(where: str, name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.file_size > _MAX_RATIO * max(info.compress_size, 1):
        raise PromptFormatError(f"{where}: {name} unpacks to {info.file_size} bytes from {info.compress_size}")
    if name == "metadata" and info.file_size > 4 * _MAX_METADATA:
        raise PromptFormatError(f"{where}: metadata of {info.file_size} bytes")
    with archive.open(info) as entry:
        array = _read_array(where, name, entry, info.file_size)  # type: ignore[arg-type]  # a ZipExtFile is one
        entry.read()  # to the end, where zipfile compares the checksum
        return array


def _read_array(where: str, name: str, file: io.BufferedIOBase, size: int) -> np.ndarray:
    """Reads one array of the `.npy` format that fills `size` bytes, having compared the two first."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise PromptFormatError(f"{where}: {name} has the .npy version {version}")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    expected = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or min(shape, default=0) < 0 or size - file.tell() != expected:
        raise PromptFormatError(f"{where}: {name} claims {dtype} {shape} and has {size - file.tell()} bytes of data")
    array = np.frombuffer(file.read(expected), dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _as_float32(where: str, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f" or array.ndim != 2 or 0 in array.shape:
        raise PromptFormatError(
            f"{where}: {name} is {array.dtype} {list(array.shape)}; a prompt is a float array [P, D]"
        )
    with np.errstate(over="ignore"):  # what overflows float32 is found below
        array = np.array(array, np.float32, order="C")
    _check_values(where, name, array)
    return array


def _check_values(where: str, name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise PromptFormatError(f"{where}: {name} has {count} values that are not finite")


# --------------------------------------------------------------------------------------------------------------
# Metadata


def _dump(where: str, metadata: PromptMetadata) -> str:
    scores = {name: float(value) for name, value in metadata.scores.items()}
    settings = dict(metadata.settings)
    for name, value in settings.items():
        if not _is_setting(value):
            raise PromptFormatError(f"{where}: the setting {name!r} is {value!r:.60}, which is {_NO_SETTING}")
    values = dataclasses.asdict(dataclasses.replace(metadata, scores=scores, settings=settings))
    if not settings:
        del values["settings"]
    return json.dumps({"format_version": FORMAT_VERSION, **values}, allow_nan=False)


def _load_metadata(where: str, array: np.ndarray) -> PromptMetadata:
    if array.dtype.kind != "U" or array.shape != ():
        raise PromptFormatError(f"{where}: metadata is {array.dtype} {list(array.shape)}, not one text")
    try:
        values = json.loads(str(array), parse_constant=_no_constant)
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
            base=None if base is None else _typed(Base, base, "base"),
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
        if not isinstance(value, kinds) or isinstance(value, bool):
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
