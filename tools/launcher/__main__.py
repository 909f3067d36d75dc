"""Launch training on this machine, Slurm, Cloud TPUs or GKE, and restart it after preemptions and lost processes.

    python -m tools.launcher local  [OPTIONS] NAME CONFIG [OVERRIDES]    processes on this machine
    python -m tools.launcher slurm  [OPTIONS] NAME CONFIG [OVERRIDES]    one process per node
    python -m tools.launcher tpu-vm [OPTIONS] NAME CONFIG [OVERRIDES]    one process per TPU worker
    python -m tools.launcher gke    [OPTIONS] NAME CONFIG [OVERRIDES]    one process per host of a TPU slice
    python -m tools.launcher list
    python -m tools.launcher logs   [--worker N] NAME
    python -m tools.launcher stop   NAME
    python -m tools.launcher delete NAME

Each process runs `prompt-jax train CONFIG --distributed --name NAME --runs FOLDER OVERRIDES`. All processes receive
OVERRIDES unchanged; they override the configuration. Put launcher options before NAME. With --dry-run, the launcher
prints the shell commands instead of running them.

The launcher runs a commit: it ships the code from git and refuses a working tree with changes. Repeat the same command
to resume the run. Preempted and lost processes restart with growing delays.

Leave secrets such as HF_TOKEN in the environment. Jobs on this machine and on Slurm inherit it; a TPU VM receives only
the variables that --env names, and a pod those of the Kubernetes Secret that --secret names. Job records, logs and code
are in ~/.local/state/prompt_jax/jobs (XDG_STATE_HOME, --state).
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.launcher import checks, gke, jobs, local, slurm, tpu_vm
from tools.launcher.commands import LaunchError, perform
from tools.launcher.gcloud import print_billing
from tools.launcher.jobs import Job

BACKENDS = {"local": local, "slurm": slurm, "tpu-vm": tpu_vm, "gke": gke}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit status: 0, 1 for an error, 2 for wrong arguments, or that of a failed job."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(argv)
    try:
        return options.run(options, argv)
    except LaunchError as error:
        print(f"launcher: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"launcher: {error.filename or options.verb}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def launch(options: argparse.Namespace, argv: Sequence[str]) -> int:
    backend = BACKENDS[options.verb]
    checks.check_secrets(argv, os.environ)
    checks.check_overrides(options.overrides, options.launcher_options)
    checks.check_restarts(options.retries, options.backoff)
    runs, recorded = backend.check(options)
    job = jobs.make_job(
        options.state,
        options.name,
        options.verb,
        options.config,
        options.overrides,
        runs=runs,
        options=recorded,
        argv=argv,
        allow_dirty=options.allow_dirty,
    )
    return backend.launch(job, options)


def show_list(options: argparse.Namespace, argv: Sequence[str]) -> int:
    known = jobs.read_jobs(options.state)
    for name, backend in BACKENDS.items():
        of_backend = [job for job in known if job.backend == name]
        states = backend.states(of_backend, options.dry_run)
        for job in of_backend if not options.dry_run else ():
            time, commit = job.launches[-1]["time"], job.commit[:12] + "+" * job.launches[-1]["dirty"]
            print(f"{job.name}  {name}  {time}  {commit}  {states[job.name]}")
    return 0


def logs(options: argparse.Namespace, argv: Sequence[str]) -> int:
    if options.worker < 0:
        raise LaunchError(f"--worker {options.worker}: workers are numbered from 0")
    job = jobs.read_job(options.state, options.name)
    perform([BACKENDS[job.backend].logs(job, options.worker)], options.dry_run)
    return 0


def stop(options: argparse.Namespace, argv: Sequence[str]) -> int:
    job = jobs.read_job(options.state, options.name)
    try:
        perform(BACKENDS[job.backend].stop(job), options.dry_run)
    finally:
        _print_billing(job, options)
    return 0


def delete(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Stop a job, release its resources and delete its record. The run's folder stays."""
    job = jobs.read_job(options.state, options.name)
    try:
        perform(BACKENDS[job.backend].delete(job), options.dry_run)
    finally:
        _print_billing(job, options)
    return 0


def _print_billing(job: Job, options: argparse.Namespace) -> None:
    if job.backend == "tpu-vm" and not options.dry_run:
        print_billing(job)


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    shared.add_argument("--dry-run", action="store_true", help="print the commands without running them")
    shared.add_argument(
        "--state", type=Path, default=jobs.state_folder(), metavar="FOLDER", help="folder of the job records"
    )
    description, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m tools.launcher",
        description=description,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(required=True, dest="verb", metavar="VERB")
    for name, backend in BACKENDS.items():
        verb = verbs.add_parser(name, parents=[shared], allow_abbrev=False, help=(backend.__doc__ or "").split("\n")[0])
        backend.add_options(verb)
        verb.add_argument("--allow-dirty", action="store_true", help="launch the commit despite uncommitted changes")
        counted = "restarts, without those after preemptions" if backend is gke else "restarts in a row"
        verb.add_argument("--retries", type=int, default=10, metavar="N", help=f"{counted} (default 10)")
        if backend is gke:
            verb.set_defaults(backoff=0.0)  # JobSet does not delay restarts
        else:
            delay = "delay before the first restart (default 5)"
            verb.add_argument("--backoff", type=float, default=5.0, metavar="SECONDS", help=delay)
        names = [option for action in verb._actions for option in action.option_strings if option.startswith("--")]
        verb.add_argument("name", metavar="NAME", help="name of the job and the run")
        verb.add_argument("config", metavar="CONFIG", help="a committed configuration, e.g. configs/demo.py")
        verb.add_argument(
            "overrides", nargs=argparse.REMAINDER, metavar="OVERRIDES", help="overrides of the configuration"
        )
        verb.set_defaults(run=launch, launcher_options=names)
    verbs.add_parser("list", parents=[shared], help="list all jobs and their states").set_defaults(run=show_list)
    for name, run, text in (
        ("logs", logs, "follow the log of one worker"),
        ("stop", stop, "stop the processes after they save; a TPU VM remains and is billed"),
        ("delete", delete, "stop the job, delete the TPU that it created and its record; the run's folder stays"),
    ):
        verb = verbs.add_parser(name, parents=[shared], help=text)
        if name == "logs":
            verb.add_argument("--worker", type=int, default=0, metavar="N", help="number of the worker (default 0)")
        verb.add_argument("name", metavar="NAME")
        verb.set_defaults(run=run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
