"""Folders of finished runs, written without training."""

import json
import math
from pathlib import Path
from typing import Any

from prompt_jax import experiment as experiments
from prompt_jax.config.data import DataConfig
from prompt_jax.experiment import Experiment
from prompt_jax.methods import Method
from prompt_jax.methods.soft_prompt import PromptTuning

EVIL = "<script>alert('x')</script> & <b>bold</b>"


def a_member(number: int, task: str = "movie", **changes: Any) -> dict[str, Any]:
    return {
        "settings": {"train.seed": number},
        "task": task,
        "length": 4,
        "status": "finished",
        "steps": 50,
        "best": {"metric": "accuracy", "score": 0.8 + number / 100, "step": 25},
        "validation": {"accuracy": 0.8 + number / 100, "invalid": 0.0},
        **changes,
    }


def a_test(task: str, members: list[int], trained_on: bool = True, vote: bool = True, **changes: Any) -> dict[str, Any]:
    """Return scores where member i has the accuracy 0.7 + i / 100, and the vote 0.8."""
    scores = [{"accuracy": 0.7 + i / 100, "invalid": 0.05, "rank/accuracy": 0.75 + i / 100} for i in members]
    size = len(members)
    ensemble = {
        "vote_rule": "majority",
        "vote": {"accuracy": 0.8, "invalid": 0.0, "rank/accuracy": 0.85},
        "average": {name: sum(each[name] for each in scores) / size for name in scores[0]},
        "best": members[-1],
        "oracle": 0.9625,
        "agreement": [[1.0 if i == j else 0.875 for j in range(size)] for i in range(size)],
        "intervals": {"best": [-0.003, 0.012], "average": [0.011, 0.02]},
    }
    return {
        "task": task,
        "examples": 31,
        "trained_on": trained_on,
        "members": members,
        "before": {"accuracy": 0.125, "invalid": 0.5, "rank/accuracy": 0.25},
        "scores": scores,
        "ensemble": ensemble if vote and size > 1 else None,
        **changes,
    }


def a_run(members: list[dict[str, Any]], tests: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    tasks = {member["task"] for member in members}
    return {
        "name": EVIL,
        "model": {"name": "tiny", "revision": "abc", "fingerprint": "sha256:123", "parameters": 9_999_000},
        "trained_parameters": 1000,
        "stored_parameters": 2_000_000,
        "steps": 50,
        "seconds": 3725.2,
        "examples": {task: {"train": 100, "validation": 20, "test": 31} for task in sorted(tasks)},
        "truncated": {task: {"train": {"inputs": 17, "targets": 0}} for task in tasks},
        "versions": {"jax": "9.9.9"},
        "members": members,
        "tests": tests,
        **changes,
    }


def log_lines(members: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for i in range(members):
        lines += [{"step": s, "member": i, "train/loss": 3 / s, "train/accuracy": 0.5} for s in range(1, 51)]
        lines += [{"step": s, "member": i, "validation/accuracy": (s + i) / 70, "seconds": 1.0} for s in (0, 25, 50)]
    return lines


def predictions(task: str, members: int) -> list[dict[str, Any]]:
    """Return answers whose vote is right on 20 examples, wrong on 10, and no label on one.

    The last of several members disagrees with the others on every third example.
    """
    contrary = {"negative": "positive", "positive": "negative", "<i>": "<i>"}
    rows: list[dict[str, Any]] = []
    for i in range(30):
        target = ("negative", "positive")[i % 2]
        rows.append({"input": f"text {i}", "target": target, "prediction": target if i < 20 else contrary[target]})
    rows.append({"input": EVIL, "target": "positive", "prediction": "<i>"})
    for i, row in enumerate(rows):
        answers = [row["prediction"]] * members
        if members > 1 and i % 3 == 0:
            answers[-1] = contrary[answers[-1]]
        scores = {"negative": math.log(0.25), "positive": math.log(0.75)}
        row |= {"task": task, "before": "movie", "members": answers, "label_scores": scores}
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(folder: Path, summary: dict[str, Any], *, logs: bool = True, prompt: Method | None = None) -> Path:
    experiment = Experiment(data=DataConfig(task="movie"), prompt=prompt or PromptTuning(length=4))
    (folder / "config.json").write_text(experiments.to_json(experiment))
    (folder / "summary.json").write_text(json.dumps(summary))
    if logs:
        write_lines(folder / "metrics.jsonl", log_lines(len(summary["members"])))
        rows = [row for test in summary["tests"] for row in predictions(test["task"], len(test["members"]))]
        write_lines(folder / "predictions.jsonl", rows)
    return folder


SINGLE = a_run([a_member(3, settings={})], [a_test("movie", [0])])
ENSEMBLE = a_run([a_member(i) for i in range(3)], [a_test("movie", [0, 1, 2])])
