"""Jobs of Slurm: one process a node, submitted with sbatch.

The job's script starts the processes again where that helps (`restarts.py`), and has the job queued anew when it was
preempted or its time is up. The job's folder must be on a file system that the nodes share, as homes usually are.
The job has the environment that it is submitted from, which Slurm keeps to itself: secrets are in no file of ours.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from launcher import jobs, local
from launcher.commands import Command, LaunchError, Step, TextFile, perform
from launcher.jobs import Job
from launcher.restarts import GOOD_SITTING, LONGEST_WAIT, MOST_DOUBLINGS, RESTARTABLE, meaning

NOTICE = 60  # seconds before the end of the job's time at which it is told to save

# One process: its exit status is noted, and which process was the first to fail, since the ends of the others follow
# from that. A process that fails leaves the others a while to end by themselves; Slurm kills those that do not.
_TASK = """\
trap : TERM  # the process is told too, and decides
# One process has all GPUs of its node; by itself JAX would give it one.
if test -n "${SLURM_GPUS_ON_NODE:-}"; then
    export JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
fi
"$@"
status=$?
echo "$status" > "$ENDS/$SLURM_PROCID"
if test "$status" -ne 0; then
    (set -C; echo "$SLURM_PROCID $status" > "$ENDS/first") 2> /dev/null
    for ((i = 0; i < GRACE; i++)); do
        ended=("$ENDS"/[0-9]*)
        test "${#ended[@]}" -ge "$SLURM_NTASKS" && break
        sleep 1
    done
fi
exit "$status"
"""

_SCRIPT = """\
#!/bin/bash
# The job {name}, commit {commit}: made by tools/launch.py for sbatch.
JOB={folder}
COMMAND=({command})
export PYTHONPATH=$JOB/code ENDS=$JOB/ends GRACE={grace}
cd "$JOB/code" || exit 1
rm -f "$JOB/status"
trap 'echo $? > "$JOB/status"' EXIT
stopped=
trap 'stopped=yes' TERM  # by scancel, or since the job's time is up

restarts=0
while true; do
    rm -rf "$ENDS" && mkdir "$ENDS"
    SECONDS=0
    srun --kill-on-bad-exit=1 --open-mode=append --output="$JOB/logs/worker-%t.log" \\
        bash "$JOB/task.sh" "${{COMMAND[@]}}" &
    # A signal ends `wait`, but not srun.
    while true; do
        wait $!
        status=$?
        kill -0 $! 2> /dev/null || break
    done
    worker=srun
    test -e "$ENDS/first" && read -r worker status < "$ENDS/first"
    test "$status" -eq 0 && exit 0
    echo "worker $worker ended with $status"
    test -n "$stopped" && exit "$status"
    case $status in
        75) scontrol requeue "$SLURM_JOB_ID" && exec sleep 60 ;;
        {restartable}) ;;
        *) exit "$status" ;;
    esac
    test "$SECONDS" -ge {good} && restarts=0
    restarts=$((restarts + 1))
    test "$restarts" -gt {retries} && exit "$status"
    delay=$(({backoff} << (restarts <= {doublings} ? restarts - 1 : {doublings})))
    test "$delay" -le {longest} || delay={longest}
    echo "restart $restarts in $delay s"
    sleep "$delay"
done
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="how many, with a process each (default 1)")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="a further option of sbatch, as --sbatch=--partition=gpu --sbatch=--gpus-per-node=8; may be repeated",
    )
    parser.add_argument("--grace", type=int, default=120, metavar="SECONDS", help="for the others when one fails (120)")
    parser.add_argument(
        "--runs",
        default="runs",
        metavar="FOLDER",
        help="folder of all runs, or gs://BUCKET/...; nodes must share it (runs)",
    )


