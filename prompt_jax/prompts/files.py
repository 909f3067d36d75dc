"""Prompt files: `.npz` of this project, with one prompt or an ensemble, T5X's `.npy`, and PEFT's adapters.

A `.npz` is an ordinary NumPy archive, readable with `numpy.load(path, allow_pickle=False)`:

    encoder_tokens        [P, D] float32          virtual tokens of the encoder's (or a causal model's) input
    SITE/keys             [L, P, H, K] float32    a prefix of each layer's attention; SITE is encoder_self,
    SITE/values           [L, P, H, K] float32      decoder_self (of causal models too) or decoder_cross
    encoder_tokens/mask   [P] bool                which slots are used, of a prefix SITE/mask; absent when all are
    base/PATH             float32                 what is otherwise in the base, see `prompt_jax.models.tuned.changed`;
                                                    PATH as in decoder/layers/0/mlp/adapter/down
    metadata              text                    JSON, the fields of `PromptMetadata` and `format_version`

A file has virtual tokens, prefixes or both. An ensemble has these entries for each member, under its number:
`0/encoder_tokens`, `0/metadata`, `1/encoder_tokens` and so on without gaps. Its members have the same parts, placement
and sizes, so that they can be stacked.

A `.npy` (with or without the extension, as T5X's prompt-tuning writes it) is one array [P, D], with no metadata.
A folder is an adapter of PEFT, or an ensemble of them (`prompt_jax.prompts.peft`), or a checkpoint of T5X that has a
prompt (`prompt_jax.models.t5x`).

`hub:USER/NAME` and the like are prompts on the Hugging Face Hub: see `prompt_jax.prompts.hub`.

Files come from strangers: no pickle is read, and sizes are checked before memory is taken for them.
"""

import contextlib
import dataclasses
import io
import math
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict

from prompt_jax.models import family, t5x
from prompt_jax.models.checkpoint_files import CheckpointError
from prompt_jax.models.hub import Model
from prompt_jax.models.prompt import (
    SITES,
    Prefix,
    Prompt,
    PromptStackError,
    VirtualTokens,
    check_alike,
    stack_prompts,
)
from prompt_jax.models.tuned import check_leaves, flat
from prompt_jax.paths import as_path
from prompt_jax.prompts import hub, peft
from prompt_jax.prompts.metadata import Base, PromptFormatError, PromptMetadata, dump, load
from prompt_jax.whole_file import write_whole

# The arrays of each part of a prompt, by the names of their entries.
_PART_ENTRIES = {"encoder_tokens": {"encoder_tokens": "embeddings"}} | {
    site: {f"{site}/keys": "keys", f"{site}/values": "values"} for site in SITES
}
_ENTRIES = {"metadata"} | {name for part, arrays in _PART_ENTRIES.items() for name in (*arrays, f"{part}/mask")}
_BASE_ENTRY = re.compile(r"base((?:/[a-z0-9_]{1,32}){1,8})", re.ASCII)
_MEMBER_ENTRY = re.compile(r"(0|[1-9][0-9]*)/(.*)", re.ASCII)
_MAX_MEMBERS = peft.MAX_MEMBERS
_MAX_METADATA = 1 << 20  # bytes
# Of bytes in memory to bytes in the file. Random floats hardly compress, and a bomb does by over 1000; members of an
# ensemble are padded to the longest when they are stacked.
_MAX_RATIO = 100

Member = peft.Member
Format = Literal["npz", "npy", "peft"]


def save_prompt(
    path: str | Path,
    prompt: Prompt,
    metadata: PromptMetadata | None = None,
    *,
    format: Format | None = None,
    model: Model | None = None,
) -> None:
    """Writes a prompt as `.npz`, without its metadata as `.npy`, or as a folder with PEFT's adapter.

    A file appears whole or not at all.

    Args:
      path: of the file, or of a folder that is new or empty.
      prompt: a single one.
      metadata: what the file is to say of it.
      format: by the path's extension, npz or npy, if left out.
      model: the prompt's base, of which an adapter says the sizes and the name; the other formats do without.

    Raises:
      PromptFormatError: values that are not finite, another extension, a format that cannot hold the prompt, or a
        place on the Hub, to which prompts are pushed.
    """
    path = _to_write(path)
    arrays = _arrays(str(path), prompt, metadata or PromptMetadata())
    format = format or {".npz": "npz", ".npy": "npy"}.get(path.suffix)  # type: ignore[assignment]
    if format == "peft":
        _write_adapters(path, [(prompt, metadata or PromptMetadata())], model, ensemble=False)
    elif format == "npz":
        _write_npz(path, arrays)
    elif format == "npy":
        if prompt.encoder_tokens is None or len(prompt.parts) > 1 or prompt.base:
            there = " and ".join([*prompt.parts, *(["changes of the base"] if prompt.base else [])])
            raise PromptFormatError(f"{path}: a .npy has virtual tokens alone, not {there}; use npz")
        placement, mask = prompt.encoder_tokens.placement, arrays.get("encoder_tokens/mask")
        if placement != "before":
            warnings.warn(f"{path}: a .npy does not say that the tokens go {placement} the input", stacklevel=2)
        embeddings = arrays["encoder_tokens"] if mask is None else arrays["encoder_tokens"][mask]
        write_whole(path, lambda file: np.save(file, embeddings))
    else:
        raise PromptFormatError(f"{path}: name it .npz or .npy, or say which format it is to have")


