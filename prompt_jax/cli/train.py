"""`prompt-jax train`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from prompt_jax.cli.common import print_escaped
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment
from prompt_jax.methods import METHODS, Method, with_method
from prompt_jax.report.terminal import Activity


@dataclasses.dataclass(frozen=True)
class Train:
    """Train the prompts of an experiment, or resume a run from its last checkpoint.

    Each method has other options `--prompt.*`: add `--prompt.method NAME` to `--help` to list them.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "prompt-jax train configs/demo.py",
        "prompt-jax train configs/demo.py --name long --prompt.length 100 --train.steps 1000",
    )
    shown: ClassVar[str] = (
        "name overwrite model.name model.dtype data.task data.train data.validation data.test data.template "
        "data.target data.labels prompt.method prompt.length prompt.init prompt.mlp_width prompt.width "
        "prompt.layers prompt.kind prompt.task_part optimizer.learning_rate optimizer.schedule train.steps "
        "train.epochs train.batch_size train.eval_every train.patience train.seed ensemble.size "
        "ensemble.learning_rate mesh.data"
    )

    config: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CONFIG", help_behavior_hint="(required)")]
    """Configuration file that defines an Experiment, or a run's config.json."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    tasks: Path | None = None
    """Folder or file with tasks. None means `tasks` in the working directory, if it exists."""
    overwrite: bool = False
    """Delete an existing run of this name, and start again."""
    distributed: bool = False
    """Run as one of several processes, each started with this command: on a TPU pod, under Slurm, or with the variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."""
    heartbeat: int = 100
    """Exit after this many seconds without a heartbeat from another process."""


def split_config(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the configuration file that the words name, which need not come first, and the other words."""
    for place, word in enumerate(words):
        is_file = word.endswith((".py", ".json")) and words[place - 1] != "--tasks"
        if not word.startswith("-") and (place == 0 or is_file):
            return word, [*words[:place], *words[place + 1 :]]
    return None, list(words)


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
    _check_options(experiment.prompt, rest)
    return experiment, rest


def _check_options(method: Method, words: Sequence[str]) -> None:
    """Raise ConfigError for an option `--prompt.*` that other methods have and this one lacks."""
    fields = {name: [field.name for field in dataclasses.fields(kind)] for name, kind in METHODS.items()}
    options = fields[method.name]
    for word in words:
        option = word.partition("=")[0]
        name = option.removeprefix("--prompt.").removeprefix("no-").replace("-", "_")
        having = [other for other, names in fields.items() if name in names]
        if option.startswith("--prompt.") and having and name not in options:
            has = f"has {', '.join(f'--prompt.{each}' for each in options)}" if options else "has no options"
            raise ConfigError(
                f"{option} is an option of the method {' or '.join(having)}. The method {method.name} {has}. "
                "--prompt.method NAME changes the method"
            )


def run(args: Train) -> int:
    with Activity("starting", enabled=not args.distributed):
        from prompt_jax.distributed import processes

        if args.distributed:
            processes.initialize(args.heartbeat)
        from prompt_jax.training.run_experiment import run_experiment

    with processes.exit_if_process_lost():
        if text := run_experiment(args.experiment, tasks=args.tasks, overwrite=args.overwrite):
            print_escaped(text)
    return 0
