"""`prompt-jax train`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from prompt_jax.cli.common import print_escaped
from prompt_jax.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Train:
    """Train an experiment, or resume it from its last checkpoint."""

    config: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CONFIG")]
    """Configuration file that defines an Experiment, or a run's config.json. It comes first."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    tasks: Path | None = None
    """Folder or file with seqio tasks. None means `tasks` in the working directory, if it exists."""
    overwrite: bool = False
    """Delete an existing run of this name, and start again."""
    distributed: bool = False
    """Run as one of several processes, each started with this command: on a TPU pod, under Slurm, or with the variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."""
    heartbeat: int = 100
    """Exit after this many seconds without a heartbeat from another process."""


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
            print_escaped(text)
    return 0