def save_ensemble(
    path: str | Path,
    prompts: Sequence[Prompt],
    metadata: Sequence[PromptMetadata],
    *,
    format: Format | None = None,
    model: Model | None = None,
) -> None:
    """Writes the members of an ensemble as one `.npz`, or as a folder of PEFT's adapters.

    The file appears whole or not at all, and an ensemble of adapters with the last of them.

    Args:
      path: of the file, or of a folder that is new or empty.
      prompts: at least one, each [P_i, D]; of one placement and width.
      metadata: of each member.
      format: npz or peft; the path must end with npz where it is left out.
      model: as for `save_prompt`.

    Raises:
      PromptFormatError: no members or too many, values that are not finite, a format that cannot hold them, or a
        place on the Hub.
      PromptStackError: members that do not go together.
    """
    path = _to_write(path)
    format = format or path.suffix.removeprefix(".")  # type: ignore[assignment]
    if format not in ("npz", "peft"):
        raise PromptFormatError(f"{path}: an ensemble is a .npz or peft; one of its members can be a .npy (--member)")
    if not 1 <= len(prompts) <= _MAX_MEMBERS:
        raise PromptFormatError(f"{path}: an ensemble has from 1 to {_MAX_MEMBERS} members, not {len(prompts)}")
    check_alike(prompts, [member_name(path, number) for number in range(len(prompts))])
    arrays: dict[str, np.ndarray] = {}
    for number, (prompt, own) in enumerate(zip(prompts, metadata, strict=True)):
        entries = _arrays(member_name(path, number), prompt, own)
        arrays |= {f"{number}/{name}": array for name, array in entries.items()}
    if format == "peft":
        _write_adapters(path, list(zip(prompts, metadata, strict=True)), model, ensemble=True)
    else:
        _write_npz(path, arrays)


def load_prompt(path: str | Path, model: Model | None = None, *, allow_other_base: bool = False) -> Prompt:
    """Reads a prompt file or an adapter's folder, and checks that it belongs to the model if one is given.

    An ensemble's is the stacked Prompt, which needs `prompt_ids` in the batch: a member's number for each row.

    Raises:
      PromptFormatError: not a prompt file, a damaged one, or one of another base (unless `allow_other_base`).
      FileNotFoundError: no such file.
      HubError: the Hub does not give what a name `hub:...` is of.
    """
    contents = _read(as_path(path))
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
    contents = _read(as_path(path))
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
    return _read(as_path(path)).members


def is_prompt_folder(path: Path) -> bool:
    """Whether a folder is one prompt, or an ensemble of them, rather than a folder of prompt files."""
    return t5x.is_t5x(path) or (path / peft.CONFIG).is_file() or (path / "member_0").is_dir()


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
    _check_sizes(path, prompt, model)
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


def _check_sizes(path: str | Path, prompt: Prompt, model: Model) -> None:
    try:
        check_leaves(model.params, prompt.base or {})
    except ValueError as error:
        raise PromptFormatError(f"{path} does not go with {model.name}: {error}") from error
    tokens, width = prompt.encoder_tokens, model.params["embedding"].shape[1]
    if tokens is not None and tokens.embeddings.shape[1] != width:
        raise PromptFormatError(
            f"{path}: its virtual tokens have width {tokens.embeddings.shape[1]}; {model.name} has {width}"
        )
    there = family(model.config).sites(model.config)
    for site, part in prompt.parts.items():
        if isinstance(part, Prefix) and site not in there:
            raise PromptFormatError(f"{path}: it has a prefix of {site}; {model.name} has {' and '.join(there)}")
        if isinstance(part, Prefix) and (found := (part.keys.shape[0], *part.keys.shape[2:])) != there[site]:
            raise PromptFormatError(
                f"{path}: its prefix of {site} has layers, heads and width {found}; {model.name} has {there[site]}"
            )


