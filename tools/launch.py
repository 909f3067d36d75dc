"""Launches training on this machine, on Slurm, or on TPUs of Google Cloud, and starts it again where that helps.

    python tools/launch.py local  [OPTIONS] NAME CONFIG [OVERRIDES]    processes on this machine
    python tools/launch.py slurm  [OPTIONS] NAME CONFIG [OVERRIDES]    one process a node
    python tools/launch.py tpu-vm [OPTIONS] NAME CONFIG [OVERRIDES]    one process a worker of a TPU
    python tools/launch.py list
    python tools/launch.py logs   [--worker N] NAME
    python tools/launch.py stop   NAME
    python tools/launch.py delete NAME

Each process runs `prompt-jax train CONFIG --distributed --name NAME --runs FOLDER OVERRIDES`. OVERRIDES are of the
configuration, and reach all processes as they are given; options of the launcher come before NAME. With --dry-run it
prints what would be run, as shell, and does nothing.

What runs is a commit: the code is shipped from git, and a working tree with changes is refused. The same command again
goes on with the run. Processes that were preempted or lost are started again, with growing pauses.

Secrets such as HF_TOKEN stay in the environment: a job has the one that it is launched from, and a TPU gets the
variables that --env names. Records, logs and code of jobs are in ~/.local/state/prompt_jax/jobs (XDG_STATE_HOME,
--state).
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher import jobs, local, slurm, tpu_vm
from launcher.commands import LaunchError, perform
from launcher.jobs import Job

BACKENDS = {"local": local, "slurm": slurm, "tpu-vm": tpu_vm}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns the exit status: 0, 1 for an error, 2 for wrong arguments, or that of a failed job."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(argv)
    try:
        return options.run(options, argv)
    except LaunchError as error:
        print(f"launch: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"launch: {error.filename or options.verb}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def launch(options: argparse.Namespace, argv: Sequence[str]) -> int:
    backend = BACKENDS[options.verb]
    jobs.check_secrets(argv, os.environ)
    jobs.check_overrides(options.overrides, options.own)
    jobs.check_restarts(options.retries, options.backoff)
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
        own = [job for job in known if job.backend == name]
        stands = backend.states(own, options.dry_run)
        for job in own if not options.dry_run else ():
            when, commit = job.launches[-1]["time"], job.commit[:12] + "+" * job.launches[-1]["dirty"]
            print(f"{job.name}  {name}  {when}  {commit}  {stands[job.name]}")
    return 0


def logs(options: argparse.Namespace, argv: Sequence[str]) -> int:
    if options.worker < 0:
        raise LaunchError(f"--worker {options.worker}: workers are numbered from 0")
    job = _job(options)
    perform([BACKENDS[job.backend].logs(job, options.worker)], options.dry_run)
    return 0


def stop(options: argparse.Namespace, argv: Sequence[str]) -> int:
    job = _job(options)
    try:
        perform(BACKENDS[job.backend].stop(job), options.dry_run)
    finally:
        _say_bill(job, options)
    return 0


def delete(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Stops a job, gives back what it has, and deletes what is kept of it here. The run's own folder stays."""
    job = _job(options)
    try:
        perform(BACKENDS[job.backend].delete(job), options.dry_run)
    finally:
        _say_bill(job, options)
    return 0


def _job(options: argparse.Namespace) -> Job:
    return jobs.read_job(options.state, options.name)


def _say_bill(job: Job, options: argparse.Namespace) -> None:
    if job.backend == "tpu-vm" and not options.dry_run:
        tpu_vm.say_bill(job)


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    shared.add_argument("--dry-run", action="store_true", help="print what would be run, and do nothing")
    shared.add_argument(
        "--state", type=Path, default=jobs.state_folder(), metavar="FOLDER", help="with records of jobs"
    )
    description, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="launch.py",
        description=description,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(required=True, dest="verb", metavar="VERB")
    for name, backend in BACKENDS.items():
        verb = verbs.add_parser(name, parents=[shared], allow_abbrev=False, help=(backend.__doc__ or "").split("\n")[0])
        backend.add_options(verb)
        verb.add_argument("--allow-dirty", action="store_true", help="leave out changes that are not committed")
        verb.add_argument("--retries", type=int, default=10, metavar="N", help="restarts in a row (10)")
        verb.add_argument("--backoff", type=float, default=5.0, metavar="SECONDS", help="before the first restart (5)")
        own = [option for action in verb._actions for option in action.option_strings if option.startswith("--")]
        verb.add_argument("name", metavar="NAME", help="of the job and the run")
        verb.add_argument("config", metavar="CONFIG", help="a committed configuration, as configs/demo.py")
        verb.add_argument("overrides", nargs=argparse.REMAINDER, metavar="OVERRIDES", help="of the configuration")
        verb.set_defaults(run=launch, own=own)
    verbs.add_parser("list", parents=[shared], help="all jobs, and how they stand").set_defaults(run=show_list)
    for name, run, text in (
        ("logs", logs, "follow the log of one worker"),
        ("stop", stop, "end the processes, which save first; a TPU stays, and is billed"),
        ("delete", delete, "stop, delete the TPU, and forget the job; the run's folder stays"),
    ):
        verb = verbs.add_parser(name, parents=[shared], help=text)
        if name == "logs":
            verb.add_argument("--worker", type=int, default=0, metavar="N", help="its number (0)")
        verb.add_argument("name", metavar="NAME")
        verb.set_defaults(run=run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
