"""What a finished run leaves for its readers: `predictions.jsonl`, `summary.json` and `report.html`."""

import importlib.metadata
import json
from typing import Any

import jax

from prompt_jax.config import Experiment
from prompt_jax.evaluation import Evaluation, evaluate, write_predictions
from prompt_jax.inspection import inspect
from prompt_jax.prompts.files import read_prompt
from prompt_jax.report import write_report
from prompt_jax.training.logs import read_log
from prompt_jax.training.setup import Setup
from prompt_jax.whole_file import write_text

PACKAGES = ("prompt-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def finish(experiment: Experiment, setup: Setup) -> str:
    """Scores the run's best prompt and writes the three files. Returns the text that the command line prints."""
    summary = summarise(experiment, setup)
    prompt, _ = read_prompt(experiment.folder / "best.npz")
    report = write_report(experiment.folder, inspect(prompt, setup.model))
    best, test = summary["best"], summary["test"]
    lines = [f"best prompt: step {best['step']}, validation {best['metric']} {best['score']:.4f}"]
    if test is not None:
        lines.append(f"{setup.examples['test'].name}, test, {summary['examples']['test']} examples")
        lines.append(f"  {'':<22}{'base':>8}{'prompt':>8}")
        lines += [f"  {name:<22}{test['before'][name]:>8.4f}{value:>8.4f}" for name, value in test["after"].items()]
    return "\n".join(
        [*lines, f"wrote {experiment.folder / 'best.npz'}, {report}, {experiment.folder / 'summary.json'}"]
    )


def summarise(experiment: Experiment, setup: Setup) -> dict[str, Any]:
    """Scores the best prompt, and the base without it, on the test split if there is one; writes both files."""
    prompt, metadata = read_prompt(experiment.folder / "best.npz")
    test, before, after = setup.examples.get("test"), None, None
    if test is not None:
        before, after = (_score(experiment, setup, test, added) for added in (None, prompt))
        write_predictions(experiment.folder / "predictions.jsonl", test, after, before)
    lines = read_log(experiment.folder)
    metric, score = next(iter(metadata.scores.items()))
    trained = sum(leaf.size for leaf in jax.tree.leaves(setup.state.trainable))
    summary = {
        "name": experiment.name,
        "model": {
            "name": setup.model.name,
            "revision": setup.model.revision,
            "fingerprint": setup.model.fingerprint,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(setup.model.params)),
        },
        "trained_parameters": trained,
        "steps": max(line["step"] for line in lines),
        "best": {"metric": metric, "score": score, "step": metadata.step},
        "seconds": max(line.get("seconds", 0.0) for line in lines),
        "examples": {split: len(examples) for split, examples in setup.examples.items()},
        "truncated": {split: examples.truncated for split, examples in setup.examples.items()},
        "validation": dict(metadata.scores),
        "test": None if after is None or before is None else {"before": before.scores, "after": after.scores},
        "versions": {package: _version(package) for package in PACKAGES},
    }
    write_text(experiment.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _score(experiment: Experiment, setup: Setup, test: Any, prompt: Any) -> Evaluation:
    return evaluate(
        setup.model,
        prompt,
        test,
        target_length=setup.task_format.target_length,
        batch_size=experiment.train.eval_batch_size,
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "not installed"
