"""Checks of the command line, so that a wrong one fails before anything runs or is billed."""

import os
import re
from collections.abc import Mapping, Sequence

from tools.launcher.commands import LaunchError
from tools.launcher.restarts import MAX_DELAY

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?")  # Google Cloud's rule for TPU names, applied to all backends
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"_(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS)$", re.IGNORECASE)
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/[\w.=+-]+)*/?", re.ASCII)

# Options of `prompt-jax train` that the launcher sets, or that would break restarts.
_RESERVED = {
    "--name": "NAME is the run's name",
    "--runs": "it is a launcher option, so put it before NAME",
    "--distributed": "the launcher sets it",
    "--no-distributed": "each process would train the whole run in the same folder",
    "--overwrite": "each restart would start over; delete the run's folder or choose another name",
}


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise LaunchError(
            f"{name!r} is not a valid job name: expected 1 to 50 lower-case letters, digits and hyphens, starting with "
            "a letter and not ending with a hyphen"
        )


def check_bucket(runs: str) -> None:
    if not _BUCKET.fullmatch(runs):
        raise LaunchError(
            f"--runs {runs}: expected a bucket, e.g. gs://my-bucket/runs, because all workers write to it and it "
            "outlives them"
        )


def runs_folder(runs: str) -> str:
    """Return the folder of all runs as an absolute path or as a bucket's URL. Raises LaunchError."""
    if not re.match(r"[\w.+-]+:/", runs):
        return os.path.abspath(runs)
    if not _BUCKET.fullmatch(runs):
        raise LaunchError(f"--runs {runs}: expected a folder, or a bucket such as gs://my-bucket/runs")
    return runs.rstrip("/")


def check_variables(names: Sequence[str]) -> None:
    for name in names:
        if not _VARIABLE.fullmatch(name):
            raise LaunchError(f"--env {name}: expected the name of a variable; its value is read from the environment")
        if name not in os.environ:
            raise LaunchError(f"--env {name}: this variable is not set in the environment")


def check_restarts(retries: int, backoff: float) -> None:
    if retries < 0:
        raise LaunchError(f"--retries must be 0 or more, not {retries}")
    check_seconds("--backoff", backoff, MAX_DELAY)


def check_seconds(option: str, seconds: float, most: float = 86400.0) -> None:
    if not 0 <= seconds <= most:  # also false for NaN
        raise LaunchError(f"{option} must be from 0 to {most:g} seconds, not {seconds:g}")


def check_overrides(overrides: Sequence[str], launcher_options: Sequence[str]) -> None:
    """Refuse words after CONFIG that are launcher options or that the launcher sets itself."""
    for word in overrides:
        option = word.split("=")[0].replace("_", "-")  # prompt-jax accepts both spellings
        if option in _RESERVED:
            raise LaunchError(f"{option} is not allowed after CONFIG: {_RESERVED[option]}")
        if option in launcher_options:
            raise LaunchError(
                f"{option} is a launcher option, so put it before NAME; only overrides of the configuration follow "
                "CONFIG"
            )


def check_secrets(argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """Refuse a command line that contains a secret: other users of the machine can read it."""
    for name, value in environment.items():
        if _SECRET.search(name) and len(value) >= 8 and any(value in word for word in argv):
            raise LaunchError(
                f"the command line contains the value of {name}, and other users can read it: leave it in the "
                "environment"
            )
