"""Tests of the launcher with the real prompt-jax: distributed training, also after a process is killed."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from launching import Checkout, wait_for
from prompt_jax import experiment as experiments
from prompt_jax.config.data import DataConfig
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.config.model import ModelConfig
from prompt_jax.config.train import TrainConfig
from prompt_jax.experiment import Experiment
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.report.metrics_log import read_log

ROOT = Path(__file__).resolve().parents[3]
CONFIG = "configs/reviews.json"


@pytest.fixture
def trained(checkout: Checkout, tiny_folder: Path, sentiment_files: dict[str, Path]) -> Checkout:
    """Return a checkout of prompt-jax with an experiment: two members, 30 steps, the tiny model."""
    shutil.rmtree(checkout.folder / "prompt_jax")
    shutil.copytree(ROOT / "prompt_jax", checkout.folder / "prompt_jax", ignore=shutil.ignore_patterns("__pycache__"))
    experiment = Experiment(
        model=ModelConfig(name=str(tiny_folder)),
        data=DataConfig(**sentiment_files, labels=("negative", "positive"), target_length=12, buckets=1),
        prompt=PromptTuning(length=4, init="vocab", init_vocab=150),
        train=TrainConfig(steps=30, batch_size=8, eval_every=30, checkpoint_every=2, log_every=1),
        ensemble=EnsembleConfig(size=2),
    )
    (checkout.folder / CONFIG).write_text(experiments.to_json(dataclasses.replace(experiment, name="unnamed")))
    checkout.git("add", "-A")
    checkout.git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "prompt-jax")
    checkout.env |= {"JAX_PLATFORMS": "cpu"}
    return checkout


def check_run(checkout: Checkout) -> None:
    """Check that the run is the only one and has all 30 steps."""
    run = checkout.folder / "runs" / "reviews"
    assert [path.name for path in run.parent.iterdir()] == ["reviews"]
    assert json.loads((run / "summary.json").read_text())["steps"] == 30 and (run / "best.npz").exists()
    steps = [line["step"] for line in read_log(run) if "train/loss" in line and line["member"] == 0]
    assert steps == list(range(1, 31))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_training_in_processes(trained, processes):
    mesh = ("--mesh.ensemble", "2", "--mesh.data", "-1")
    done = trained.launch("local", "--processes", str(processes), "reviews", CONFIG, *mesh)
    assert "summary" in done.stdout or "accuracy" in done.stdout
    check_run(trained)
    printed = trained.launch("logs", "--worker", "1", "reviews").stdout
    assert "accuracy" not in printed  # only process 0 prints


@pytest.mark.slow
def test_training_resumes_when_a_process_is_killed(trained):
    words = ("--processes", "2", "--backoff", "0.1", "--grace", "20", "reviews", CONFIG, "--mesh.ensemble", "2")
    with trained.start("local", *words, "--heartbeat", "10") as launcher:
        checkpoints = trained.folder / "runs" / "reviews" / "checkpoints"
        wait_for(lambda: any(checkpoints.glob("[0-9]*")), 100)
        os.kill(trained.job("reviews")["ids"]["processes"][0], signal.SIGKILL)
        said = launcher.communicate(timeout=200)[0]
    assert launcher.returncode == 0, said
    assert "process 0 ended with 137" in said
    assert "restart 1" in said and "restart 2" not in said
    check_run(trained)


@pytest.mark.slow
@pytest.mark.slurm
def test_training_on_slurm(trained):
    trained.launch("slurm", "reviews", CONFIG)
    number = trained.job("reviews")["ids"]["job"]
    query = ["squeue", "--noheader", "--jobs", number]
    wait_for(lambda: not subprocess.run(query, capture_output=True, text=True).stdout.strip(), 200)
    assert "  done\n" in trained.launch("list").stdout, trained.launch("logs", "reviews").stdout
    check_run(trained)
