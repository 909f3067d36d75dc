"""JSON according to RFC 8259."""

import json
import math

import numpy as np
import pytest

from prompt_jax import Prompt, PromptMetadata, VirtualTokens, save_prompt
from prompt_jax.config.convert import from_dict
from prompt_jax.experiment import Experiment
from prompt_jax.prompt_files.io import read_prompt
from prompt_jax.storage.json_text import json_text
from prompt_jax.training.logs import Log, read_log
from prompt_jax.training.trackers import Trackers


def refuse(name: str):
    raise AssertionError(f"{name} is not JSON")


def test_numbers_that_are_not_finite_are_null():
    value = {"a": [1.5, math.nan, (math.inf, -math.inf)], "b": {"c": np.float64("nan"), "d": "NaN", "e": True, "f": 7}}
    expected = {"a": [1.5, None, [None, None]], "b": {"c": None, "d": "NaN", "e": True, "f": 7}}
    for options in ({}, {"indent": 2}, {"ensure_ascii": False}):
        assert json.loads(json_text(value, **options), parse_constant=refuse) == expected
    assert json_text({"é": 1}, ensure_ascii=False) == '{"é": 1}'


def test_a_runs_log_has_no_nan_and_is_read_back_with_it(tmp_path):
    for _ in range(2):  # the second takes over the lines of the first
        with Log(tmp_path, 3, Trackers(Experiment())) as log:
            log.write(3, 0, {"train/grad_norm": math.inf, "train/loss": 0.5})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse)["train/grad_norm"] for line in lines] == [None, None]
    for line in read_log(tmp_path):
        assert math.isnan(line["train/grad_norm"]) and line["train/loss"] == 0.5


def test_a_prompt_file_leaves_out_scores_that_are_not_finite(tmp_path):
    metadata = PromptMetadata(scores={"accuracy": 0.5, "own": math.nan, "other": math.inf})
    save_prompt(tmp_path / "p.npz", Prompt(VirtualTokens(np.ones((2, 4), np.float32))), metadata)
    assert read_prompt(tmp_path / "p.npz")[1].scores == {"accuracy": 0.5}


@pytest.mark.parametrize("score", [math.nan, -math.inf])
def test_a_report_takes_null_for_a_number(tmp_path, score):
    """As in `summary.json` when a custom metric is NaN."""
    from prompt_jax.report.run_files import BestSummary

    best = json.loads(json_text({"metric": "accuracy", "score": score, "step": 1}))
    assert math.isnan(from_dict(BestSummary, best, nan=True).score)
