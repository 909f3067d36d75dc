"""The environment of a run: its command, the code's commit, packages, devices and memory."""

import functools
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import jax

from prompt_jax.distributed.memory import peak_device_memory, peak_host_memory
from prompt_jax.report.run_files import Environment

PACKAGES = ("prompt-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_GIT_SECONDS = 10


def environment() -> Environment:
    """Return the command, the code and the devices of this process, and its peak memory so far."""
    commit, modified = _commit(Path(__file__).parent)
    return Environment(
        command=_command(),
        commit=commit,
        modified=modified,
        device=jax.devices()[0].device_kind,
        devices=jax.device_count(),
        processes=jax.process_count(),
        host_memory=peak_host_memory(),
        device_memory=peak_device_memory(),
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}}


@functools.cache  # the code that runs is that of the first call
def _commit(folder: Path) -> tuple[str | None, bool]:
    """Return the commit of the git checkout that a source folder belongs to, and whether tracked files differ from it.

    The commit is None for an installed package, also inside the checkout of another project, and without git.
    """
    described = _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    if described is None or _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, False
    return described.removesuffix("-dirty"), described.endswith("-dirty")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_GIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _command() -> str:
    """Return this process's command line, with `prompt-jax` for the path of its program."""
    program = Path(sys.argv[0]).name
    return shlex.join(["prompt-jax" if program == "__main__.py" else program, *sys.argv[1:]])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "not installed"
