"""Steps of a launch: programs to run and files to write. A dry run prints each step as shell."""

import dataclasses
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol


class LaunchError(Exception):
    """A launch is impossible. The message says what was wrong, where, and what would be right."""


class Step(Protocol):
    """One action of a launch."""

    def shell(self) -> str:
        """Return equivalent shell, without secrets."""

    def run(self) -> None:
        """Run the step. Raises LaunchError if it fails."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A program and its arguments.

    Attributes:
      argv: the program and its arguments, unquoted.
      env: variables added to the environment. They are printed, so no secrets.
      folder: working directory; None keeps the current one.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    folder: Path | None = None

    def shell(self) -> str:
        line = " ".join([*(f"{name}={shlex.quote(value)}" for name, value in self.env.items()), shlex.join(self.argv)])
        return line if self.folder is None else f"(cd {shlex.quote(str(self.folder))} && {line})"

    def start(self, **options) -> subprocess.Popen:
        """Start the process without standard input; `options` go to Popen. Raises LaunchError if it cannot start."""
        environment = {**os.environ, **self.env}
        try:
            return subprocess.Popen(self.argv, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, **options)
        except OSError as error:
            if shutil.which(self.argv[0]) is None:
                raise LaunchError(f"{self.argv[0]} is not installed on this machine or not in PATH") from error
            raise LaunchError(f"{error.strerror}: {self.shell()}") from error

    def run(self) -> None:
        with self.start() as process:
            _communicate(process)
        if process.returncode:
            raise LaunchError(f"ended with {process.returncode}: {self.shell()}")

    def output(self) -> str:
        """Return its standard output. Raises LaunchError, with its standard error, if it fails."""
        with self.start(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            out, err = _communicate(process)
        if process.returncode:
            raise LaunchError(f"ended with {process.returncode}: {self.shell()}\n{err.strip()}")
        return out

    def succeeds(self) -> bool:
        """Return whether it ends with 0, hiding its output."""
        with self.start(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            _communicate(process)
        return process.returncode == 0


def _communicate(process: subprocess.Popen) -> tuple[str, str]:
    """Wait for a process; terminate it if the launcher is interrupted."""
    try:
        return process.communicate()
    except BaseException:
        process.terminate()
        raise


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A file to write. Its text ends with a line break. It is printed, so no secrets."""

    path: Path
    text: str

    def shell(self) -> str:
        mark = "END"
        while mark in self.text.split("\n"):
            mark += "_"
        return f"cat > {shlex.quote(str(self.path))} <<'{mark}'\n{self.text}{mark}"

    def run(self) -> None:
        self.path.write_text(self.text, encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class SecretFile:
    """A shell file that exports variables of the environment. Only its owner can read it; values are not printed."""

    path: Path
    names: tuple[str, ...]

    def shell(self) -> str:
        lines = "".join(f'printf "export {name}=%q\\n" "${name}"; ' for name in self.names) or ":; "
        return f"(umask 077; {{ {lines}}} > {shlex.quote(str(self.path))})"

    def run(self) -> None:
        self.path.unlink(missing_ok=True)
        lines = [f"export {name}={shlex.quote(os.environ[name])}\n" for name in self.names]
        with os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.writelines(lines)


def perform(steps: Iterable[Step], dry_run: bool) -> None:
    """Run the steps in order, or print them. Raises LaunchError if one fails."""
    for step in steps:
        if dry_run:
            print(step.shell())
        else:
            step.run()