def _named(base: Base) -> str:
    return f"{base.name}{f'@{base.revision}' if base.revision else ''} ({base.fingerprint[:19]})"


# --------------------------------------------------------------------------------------------------------------
# Writing


def _to_write(path: str | Path) -> Path:
    if hub.is_name(path):
        raise PromptFormatError(f"{path}: a file is written here, not to the Hub; to put it there: prompt-jax push")
    return as_path(path)


def _arrays(where: str, prompt: Prompt, metadata: PromptMetadata) -> dict[str, np.ndarray]:
    """The entries of one prompt, checked."""
    if not prompt.parts and not prompt.base:
        raise PromptFormatError(f"{where}: the prompt is empty")
    rules = {(part.placement, getattr(part, "shift_positions", True)) for part in prompt.parts.values()}
    rules = rules or {("before", True)}
    if len(rules) > 1:
        raise PromptFormatError(f"{where}: its parts differ in placement or shift_positions; a file has one of each")
    if prompt.stacked is not None:
        raise PromptFormatError(f"{where}: a stacked prompt, of {prompt.stacked}; save_ensemble writes several")
    arrays = {}
    for kind, part in prompt.parts.items():
        for name, attribute in _PART_ENTRIES[kind].items():
            arrays[name] = np.asarray(getattr(part, attribute), np.float32)
            _check_values(where, name, arrays[name])
        _check_shapes(where, kind, arrays)
        if part.mask is not None:
            mask = arrays[f"{kind}/mask"] = np.asarray(part.mask, bool)
            _check_mask(where, kind, mask, part.slots)
    for path, leaf in flat(prompt.base or {}).items():
        arrays[f"base/{path}"] = np.asarray(leaf, np.float32)
        _check_values(where, f"base/{path}", arrays[f"base/{path}"])
    ((placement, shift_positions),) = rules
    metadata = dataclasses.replace(metadata, placement=placement, shift_positions=shift_positions)
    return {**arrays, "metadata": np.array(dump(where, metadata))}


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    write_whole(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]  # its stub wants allow_pickle there


def _write_adapters(folder: Path, members: Sequence[Member], model: Model | None, *, ensemble: bool) -> None:
    if model is None:
        raise PromptFormatError(f"{folder}: an adapter of PEFT says what its base is like; give the model")
    for prompt, _ in members:
        _check_sizes(folder, prompt, model)
    peft.write(folder, members, model, ensemble=ensemble)


# --------------------------------------------------------------------------------------------------------------
# Reading


class _Contents(NamedTuple):
    members: list[Member]
    ensemble: bool  # whether the file is one of an ensemble, which may have a single member


def _read(path: Path) -> _Contents:
    if hub.is_name(path):
        with hub.fetched(path) as local:
            return _read(local)
    if path.is_dir() and t5x.is_t5x(path):
        try:
            array = t5x.read_prompt(path)
        except CheckpointError as error:
            raise PromptFormatError(str(error)) from error
        return _Contents([_bare(str(path), array)], False)
    if path.is_dir():
        if not is_prompt_folder(path) and (steps := t5x.steps_in(path)):
            raise PromptFormatError(f"{path} has checkpoints of T5X; name one of them: {', '.join(steps[:8])}")
        members, ensemble = peft.read(path)
        if ensemble:
            _check_together(path, members)
        return _Contents(members, ensemble)
    with path.open("rb") as file, _named_damage(str(path)):
        magic, size = file.read(4), file.seek(0, io.SEEK_END)
        file.seek(0)
        if magic == b"PK\x03\x04":
            return _read_npz(path, file)
        if magic == b"\x93NUM":
            array = _read_array(str(path), "the array", file, size)
            if array.ndim != 2 or 0 in array.shape:
                raise PromptFormatError(f"{path}: {array.dtype} {list(array.shape)}; a .npy prompt is [P, D]")
            return _Contents([_bare(str(path), array)], False)
    raise PromptFormatError(
        f"{path}: neither a NumPy archive (.npz) nor a NumPy array (.npy), nor a folder of PEFT's or T5X's"
    )


