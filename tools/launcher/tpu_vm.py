"""Cloud TPUs: requested with gcloud, set up, watched, and requested again after preemption.

The launcher watches the job from this machine. If it is interrupted, the job continues, and the same command watches it
again. At every exit the launcher prints what still exists and is billed.
"""

import argparse
import contextlib
import os
import re
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tools.launcher import checks, jobs
from tools.launcher.commands import LaunchError, Step, perform
from tools.launcher.gcloud import (
    TRANSIENT,
    DeleteIfPresent,
    billing,
    billing_at_exit,
    create_tpu,
    delete_tpu,
    existing,
    node,
    queries,
    remaining_resources,
    report,
    tpu_state,
)
from tools.launcher.jobs import Job
from tools.launcher.restarts import PEER_LOST, RESTARTABLE, Outcome, Restarts
from tools.launcher.tpu_workers import (
    ClearIfPresent,
    ShowLog,
    fetch_logs,
    on_workers,
    pack_files,
    remote_folder,
    ssh,
    start_workers,
    worker_statuses,
)

_ZONE = re.compile(r"[a-z]+-[a-z]+[0-9]+-[a-z]")
_ACCELERATOR = re.compile(r"v[0-9][a-z0-9]*-[0-9]{1,5}")
_PROJECT = re.compile(r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")
_NODE = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_RUNTIME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")

# The software version of each generation's workers (Google's table of TPU software versions).
_RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}

# Options that define the TPU: changing one of them means another TPU.
_TPU_OPTIONS = ("zone", "project", "accelerator", "runtime_version", "spot", "reserved", "direct", "existing")

GRACE = 180.0  # seconds for the other workers to notice a failure: JAX's heartbeat is 100 s
UNREACHABLE = 10  # failed status queries in a row after which the workers count as lost


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--zone", required=True, help="e.g. us-west4-a")
    tpu = parser.add_mutually_exclusive_group(required=True)
    tpu.add_argument("--accelerator", metavar="TYPE", help="create this TPU, e.g. v5litepod-256, v6e-16, v4-32")
    tpu.add_argument("--existing", metavar="TPU", help="use this TPU VM, and never create or delete it")
    parser.add_argument("--runs", required=True, metavar="gs://BUCKET/...", help="folder of all runs, on a bucket")
    parser.add_argument("--project", help="Google Cloud project (default: gcloud's)")
    parser.add_argument("--runtime-version", metavar="VERSION", help="TPU software version (default: by TYPE)")
    tier = parser.add_mutually_exclusive_group()
    tier.add_argument("--spot", action="store_true", help="cheaper, but may be preempted (default: on demand)")
    tier.add_argument("--reserved", action="store_true", help="use reserved capacity of the project")
    parser.add_argument(
        "--direct", action="store_true", help="create the TPU at once or fail, instead of queueing a request"
    )
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME", help="variable to pass to the workers, e.g. HF_TOKEN"
    )
    parser.add_argument("--autodelete", action="store_true", help="delete the TPU when the job is done or has failed")
    parser.add_argument(
        "--poll", type=float, default=30.0, metavar="SECONDS", help="interval between status queries (default 30)"
    )


