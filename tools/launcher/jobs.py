"""The record of a job, and the code that it runs."""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from tools.launcher.checks import check_name
from tools.launcher.commands import Command, LaunchError, Step

ROOT = Path(__file__).resolve().parents[2]  # the checkout that is launched
VERSION = 1


@dataclasses.dataclass
class Job:
    """The record of a job: `job.json` in the job's folder.

    Attributes:
      name: name of the job and of the run.
      backend: where it runs.
      runs: folder of all runs; the run is in `runs`/`name`.
      options: options of the backend.
      ids: the backend's identifiers of the job.
      state: starting, running, submitted, stopped, done or failed, when the record was last written.
      detail: reason for the state.
      launches: one dict per launch, with `time`, `commit`, `dirty` (the working tree had changes, which do not run),
        `argv` (the launcher's) and `command` (the arguments of prompt-jax).
    """

    name: str
    backend: Literal["local", "slurm", "tpu-vm", "gke"]
    runs: str
    options: dict[str, Any]
    ids: dict[str, Any]
    state: str = "starting"
    detail: str = ""
    launches: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    version: int = VERSION
    folder: Path = Path()  # not part of job.json

    @property
    def commit(self) -> str:
        return self.launches[-1]["commit"]

    @property
    def command(self) -> list[str]:
        """The arguments of prompt-jax, the same for all processes."""
        return self.launches[-1]["command"]

    @property
    def code(self) -> Path:
        """The folder of the committed code on this machine."""
        return self.folder / "code"

    def log(self, worker: int) -> Path:
        return self.folder / "logs" / f"worker-{worker}.log"

    def write(self, **changes: Any) -> None:
        """Change fields and write the record atomically."""
        for name, value in changes.items():
            setattr(self, name, value)
        fields = {name: value for name, value in vars(self).items() if name != "folder"}
        new = self.folder / "job.json.new"
        with new.open("w", encoding="utf-8") as file:
            file.write(json.dumps(fields, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.folder / "job.json")

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the job's lock. Child processes that inherit the yielded file descriptor hold it too.

        Raises:
          LaunchError: another process holds the lock.
        """
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LaunchError(
                    f"{self.name} is already running; stop it with python -m tools.launcher stop {self.name}"
                ) from error
            yield file.fileno()

    @property
    def is_locked(self) -> bool:
        """Whether a launcher on this machine, or a process that it left behind, still works on the job."""
        try:
            with self.locked():
                return False
        except LaunchError:
            return True
        except FileNotFoundError:  # the folder is gone
            return False

    def stop_launcher(self) -> list[Step]:
        """Return the steps that stop the job's launcher and wait until it has cleaned up."""
        if not self.is_locked:
            return []
        if not _is_alive(self.ids.get("pid")):
            raise LaunchError(
                f"the launcher of {self.name} was killed, and its processes {self.ids.get('processes')} still run: "
                "stop them with kill, then repeat this command"
            )
        return [Command(("kill", "-TERM", str(self.ids["pid"]))), Command(("flock", str(self.folder / "lock"), "true"))]

    def remove(self) -> Step:
        """Return the step that deletes the job's record, code and logs. The run's folder stays."""
        return Command(("rm", "-r", "--", str(self.folder)))


def state_folder() -> Path:
    """Return the default folder of job records."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "prompt_jax" / "jobs"


def read_job(state: Path, name: str) -> Job:
    """Read the record of a job. Raises LaunchError if it is missing or invalid."""
    check_name(name)
    path = state / name / "job.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields["version"] != VERSION:
            raise LaunchError(f"{path} has version {fields['version']}; this launcher reads version {VERSION}")
        return Job(**fields, folder=path.parent)
    except FileNotFoundError as error:
        known = ", ".join(job.name for job in read_jobs(state)) or "none"
        raise LaunchError(f"no job {name} in {state}; known jobs: {known}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise LaunchError(f"{path} is not a valid job record: {error}") from error


def read_jobs(state: Path) -> list[Job]:
    """Read all records, sorted by name."""
    return [read_job(state, path.parent.name) for path in sorted(state.glob("*/job.json"))]


def make_job(
    state: Path,
    name: str,
    backend: Literal["local", "slurm", "tpu-vm", "gke"],
    config: str,
    overrides: Sequence[str],
    *,
    runs: str,
    options: dict[str, Any],
    argv: Sequence[str],
    allow_dirty: bool,
) -> Job:
    """Return the job to launch, as a further launch of its record if there is one. Writes nothing.

    Raises:
      LaunchError: an invalid name, a working tree with changes, a configuration that is not committed, or a job of
        this name on another backend.
    """
    check_name(name)
    commit, dirty = _commit(allow_dirty)
    path = _committed_path(config, commit)
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
            raise LaunchError(
                f"{name} is already a job on {job.backend}: choose another name, or first run "
                f"python -m tools.launcher delete {name}"
            )
        job.runs, job.launches = runs, [*job.launches, launch]
        job.options = job.options | options
        return job
    return Job(name, backend, runs, options, {}, launches=[launch], folder=folder)


def ship_code(job: Job) -> list[Step]:
    """Return the steps that put the committed code into the job's folder, replacing an earlier commit."""
    archive = job.folder / "code.tar"
    return [
        Command(("mkdir", "-p", str(job.folder / "logs"))),
        Command(("git", "-C", str(ROOT), "archive", "--format=tar", f"--output={archive}", job.commit)),
        Command(("rm", "-rf", "--", str(job.code))),
        Command(("mkdir", str(job.code))),
        Command(("tar", "-xf", str(archive), "-C", str(job.code))),
    ]


def _is_alive(pid: int | None) -> bool:
    try:
        os.kill(pid or 0, 0)
    except ProcessLookupError:
        return False
    return pid is not None


def _git(*words: str) -> str:
    return Command(("git", "-C", str(ROOT), *words)).output().strip()


def _commit(allow_dirty: bool) -> tuple[str, bool]:
    """Return the commit to launch, and whether the working tree differs from it."""
    try:
        commit = _git("rev-parse", "HEAD")
    except LaunchError as error:
        raise LaunchError(f"the launcher runs a commit, and {ROOT} has none: {error}") from error
    changes = _git("status", "--porcelain")
    if changes and not allow_dirty:
        raise LaunchError(
            "the working tree has changes, but the launcher runs the commit. Commit them, or ignore them with "
            f"--allow-dirty:\n{changes}"
        )
    return commit, bool(changes)


def _committed_path(config: str, commit: str) -> str:
    """Return the configuration's path in the repository. Raises LaunchError if it is not a file of the commit."""
    path = Path(config).resolve()
    if not path.is_relative_to(ROOT):
        raise LaunchError(f"{config} is not in {ROOT}: the launcher runs a commit of this checkout, so move it there")
    inside = path.relative_to(ROOT).as_posix()
    entry = f"{commit}:{'' if inside == '.' else inside}"
    if not Command(("git", "-C", str(ROOT), "cat-file", "-e", entry)).succeeds():
        raise LaunchError(f"{inside} is not in the commit {commit[:12]}: commit it first")
    if _git("cat-file", "-t", entry) != "blob":
        raise LaunchError(f"{config} is a folder: CONFIG must be a file, e.g. configs/demo.py")
    if path.suffix not in (".py", ".json"):
        raise LaunchError(f"{config} is not a configuration: CONFIG must end in .py, or in .json if a run wrote it")
    return inside
