"""TPUs of Google Cloud, with gcloud: requested, set up, watched, and requested again when they are preempted.

The launcher watches the job from here. It may be interrupted: the job goes on, and the same command watches again. At
every exit it says what is still there, and billed.

The code, the quoted command and the variables named with --env (a file of mode 600) are copied to all workers with
scp: nothing but names of verbs goes through the shells on the way. `worker.sh` is what runs there.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from launcher import jobs, local
from launcher.commands import Command, LaunchError, SecretFile, Step, TextFile, perform
from launcher.jobs import Job
from launcher.restarts import RESTARTABLE, Ending, Restarts

_ZONE = re.compile(r"[a-z]+-[a-z]+[0-9]+-[a-z]")
_ACCELERATOR = re.compile(r"v[0-9][a-z0-9]*-[0-9]{1,5}")
_PROJECT = re.compile(r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")
_RUNTIME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")

# The software that a generation's workers boot with (Google's table of TPU software versions).
_RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}

# What makes a request worth another one.
_TRANSIENT = re.compile(r"capacity|RESOURCE_EXHAUSTED|UNAVAILABLE|INTERNAL|DEADLINE_EXCEEDED|ABORTED|ALREADY_EXISTS")

# States of a queued resource, and of a node, that do not lead to a usable TPU any more.
_DEAD = {"FAILED", "SUSPENDING", "SUSPENDED", "PREEMPTED", "TERMINATED", "STOPPED", "STOPPING", "HIDDEN", "HIDING"}

# Options of the request for a TPU: with others it would be another TPU.
_REQUESTED = ("zone", "project", "accelerator", "runtime_version", "spot", "direct")

GRACE = 180.0  # seconds for the others to notice that one has failed: JAX's heartbeat is 100 s
UNREACHABLE = 10  # times in a row that workers may not answer


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--zone", required=True, help="e.g. us-west4-a")
    parser.add_argument("--accelerator", required=True, metavar="TYPE", help="e.g. v5litepod-256, v6e-16, v4-32")
    parser.add_argument("--runs", required=True, metavar="gs://BUCKET/...", help="folder of all runs, on a bucket")
    parser.add_argument("--project", help="of Google Cloud, if it is not gcloud's own")
    parser.add_argument("--runtime-version", metavar="VERSION", help="of the TPU's software, if not the usual one")
    parser.add_argument("--spot", action="store_true", help="cheaper, and may be preempted; otherwise on demand")
    parser.add_argument(
        "--direct", action="store_true", help="tpu-vm create, which fails if there is none, and no queue"
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME", help="a variable to pass on, as HF_TOKEN")
    parser.add_argument("--autodelete", action="store_true", help="delete the TPU when the job is done or has failed")
    parser.add_argument("--poll", type=float, default=30.0, metavar="SECONDS", help="between looks at the job (30)")


def check(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The folder of all runs, and what is recorded of the options. Raises LaunchError."""

    def checked(option: str, value: str, pattern: re.Pattern, example: str) -> str:
        if not pattern.fullmatch(value):
            raise LaunchError(f"{option} {value!r}: expected something like {example}")
        return value

    jobs.check_bucket(options.runs)
    jobs.check_variables(options.env)
    jobs.check_seconds("--poll", options.poll)
    generation = checked("--accelerator", options.accelerator, _ACCELERATOR, "v5litepod-256").split("-")[0]
    runtime = options.runtime_version or _RUNTIMES.get(generation)
    if runtime is None:
        raise LaunchError(f"--accelerator {options.accelerator}: name its software too, with --runtime-version")
    return options.runs.rstrip("/"), {
        "zone": checked("--zone", options.zone, _ZONE, "us-west4-a"),
        "project": options.project and checked("--project", options.project, _PROJECT, "my-project"),
        "accelerator": options.accelerator,
        "runtime_version": checked("--runtime-version", runtime, _RUNTIME, "v2-alpha-tpuv5-lite"),
        "spot": options.spot,
        "direct": options.direct,
        "env": options.env,
    }


# --------------------------------------------------------------------------------------------------------------
# What would be run


def _gcloud(job: Job, *words: str) -> Command:
    project = [f"--project={job.options['project']}"] if job.options["project"] else []
    return Command(("gcloud", "compute", "tpus", *words, f"--zone={job.options['zone']}", *project))


@dataclasses.dataclass(frozen=True)
class Destroyed:
    """The step that ends a TPU, if there is one."""

    job: Job

    def shell(self) -> str:
        return destroy(self.job).shell()

    def run(self) -> None:
        if not capacity(self.job).absent:
            destroy(self.job).run()