def check(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return the folder of all runs and the options to record. Raises LaunchError."""

    def checked(option: str, value: str, pattern: re.Pattern, example: str) -> str:
        if not pattern.fullmatch(value):
            raise LaunchError(f"{option} {value!r}: expected something like {example}")
        return value

    checks.check_bucket(options.runs)
    checks.check_variables(options.env)
    checks.check_seconds("--poll", options.poll)
    runtime = options.runtime_version
    if options.existing is not None:
        checked("--existing", options.existing, _NODE, "my-tpu")
        for name in ("runtime_version", "spot", "reserved", "direct", "autodelete"):
            if getattr(options, name):
                raise LaunchError(f"--{name.replace('_', '-')} does not apply to an existing TPU VM")
    else:
        generation = checked("--accelerator", options.accelerator, _ACCELERATOR, "v5litepod-256").split("-")[0]
        runtime = checked("--runtime-version", runtime or _runtime(generation), _RUNTIME, "v2-alpha-tpuv5-lite")
    return options.runs.rstrip("/"), {
        "zone": checked("--zone", options.zone, _ZONE, "us-west4-a"),
        "project": options.project and checked("--project", options.project, _PROJECT, "my-project"),
        "accelerator": options.accelerator,
        "runtime_version": runtime,
        "spot": options.spot,
        "reserved": options.reserved,
        "direct": options.direct,
        "existing": options.existing,
        "env": options.env,
    }


def _runtime(generation: str) -> str:
    """Return the software version of a generation's workers. Raises LaunchError if it is not known."""
    if generation not in _RUNTIMES:
        raise LaunchError(
            f"--accelerator: {generation} is not a known generation ({', '.join(_RUNTIMES)}); for another one give "
            "--runtime-version too"
        )
    return _RUNTIMES[generation]


def launch(job: Job, options: argparse.Namespace) -> int:
    """Run the job to its end and watch it. Returns the exit status of the first failure."""
    if options.dry_run:
        create = [] if existing(job) else [create_tpu(job)]
        end = [delete_tpu(job)] if options.autodelete else []
        steps = [*pack_files(job), *create, *queries(job), *start_workers(job), on_workers(job, "status"), *end]
        perform(steps, dry_run=True)
        return 0
    job.folder.mkdir(parents=True, exist_ok=True)
    with job.locked(), _exit_on_signals():
        _check_same_tpu(job)
        with billing_at_exit(job):
            return _launch(job, options)


def _launch(job: Job, options: argparse.Namespace) -> int:
    _check_workers(job)
    job.write(state="running", detail="", ids={"pid": os.getpid(), "node": node(job)})
    tpu_state(job)  # fails early if gcloud is missing or nobody is logged in
    perform(pack_files(job), dry_run=False)
    try:
        outcome = _run_attempts(job, options)
    except RequestRefused as error:
        job.write(state="failed", detail=str(error))
        raise
    fetch_logs(job, outcome)
    job.write(state="failed" if outcome.status else "done", detail=str(outcome) if outcome.status else "")
    if outcome.status:
        report(f"{job.name} failed: {outcome}; its logs are in {job.folder / 'logs'}")
    if options.autodelete:
        DeleteIfPresent(job).run()
    return outcome.status


def _previous(job: Job) -> Job | None:
    """Return the job as recorded by its previous launch."""
    return jobs.read_job(job.folder.parent, job.name) if (job.folder / "job.json").exists() else None


def _check_same_tpu(job: Job) -> None:
    """Raise LaunchError if the job has, or may have, another TPU, which would be forgotten and billed."""
    if previous := _previous(job):
        # Old records lack the newer options, which were off.
        changed = [name for name in _TPU_OPTIONS if (previous.options.get(name) or None) != (job.options[name] or None)]
        if changed and (remaining := remaining_resources(previous)):
            before, now = (
                ", ".join(f"{name} {each.options.get(name)}" for name in changed).replace("_", "-")
                for each in (previous, job)
            )
            raise LaunchError(
                f"{job.name} was launched with {before}, not {now}: launch it with the same options, or first run "
                f"python -m tools.launcher delete {job.name}\n{remaining}"
            )


def _check_workers(job: Job) -> None:
    """Raise LaunchError if the workers still run another commit or command."""
    previous = _previous(job)
    if previous is None or (previous.commit, previous.command) == (job.commit, job.command):
        return
    if not tpu_state(job).ready:
        return
    script = f"{remote_folder(job)}/worker.sh"
    if " running" in ssh(job, f"if test -e {script}; then bash {script} status; fi").output():
        raise LaunchError(
            f"{job.name} still runs commit {previous.commit[:12]}: {shlex.join(previous.command)}\n"
            f"Launch the same commit and command to watch it, or first run python -m tools.launcher stop {job.name}"
        )


class RequestRefused(LaunchError):
    """Google Cloud refused the request for a TPU and would refuse it again, or the existing TPU VM is gone."""


def _run_attempts(job: Job, options: argparse.Namespace) -> Outcome:
    """Run attempts until the job is done or another one would not help."""
    restarts = Restarts(options.retries, options.backoff)
    while True:
        begin = time.monotonic()
        try:
            _acquire(job, options.poll)
            begin = time.monotonic()  # time in the queue does not count
            try:
                perform(start_workers(job), dry_run=False)
            finally:
                (job.folder / "env").unlink(missing_ok=True)  # it contains secrets
            outcome = _watch(job, options.poll)
            reason = str(outcome)
            if outcome.status not in RESTARTABLE:
                return outcome
        except RequestRefused:
            raise
        except LaunchError as error:
            outcome, reason = Outcome(PEER_LOST, "the TPU"), str(error)
        delay = restarts.next_delay(time.monotonic() - begin)
        if delay is None:
            report(f"giving up after {options.retries} restarts in a row")
            return outcome
        report(f"{reason}; restart {restarts.count} in {delay:.0f} s")
        time.sleep(delay)


def _acquire(job: Job, poll: float) -> None:
    """Wait until the TPU is ready. Requests one that does not exist, after deleting one that was lost."""
    previous = None
    while not (state := tpu_state(job)).ready:
        if state != previous:
            report(f"{node(job)}: {state}")
        lost = state.dead and state == previous  # seen twice: one odd answer is not enough to delete a TPU
        if existing(job) and (lost or state.absent):
            raise RequestRefused(f"the TPU VM {node(job)} in {job.options['zone']} cannot be used: {state}")
        if lost:
            delete_tpu(job).run()
        elif state.absent:
            try:
                create_tpu(job).output()
            except LaunchError as error:
                if TRANSIENT.search(str(error)):
                    raise
                raise RequestRefused(str(error)) from error
        else:
            time.sleep(poll)
        previous = state


def _watch(job: Job, poll: float) -> Outcome:
    """Watch the workers until all have ended, or until GRACE after the first failure.

    Raises:
      LaunchError: the TPU is no longer ready, or its workers do not answer.
    """
    failed_since, unanswered = None, 0
    while True:
        state = tpu_state(job)
        if not state.ready:
            raise LaunchError(f"the TPU was preempted: {state}")
        try:
            statuses = worker_statuses(on_workers(job, "status").output())
        except LaunchError as error:
            unanswered += 1
            if unanswered >= UNREACHABLE:
                raise LaunchError(f"the workers do not answer: {error}") from error
            time.sleep(poll)
            continue
        unanswered = 0
        ended = sorted((end, worker, status) for worker, (status, end) in statuses.items() if status is not None)
        failed = [(worker, status) for _, worker, status in ended if status]
        if len(ended) == state.workers and not failed:
            return Outcome(0)
        if failed:
            failed_since = failed_since or time.monotonic()
            if len(ended) == state.workers or time.monotonic() - failed_since > GRACE:
                on_workers(job, "stop").run()
                worker, status = failed[0]
                return Outcome(status, f"worker {worker}")
        time.sleep(poll)


@contextlib.contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that the launcher still prints what is billed."""

    def end(number: int, _) -> None:
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# --------------------------------------------------------------------------------------------------------------
# The other verbs


def states(known: Sequence[Job], dry_run: bool) -> dict[str, str]:
    """Return the states of jobs, by name: what the launcher knows, and what exists of the TPU."""
    result = {}
    for job in known:
        if dry_run:
            perform(queries(job), dry_run=True)
            continue
        watched = "watched" if job.is_locked else f"not watched, last {job.state}"
        result[job.name] = f"{watched}; {billing(job)}"
    return result


def logs(job: Job, worker: int) -> Step:
    return ShowLog(job, worker)


def stop(job: Job) -> list[Step]:
    return [*job.stop_launcher(), on_workers(job, "stop")]


def delete(job: Job) -> list[Step]:
    release = ClearIfPresent(job) if existing(job) else DeleteIfPresent(job)
    return [*job.stop_launcher(), release, job.remove()]
