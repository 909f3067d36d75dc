"""`prompt-jax train`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from prompt_jax.cli.common import print_escaped
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment
from prompt_jax.methods import METHODS, with_method


@dataclasses.dataclass(frozen=True)
class Train:
    """Train the prompts of an experiment, or resume a run from its last checkpoint.

    `--prompt.method NAME` chooses the method and its options `--prompt.*`: soft_prompt, prefix, multitask, p_tuning,
    adapter, last_layers or full.
    """

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


def choose_method(experiment: Experiment, words: Sequence[str]) -> tuple[Experiment, list[str]]:
    """Apply `--prompt.method NAME`, which selects the available `--prompt.*` options.

    The method starts from its default options, except for those that the experiment sets and both methods have.

    Returns:
      The experiment with the method, and the remaining arguments.
    """
    rest, names = [], []
    remaining = iter(words)
    for word in remaining:
        option, equals, value = word.partition("=")
        if option != "--prompt.method":
            rest.append(word)
        elif name := value if equals else next(remaining, ""):
            names.append(name)
        else:
            raise ConfigError(f"--prompt.method needs a name: {', '.join(METHODS)}")
    if names:
        experiment = dataclasses.replace(experiment, prompt=with_method(experiment.prompt, names[-1]))
    return experiment, rest


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
