"""Processes on this machine, connected by `jax.distributed`: started, watched and restarted together."""

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

from tools.launcher import checks, jobs
from tools.launcher.commands import Command, LaunchError, Step, perform
from tools.launcher.jobs import Job
from tools.launcher.restarts import PREEMPTED, RESTARTABLE, Outcome, Restarts, exit_status

POLL = 0.1  # seconds


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="number of processes (default 1)")
    parser.add_argument(
        "--grace", type=float, default=60.0, metavar="SECONDS", help="time from SIGTERM to SIGKILL (default 60)"
    )
    parser.add_argument(
        "--runs", default="runs", metavar="FOLDER", help="folder of all runs, or gs://BUCKET/... (default runs)"
    )


def check(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return the folder of all runs and the options to record. Raises LaunchError."""
    if not 1 <= options.processes <= 64:
        raise LaunchError(f"--processes must be from 1 to 64, not {options.processes}")
    checks.check_seconds("--grace", options.grace)
    return checks.runs_folder(options.runs), {"processes": options.processes}


def processes(job: Job, port: int) -> list[Command]:
    """Return the processes of a job: the same command for all, with a different JAX_PROCESS_ID."""
    count = job.options["processes"]
    return [
        Command(
            (sys.executable, "-m", "prompt_jax.cli", *job.command),
            {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(number),
                "PYTHONPATH": str(job.code),  # the committed package, not an installed one
            },
            job.code,
        )
        for number in range(count)
    ]


def launch(job: Job, options: argparse.Namespace) -> int:
    """Run the job to its end, with restarts. Returns the exit status of the first failure."""
    if options.dry_run:
        perform(jobs.ship_code(job), dry_run=True)
        for command in processes(job, _free_port()):
            print(f"{command.shell()} &")
        print("wait")
        return 0
    job.folder.mkdir(parents=True, exist_ok=True)
    with job.locked() as lock, _collect_signals() as signals:
        job.write(state="running", detail="", ids={"pid": os.getpid()})
        perform(jobs.ship_code(job), dry_run=False)
        restarts = Restarts(options.retries, options.backoff)
        while True:
            begin = time.monotonic()
            outcome = _run_attempt(job, lock, signals, options.grace)
            if outcome.status == 0:
                job.write(state="done")
                return 0
            if signals and outcome.status in RESTARTABLE:
                return _stopped(job, signals, outcome)
            delay = restarts.next_delay(time.monotonic() - begin) if outcome.status in RESTARTABLE else None
            if delay is None:
                job.write(state="failed", detail=str(outcome))
                given_up = f" after {options.retries} restarts" if outcome.status in RESTARTABLE else ""
                print(f"launcher: {job.name} failed{given_up}: {outcome}; see {job.folder / 'logs'}", file=sys.stderr)
                return outcome.status
            print(f"launcher: {outcome}; restart {restarts.count} in {delay:.0f} s", file=sys.stderr)
            _sleep(delay, signals)
            if signals:
                return _stopped(job, signals, Outcome(PREEMPTED))


def _stopped(job: Job, signals: Sequence[int], outcome: Outcome) -> int:
    """Record and print that a job was stopped, and whether all of it was saved. Returns the exit status."""
    unsaved = "" if outcome.status == PREEMPTED else f", but not everything was saved: {outcome}"
    job.write(state="stopped", detail=f"by {signal.Signals(signals[0]).name}{unsaved}")
    print(f"launcher: {job.name} stopped{unsaved}; repeat the command to resume", file=sys.stderr)
    return outcome.status


def _run_attempt(job: Job, lock: int, signals: Sequence[int], grace: float) -> Outcome:
    """Start all processes and wait until all have ended."""
    with contextlib.ExitStack() as stack:
        started: list[subprocess.Popen] = []
        stack.callback(lambda: _terminate(started, grace))
        main_log = stack.enter_context(job.log(0).open("ab+"))
        for number, command in enumerate(processes(job, _free_port())):
            log = stack.enter_context(job.log(number).open("ab"))
            # In new sessions, so that Ctrl-C only reaches the launcher. They inherit the lock and keep it if the
            # launcher is killed.
            started.append(
                command.start(stdout=log, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(lock,))
            )
        job.write(ids={"pid": os.getpid(), "processes": [process.pid for process in started]})
        while True:
            if signals:
                _terminate(started, grace)
            codes = [process.poll() for process in started]
            _print_new(main_log)
            failed = [number for number, code in enumerate(codes) if code]
            if signals:  # report processes that did not save first
                failed.sort(key=lambda number: codes[number] == PREEMPTED)
            if failed:
                return Outcome(exit_status(codes[failed[0]] or 0), f"process {failed[0]}")
            if all(code == 0 for code in codes):
                return Outcome(0)
            time.sleep(POLL)


def _terminate(started: Sequence[subprocess.Popen], grace: float) -> None:
    """Send SIGTERM to the running processes, and SIGKILL to those that run after `grace` seconds."""
    for signal_number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, None)):
        for process in started:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal_number)
        until = None if seconds is None else time.monotonic() + seconds
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(None if until is None else max(0.0, until - time.monotonic()))


def _print_new(log) -> None:
    """Print the output of process 0 since the last call."""
    sys.stdout.buffer.write(log.read())
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def _collect_signals() -> Iterator[list[int]]:
    """Collect the signals that would end the launcher, in the list that is yielded."""
    received: list[int] = []
    caught = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    previous = {number: signal.signal(number, lambda number, _: received.append(number)) for number in caught}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _sleep(seconds: float, signals: Sequence[int]) -> None:
    until = time.monotonic() + seconds
    while not signals and time.monotonic() < until:
        time.sleep(min(POLL, seconds))


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


# --------------------------------------------------------------------------------------------------------------
# The other verbs


def states(known: Sequence[Job], dry_run: bool) -> dict[str, str]:
    """Return the states of jobs, by name."""
    return {} if dry_run else {job.name: _state(job) for job in known}


def _state(job: Job) -> str:
    if job.is_locked:
        return "running"
    if job.state in ("starting", "running"):
        return "ended with its launcher"
    return f"{job.state}: {job.detail}" if job.detail else job.state


def logs(job: Job, worker: int) -> Command:
    return show_log(job, worker, follow=job.is_locked)


def show_log(job: Job, worker: int, *, follow: bool) -> Command:
    """Return the command that prints the log of a process, and follows it if the job is running."""
    if not job.log(worker).exists():
        existing = sorted(path.name for path in (job.folder / "logs").glob("worker-*.log"))
        raise LaunchError(f"{job.name} has no log of worker {worker}; existing logs: {', '.join(existing) or 'none'}")
    return Command(("tail", "-n", "+1", *(["-F"] if follow else []), str(job.log(worker))))


def stop(job: Job) -> list[Step]:
    return job.stop_launcher()


def delete(job: Job) -> list[Step]:
    return [*stop(job), job.remove()]
