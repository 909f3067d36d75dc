"""What the terminal shows of the training step."""

import sys
import time

import numpy as np

from prompt_jax.training import logs
from prompt_jax.training.logs import Display
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
