"""What verbs that take long show on a terminal. Their results on standard output stay the same."""

import sys
import time

import pytest

from prompt_jax.cli import main
from prompt_jax.report import terminal as terminal_report
from prompt_jax.report.terminal import Activity
from terminals import Terminal


@pytest.fixture
def on_terminal(capsys, monkeypatch):
    """Return a function that runs a command, and returns standard output and the lines shown on the terminal.

    Each batch waits until its line is shown, however busy the machine is. Times are shown as 0:00.
    """
    before_batch = Activity.before_batch

    def call(*argv: object) -> tuple[str, str]:
        terminal = Terminal()

        def shown_before_batch(self: Activity, number: int, total: int | None) -> None:
            before_batch(self, number, total)
            limit = time.monotonic() + 60
            while self.line(0) not in terminal.getvalue() and time.monotonic() < limit:
                time.sleep(0.001)

        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            patch.setattr(Activity, "_DELAY", 0.0)
            patch.setattr(Activity, "_PERIOD", 0.001)
            patch.setattr(Activity, "before_batch", shown_before_batch)
            patch.setattr(terminal_report, "clock", lambda seconds: "0:00")
            assert main([str(word) for word in argv]) == 0, terminal.getvalue()
        return capsys.readouterr().out, terminal.getvalue()

    return call


def test_evaluate(on_terminal, run, prompt_file, ensemble_file, tiny_folder, sentiment_files):
    words = ["evaluate", ensemble_file, "--model", tiny_folder, "--data", sentiment_files["test"], "--batch-size", 4]
    out, shown = on_terminal(*words)
    assert f"\rloading {tiny_folder} 0:00\x1b[K\r" in shown and "evaluating on test.jsonl, compiling 0:00" in shown
    assert " left\x1b[K\r" in shown and shown.endswith("\r\x1b[K")
    assert run(*words) == (0, out, ""), "no terminal, no progress"


def test_evaluate_of_a_base(on_terminal, run, tiny_folder, sentiment_files):
    words = ["evaluate", "--model", tiny_folder, "--data", sentiment_files["test"], "--template", "{text}"]
    out, shown = on_terminal(*words)
    assert "loading" in shown and "evaluating on test.jsonl" in shown
    assert run(*words) == (0, out, "")


def test_predict(on_terminal, run, prompt_file, tiny_folder, tmp_path):
    """The number of inputs in a file is known, and the answers are not mixed with the line."""
    (tmp_path / "texts.txt").write_text("a film\n" * 9)
    words = ["predict", prompt_file, "--model", tiny_folder, "--input", tmp_path / "texts.txt", "--batch-size", 2]
    out, shown = on_terminal(*words)
    assert "answering, compiling 0:00" in shown and "answering 4/9, 0:00 left" in shown
    assert len(out.splitlines()) == 9 and run(*words) == (0, out, "")


def test_predict_from_a_pipe(on_terminal, prompt_file, tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "texts.txt").write_text("a film\n" * 5)
    with (tmp_path / "texts.txt").open() as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        out, shown = on_terminal("predict", prompt_file, "--model", tiny_folder, "--batch-size", 2)
    assert "answering 2, 0:00" in shown and len(out.splitlines()) == 5


def test_inspect_with_examples(on_terminal, run, prompt_file, tiny_folder, sentiment_files):
    words = ["inspect", prompt_file, "--model", tiny_folder, "--data", sentiment_files["test"], "--batch-size", 8]
    out, shown = on_terminal(*words)
    assert f"leaving out tokens of {prompt_file}, compiling" in shown and "/5, 0:00 left" in shown
    assert run(*words) == (0, out, "")
