"""The folders of models, data and compiled programs."""

import dataclasses
import importlib.util
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from prompt_jax.checkpoints.packaged import cache_folder

SECONDS = 3.0  # for the size of all folders


@dataclasses.dataclass(frozen=True)
class Cache:
    """A folder.

    Attributes:
      variable: the environment variable that names another folder.
      size: bytes of its files; at least so many unless `complete`.
      free: free bytes on its disk; None if the folder is not on this machine.
    """

    name: str
    folder: str
    variable: str
    size: int
    complete: bool
    writable: bool
    free: int | None


def caches() -> list[Cache]:
    """Return the folders, which need not exist."""
    compilations = os.environ.get("JAX_COMPILATION_CACHE_DIR")  # the command line sets it
    data = Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")
    folders = [
        *_model_folders(),
        *([("compilations", compilations, "JAX_COMPILATION_CACHE_DIR")] if compilations else []),
        *([("data of TFDS", str(data), "TFDS_DATA_DIR")] if "TFDS_DATA_DIR" in os.environ or data.exists() else []),
    ]
    deadline = time.monotonic() + SECONDS
    return [_cache(*each, [Path(other[1]) for other in folders if other != each], deadline) for each in folders]


def _model_folders() -> Iterator[tuple[str, str, str]]:
    """Yield the folders of models."""
    if importlib.util.find_spec("huggingface_hub") is not None:  # otherwise another check reports it
        from huggingface_hub import constants

        yield "models of the Hub", constants.HF_HUB_CACHE, "HF_HOME"
    yield "packaged models", str(cache_folder()), "PROMPT_JAX_CACHE"


def _cache(name: str, folder: str, variable: str, others: Sequence[Path], deadline: float) -> Cache:
    """Describe a folder. Folders in it that are listed on their own do not count."""
    if "://" in folder:  # a bucket
        return Cache(name, folder, variable, 0, False, True, None)
    path = Path(folder)
    size, complete = _size(path, set(others), deadline)
    existing = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return Cache(name, folder, variable, size, complete, writable, shutil.disk_usage(existing).free)


def _size(folder: Path, without: set[Path], deadline: float) -> tuple[int, bool]:
    """Return the size of a folder's files, and whether there was time for all of them. Links are not followed."""
    total, waiting = 0, [folder]
    while waiting:
        if time.monotonic() > deadline:
            return total, False
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:  # missing, or not readable
            continue
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    waiting += [Path(entry)] if Path(entry) not in without else []
                elif entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_size
            except OSError:  # deleted meanwhile
                continue
    return total, True
