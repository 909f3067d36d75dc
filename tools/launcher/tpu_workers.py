"""The workers of a TPU: what is sent to them, and what `worker.sh` runs and reports there.

scp copies the code, the quoted command and the variables named with --env (a file of mode 600) to all workers. Only
verbs of `worker.sh` pass through shells on the way, so nothing needs further quoting.
"""

import contextlib
import dataclasses
import shlex

from tools.launcher import jobs, local
from tools.launcher.commands import Command, LaunchError, SecretFile, Step, TextFile
from tools.launcher.gcloud import gcloud, node, tpu_state
from tools.launcher.jobs import Job
from tools.launcher.restarts import Outcome


def remote_folder(job: Job) -> str:
    """Return the job's folder in a worker's home. Job names need no quoting."""
    return f"prompt_jax_jobs/{job.name}"


def ssh(job: Job, command: str, worker: int | str = "all") -> Command:
    return gcloud(job, "tpu-vm", "ssh", node(job), f"--worker={worker}", f"--command={command}", "--quiet")


def on_workers(job: Job, verb: str, worker: int | str = "all") -> Command:
    """Return the command that runs a verb of worker.sh on one worker or on all."""
    return ssh(job, f"bash {remote_folder(job)}/worker.sh {verb}", worker)


def clear_workers(job: Job) -> Command:
    """Return the command that stops the job on all workers and deletes its files there."""
    folder = remote_folder(job)
    return ssh(job, f"if test -e {folder}/worker.sh; then bash {folder}/worker.sh stop; fi; rm -rf {folder}")


def run_script(job: Job) -> str:
    """Return run.sh, the same for all workers, with the command quoted once."""
    return (
        "# Made by tools.launcher: runs the command and leaves its exit status and end time in `ended`.\n"
        ". ./env\n"
        "trap : TERM  # the process receives it too, and decides\n"
        f"(cd code && exec ../venv/bin/prompt-jax {shlex.join(job.command)})\n"
        'echo "$? $(date +%s.%N)" > ended.new && mv ended.new ended\n'
    )


def pack_files(job: Job) -> list[Step]:
    """Return the steps that make the files for the workers."""
    return [
        *jobs.ship_code(job),
        Command(("cp", str(job.code / "tools" / "launcher" / "worker.sh"), str(job.folder / "worker.sh"))),
        TextFile(job.folder / "run.sh", run_script(job)),
    ]


def start_workers(job: Job) -> list[Step]:
    """Return the steps that make the workers run the job. Workers that already run it are left alone."""
    env, folder = job.folder / "env", remote_folder(job)
    files = [str(job.folder / name) for name in ("code.tar", "run.sh", "worker.sh", "env")]
    return [
        ssh(job, f"umask 077; mkdir -p {folder}"),
        SecretFile(env, tuple(job.options["env"])),
        gcloud(job, "tpu-vm", "scp", *files, f"{node(job)}:{folder}/", "--worker=all", "--quiet"),
        Command(("rm", "-f", str(env))),
        on_workers(job, "setup"),
        on_workers(job, "start"),
    ]


def worker_statuses(text: str) -> dict[str, tuple[int | None, float]]:
    """Parse the output of `worker.sh status`: exit status (None while running) and end time by worker.

    A process that is gone without an exit status was killed together with run.sh and counts as 137. End times are
    seconds since 1970.
    """
    statuses: dict[str, tuple[int | None, float]] = {}
    for line in text.splitlines():
        match line.split():
            case ["worker", worker, "running"]:
                statuses[worker] = (None, 0.0)
            case ["worker", worker, "gone"]:
                statuses[worker] = (137, 0.0)
            case ["worker", worker, "ended", status, time]:
                statuses[worker] = (int(status), float(time))
    return statuses


@dataclasses.dataclass(frozen=True)
class ClearIfPresent:
    """The step that stops the job on an existing TPU VM and deletes its files there, if the TPU VM is there."""

    job: Job

    def shell(self) -> str:
        return clear_workers(self.job).shell()

    def run(self) -> None:
        if tpu_state(self.job).ready:
            clear_workers(self.job).run()


@dataclasses.dataclass(frozen=True)
class ShowLog:
    """The step that prints a worker's log: from the worker, or this machine's copy if the TPU is gone."""

    job: Job
    worker: int

    def shell(self) -> str:
        return on_workers(self.job, "log", self.worker).shell()

    def run(self) -> None:
        if tpu_state(self.job).ready:
            on_workers(self.job, "log", self.worker).run()
        else:
            local.show_log(self.job, self.worker, follow=False).run()


def fetch_log(job: Job, worker: int) -> Command:
    """Return the command that copies a worker's log to this machine."""
    source, destination = f"{node(job)}:{remote_folder(job)}/log", str(job.log(worker))
    return gcloud(job, "tpu-vm", "scp", source, destination, f"--worker={worker}", "--quiet")


def fetch_logs(job: Job, outcome: Outcome) -> None:
    """Copy the logs of worker 0 and of the worker that failed first to this machine, if possible."""
    for worker in sorted({"0", outcome.process.removeprefix("worker ")}):
        if worker.isdecimal():
            with contextlib.suppress(LaunchError):
                fetch_log(job, int(worker)).output()
