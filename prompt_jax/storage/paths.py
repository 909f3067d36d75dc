"""Paths of files: on this machine, in a bucket of Google Cloud Storage (`gs://BUCKET/...`), or on the Hugging Face Hub
(`hf://USER/NAME...`)."""

import contextlib
import errno
import functools
import io
import logging
import os
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path, PosixPath
from typing import Any

from prompt_jax.errors import MissingPackage, UserError

_OTHER_SCHEMES = {"s3", "s3a", "gcs", "az", "abfs", "hdfs", "http", "https"}


class BucketError(UserError, OSError):
    """A bucket cannot be reached, read or written; the message says why."""


def parse_path(text: str | Path) -> Path:
    """Return the path that a text names: a BucketPath for `gs://...`, a HubPath for `hf://...`, else a local path.

    pathlib shortens `gs://` to `gs:/`, which is accepted too.

    Raises:
      UserError: another scheme, or no bucket.
    """
    scheme, colon, rest = str(text).partition(":/")
    if colon and scheme == "hf":
        return HubPath(text)
    if colon and scheme in _OTHER_SCHEMES:
        raise UserError(f"{text}: expected a folder or gs://BUCKET/...; mount other buckets as a folder")
    if not colon or scheme != "gs":
        return Path(text)
    if not rest.strip("/"):
        raise UserError(f"{text} names no bucket; expected gs://BUCKET/...")
    return BucketPath(text)


class _Remote(PosixPath):
    """A path with a scheme. pathlib alone would shorten `gs://` to `gs:/`."""

    def __str__(self) -> str:
        return f"{self.parts[0]}//{'/'.join(self.parts[1:])}"

    def absolute(self) -> Any:
        return self

    def resolve(self, strict: bool = False) -> Any:
        return self


class HubPath(_Remote):
    """A name on the Hugging Face Hub, which `prompt_jax.prompt_files.hub` parses and downloads."""


class BucketPath(_Remote):
    """A file or folder in a bucket, with the methods of `pathlib.Path` that this package uses.

    Files are written whole, never appended to. A folder exists while it contains a file. Methods raise
    FileNotFoundError if there is no such file, and BucketError for any other failure.
    """

    def check(self) -> None:
        """Raise BucketError if the bucket does not exist, or this account has no access to it."""
        with self._reached(writing=True):
            _files().call("GET", "b/{}", self.parts[1])

    def exists(self, **_: Any) -> bool:
        return self._kind() is not None

    def is_file(self, **_: Any) -> bool:
        return self._kind() == "file"

    def is_dir(self, **_: Any) -> bool:
        return self._kind() == "directory"

    def _kind(self) -> str | None:
        try:
            with self._reached():
                return _files().info(str(self))["type"]
        except FileNotFoundError:
            return None

    def iterdir(self) -> Generator["BucketPath", None, None]:
        with self._reached():
            names = [name.rstrip("/") for name in _files().ls(str(self), detail=False)]
        yield from (self / name.rpartition("/")[2] for name in names if f"gs://{name}" != str(self))

    def read_bytes(self) -> bytes:
        with self._reached():
            return _files().cat_file(str(self))

    def open(self, mode: str = "r", *_: Any, **options: Any) -> Any:
        """Open the file for reading, with its whole content in memory. `write_bytes` writes."""
        if mode not in ("r", "rb"):
            raise io.UnsupportedOperation(f"{self}: a file in a bucket is written whole, not opened as {mode!r}")
        file = io.BytesIO(self.read_bytes())
        return file if mode == "rb" else io.TextIOWrapper(file, **options)

    def write_bytes(self, data: Any) -> int:
        with self._reached(writing=True):
            _files().pipe_file(str(self), bytes(data))
        return len(data)

    def create(self, data: bytes) -> bool:
        """Write a new file and return True; return False if it exists."""
        try:
            with self._reached(writing=True):
                _files().pipe_file(str(self), data, mode="create")
        except BucketError as error:
            if isinstance(error.__cause__, FileExistsError):
                return False
            raise
        return True

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Write files of this folder, given by their paths in it, in parallel."""
        with self._reached(writing=True):
            _files().pipe({str(self / name): data for name, data in files.items()})

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder exists once it has a file."""

    def rename(self, target: str | os.PathLike[str]) -> "BucketPath":
        """Move a file, or a folder file by file: a crash may leave it half moved."""
        with self._reached():
            _files().mv(str(self), str(target), recursive=True)
        return BucketPath(target)

    def delete(self) -> None:
        """Delete a file, or a folder with its content."""
        with self._reached():
            _files().rm(str(self), recursive=True)

    @contextlib.contextmanager
    def _reached(self, writing: bool = False) -> Iterator[None]:
        """Turn the many kinds of errors that gcsfs raises into one."""
        try:
            yield
        except UserError:
            raise
        except FileNotFoundError as error:
            if writing:  # writing fails this way only if there is no bucket
                raise BucketError(f"{self}: there is no bucket {self.parts[1]}") from error
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from error
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
            if "Forbidden" in str(error) or getattr(error, "code", None) in (401, "401"):
                reason += (
                    "; the account that is logged in (gcloud auth application-default login) needs the roles Storage "
                    "Object Admin and Storage Legacy Bucket Reader on the bucket"
                )
            raise BucketError(f"{self}: {reason}") from error


@functools.cache
def _files() -> Any:
    """Return the file system of Google Cloud Storage, the same object that Orbax uses. Imported at the first use."""
    # Otherwise gcsfs queries the kind of bucket by gRPC; the plain protocol works for all kinds.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import fsspec
        import gcsfs  # noqa: F401  # fsspec would report its absence differently
    except ImportError as error:
        raise MissingPackage(f"gs://... needs the package {error.name}: pip install '.[gcs]'") from error
    # gcsfs also logs the errors that it raises, with a traceback.
    logging.getLogger("gcsfs").addHandler(logging.NullHandler())
    # Do not cache listings, so that files of other processes appear immediately.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem("gcs", finalize_on_close=True)
