"""A whole run: training, tests and results."""

from collections.abc import Sequence
from pathlib import Path

from prompt_jax.experiment import Experiment
from prompt_jax.training.loop import train
from prompt_jax.training.run_folder import run_lock
from prompt_jax.training.summary import finish
from prompt_jax.training.tracker import Tracker
from prompt_jax.training.trackers import Trackers


def run_experiment(
    experiment: Experiment, *, tasks: Path | None = None, overwrite: bool = False, trackers: Sequence[Tracker] = ()
) -> str:
    """Train an experiment, or resume it, test its best prompts, and write the results to its folder.

    It is what `prompt-jax train` does.

    Args:
      experiment: the experiment to run.
      tasks: folder or file with the user's tasks; None is `tasks` in the working directory.
      overwrite: delete the content of the run's folder and start anew.
      trackers: experiment trackers, in addition to TensorBoard and those of `train.trackers`.

    Returns:
      The text that the command line prints; empty in all processes but the first.

    Raises:
      UserError: as `prompt_jax.training.loop.train` and `prompt_jax.training.summary.finish`.
    """
    with run_lock(experiment) as lock, Trackers(experiment, trackers) as all_trackers:
        setup, progress = train(experiment, tasks=tasks, overwrite=overwrite, lock=lock, trackers=all_trackers)
        return finish(experiment, setup, progress, lock)
