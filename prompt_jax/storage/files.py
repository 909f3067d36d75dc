"""Files that appear whole or not at all."""

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
    """Writes a file, with `write(binary file)`, under another name first: a reader or a crash never sees half of it.

    The data reach the disk before the file gets its name, so that a power failure leaves no empty file either.

    Raises:
      OSError: it cannot be written; what was there before is left as it was.
    """
    if isinstance(path, BucketPath):  # whose files are so anyway
        whole = io.BytesIO()
        write(whole)
        path.write_bytes(whole.getvalue())
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
    """`atomic_write` of a text in UTF-8."""
    atomic_write(path, lambda file: file.write(text.encode("utf-8")))


@contextlib.contextmanager
def add_path_to_errors(path: Path) -> Iterator[None]:
    """Makes an OSError inside name this file; those of writing and syncing name none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # an error of a bucket, which names its file
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error


def delete(path: Path) -> None:
    """Delete a file, a link or a folder with all that is in it."""
    if isinstance(path, BucketPath):
        path.delete()
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_temporary_files(folder: Path) -> None:
    """Deletes what `atomic_write` left in a folder when its process was killed."""
    for path in [] if isinstance(folder, BucketPath) else folder.iterdir():
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
