"""The texts of what a run used. The page is in test_run_report.py."""

import pytest

from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.experiment import Experiment
from prompt_jax.report.resources import rate_text, resource_rows
from prompt_jax.report.run_files import Environment, Throughput, Times, read_summary
from run_folders import SINGLE, write_run


@pytest.mark.parametrize(
    ("peak", "options", "text"),
    [
        (0.3, {}, "0.3, constant"),
        (1e-05, {"schedule": "cosine"}, "1e-05, cosine decay"),
        (0.5, {"learning_rate": 0.02, "warmup_steps": 1000}, "0.5, constant after 1,000 warm-up steps"),
        (None, {"learning_rate": 0.02}, "0.02, constant"),
        (None, {}, "default, constant"),
    ],
)
def test_rates(peak, options, text):
    assert rate_text(peak, OptimizerConfig(**options)) == text


def test_rows(tmp_path):
    """Facts that are not known have no row."""
    summary = read_summary(write_run(tmp_path, SINGLE))
    assert [name for name, _ in resource_rows(summary, Experiment())] == ["Wall time", "Learning rate"]
    where = Environment("prompt-jax train c.py", None, False, "cpu", 1, 1, 850 << 20, None)
    known = {"times": Times(1.0, 60.0, 2.0, None), "throughput": Throughput(0.5, 99.5), "environment": where}
    summary = read_summary(write_run(tmp_path, SINGLE))
    rows = dict(resource_rows(type(summary)(**vars(summary) | known | {"seconds": 63.0, "sessions": 1}), Experiment()))
    assert rows["Wall time"] == "1 min 3 s: 1 s of compilation, 1 min of training, 2 s of validation"
    assert rows["Throughput"] == "0.5 examples/s, 99.5 tokens/s in training"
    assert rows["Devices"] == "1 × cpu" and rows["Peak memory"] == "850 MiB on the host"
