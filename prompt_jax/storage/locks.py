"""File locks, so that only one process at a time works on a folder.

The operating system releases a lock when its process ends in any way. Buckets and some network file systems have no
locks. On these, the latest process takes over, and the previous one notices in `FileLock.check`.
"""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prompt_jax.errors import UserError
from prompt_jax.storage.files import add_path_to_errors, delete
from prompt_jax.storage.paths import BucketPath


class LockHeld(UserError, RuntimeError):
    """Another process holds the lock; the message names it."""


class LockLost(UserError, RuntimeError):
    """The lock's folder was deleted, or another process has taken it over."""


class FileLock:
    """A lock on a file that names its holder. Use as a context manager, which releases it."""

    def __init__(self, path: Path):
        self.path = path
        self._text = ""  # the content that this process wrote; empty while it does not hold the lock
        self._file: Any = None  # open, if the operating system holds the lock for us

    def __enter__(self) -> "FileLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def acquired(self) -> bool:
        """Whether `acquire` was called, and `release` was not."""
        return bool(self._text)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """File descriptors that let a child process hold the lock too, for subprocess's `pass_fds`."""
        return () if self._file is None else (self._file.fileno(),)

    def acquire(self, wait: Callable[[str], object] | None = None) -> None:
        """Acquire the lock; return at once if we hold it.

        Args:
          wait: called with the name of the holder before waiting for it. None means do not wait.

        Raises:
          LockHeld: another process holds it, and `wait` is None.
        """
        if self._text:
            return
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": _now()})
        if not isinstance(self.path, BucketPath):
            self._file = self._lock_file(wait)
        if self._file is None and _read(self.path):
            warnings.warn(
                f"{self.path.parent} was last used by {self._holder()}, which did not finish; if it still runs, "
                "it will stop",
                stacklevel=2,
            )
        with add_path_to_errors(self.path):
            self.path.write_bytes(text.encode())
        self._text = text

    def _lock_file(self, wait: Callable[[str], object] | None) -> Any:
        """Return the file, open and locked; None if the file system has no locks."""
        while True:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                file = stack.enter_context(self.path.open("a+", encoding="utf-8"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if wait is None:
                        raise LockHeld(f"{self.path.parent} is in use by {self._holder()}; wait for its end") from None
                    wait(self._holder())
                    fcntl.flock(file, fcntl.LOCK_EX)
                except OSError as error:
                    warnings.warn(
                        f"{self.path}: this file system has no locks ({error.strerror}); "
                        "do not start the same command twice at the same time",
                        stacklevel=3,
                    )
                    return None
                if _is_at(file, self.path):  # otherwise its last holder deleted it
                    stack.pop_all()
                    return file

    def check(self) -> None:
        """Raise LockLost if this process acquired the lock and no longer holds it."""
        current = _read(self.path) if self._text else ""
        if current == self._text:
            return
        if current:
            raise LockLost(f"{self.path.parent} was taken over by {self._holder()}; this process stops")
        what, by = str(self.path.parent), ""
        if self.path.parent.exists():
            what += f", or the {self.path.name} in it,"
            by = ", by hand or by another process that took over and has ended"
        raise LockLost(f"{what} was deleted while this process used it{by}; start the same command again")

    def release(self) -> None:
        """Release the lock, and delete the file if it is still ours."""
        if self._text:
            with contextlib.suppress(LockLost, OSError):
                self.check()
                delete(self.path)
        if self._file is not None:
            self._file.close()
        self._text, self._file = "", None

    def _holder(self) -> str:
        """Return a description of the process that holds the lock, as the file records it."""
        try:
            holder = json.loads(_read(self.path))
            return f"process {holder['pid']} on {holder['host']}, started {holder['since'][:19]} UTC"
        except (ValueError, KeyError, TypeError):  # it has not yet written its name
            return "another process"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="microseconds")


def _read(path: Path) -> str:
    """Return a file's text, empty if there is no file."""
    try:
        return path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return ""


def _is_at(file: Any, path: Path) -> bool:
    """Return whether the open file is the one at the path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
