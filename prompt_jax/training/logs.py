"""Logs of a run while it trains: the terminal and `metrics.jsonl`. Only the first process writes."""

import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from tqdm import tqdm

from prompt_jax.distributed.processes import is_first
from prompt_jax.report.metrics_log import read_log
from prompt_jax.report.terminal import Activity, clock, escape_control_characters
from prompt_jax.storage.files import add_path_to_errors, write_text
from prompt_jax.storage.json_text import json_text
from prompt_jax.storage.paths import BucketPath

if TYPE_CHECKING:
    from prompt_jax.training.trackers import Trackers

_REFRESH = 2.0  # seconds between updates of the bar


class Log:
    """Write metrics by step and member to `metrics.jsonl`, and pass them to the trackers.

    Resuming drops the lines after `resume_step`, since those steps run again; -1 drops all lines. Files in a bucket
    cannot be appended to, so `flush` copies local files there.

    Attributes:
      history: the remaining lines of `metrics.jsonl`.
      local_folder: the run's folder, or that of the local files.
    """

    def __init__(self, folder: Path, resume_step: int, trackers: "Trackers"):
        self.history: list[dict[str, Any]] = []
        self.local_folder = self._folder = folder
        self._trackers = trackers
        if not is_first():
            return
        self._opened = contextlib.ExitStack()
        if isinstance(folder, BucketPath):
            self.local_folder = Path(self._opened.enter_context(tempfile.TemporaryDirectory(prefix="prompt_jax_log")))
        self.history = [line for line in read_log(folder) if line["step"] <= resume_step]
        path = self.local_folder / "metrics.jsonl"
        write_text(path, "".join(json_text(line) + "\n" for line in self.history))
        # Unbuffered, so that a failed write is not retried on closing.
        self._file = self._opened.enter_context(path.open("ab", buffering=0))

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: Any) -> None:
        if is_first():
            self._opened.close()

    def flush(self) -> None:
        """Copy the files to the bucket. Files in a local folder are complete already."""
        if not is_first() or not isinstance(self._folder, BucketPath):
            return
        files = [path for path in self.local_folder.rglob("*") if path.is_file()]
        self._folder.write_all({str(path.relative_to(self.local_folder)): path.read_bytes() for path in files})

    def write(self, step: int, member: int, values: Mapping[str, float]) -> None:
        """Write one line of the JSONL file, and pass it to the trackers. Raise OSError."""
        if not is_first():
            return
        with add_path_to_errors(self._folder / "metrics.jsonl"):
            self._file.write((json_text({"step": step, "member": member, **values}) + "\n").encode())
        self._trackers.log(step, member, values)


class Display:
    """Show step, loss, validation score, examples per second and time left: a bar on a terminal, else lines.

    The loss is the mean over the members that are training and over the steps since the last line, the score is the
    mean over these members.
    """

    def __init__(self, steps: int, start: int, every: int):
        self._steps, self._start, self._every = steps, start, every
        self._since = time.monotonic()
        self._examples = 0
        self._losses: list[float] = []  # since the last line
        self._shapes: set[Any] = set()  # of batches
        self._score = ""
        self._bar = None
        self._ended, self._busy = threading.Event(), threading.Lock()  # `_busy` while another line is shown
        if sys.stderr.isatty() and is_first():
            self._bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True)
            threading.Thread(target=self._refresh, daemon=True).start()

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: Any) -> None:
        with self._busy:
            self._ended.set()
            if self._bar is not None:
                self._bar.close()

    def _refresh(self) -> None:
        """Show the elapsed time while a step takes long. The bar itself changes with each step only."""
        while not self._ended.wait(_REFRESH):
            with self._busy:
                if self._bar is not None and not self._ended.is_set():
                    self._bar.refresh()

    def step(self, step: int, loss: float, examples: int) -> None:
        self._examples += examples
        seconds = time.monotonic() - self._since
        rate = self._examples / seconds
        self._losses.append(loss)
        loss = sum(self._losses) / len(self._losses)
        if step % self._every == 0:
            self._losses.clear()
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}{self._score} {rate:.1f} examples/s", refresh=False)
            self._bar.update(1)
        elif step % self._every == 0 or step == self._steps:
            left = seconds / (step - self._start) * (self._steps - step)
            self.write(
                f"step {step}/{self._steps}  loss {loss:.3f}{self._score}  {rate:.1f} examples/s  {clock(left)} left"
            )

    def score(self, name: str, values: Sequence[float]) -> None:
        """Show the mean of the members' validation scores from now on."""
        self._score = f"  {name} {sum(values) / len(values):.3f}"

    @contextlib.contextmanager
    def activity(self, text: str) -> Iterator[Activity]:
        """Show what is going on, if it takes long."""
        with self._busy, Activity(text, enabled=is_first()) as activity:
            yield activity
        if self._bar is not None:
            self._bar.refresh()

    def compiling(self, batch: Any) -> contextlib.AbstractContextManager[Any]:
        """Show that the training step is compiled, if the batch has shapes that are new in this process."""
        shapes = tuple(array.shape for array in jax.tree.leaves(batch))
        if shapes in self._shapes:
            return contextlib.nullcontext()
        self._shapes.add(shapes)
        return self.activity("compiling the training step")

    def write(self, text: str) -> None:
        """Write text to stderr, above the bar if there is one."""
        if not is_first():
            return
        text = escape_control_characters(text)
        tqdm.write(text, file=sys.stderr) if self._bar is not None else print(text, file=sys.stderr, flush=True)
