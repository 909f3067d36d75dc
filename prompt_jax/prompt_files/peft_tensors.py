"""Reading the files of a PEFT adapter: a JSON object, and one tensor in the safetensors format.

Files may come from strangers: links are not followed, and sizes are compared before memory is allocated.
"""

import contextlib
import io
import json
import math
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from prompt_jax.checkpoints.files import unique_names
from prompt_jax.prompt_files.metadata import PromptFormatError

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
TENSOR = "prompt_embeddings"  # the name of the only tensor

LINK_ADVICE = (
    ", which may lead anywhere, and is not followed. If you trust it, copy the folder with the files it links to "
    "(cp -rL SOURCE DEST)"
)
_DTYPES: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_MAX_JSON = 1 << 20  # bytes; PEFT writes less than a thousand


def exists(file: Path) -> bool:
    """Return whether there is a file or a link, even a broken one."""
    return file.is_symlink() or file.exists()


@contextlib.contextmanager
def _open_regular(file: Path) -> Iterator[tuple[io.BufferedIOBase, int]]:
    """Open a regular file and yield it with its size in bytes. Devices and pipes may have no end."""
    if file.is_symlink():
        raise PromptFormatError(f"{file} is a symbolic link{LINK_ADVICE}")
    if not file.exists():
        raise PromptFormatError(f"{file.parent}: no {file.name}, which a PEFT adapter needs")
    if not file.is_file():
        raise PromptFormatError(f"{file}: not an ordinary file")
    with file.open("rb") as opened:
        size = opened.seek(0, io.SEEK_END)
        opened.seek(0)
        yield opened, size


def read_config_json(file: Path) -> dict[str, Any]:
    """Return the content of an adapter's configuration file."""
    with _open_regular(file) as (opened, size):
        if size > _MAX_JSON:
            raise PromptFormatError(f"{file}: {size} bytes; an adapter's has at most {_MAX_JSON}")
        return _parse_object(file, opened.read(size))


def read_tensor(file: Path, shape: tuple[int, int | None]) -> np.ndarray:
    """Return the only tensor of a safetensors file as float32 (https://github.com/huggingface/safetensors#format).

    This is stricter than the safetensors library, which takes the last of several entries with the same name.

    Args:
      file: the safetensors file.
      shape: the expected shape; None stands for any size.

    Raises:
      PromptFormatError: another tensor, dtype or shape, a damaged file, or values that are not finite.
    """
    with _open_regular(file) as (opened, size):
        length = int.from_bytes(opened.read(8), "little")
        if length > min(size - 8, _MAX_JSON):
            raise PromptFormatError(
                f"{file}: not a safetensors file, or a truncated one: {size} bytes, with a header of {length}"
            )
        header = _parse_object(file, opened.read(length))
        dtype, sizes = _check_header(file, header, shape, data_bytes=size - 8 - length)
        with np.errstate(over="ignore"):  # values that overflow float32 are found below
            array = np.frombuffer(opened.read(), dtype).reshape(sizes).astype(np.float32)
    if not np.isfinite(array).all():
        raise PromptFormatError(f"{file}: {TENSOR} has {int((~np.isfinite(array)).sum())} values that are not finite")
    return array


def _check_header(
    file: Path, header: dict[str, Any], shape: tuple[int, int | None], *, data_bytes: int
) -> tuple[Any, list[int]]:
    """Return the dtype and the shape of the tensor that the header describes."""
    header.pop("__metadata__", None)
    if header.keys() != {TENSOR}:
        names = ", ".join(sorted(header))[:100] or "none"
        raise PromptFormatError(f"{file}: it has the tensors {names}; the adapter of a prompt has only {TENSOR}")
    entry = header[TENSOR] if isinstance(header[TENSOR], dict) else {}
    name, offsets = entry.get("dtype"), entry.get("data_offsets")
    sizes: Any = entry.get("shape")
    if not isinstance(name, str) or name not in _DTYPES:
        raise PromptFormatError(f"{file}: {TENSOR} is {reprlib.repr(name)}; a prompt has floats, {', '.join(_DTYPES)}")
    if not _are_sizes(sizes) or any(s != w for s, w in zip(sizes, shape, strict=True) if w is not None):
        expected = f"[{shape[0]}, {shape[1] or 'any'}]"
        raise PromptFormatError(f"{file}: {TENSOR} is {reprlib.repr(sizes)}; {CONFIG} makes it {expected}")
    expected_bytes = math.prod(sizes) * np.dtype(_DTYPES[name]).itemsize
    if offsets != [0, expected_bytes] or data_bytes != expected_bytes:
        raise PromptFormatError(
            f"{file}: {TENSOR} claims {name} {sizes} at {reprlib.repr(offsets)} and has {data_bytes} bytes of data"
        )
    return _DTYPES[name], sizes


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(size) is int and size > 0 for size in value)


def _parse_object(file: Path, text: bytes) -> dict[str, Any]:
    """Parse a JSON object without duplicate names."""
    try:
        values = json.loads(text.decode("utf-8"), object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise PromptFormatError(f"{file}: damaged: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise PromptFormatError(f"{file}: a JSON {type(values).__name__}, not an object")
    return values