def create(job: Job) -> Command:
    """The request for the TPU; the name of the node is that of the job."""
    accelerator, runtime = f"--accelerator-type={job.options['accelerator']}", job.options["runtime_version"]
    more = [*(["--spot"] if job.options["spot"] else []), "--quiet"]
    if job.options["direct"]:
        return _gcloud(job, "tpu-vm", "create", job.name, accelerator, f"--version={runtime}", *more)
    names = (job.name, f"--node-id={job.name}")
    return _gcloud(job, "queued-resources", "create", *names, accelerator, f"--runtime-version={runtime}", *more)


def destroy(job: Job) -> Command:
    """The end of the TPU, of its request, and of the bill."""
    if job.options["direct"]:
        return _gcloud(job, "tpu-vm", "delete", job.name, "--quiet")
    return _gcloud(job, "queued-resources", "delete", job.name, "--force", "--quiet")


def nodes(job: Job) -> Command:
    return _gcloud(job, "tpu-vm", "list", "--format=json")


def requests(job: Job) -> Command:
    return _gcloud(job, "queued-resources", "list", "--format=json")


def on_workers(job: Job, verb: str, worker: int | str = "all") -> Command:
    """A verb of worker.sh on a worker, or on all of them."""
    return _ssh(job, f"bash {_there(job)}/worker.sh {verb}", worker)


def _ssh(job: Job, command: str, worker: int | str = "all") -> Command:
    return _gcloud(job, "tpu-vm", "ssh", job.name, f"--worker={worker}", f"--command={command}", "--quiet")


def _there(job: Job) -> str:
    """The job's folder on a worker, in the home. Names of jobs need no quotes."""
    return f"prompt_jax_jobs/{job.name}"


@dataclasses.dataclass(frozen=True)
class Log:
    """The step that prints a worker's log: there, or where the TPU is gone, what was copied of it to this machine."""

    job: Job
    worker: int

    def shell(self) -> str:
        return on_workers(self.job, "log", self.worker).shell()

    def run(self) -> None:
        there = capacity(self.job).ready
        log = on_workers(self.job, "log", self.worker) if there else local.follow(self.job, self.worker, running=False)
        log.run()


def fetch_log(job: Job, worker: int) -> Command:
    """Copies a worker's log to this machine."""
    there, here = f"{job.name}:{_there(job)}/log", str(job.log(worker))
    return _gcloud(job, "tpu-vm", "scp", there, here, f"--worker={worker}", "--quiet")


def run_script(job: Job) -> str:
    """What a worker runs: the command, quoted once, as it is for all workers."""
    return (
        "# Made by tools/launch.py: the command of all workers. Its exit status and time are left in `ended`.\n"
        ". ./env\n"
        "trap : TERM  # the process is told too, and decides\n"
        f"(cd code && exec ../venv/bin/prompt-jax {shlex.join(job.command)})\n"
        'echo "$? $(date +%s.%N)" > ended.new && mv ended.new ended\n'
    )


def packed(job: Job) -> list[Step]:
    """Steps that make the files for the workers."""
    return [
        *jobs.ship(job),
        Command(("cp", str(job.code / "tools" / "launcher" / "worker.sh"), str(job.folder / "worker.sh"))),
        TextFile(job.folder / "run.sh", run_script(job)),
    ]


def sent(job: Job) -> list[Step]:
    """Steps that bring a TPU's workers to run the job. Where it runs already, they change nothing."""
    env, home = job.folder / "env", _there(job)
    files = [str(job.folder / name) for name in ("code.tar", "run.sh", "worker.sh", "env")]
    return [
        _ssh(job, f"umask 077; mkdir -p {home}"),
        SecretFile(env, tuple(job.options["env"])),
        _gcloud(job, "tpu-vm", "scp", *files, f"{job.name}:{home}/", "--worker=all", "--quiet"),
        Command(("rm", "-f", str(env))),
        on_workers(job, "setup"),
        on_workers(job, "start"),
    ]


# --------------------------------------------------------------------------------------------------------------
# Launching and watching


@dataclasses.dataclass(frozen=True)
class Capacity:
    """What Google Cloud has of a job.

    Attributes:
      request: state of the queued resource; None if there is none.
      node: state of the TPU; None if there is none.
      workers: of the TPU.
    """

    request: str | None
    node: str | None
    workers: int = 0

    @property
    def ready(self) -> bool:
        return self.node == "READY" and self.request in ("ACTIVE", None)

    @property
    def absent(self) -> bool:
        return self.request is None and self.node is None

    @property
    def dead(self) -> bool:
        """Whether it will not become ready any more. An active request without a node has lost it."""
        return bool({self.request, self.node} & _DEAD) or (self.request == "ACTIVE" and self.node is None)

    def __str__(self) -> str:
        return ", ".join(state for state in (self.request, self.node) if state) or "not there"


class Refused(LaunchError):
    """The request for a TPU was refused, and would be again."""


