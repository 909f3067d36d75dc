"""`prompt-jax train`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from prompt_jax.cli.common import show
from prompt_jax.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Train:
    """Train what an experiment describes; begun before, it goes on from the last checkpoint."""

    config: tyro.conf.Positional[Path]
    """A configuration file that builds an Experiment; it comes first."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    tasks: Path | None = None
    """Folder or file with seqio tasks; `tasks` in the working directory if there is one."""
    overwrite: bool = False
    """Begin anew, deleting a run of this name."""
    distributed: bool = False
    """Be one of several processes, each started with this command: on the hosts of a TPU pod, under Slurm, or where
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who is who."""
    heartbeat: int = 100
    """Seconds without a sign of life of another process after which this one ends."""


def run(args: Train) -> int:
    from prompt_jax.distributed import processes

    if args.distributed:
        processes.initialize(args.heartbeat)
    from prompt_jax.training.loop import train
    from prompt_jax.training.run_folder import run_lock
    from prompt_jax.training.summary import finish

    with processes.exit_if_process_lost(), run_lock(args.experiment) as lock:
        setup, progress = train(args.experiment, tasks=args.tasks, overwrite=args.overwrite, lock=lock)
        if text := finish(args.experiment, setup, progress, lock):
            show(text)
    return 0
