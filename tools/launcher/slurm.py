"""Slurm jobs: one process per node, submitted with sbatch.

The job's script restarts the processes (`restarts.py`) and requeues the job after preemption or at its time limit. The
nodes must share the file system of the job's folder, which is usually true of home folders. The job inherits the
environment of the submission through Slurm, so the launcher writes secrets to no file.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from tools.launcher import checks, jobs, local
from tools.launcher.commands import Command, LaunchError, Step, TextFile, perform
from tools.launcher.jobs import Job
from tools.launcher.restarts import MAX_DELAY, MAX_DOUBLINGS, PREEMPTED, RESET_AFTER, RESTARTABLE, meaning

NOTICE = 60  # seconds before the job's time limit at which Slurm sends SIGTERM

# The script of one process. It records the exit status, and which process failed first, because that failure causes
# those of the others. After a failure it waits for the others to end; Slurm kills those that do not.
_TASK = """\
trap : TERM  # the process receives it too, and decides
# Use all GPUs of the node: by default JAX uses one per process.
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
# The job {name}, commit {commit}: made by tools.launcher for sbatch.
JOB={folder}
COMMAND=({command})
export PYTHONPATH=$JOB/code ENDS=$JOB/ends GRACE={grace}
cd "$JOB/code" || exit 1
rm -f "$JOB/status"
trap 'echo $? > "$JOB/status"' EXIT
stopped=
trap 'stopped=yes' TERM  # from scancel, or near the job's time limit

restarts=0
while true; do
    rm -rf "$ENDS" && mkdir "$ENDS"
    SECONDS=0
    srun --kill-on-bad-exit=1 --open-mode=append --output="$JOB/logs/worker-%t.log" \\
        bash "$JOB/task.sh" "${{COMMAND[@]}}" &
    # A signal interrupts `wait`, but not srun.
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
        {preempted}) scontrol requeue "$SLURM_JOB_ID" && exec sleep 60 ;;
        {restartable}) ;;
        *) exit "$status" ;;
    esac
    test "$SECONDS" -ge {reset_after} && restarts=0
    restarts=$((restarts + 1))
    test "$restarts" -gt {retries} && exit "$status"
    delay=$(({backoff} << (restarts <= {doublings} ? restarts - 1 : {doublings})))
    test "$delay" -le {max_delay} || delay={max_delay}
    echo "restart $restarts in $delay s"
    sleep "$delay"
done
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="number of nodes, with one process each (default 1)"
    )
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="option for sbatch, e.g. --sbatch=--partition=gpu; repeat it for several",
    )
    parser.add_argument(
        "--grace",
        type=int,
        default=120,
        metavar="SECONDS",
        help="time for the others to end after a failure (default 120)",
    )
    parser.add_argument(
        "--runs",
        default="runs",
        metavar="FOLDER",
        help="folder of all runs, shared by the nodes, or gs://BUCKET/... (default runs)",
    )


def check(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return the folder of all runs and the options to record. Raises LaunchError."""
    if options.nodes < 1:
        raise LaunchError(f"--nodes must be positive, not {options.nodes}")
    checks.check_seconds("--grace", options.grace)
    for option in options.sbatch:
        if not option.startswith("-"):
            raise LaunchError(f"--sbatch {option}: expected an option of sbatch, e.g. --sbatch=--partition=gpu")
    return checks.runs_folder(options.runs), {"nodes": options.nodes, "sbatch": options.sbatch}


def script(job: Job, retries: int, backoff: float, grace: int) -> str:
    """Return the script for sbatch."""
    return _SCRIPT.format(
        name=job.name,
        commit=job.commit,
        folder=shlex.quote(str(job.folder)),
        command=shlex.join([sys.executable, "-m", "prompt_jax.cli", *job.command]),
        grace=grace,
        restartable=" | ".join(str(status) for status in RESTARTABLE if status != PREEMPTED),
        preempted=PREEMPTED,
        reset_after=round(RESET_AFTER),
        retries=retries,
        backoff=max(1, round(backoff)),
        max_delay=round(MAX_DELAY),
        doublings=MAX_DOUBLINGS,
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
    """Submit the job. Returns 0."""
    text = script(job, options.retries, options.backoff, options.grace)
    steps = [*jobs.ship_code(job), TextFile(job.folder / "task.sh", _TASK), TextFile(job.folder / "job.sh", text)]
    if options.dry_run:
        perform([*steps, submission(job)], dry_run=True)
        return 0
    job.folder.mkdir(parents=True, exist_ok=True)
    with job.locked():
        if job.name in (known := _queued([job], dry_run=False)):
            raise LaunchError(
                f"{job.name} is {known[job.name]}, as Slurm's job {job.ids['job']}; stop it with "
                f"python -m tools.launcher stop {job.name}"
            )
        perform(steps, dry_run=False)
        number = submission(job).output().strip().split(";")[0]  # JOB, or JOB;CLUSTER
        job.write(state="submitted", ids={"job": number})
    follow = f"follow it with python -m tools.launcher logs {job.name}"
    print(f"launcher: {job.name} is Slurm's job {number}; {follow}", file=sys.stderr)
    return 0


def states(known: Sequence[Job], dry_run: bool) -> dict[str, str]:
    """Return the states of jobs, by name."""
    queued = _queued(known, dry_run)
    return {} if dry_run else {job.name: queued.get(job.name) or _final_state(job) for job in known}


def _queued(known: Sequence[Job], dry_run: bool) -> dict[str, str]:
    """Return the states, in lower case, of the jobs in Slurm's queue, by name."""
    names = {job.ids["job"]: job.name for job in known if "job" in job.ids}
    if not names:
        return {}
    query = Command(("squeue", "--me", "--noheader", "--format=%i %T"))
    if dry_run:
        perform([query], dry_run=True)
        return {}
    lines = (line.split() for line in query.output().splitlines())
    return {names[number]: state.lower() for number, state in lines if number in names}


def _final_state(job: Job) -> str:
    """Return how a job ended that has left Slurm's queue."""
    status = job.folder / "status"  # written when the script ends
    text = status.read_text().strip() if status.exists() else ""
    if not text.isdecimal():  # missing, or still empty
        return "ended" if job.ids else job.state
    return "done" if (code := int(text)) == 0 else f"ended with {code} ({meaning(code)})"


def logs(job: Job, worker: int) -> Command:
    return local.show_log(job, worker, follow=job.name in _queued([job], dry_run=False))


def stop(job: Job) -> list[Step]:
    return [Command(("scancel", job.ids["job"]))] if "job" in job.ids else []


def delete(job: Job) -> list[Step]:
    return [*stop(job), job.remove()]