def capacity(job: Job) -> Capacity:
    """Asks for the TPU of a job. Raises LaunchError: there was no answer."""
    # In this order: asked for the node first, a TPU that became ready in between would seem to have lost it.
    request = None if job.options["direct"] else _named(requests(job).output(), job.name)
    node = _named(nodes(job).output(), job.name)
    return Capacity(
        request.get("state", {}).get("state", "UNKNOWN") if request else None,
        node.get("state", "UNKNOWN") if node else None,
        len(node.get("networkEndpoints", [])) if node else 0,
    )


def _named(listing: str, name: str) -> dict[str, Any] | None:
    """The resource of a name, as gcloud lists it in JSON. Raises LaunchError: it is no such list."""
    try:
        resources = {each["name"].split("/")[-1]: each for each in json.loads(listing or "[]")}
    except (ValueError, TypeError, KeyError) as error:
        raise LaunchError(f"gcloud printed no list of resources ({error}): {listing[:200]}") from error
    return resources.get(name)


def launch(job: Job, options: argparse.Namespace) -> int:
    """Runs the job to its end, and watches it. Returns the exit status of the first failure."""
    if options.dry_run:
        asked = [nodes(job)] if options.direct else [requests(job), nodes(job)]
        end = [destroy(job)] if options.autodelete else []
        perform([*packed(job), create(job), *asked, *sent(job), on_workers(job, "status"), *end], dry_run=True)
        return 0
    job.folder.mkdir(parents=True, exist_ok=True)
    with job.locked(), _signals_end_us(), _bill(_of_the_same_tpu(job)):
        _check_workers(job)
        job.write(state="running", detail="", ids={"pid": os.getpid(), "node": job.name})
        capacity(job)  # better known at once: that gcloud is not there, or that nobody is logged in
        perform(packed(job), dry_run=False)
        try:
            ending = _to_the_end(job, options)
        except Refused as error:
            job.write(state="failed", detail=str(error))
            raise
        _fetch_logs(job, ending)
        job.write(state="failed" if ending.status else "done", detail=str(ending) if ending.status else "")
        if ending.status:
            _say(f"{job.name} failed: {ending}; its logs are in {job.folder / 'logs'}")
        if options.autodelete:
            Destroyed(job).run()
        return ending.status


def _before(job: Job) -> Job | None:
    """A job as it was launched the last time."""
    return jobs.read_job(job.folder.parent, job.name) if (job.folder / "job.json").exists() else None


def _of_the_same_tpu(job: Job) -> Job:
    """The job. Raises LaunchError: it has, or may have, another TPU, which would be forgotten, and billed."""
    if before := _before(job):
        changed = [name for name in _REQUESTED if before.options[name] != job.options[name]]
        if changed and (left := _left(before)):
            was, now = (
                ", ".join(f"{name} {job.options[name]}" for name in changed).replace("_", "-") for job in (before, job)
            )
            raise LaunchError(
                f"{job.name} was launched with {was}, and not {now}: launch it as before, or "
                f"launch.py delete {job.name} first\n{left}"
            )
    return job


def _check_workers(job: Job) -> None:
    """Raises LaunchError: the workers still run something else, and would go on with that."""
    before = _before(job)
    if before is None or (before.commit, before.command) == (job.commit, job.command) or not capacity(job).ready:
        return
    script = f"{_there(job)}/worker.sh"
    if " running" in _ssh(job, f"if test -e {script}; then bash {script} status; fi").output():
        raise LaunchError(
            f"{job.name} still runs commit {before.commit[:12]}: {shlex.join(before.command)}\n"
            f"Launch the same again to watch it, or launch.py stop {job.name} first"
        )


def _to_the_end(job: Job, options: argparse.Namespace) -> Ending:
    """Sittings, one after the other, until the job is done or no further one helps."""
    restarts = Restarts(options.retries, options.backoff)
    while True:
        begin = time.monotonic()
        try:
            _acquire(job, options.poll)
            begin = time.monotonic()  # waiting in the queue is no sitting
            try:
                perform(sent(job), dry_run=False)
            finally:
                (job.folder / "env").unlink(missing_ok=True)  # it has secrets, wherever that ended
            ending = _watched(job, options.poll)
            reason = str(ending)
            if ending.status not in RESTARTABLE:
                return ending
        except Refused:
            raise
        except LaunchError as error:
            ending, reason = Ending(76, "the TPU"), str(error)
        wait = restarts.wait(time.monotonic() - begin)
        if wait is None:
            _say(f"restarted {options.retries} times in a row, and no more")
            return ending
        _say(f"{reason}; restart {restarts.count} in {wait:.0f} s")
        time.sleep(wait)


