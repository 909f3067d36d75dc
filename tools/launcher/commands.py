"""What is run, apart from running it: programs, and files for them. A dry run prints each as a line of shell."""

import dataclasses
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol


class LaunchError(Exception):
    """Something asked for cannot be done; the message says what was wrong, where, and what would be right."""


class Step(Protocol):
    """One thing to do."""

    def shell(self) -> str:
        """As shell that does the same, without secrets."""

    def run(self) -> None:
        """Does it. Raises LaunchError."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A program with its arguments.

    Attributes:
      argv: the program, and the arguments as they arrive.
      env: added to the environment. It is printed: no secrets.
      folder: where it runs; None is here.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    folder: Path | None = None

    def shell(self) -> str:
        line = " ".join([*(f"{name}={shlex.quote(value)}" for name, value in self.env.items()), shlex.join(self.argv)])
        return line if self.folder is None else f"(cd {shlex.quote(str(self.folder))} && {line})"

    def start(self, **options) -> subprocess.Popen:
        """As a process with nothing to read; `options` are Popen's. Raises LaunchError: it cannot be started."""
        environment = {**os.environ, **self.env}
        try:
            return subprocess.Popen(self.argv, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, **options)
        except OSError as error:
            if shutil.which(self.argv[0]) is None:
                raise LaunchError(f"{self.argv[0]} is not installed on this machine, or not in PATH") from error
            raise LaunchError(f"{error.strerror}: {self.shell()}") from error

    def run(self) -> None:
        with self.start() as process:
            _communicate(process)
        if process.returncode:
            raise LaunchError(f"ended with {process.returncode}: {self.shell()}")

    def output(self) -> str:
        """What it prints. Raises LaunchError, with what it says of an error."""
        with self.start(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            out, err = _communicate(process)
        if process.returncode:
            raise LaunchError(f"ended with {process.returncode}: {self.shell()}\n{err.strip()}")
        return out

    def succeeds(self) -> bool:
        """Whether it ends with 0; what it prints is not shown."""
        with self.start(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            _communicate(process)
        return process.returncode == 0


def _communicate(process: subprocess.Popen) -> tuple[str, str]:
    """Waits for a process, which ends with us if we are interrupted."""
    try:
        return process.communicate()
    except BaseException:
        process.terminate()
        raise


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A file to write; its text ends with a new line. It is printed: no secrets."""

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
    """A file to source with variables of our environment, for its owner's eyes only. Their values are not printed."""

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
    """Does the steps one after the other, or prints them. Raises LaunchError: one has failed."""
    for step in steps:
        if dry_run:
            print(step.shell())
        else:
            step.run()
