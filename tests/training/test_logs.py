"""Logs of a run: the terminal and metrics.jsonl."""

import json
import sys
import time

import numpy as np

from prompt_jax.training import logs
from prompt_jax.training.logs import Display, Log
from prompt_jax.training.trackers import Trackers
from terminals import Terminal


def test_a_step_is_said_to_compile_for_new_shapes_only(monkeypatch):
    """Other steps start no thread and write nothing."""
    shown = []
    display = Display(steps=4, start=0, every=1)
    monkeypatch.setattr(display, "activity", lambda text: shown.append(text) or display)
    for length in (8, 16, 8, 16):
        with display.compiling([{"inputs": np.zeros((1, 2, length))}]):
            pass
    assert shown == ["compiling the training step"] * 2


def test_the_loss_is_the_mean_since_the_last_line(capsys):
    display = Display(steps=4, start=0, every=2)
    for step, loss in enumerate((1.0, 3.0, 5.0, 9.0), 1):
        display.step(step, loss, 8)
    assert [line.split("  ")[1] for line in capsys.readouterr().err.splitlines()] == ["loss 2.000", "loss 7.000"]


def test_resuming_drops_later_lines(tmp_path):
    """Those steps run again. Trackers get the new lines."""
    tracked = []
    trackers = object.__new__(Trackers)
    trackers.log = lambda *line: tracked.append(line)

    def write(steps, resume_step):
        with Log(tmp_path, resume_step, trackers) as log:
            for step in steps:
                log.write(step, 1, {"train/loss": step + 0.5})
        return [line["step"] for line in log.history]

    assert write((1, 2, 3), -1) == []
    assert write((3, 4), 2) == [1, 2]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "member": 1, "train/loss": step + 0.5} for step in (1, 2, 3, 4)]
    assert tracked == [(step, 1, {"train/loss": step + 0.5}) for step in (1, 2, 3, 3, 4)]
    assert write((), -1) == [] and (tmp_path / "metrics.jsonl").read_text() == ""


def test_the_bar_shows_the_time_of_a_long_step(monkeypatch):
    """Another line replaces it meanwhile."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(logs, "_REFRESH", 0.05)
    with Display(steps=4, start=0, every=1) as display:
        terminal.wait_for("0/4 [00:01")
        with display.activity("evaluating"):
            before = terminal.getvalue()
            time.sleep(0.2)
            assert terminal.getvalue() == before
        terminal.wait_for("0/4 [00:02")