def _bare(where: str, array: np.ndarray) -> Member:
    """A prompt of an array [P, D] alone."""
    return Prompt(VirtualTokens(_as_float32(where, "the array", array))), PromptMetadata()


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
        # Entries may lie over each other in the file, and each be small.
        if (claimed := sum(info.file_size for info in entries.values())) > _MAX_RATIO * file.seek(0, io.SEEK_END):
            raise PromptFormatError(f"{path}: its entries unpack to {claimed} bytes from {file.tell()}")
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
    if unknown := {name for name in entries if name not in _ENTRIES and not _BASE_ENTRY.fullmatch(name)}:
        raise PromptFormatError(
            f"{where}: unexpected entry {min(unknown)!r}; a prompt has {', '.join(sorted(_ENTRIES))}"
        )
    arrays = {name: _read_entry(where, name, archive, info) for name, info in entries.items()}
    metadata = load(where, arrays["metadata"]) if "metadata" in arrays else PromptMetadata()
    parts: dict[str, Any] = {}
    for kind, names in _PART_ENTRIES.items():
        there = [name for name in (*names, f"{kind}/mask") if name in arrays]
        if not there:
            continue
        if missing := [name for name in names if name not in arrays]:
            raise PromptFormatError(f"{where}: there is {there[0]} in it, and no {missing[0]}")
        values: dict[str, Any] = {
            attribute: _as_float32(where, name, arrays[name]) for name, attribute in names.items()
        }
        _check_shapes(where, kind, arrays)
        mask = arrays.get(f"{kind}/mask")
        rule: dict[str, Any] = {"placement": metadata.placement}
        rule |= {} if kind == "encoder_tokens" else {"shift_positions": metadata.shift_positions}
        parts[kind] = (VirtualTokens if kind == "encoder_tokens" else Prefix)(**values, mask=mask, **rule)
        if mask is not None:
            _check_mask(where, kind, mask, parts[kind].slots)
    leaves: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if match := _BASE_ENTRY.fullmatch(name):
            leaves[match[1][1:]] = _as_float32(where, name, array)
    above = {"/".join(path.split("/")[:level]) for path in leaves for level in range(1, path.count("/") + 1)}
    if nested := above & leaves.keys():
        raise PromptFormatError(f"{where}: base/{min(nested)} is an array and has others below it")
    if not parts and not leaves:
        raise PromptFormatError(f"{where}: there is no encoder_tokens in it, no prefix, and nothing of a base")
    return Prompt(**parts, base=unflatten_dict(leaves, sep="/") or None), metadata


def _check_shapes(where: str, kind: str, arrays: Mapping[str, np.ndarray]) -> None:
    """That a part's arrays have as many axes as they should, and one shape."""
    axes = (VirtualTokens if kind == "encoder_tokens" else Prefix).axes
    shapes = {name: arrays[name].shape for name in _PART_ENTRIES[kind]}
    for name, shape in shapes.items():
        if len(shape) != len(axes) or 0 in shape or len(set(shapes.values())) > 1:
            wanted = f"[{', '.join(axes)}]" + (", keys and values alike" if len(shapes) > 1 else "")
            raise PromptFormatError(f"{where}: {name} is {list(shape)}; expected {wanted}")


def _check_mask(where: str, kind: str, mask: np.ndarray, slots: int) -> None:
    if mask.dtype != bool or mask.shape != (slots,):
        raise PromptFormatError(f"{where}: {kind}/mask is {mask.dtype} {mask.shape}, not bool {(slots,)}")
    if not mask.any():
        raise PromptFormatError(f"{where}: none of the prompt's {slots} slots is used")


def _check_together(path: Path, members: Sequence[Member]) -> None:
    """Refuses members that cannot be stacked, or would take out of all proportion more memory than they do alone."""
    prompts = [prompt for prompt, _ in members]
    try:
        check_alike(prompts, [member_name(path, number) for number in range(len(prompts))])
    except PromptStackError as error:
        raise PromptFormatError(str(error)) from error
    for kind in prompts[0].parts:
        lengths = [prompt.parts[kind].slots for prompt in prompts]
        if len(lengths) * max(lengths) > _MAX_RATIO * sum(lengths):
            raise PromptFormatError(
                f"{member_name(path, int(np.argmax(lengths)))} has {kind} of {max(lengths)} slots, and all "
                f"{len(lengths)} have {sum(lengths)}; stacked they would take over {_MAX_RATIO} times the memory"
            )


def _read_entry(where: str, name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a limit
        raise PromptFormatError(f"{where}: {name} is compressed by the method {info.compress_type}; NumPy has 0 and 8")
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
    if array.dtype.kind != "f":
        raise PromptFormatError(f"{where}: {name} is {array.dtype} {list(array.shape)}; a prompt is of floats")
    with np.errstate(over="ignore"):  # what overflows float32 is found below
        array = np.array(array, np.float32, order="C")
    _check_values(where, name, array)
    return array


def _check_values(where: str, name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise PromptFormatError(f"{where}: {name} has {count} values that are not finite")