def _acquire(job: Job, poll: float) -> None:
    """Waits until the TPU is ready. One that was lost is deleted, and one that is not there is requested."""
    before = None
    while not (now := capacity(job)).ready:
        if now != before:
            _say(f"{job.name}: {now}")
        if now.dead and now == before:  # seen twice: a TPU is not given away for one odd answer
            destroy(job).run()
        elif now.absent:
            try:
                create(job).output()
            except LaunchError as error:
                if _TRANSIENT.search(str(error)):
                    raise
                raise Refused(str(error)) from error
        else:
            time.sleep(poll)
        before = now


def _watched(job: Job, poll: float) -> Ending:
    """Watches the workers until all have ended, or the first to fail has been for a while.

    Raises:
      LaunchError: the TPU is no longer ready, or its workers do not answer.
    """
    since, silent = None, 0
    while True:
        now = capacity(job)
        if not now.ready:
            raise LaunchError(f"the TPU was preempted: {now}")
        try:
            stands = _stands(on_workers(job, "status").output())
        except LaunchError as error:
            silent += 1
            if silent >= UNREACHABLE:
                raise LaunchError(f"the workers do not answer: {error}") from error
            time.sleep(poll)
            continue
        silent = 0
        ended = sorted((when, who, status) for who, (status, when) in stands.items() if status is not None)
        failed = [(who, status) for _, who, status in ended if status]
        if len(ended) == now.workers and not failed:
            return Ending(0)
        if failed:
            since = since or time.monotonic()
            if len(ended) == now.workers or time.monotonic() - since > GRACE:
                on_workers(job, "stop").run()
                who, status = failed[0]
                return Ending(status, f"worker {who}")
        time.sleep(poll)


def _fetch_logs(job: Job, ending: Ending) -> None:
    """Copies the logs of worker 0, and of the one that failed first, while they can be had."""
    for worker in sorted({"0", ending.who.removeprefix("worker ")}):
        if worker.isdecimal():
            with contextlib.suppress(LaunchError):
                fetch_log(job, int(worker)).output()


def _stands(text: str) -> dict[str, tuple[int | None, float]]:
    """The exit status of each worker's process, and when it ended (seconds since 1970); None while it runs.

    A process that is gone without an exit status has been killed with all that was around it, as 137 is.
    """
    stands: dict[str, tuple[int | None, float]] = {}
    for line in text.splitlines():
        match line.split():
            case ["worker", who, "running"]:
                stands[who] = (None, 0.0)
            case ["worker", who, "gone"]:
                stands[who] = (137, 0.0)
            case ["worker", who, "ended", status, when]:
                stands[who] = (int(status), float(when))
    return stands


@contextlib.contextmanager
def _bill(job: Job) -> Iterator[None]:
    """Says what is still there and billed, however the block ends."""
    try:
        yield
    finally:
        say_bill(job)


def say_bill(job: Job) -> None:
    """Says what is still there of a job, and billed, or if that is interrupted, that it is not known."""
    try:
        text = bill(job)
    except (KeyboardInterrupt, SystemExit):
        _say(_unknown(job, "interrupted"))
        raise
    _say(text)


def bill(job: Job) -> str:
    """What is still there of a job, and billed."""
    return _left(job) or f"nothing of {job.name} is left, or billed"


def _kind(job: Job) -> str:
    return f"{job.options['accelerator']} {job.name} in {job.options['zone']}"


def _unknown(job: Job, why: object) -> str:
    return f"COULD NOT ASK whether {_kind(job)} is still there, and billed: {why}\n  ask with: {nodes(job).shell()}"


def _left(job: Job) -> str | None:
    """What is, or may be, still there of a job; None if nothing is."""
    try:
        now = capacity(job)
    except LaunchError as error:
        return _unknown(job, error)
    if now.absent:
        return None
    billed = "STILL THERE, AND BILLED" if now.node else "still requested, and billed from when it is there"
    return f"{billed}: {_kind(job)} ({now}); to end that: launch.py delete {job.name}"


@contextlib.contextmanager
def _signals_end_us() -> Iterator[None]:
    """SIGTERM and SIGHUP end us as an exception does, so that what is billed is still said."""

    def end(number: int, _) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    print(f"launch: {text}", file=sys.stderr, flush=True)


# --------------------------------------------------------------------------------------------------------------
# The other verbs


def states(known: Sequence[Job], dry_run: bool) -> dict[str, str]:
    """How jobs stand, by name: what the launcher knows, and what there is of the TPU."""
    found = {}
    for job in known:
        if dry_run:
            perform([nodes(job)] if job.options["direct"] else [nodes(job), requests(job)], dry_run=True)
            continue
        watched = "watched" if job.held else f"not watched, last {job.state}"
        found[job.name] = f"{watched}; {bill(job)}"
    return found


def logs(job: Job, worker: int) -> Step:
    return Log(job, worker)


def stop(job: Job) -> list[Step]:
    return [*job.end_launcher(), on_workers(job, "stop")]


def delete(job: Job) -> list[Step]:
    return [*job.end_launcher(), Destroyed(job), job.remove()]
