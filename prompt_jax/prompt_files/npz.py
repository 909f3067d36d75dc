"""The project's own prompt files: `.npz`, with one prompt or an ensemble.

A `.npz` is an ordinary NumPy archive; `numpy.load(path, allow_pickle=False)` reads it:

    encoder_tokens        [P, D] float32          virtual tokens in the input of the encoder or causal model
    SITE/keys             [L, P, H, K] float32    a prefix of each layer's attention; SITE is encoder_self,
    SITE/values           [L, P, H, K] float32      decoder_self (for causal models too) or decoder_cross
    encoder_tokens/mask   [P] bool                the slots in use; SITE/mask for a prefix; absent if all are used
    base/PATH             float32                 weights of the base, see `prompt_jax.models.delta.Delta`;
                                                    PATH as in decoder/layers/0/mlp/adapter/down
    metadata              text                    JSON, the fields of `PromptMetadata` and `format_version`

A file has virtual tokens, prefixes or both. An ensemble has these entries for each member under its number:
`0/encoder_tokens`, `0/metadata`, `1/encoder_tokens` and so on without gaps. Its members have the same parts, placement
and sizes, so that they can be stacked.

Files may come from strangers: pickles are not read, and sizes are checked before memory is allocated.
"""

import contextlib
import dataclasses
import io
import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from prompt_jax.config.ensemble import MAX_MEMBERS
from prompt_jax.models.delta import Delta, flat
from prompt_jax.models.prompt import SITES, Prefix, Prompt, VirtualTokens
from prompt_jax.prompt_files.metadata import (
    PromptFormatError,
    PromptMetadata,
    StoredPrompt,
    member_name,
    metadata_from_array,
    metadata_to_json,
)
from prompt_jax.storage.files import atomic_write

# For each part of a prompt: entry name -> attribute.
_PART_ENTRIES = {"encoder_tokens": {"encoder_tokens": "embeddings"}} | {
    site: {f"{site}/keys": "keys", f"{site}/values": "values"} for site in SITES
}
# Attributes that the metadata stores once for all parts, and their values for parts that lack them.
_RULES = {"placement": "before", "shift_positions": True, "always_visible": False, "long_rope": None}
_ENTRIES = {"metadata"} | {name for part, arrays in _PART_ENTRIES.items() for name in (*arrays, f"{part}/mask")}
_BASE_ENTRY = re.compile(r"base((?:/[a-z0-9_]{1,32}){1,8})", re.ASCII)
_MEMBER_ENTRY = re.compile(r"(0|[1-9][0-9]*)/(.*)", re.ASCII)
_MAX_METADATA = 1 << 20  # bytes
# Largest ratio of bytes in memory to bytes in the file. Floats hardly compress; a zip bomb has a ratio over 1000.
# Stacking pads the members of an ensemble to the longest.
MAX_RATIO = 100


def prompt_entries(where: str, prompt: Prompt | Delta, metadata: PromptMetadata) -> dict[str, np.ndarray]:
    """Return the checked entries of one prompt.

    Raises:
      PromptFormatError: values that are not finite, or a prompt that the format cannot hold.
    """
    if isinstance(prompt, Delta):
        arrays = {f"base/{path}": np.asarray(leaf, np.float32) for path, leaf in flat(prompt.leaves).items()}
        for name, array in arrays.items():
            _check_values(where, name, array)
        return {**arrays, "metadata": np.array(metadata_to_json(where, metadata))}
    if not prompt.parts:
        raise PromptFormatError(f"{where}: the prompt is empty")
    rules = {tuple(getattr(part, name, default) for name, default in _RULES.items()) for part in prompt.parts.values()}
    if len(rules) > 1:
        raise PromptFormatError(f"{where}: its parts differ in {' or '.join(_RULES)}; a file stores one of each")
    if prompt.stacked is not None:
        raise PromptFormatError(f"{where}: a stack of {prompt.stacked} prompts; save_ensemble writes several")
    arrays = {}
    for kind, part in prompt.parts.items():
        for name, attribute in _PART_ENTRIES[kind].items():
            arrays[name] = np.asarray(getattr(part, attribute), np.float32)
            _check_values(where, name, arrays[name])
        _check_shapes(where, kind, arrays)
        if part.mask is not None:
            mask = arrays[f"{kind}/mask"] = np.asarray(part.mask, bool)
            _check_mask(where, kind, mask, part.slots)
    metadata = dataclasses.replace(metadata, **dict(zip(_RULES, *rules, strict=True)))
    return {**arrays, "metadata": np.array(metadata_to_json(where, metadata))}


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    atomic_write(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]  # its stub wants allow_pickle there