def check(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The folder of all runs, and what is recorded of the options. Raises LaunchError."""
    if options.nodes < 1:
        raise LaunchError(f"--nodes must be positive, not {options.nodes}")
    jobs.check_seconds("--grace", options.grace)
    for option in options.sbatch:
        if not option.startswith("-"):
            raise LaunchError(f"--sbatch {option}: an option of sbatch, e.g. --sbatch=--partition=gpu")
    return jobs.runs_folder(options.runs), {"nodes": options.nodes, "sbatch": options.sbatch}


def script(job: Job, retries: int, backoff: float, grace: int) -> str:
    """What sbatch is given."""
    return _SCRIPT.format(
        name=job.name,
        commit=job.commit,
        folder=shlex.quote(str(job.folder)),
        command=shlex.join([sys.executable, "-m", "prompt_jax.cli", *job.command]),
        grace=grace,
        restartable=" | ".join(str(status) for status in RESTARTABLE if status != 75),
        good=round(GOOD_SITTING),
        retries=retries,
        backoff=max(1, round(backoff)),
        longest=round(LONGEST_WAIT),
        doublings=MOST_DOUBLINGS,
    )


def submission(job: Job) -> Command:
    return Command(
        (
            *("sbatch", "--parsable", f"--job-name={job.name}", f"--nodes={job.options['nodes']}"),
            *("--ntasks-per-node=1", "--requeue", "--open-mode=append", f"--output={job.folder / 'logs' / 'job.log'}"),
            *(f"--signal=TERM@{NOTICE}", *job.options["sbatch"], str(job.folder / "job.sh")),
        )
    )


def launch(job: Job, options: argparse.Namespace) -> int:
    """Submits the job. Returns 0."""
    text = script(job, options.retries, options.backoff, options.grace)
    steps = [*jobs.ship(job), TextFile(job.folder / "task.sh", _TASK), TextFile(job.folder / "job.sh", text)]
    if options.dry_run:
        perform([*steps, submission(job)], dry_run=True)
        return 0
    job.folder.mkdir(parents=True, exist_ok=True)
    with job.locked():
        if job.name in (known := _queued([job], dry_run=False)):
            raise LaunchError(
                f"{job.name} is {known[job.name]}, as Slurm's job {job.ids['job']}; launch.py stop {job.name} stops it"
            )
        perform(steps, dry_run=False)
        number = submission(job).output().strip().split(";")[0]  # JOB, or JOB;CLUSTER
        job.write(state="submitted", ids={"job": number})
    print(f"launch: {job.name} is Slurm's job {number}; launch.py logs {job.name} follows it", file=sys.stderr)
    return 0


def states(known: Sequence[Job], dry_run: bool) -> dict[str, str]:
    """How jobs stand, by name."""
    queued = _queued(known, dry_run)
    return {} if dry_run else {job.name: queued.get(job.name) or _end(job) for job in known}


def _queued(known: Sequence[Job], dry_run: bool) -> dict[str, str]:
    """The states, in lower case, of those jobs that Slurm still has, by name."""
    names = {job.ids["job"]: job.name for job in known if "job" in job.ids}
    if not names:
        return {}
    query = Command(("squeue", "--me", "--noheader", "--format=%i %T"))
    if dry_run:
        perform([query], dry_run=True)
        return {}
    lines = (line.split() for line in query.output().splitlines())
    return {names[number]: state.lower() for number, state in lines if number in names}


def _end(job: Job) -> str:
    """How a job has ended that Slurm has no more."""
    status = job.folder / "status"  # the script's, if it came to its end
    text = status.read_text().strip() if status.exists() else ""
    if not text.isdecimal():  # it may be about to be written
        return "ended" if job.ids else job.state
    return "done" if (code := int(text)) == 0 else f"ended with {code} ({meaning(code)})"


def logs(job: Job, worker: int) -> Command:
    return local.follow(job, worker, running=job.name in _queued([job], dry_run=False))


def stop(job: Job) -> list[Step]:
    return [Command(("scancel", job.ids["job"]))] if "job" in job.ids else []


def delete(job: Job) -> list[Step]:
    return [*stop(job), job.remove()]
