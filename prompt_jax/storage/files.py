"""Atomic writes and deletions, on this machine and in buckets."""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prompt_jax.storage.paths import BucketPath

_TEMPORARY = re.compile(r"\..+\.[0-9]+\.tmp")


def atomic_write(path: Path, write: Callable[[Any], object]) -> None:
    """Write a file with `write(binary_file)`, under a temporary name first, so that nobody sees a partial file.

    The data reach the disk before the rename, so that a power failure leaves no empty file either.

    Raises:
      OSError: the file cannot be written. An earlier file is unchanged.
    """
    if isinstance(path, BucketPath):  # its writes are atomic
        content = io.BytesIO()
        write(content)
        path.write_bytes(content.getvalue())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with add_path_to_errors(path):
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 with `atomic_write`."""
    atomic_write(path, lambda file: file.write(text.encode("utf-8")))


@contextlib.contextmanager
def add_path_to_errors(path: Path) -> Iterator[None]:
    """Add a file's path to OSErrors raised inside; errors of writing and syncing have none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a bucket's error, which names its file
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error


def delete(path: Path) -> None:
    """Delete a file, a link, or a folder with its content."""
    if isinstance(path, BucketPath):
        path.delete()
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_temporary_files(folder: Path) -> None:
    """Delete the files that `atomic_write` left in a folder when its process was killed."""
    for path in [] if isinstance(folder, BucketPath) else folder.iterdir():
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
