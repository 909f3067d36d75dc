"""Processes of one job on this machine, over `jax.distributed`: started, watched, and started again together."""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from launcher import jobs
from launcher.commands import Command, LaunchError, Step, perform
from launcher.jobs import Job
from launcher.restarts import RESTARTABLE, Ending, Restarts, exit_status

POLL = 0.1  # seconds
SAVED = 75  # exit status of a process that was told to end, and has saved


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="how many (default 1)")
    parser.add_argument("--grace", type=float, default=60.0, metavar="SECONDS", help="between SIGTERM and SIGKILL (60)")
    parser.add_argument(
        "--runs", default="runs", metavar="FOLDER", help="folder of all runs, or gs://BUCKET/... (runs)"
    )


def check(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The folder of all runs, and what is recorded of the options. Raises LaunchError."""
    if not 1 <= options.processes <= 64:
        raise LaunchError(f"--processes must be from 1 to 64, not {options.processes}")
    jobs.check_seconds("--grace", options.grace)
    return jobs.runs_folder(options.runs), {"processes": options.processes}


def processes(job: Job, port: int) -> list[Command]:
    """The processes of a job: the same command for all, and each its number."""
    count = job.options["processes"]
    return [
        Command(
            (sys.executable, "-m", "prompt_jax.cli", *job.command),
            {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(number),
                "PYTHONPATH": str(job.code),  # the committed package, and not one that is installed
            },
            job.code,
        )
        for number in range(count)
    ]


def launch(job: Job, options: argparse.Namespace) -> int:
    """Runs the job to its end, starting it again where that helps. Returns the exit status of the first failure."""
    if options.dry_run:
        perform(jobs.ship(job), dry_run=True)
        for command in processes(job, _free_port()):
            print(f"{command.shell()} &")
        print("wait")
        return 0
    job.folder.mkdir(parents=True, exist_ok=True)
    with job.locked() as lock, _signals() as told:
        job.write(state="running", detail="", ids={"pid": os.getpid()})
        perform(jobs.ship(job), dry_run=False)
        restarts = Restarts(options.retries, options.backoff)
        while True:
            begin = time.monotonic()
            ending = _sitting(job, lock, told, options.grace)
            if ending.status == 0:
                job.write(state="done")
                return 0
            if told and ending.status in RESTARTABLE:
                return _stopped(job, told, ending)
            wait = restarts.wait(time.monotonic() - begin) if ending.status in RESTARTABLE else None
            if wait is None:
                job.write(state="failed", detail=str(ending))
                given_up = f", restarted {options.retries} times" if ending.status in RESTARTABLE else ""
                print(f"launch: {job.name} failed{given_up}: {ending}; see {job.folder / 'logs'}", file=sys.stderr)
                return ending.status
            print(f"launch: {ending}; restart {restarts.count} in {wait:.0f} s", file=sys.stderr)
            _sleep(wait, told)
            if told:
                return _stopped(job, told, Ending(SAVED))


def _stopped(job: Job, told: Sequence[int], ending: Ending) -> int:
    """Says that a job was stopped, and whether it has saved. Returns the exit status."""
    unsaved = "" if ending.status == SAVED else f", and not all was saved: {ending}"
    job.write(state="stopped", detail=f"by {signal.Signals(told[0]).name}{unsaved}")
    print(f"launch: {job.name} stopped{unsaved}; the same command goes on", file=sys.stderr)
    return ending.status


def _sitting(job: Job, lock: int, told: Sequence[int], grace: float) -> Ending:
    """From one start of all processes to the end of all."""
    with contextlib.ExitStack() as stack:
        started: list[subprocess.Popen] = []
        stack.callback(lambda: _end(started, grace))
        shown = stack.enter_context(job.log(0).open("ab+"))
        for number, command in enumerate(processes(job, _free_port())):
            log = stack.enter_context(job.log(number).open("ab"))
            # Sessions of their own, so that Ctrl-C reaches this process alone; the lock, so that they hold it if this
            # process is killed.
            started.append(
                command.start(stdout=log, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(lock,))
            )
        job.write(ids={"pid": os.getpid(), "processes": [process.pid for process in started]})
        while True:
            if told:
                _end(started, grace)
            codes = [process.poll() for process in started]
            _copy_new(shown)
            failed = [number for number, code in enumerate(codes) if code]
            if told:  # what ended otherwise than by saving comes first
                failed.sort(key=lambda number: codes[number] == SAVED)
            if failed:
                return Ending(exit_status(codes[failed[0]] or 0), f"process {failed[0]}")
            if all(code == 0 for code in codes):
                return Ending(0)
            time.sleep(POLL)


def _end(started: Sequence[subprocess.Popen], grace: float) -> None:
    """Ends the processes that are still there: they are told, and killed if they do not go."""
    for signal_number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, None)):
        for process in started:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal_number)
        until = None if seconds is None else time.monotonic() + seconds
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(None if until is None else max(0.0, until - time.monotonic()))


def _copy_new(log) -> None:
    """Prints what process 0 has written since the last time."""
    sys.stdout.buffer.write(log.read())
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that would end us, which are noted instead."""
    told: list[int] = []
    caught = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: told.append(number)) for number in caught}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _sleep(seconds: float, told: Sequence[int]) -> None:
    until = time.monotonic() + seconds
    while not told and time.monotonic() < until:
        time.sleep(min(POLL, seconds))


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


# --------------------------------------------------------------------------------------------------------------
# The other verbs


def states(known: Sequence[Job], dry_run: bool) -> dict[str, str]:
    """How jobs stand, by name."""
    return {} if dry_run else {job.name: _state(job) for job in known}


def _state(job: Job) -> str:
    if job.held:
        return "running"
    if job.state in ("starting", "running"):
        return "ended with its launcher"
    return f"{job.state}: {job.detail}" if job.detail else job.state


def logs(job: Job, worker: int) -> Command:
    return follow(job, worker, running=job.held)


def follow(job: Job, worker: int, *, running: bool) -> Command:
    """Prints the log of a process from its beginning and, of a job that runs, goes on with it."""
    if not job.log(worker).exists():
        there = sorted(path.name for path in (job.folder / "logs").glob("worker-*.log"))
        raise LaunchError(f"{job.name} has no log of worker {worker}; there are: {', '.join(there) or 'none'}")
    return Command(("tail", "-n", "+1", *(["-F"] if running else []), str(job.log(worker))))


def stop(job: Job) -> list[Step]:
    return job.end_launcher()


def delete(job: Job) -> list[Step]:
    return [*stop(job), job.remove()]
