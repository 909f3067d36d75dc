"""What runs long shows a line on a terminal."""

import os
import pty
import sys
import time

import pytest

from prompt_jax.report.terminal import Activity, clock
from terminals import Terminal


@pytest.mark.parametrize(("seconds", "text"), [(4.6, "0:05"), (125, "2:05"), (3725.2, "1:02:05")])
def test_durations(seconds, text):
    assert clock(seconds) == text


def test_the_line():
    activity = Activity("loading")
    assert activity.line(65.0) == "loading 1:05"
    activity.update(3, 12)
    assert activity.line(6.0) == "loading 3/12, 0:18 left"


def test_the_time_left_excludes_compilation(monkeypatch):
    """The first batch includes it. A second pass starts anew."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    activity = Activity("evaluating")
    lines = []
    for number, seconds in enumerate((30, 2, 2)):
        activity.before_batch(number, 4)
        now += seconds
        lines.append(activity.line(now - activity._start))
    assert lines == ["evaluating, compiling 0:30", "evaluating 1/4, 0:02", "evaluating 2/4, 0:08 left"]
    activity.before_batch(0, None)
    assert activity.line(3.0) == "evaluating, compiling 0:03"
    activity.before_batch(64, None)
    assert activity.line(3.0) == "evaluating 64, 0:03"


def test_the_line_is_hidden_while_others_print(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(Activity, "_DELAY", 0.0)
    monkeypatch.setattr(Activity, "_PERIOD", 0.001)
    with Activity("answering") as activity:
        terminal.wait_for("answering")
        with activity.hidden():
            terminal.write("an answer")
            time.sleep(0.02)
            assert terminal.getvalue().endswith("\r\x1b[Kan answer")
        terminal.wait_for("an answer\ranswering")


def test_a_terminal_shows_it_and_is_clean_afterwards(monkeypatch):
    master, slave = pty.openpty()
    terminal = os.fdopen(slave, "w")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(Activity, "_DELAY", 0.01)
    monkeypatch.setattr(Activity, "_PERIOD", 0.01)
    with Activity("compiling"):
        time.sleep(0.2)
    shown = os.read(master, 100_000).decode()
    assert "\rcompiling 0:00\x1b[K" in shown and shown.endswith("\r\x1b[K")
    terminal.close()
    os.close(master)


def test_no_terminal_no_line(capsys, monkeypatch):
    monkeypatch.setattr(Activity, "_DELAY", 0.0)
    with Activity("compiling"):
        time.sleep(0.01)
    assert capsys.readouterr().err == ""
