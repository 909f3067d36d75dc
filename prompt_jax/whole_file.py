"""Files that appear whole or not at all."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prompt_jax.paths import BucketPath


def write_whole(path: Path, write: Callable[[Any], object]) -> None:
    """Writes a file, with `write(binary file)`, under another name first: a reader or a crash never sees half of it.

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
        with temporary.open("wb") as file:
            write(file)
        os.replace(temporary, path)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_whole` of a text in UTF-8."""
    write_whole(path, lambda file: file.write(text.encode("utf-8")))
