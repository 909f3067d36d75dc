"""A job: its record, what is checked before it starts, and the code that it is given."""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from launcher.commands import Command, LaunchError, Step
from launcher.restarts import LONGEST_WAIT

ROOT = Path(__file__).resolve().parents[2]  # the checkout that is launched
VERSION = 1

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?")  # what Google Cloud takes for a TPU, and so for all
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"_(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS)$", re.IGNORECASE)
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/[\w.=+-]+)*/?", re.ASCII)

# Options of `prompt-jax train` that the launcher gives, or that would undo what was done at each restart.
_TAKEN = {
    "--name": "NAME is the run's name",
    "--runs": "it is an option of the launcher, before NAME",
    "--distributed": "the launcher gives it",
    "--no-distributed": "each process would train the whole run, in the same folder",
    "--overwrite": "each restart would begin anew; delete the run's folder, or take another name",
}


@dataclasses.dataclass
class Job:
    """What is recorded of a job, in `job.json` of its folder.

    Attributes:
      name: of the job and of the run.
      backend: where it runs.
      runs: folder of all runs; the run is in `runs`/`name`.
      options: of the backend.
      ids: what the backend knows the job by.
      state: how it stood when this was last written: starting, running, stopped, done, or failed.
      detail: why.
      launches: each with `time`, `commit`, `dirty` (the working tree had changes, which are not in what runs),
        `argv` (the launcher's) and `command` (the arguments of prompt-jax).
    """

    name: str
    backend: Literal["local", "slurm", "tpu-vm"]
    runs: str
    options: dict[str, Any]
    ids: dict[str, Any]
    state: str = "starting"
    detail: str = ""
    launches: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    version: int = VERSION
    folder: Path = Path()  # not written

    @property
    def commit(self) -> str:
        return self.launches[-1]["commit"]

    @property
    def command(self) -> list[str]:
        """The arguments of prompt-jax, the same for all processes."""
        return self.launches[-1]["command"]

    @property
    def code(self) -> Path:
        """Where the committed code is put on this machine."""
        return self.folder / "code"

    def log(self, worker: int) -> Path:
        return self.folder / "logs" / f"worker-{worker}.log"

    def write(self, **changes: Any) -> None:
        """Changes fields, and writes all of them: the file is the old one or the new one, never half of one."""
        for name, value in changes.items():
            setattr(self, name, value)
        fields = {name: value for name, value in vars(self).items() if name != "folder"}
        whole = self.folder / "job.json.new"
        with whole.open("w", encoding="utf-8") as file:
            file.write(json.dumps(fields, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        whole.replace(self.folder / "job.json")

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Holds the job's lock, which processes inherit that are given its file descriptor.

        Raises:
          LaunchError: it is held, since the job runs.
        """
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LaunchError(f"{self.name} runs already; launch.py stop {self.name} stops it") from error
            yield file.fileno()

    @property
    def held(self) -> bool:
        """Whether a launcher, or what it has left behind, still works on the job on this machine."""
        try:
            with self.locked():
                return False
        except LaunchError:
            return True
        except FileNotFoundError:  # the folder is gone
            return False

    def end_launcher(self) -> list[Step]:
        """Steps that end the launcher that works on this job, and wait for what it has to do before it goes."""
        if not self.held:
            return []
        if not _lives(self.ids.get("pid")):
            raise LaunchError(
                f"the launcher of {self.name} was killed, and has left behind the processes "
                f"{self.ids.get('processes')}: end them with kill, then say this again"
            )
        return [Command(("kill", "-TERM", str(self.ids["pid"]))), Command(("flock", str(self.folder / "lock"), "true"))]

    def remove(self) -> Step:
        """The step that deletes what the launcher keeps of the job. The run's own folder stays."""
        return Command(("rm", "-r", "--", str(self.folder)))


def state_folder() -> Path:
    """Where records are kept if nothing else is said."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "prompt_jax" / "jobs"


def read_job(state: Path, name: str) -> Job:
    """The record of a job. Raises LaunchError: there is none, or it is not one."""
    check_name(name)
    path = state / name / "job.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields["version"] != VERSION:
            raise LaunchError(f"{path} is of version {fields['version']}, and this launcher reads {VERSION}")
        return Job(**fields, folder=path.parent)
    except FileNotFoundError as error:
        known = ", ".join(job.name for job in read_jobs(state)) or "none"
        raise LaunchError(f"there is no job {name} in {state}; there are: {known}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise LaunchError(f"{path}: no record of a job: {error}") from error


def read_jobs(state: Path) -> list[Job]:
    """All records, by name."""
    return [read_job(state, path.parent.name) for path in sorted(state.glob("*/job.json"))]


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise LaunchError(
            f"{name!r} is no name of a job: 1 to 50 lower-case letters, digits and hyphens, the first a letter, the "
            "last no hyphen"
        )


def check_bucket(runs: str) -> None:
    if not _BUCKET.fullmatch(runs):
        raise LaunchError(
            f"--runs {runs}: all workers write to it and it outlives them, so it is a bucket, e.g. gs://my-bucket/runs"
        )


def runs_folder(runs: str) -> str:
    """The folder of all runs as processes elsewhere find it: absolute, or on a bucket. Raises LaunchError."""
    if not re.match(r"[\w.+-]+:/", runs):
        return os.path.abspath(runs)
    if not _BUCKET.fullmatch(runs):
        raise LaunchError(f"--runs {runs}: expected a folder, or one on a bucket, e.g. gs://my-bucket/runs")
    return runs.rstrip("/")


def check_variables(names: Sequence[str]) -> None:
    for name in names:
        if not _VARIABLE.fullmatch(name):
            raise LaunchError(f"--env {name}: the name of a variable, whose value is taken from the environment here")
        if name not in os.environ:
            raise LaunchError(f"--env {name}: there is no such variable in the environment here")


def check_restarts(retries: int, backoff: float) -> None:
    if retries < 0:
        raise LaunchError(f"--retries must be 0 or more, not {retries}")
    check_seconds("--backoff", backoff, LONGEST_WAIT)


def check_seconds(option: str, seconds: float, most: float = 86400.0) -> None:
    if not 0 <= seconds <= most:  # false for NaN too
        raise LaunchError(f"{option} must be from 0 to {most:g} seconds, not {seconds:g}")


def check_overrides(overrides: Sequence[str], options: Sequence[str]) -> None:
    """Refuses what is not an override of the configuration: a run that costs money is not begun by mistake.

    Args:
      overrides: what comes after CONFIG.
      options: the launcher's own, which were meant to come before NAME.
    """
    for word in overrides:
        option = word.split("=")[0].replace("_", "-")  # prompt-jax takes both
        if option in _TAKEN:
            raise LaunchError(f"{option} is not for after CONFIG: {_TAKEN[option]}")
        if option in options:
            raise LaunchError(
                f"{option} is an option of the launcher, and comes before NAME; after CONFIG are overrides"
            )


def check_secrets(argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """Refuses a command line, which others on a machine can read, with the value of a secret in it."""
    for name, value in environment.items():
        if _SECRET.search(name) and len(value) >= 8 and any(value in word for word in argv):
            raise LaunchError(
                f"the value of {name} is in the command line, which others can read: leave it in the environment"
            )


def make_job(
    state: Path,
    name: str,
    backend: Literal["local", "slurm", "tpu-vm"],
    config: str,
    overrides: Sequence[str],
    *,
    runs: str,
    options: dict[str, Any],
    argv: Sequence[str],
    allow_dirty: bool,
) -> Job:
    """A job as it is about to start; nothing is written. Known before, it goes on under its record.

    Raises:
      LaunchError: a wrong name, a working tree with changes, a configuration that is not committed, or a name that
        another backend has a job of.
    """
    check_name(name)
    commit, dirty = _commit(allow_dirty)
    path = _committed(config, commit)
    launch = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        "argv": list(argv),
        "command": ["train", path, "--distributed", "--name", name, "--runs", runs, *overrides],
    }
    folder = state.absolute() / name
    if (folder / "job.json").exists():
        job = read_job(state.absolute(), name)
        if job.backend != backend:
            raise LaunchError(f"{name} is a job on {job.backend}: take another name, or launch.py delete {name} first")
        job.runs, job.launches = runs, [*job.launches, launch]
        job.options = job.options | options
        return job
    return Job(name, backend, runs, options, {}, launches=[launch], folder=folder)


def ship(job: Job) -> list[Step]:
    """Steps that put the committed code into the job's folder, in place of an earlier one."""
    archive = job.folder / "code.tar"
    return [
        Command(("mkdir", "-p", str(job.folder / "logs"))),
        Command(("git", "-C", str(ROOT), "archive", "--format=tar", f"--output={archive}", job.commit)),
        Command(("rm", "-rf", "--", str(job.code))),
        Command(("mkdir", str(job.code))),
        Command(("tar", "-xf", str(archive), "-C", str(job.code))),
    ]


def _lives(pid: int | None) -> bool:
    try:
        os.kill(pid or 0, 0)
    except ProcessLookupError:
        return False
    return pid is not None


def _git(*words: str) -> str:
    return Command(("git", "-C", str(ROOT), *words)).output().strip()


def _commit(allow_dirty: bool) -> tuple[str, bool]:
    """The commit that is launched, and whether the working tree differs from it."""
    try:
        commit = _git("rev-parse", "HEAD")
    except LaunchError as error:
        raise LaunchError(f"what is launched is a commit, and {ROOT} has none: {error}") from error
    changes = _git("status", "--porcelain")
    if changes and not allow_dirty:
        raise LaunchError(
            "the working tree has changes, and it is the commit that runs. Commit them, or leave them out with "
            f"--allow-dirty:\n{changes}"
        )
    return commit, bool(changes)


def _committed(config: str, commit: str) -> str:
    """The path of the configuration in the repository. Raises LaunchError: it is no file that the commit has."""
    path = Path(config).resolve()
    if not path.is_relative_to(ROOT):
        raise LaunchError(f"{config} is not in {ROOT}: what is launched is a commit of it, so put it there")
    inside = path.relative_to(ROOT).as_posix()
    entry = f"{commit}:{'' if inside == '.' else inside}"
    if not Command(("git", "-C", str(ROOT), "cat-file", "-e", entry)).succeeds():
        raise LaunchError(f"{inside} is not in the commit {commit[:12]}: commit it first")
    if _git("cat-file", "-t", entry) != "blob":
        raise LaunchError(f"{config} is a folder: CONFIG is a file, e.g. configs/demo.py")
    if path.suffix not in (".py", ".json"):
        raise LaunchError(f"{config} is no configuration: CONFIG ends in .py or, written by a run, in .json")
    return inside