@contextlib.contextmanager
def reading_errors(where: str) -> Iterator[None]:
    """Turn the many errors that NumPy and zipfile raise for a damaged file into a PromptFormatError."""
    try:
        yield
    except PromptFormatError:
        raise
    except Exception as error:
        raise PromptFormatError(f"{where}: damaged: {type(error).__name__}: {error}") from error


def read(path: Path, file: io.BufferedIOBase) -> tuple[list[StoredPrompt], bool]:
    """Return the prompts of a file, and whether it is an ensemble, which may have a single member.

    Raises:
      PromptFormatError: the file is not in this format; the message names the member. The caller wraps other errors of
        NumPy and zipfile with `reading_errors`.
    """
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if len(entries) < len(archive.infolist()):
            counts = Counter(info.filename.removesuffix(".npy") for info in archive.infolist())
            twice = counts.most_common(1)[0][0]
            raise PromptFormatError(f"{path}: a second entry {twice!r}; each may occur at most once")
        # Entries may overlap in the file, so each may be small while their total is not.
        if (claimed := sum(info.file_size for info in entries.values())) > MAX_RATIO * file.seek(0, io.SEEK_END):
            raise PromptFormatError(f"{path}: its entries unpack to {claimed} bytes from {file.tell()}")
        if not any(_MEMBER_ENTRY.fullmatch(name) for name in entries):
            return [_read_entries(str(path), archive, entries)], False
        members = []
        for number, member_entries in enumerate(_by_member(path, entries)):
            where = member_name(path, number)
            with reading_errors(where):
                members.append(_read_entries(where, archive, member_entries))
    return members, True


def _by_member(path: Path, entries: Mapping[str, zipfile.ZipInfo]) -> list[dict[str, zipfile.ZipInfo]]:
    """Return the entries of each member, named without the member's number."""
    members: dict[int, dict[str, zipfile.ZipInfo]] = {}
    for name, info in entries.items():
        match = _MEMBER_ENTRY.fullmatch(name)
        if match is None:
            raise PromptFormatError(f"{path}: unexpected entry {name!r} among those of an ensemble's members")
        if len(match[1]) > 4 or int(match[1]) >= MAX_MEMBERS:
            raise PromptFormatError(f"{path}: entry {name!r:.40}; an ensemble has at most {MAX_MEMBERS} members")
        members.setdefault(int(match[1]), {})[match[2]] = info
    missing = next((number for number in range(len(members)) if number not in members), None)
    if missing is not None:
        raise PromptFormatError(f"{path}: there is no member {missing}, but a member {max(members)}")
    return [members[number] for number in range(len(members))]


