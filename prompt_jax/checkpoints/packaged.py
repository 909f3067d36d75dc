"""Base models that Python packages contain, for use without a model hub.

The first use of such a model converts it into an ordinary model folder in a cache.
"""

import importlib.metadata
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from prompt_jax.errors import MissingPackage

PACKAGED = ("demo", "smollm2")  # their names; `prompt_jax.checkpoints.load` finds them


def cache_folder() -> Path:
    """Return the folder of converted models: $PROMPT_JAX_CACHE, or prompt_jax in $XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("PROMPT_JAX_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prompt_jax"


def convert_once(name: str, find: Callable[[], Path], convert: Callable[[Path, Path], None]) -> Path:
    """Return the folder of a converted model in the cache. If there is none, convert the model.

    Args:
      name: the folder's name. It contains the versions of the package and of the converter.
      find: returns the package's file or folder.
      convert: called with the result of `find` and an empty folder, which it fills.
    """
    folder = cache_folder() / name
    if folder.is_dir():
        return folder
    source = find()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The rename makes the folder appear only when it is complete. If several processes convert, the first one wins.
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent, ignore_cleanup_errors=True) as scratch:
        made = Path(scratch, "model")
        made.mkdir()
        convert(source, made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def check_version(model: str, package: str, version: str, install: str) -> None:
    """Raise MissingPackage unless this version of the package is installed. `install` is the command that installs it.

    Args:
      model: the model in the message, such as "the demo model".
      package: the package's name on PyPI.
      version: the required version.
      install: the command that installs it.
    """
    try:
        installed = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingPackage(f"{model} needs the package {package} {version}: {install}") from error
    if installed != version:
        raise MissingPackage(f"{model} needs {package} {version}, not {installed}: {install}")
