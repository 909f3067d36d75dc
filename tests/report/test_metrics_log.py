"""A run's `metrics.jsonl`, as the training loop and crashes leave it."""

import math

from prompt_jax.report.metrics_log import read_log


def test_null_is_nan_and_lines_that_are_no_objects_are_skipped(tmp_path):
    assert read_log(tmp_path) == []
    lines = ['{"step": 1, "train/loss": 0.5}', "[2]", '{"step": 2, "train/loss": null}', '{"step": 3, "train/lo']
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\xff")
    first, second = read_log(tmp_path)
    assert first == {"step": 1, "train/loss": 0.5}
    assert second["step"] == 2 and math.isnan(second["train/loss"])
