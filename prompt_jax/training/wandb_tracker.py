"""Weights & Biases, an optional experiment tracker: `--train.trackers wandb`."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from prompt_jax.storage.files import write_text
from prompt_jax.training.tracker import TrackedRun, Tracker

RUN_ID = "wandb_run_id"  # file in the run's folder, so that a resumed run continues the same run of W&B


class WeightsAndBiases(Tracker):
    """Log to a run of Weights & Biases with the name of the run, in the project $WANDB_PROJECT or `prompt_jax`."""

    def start(self, run: TrackedRun) -> None:
        import wandb

        path = run.folder / RUN_ID
        self._several = len(run.members) > 1
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "prompt_jax",
            name=run.name,
            id=path.read_text().strip() if path.exists() else None,
            resume="allow",
            # A run that the user has opened is not used. The terminal belongs to the progress bar.
            settings=wandb.Settings(reinit="create_new", console="off"),
        )
        write_text(path, self._run.id + "\n")
        # A resumed run may have other values, such as train.steps.
        self._run.config.update({**run.config, "members": list(run.members)}, allow_val_change=True)
        self._first = self._run.step  # W&B has the earlier steps, and refuses to replace them

    def log(self, step: int, member: int, values: Mapping[str, float]) -> None:
        if step >= self._first:
            prefix = f"member_{member}/" if self._several else ""
            self._run.log({f"{prefix}{name}": value for name, value in values.items()}, step=step)

    def finish(self, status: str, summary: Mapping[str, Any] | None) -> None:
        self._run.summary.update({"status": status, **dict(_test_scores(summary or {}))})
        if status == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status == "finished" else 1)


def _test_scores(summary: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the test scores of the base, each member and the vote, with names such as `test/TASK/vote/accuracy`."""
    for test in summary.get("tests", ()):
        rows = {"base": test["before"]}
        if len(test["members"]) == 1:
            rows["prompt"] = test["scores"][0]
        else:
            rows |= {f"member_{number}": scores for number, scores in zip(test["members"], test["scores"], strict=True)}
        if test["ensemble"] is not None:
            rows |= {"vote": test["ensemble"]["vote"], "average": test["ensemble"]["average"]}
        for row, scores in rows.items():
            yield from ((f"test/{test['task']}/{row}/{name}", value) for name, value in scores.items())