def _read_entries(where: str, archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]) -> StoredPrompt:
    """Read the prompt of these entries, whose names have no member number."""
    if unknown := {name for name in entries if name not in _ENTRIES and not _BASE_ENTRY.fullmatch(name)}:
        raise PromptFormatError(
            f"{where}: unexpected entry {min(unknown)!r}; a prompt has {', '.join(sorted(_ENTRIES))}"
        )
    arrays = {name: _read_entry(where, name, archive, info) for name, info in entries.items()}
    metadata = metadata_from_array(where, arrays["metadata"]) if "metadata" in arrays else PromptMetadata()
    parts: dict[str, Any] = {}
    for kind, names in _PART_ENTRIES.items():
        present = [name for name in (*names, f"{kind}/mask") if name in arrays]
        if not present:
            continue
        if missing := [name for name in names if name not in arrays]:
            raise PromptFormatError(f"{where}: it has {present[0]}, but no {missing[0]}")
        values: dict[str, Any] = {attribute: as_float32(where, name, arrays[name]) for name, attribute in names.items()}
        _check_shapes(where, kind, arrays)
        mask = arrays.get(f"{kind}/mask")
        part: Any = VirtualTokens if kind == "encoder_tokens" else Prefix
        rules = {name: getattr(metadata, name) for name in _RULES if name in part.__dataclass_fields__}
        parts[kind] = part(**values, mask=mask, **rules)
        if mask is not None:
            _check_mask(where, kind, mask, parts[kind].slots)
    leaves: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if match := _BASE_ENTRY.fullmatch(name):
            leaves[match[1][1:]] = as_float32(where, name, array)
    above = {"/".join(path.split("/")[:level]) for path in leaves for level in range(1, path.count("/") + 1)}
    if nested := above & leaves.keys():
        raise PromptFormatError(f"{where}: base/{min(nested)} is an array and has others below it")
    if not parts and not leaves:
        raise PromptFormatError(f"{where}: it has neither encoder_tokens, nor a prefix, nor weights of a base")
    if parts and leaves:
        raise PromptFormatError(f"{where}: it has both {' and '.join(parts)} and weights of a base")
    return Delta(unflatten_dict(leaves, sep="/")) if leaves else Prompt(**parts), metadata


def _check_shapes(where: str, kind: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Check that a part's arrays have the right number of axes, and the same shape."""
    axes = (VirtualTokens if kind == "encoder_tokens" else Prefix).axes
    shapes = {name: arrays[name].shape for name in _PART_ENTRIES[kind]}
    for name, shape in shapes.items():
        if len(shape) != len(axes) or 0 in shape or len(set(shapes.values())) > 1:
            expected = f"[{', '.join(axes)}]" + (", the same for keys and values" if len(shapes) > 1 else "")
            raise PromptFormatError(f"{where}: {name} is {list(shape)}; expected {expected}")


def _check_mask(where: str, kind: str, mask: np.ndarray, slots: int) -> None:
    if mask.dtype != bool or mask.shape != (slots,):
        raise PromptFormatError(f"{where}: {kind}/mask is {mask.dtype} {mask.shape}, not bool {(slots,)}")
    if not mask.any():
        raise PromptFormatError(f"{where}: none of the prompt's {slots} slots is used")


def _read_entry(where: str, name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others decompress without a limit
        raise PromptFormatError(
            f"{where}: {name} is compressed by the method {info.compress_type}; NumPy writes 0 and 8"
        )
    if info.file_size > MAX_RATIO * max(info.compress_size, 1):
        raise PromptFormatError(f"{where}: {name} unpacks to {info.file_size} bytes from {info.compress_size}")
    if name == "metadata" and info.file_size > 4 * _MAX_METADATA:
        raise PromptFormatError(f"{where}: metadata of {info.file_size} bytes")
    with archive.open(info) as entry:
        array = read_array(where, name, entry, info.file_size)  # type: ignore[arg-type]  # a ZipExtFile is one
        entry.read()  # to the end, where zipfile checks the checksum
        return array


def read_array(where: str, name: str, file: io.BufferedIOBase, size: int) -> np.ndarray:
    """Read one array in the `.npy` format, after checking that it fills exactly `size` bytes."""
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


def as_float32(where: str, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        raise PromptFormatError(f"{where}: {name} is {array.dtype} {list(array.shape)}; a prompt has floats")
    with np.errstate(over="ignore"):  # values that overflow float32 are found below
        array = np.array(array, np.float32, order="C")
    _check_values(where, name, array)
    return array


def _check_values(where: str, name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise PromptFormatError(f"{where}: {name} has {count} values that are not finite")
