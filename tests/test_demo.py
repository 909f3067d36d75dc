"""A shortened demo: a real model, real data, and a prompt that learns."""

import dataclasses
from pathlib import Path

import pytest

import jax_processes
from prompt_jax import experiment as experiments
from prompt_jax import load_model
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.prompt_files.io import read_prompt
from prompt_jax.report.metrics_log import read_log

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_eighty_steps_learn_movie_reviews(tmp_path):
    """Validation accuracy rises from below 10 % to above 80 %."""
    demo = experiments.load_experiment(ROOT / "configs" / "demo.py")
    short = dataclasses.replace(
        demo.train, steps=80, eval_every=80, checkpoint_every=80, eval_examples=200, test_examples=8
    )
    one = dataclasses.replace(demo, runs=tmp_path, train=short, ensemble=EnsembleConfig())
    # With XLA's default flags: the tests' flags make compilation faster but steps slower.
    jax_processes.run(one, 1, 1, "--tasks", str(ROOT / "tasks"), XLA_FLAGS="")
    lines = read_log(tmp_path / "demo")
    scores = {line["step"]: line["validation/accuracy"] for line in lines if "validation/accuracy" in line}
    assert scores[0] < 0.1 and scores[80] > 0.8, scores
    _, metadata = read_prompt(tmp_path / "demo" / "best.npz")
    assert metadata.base.fingerprint == load_model("demo").fingerprint and metadata.step == 80
