"""Logs of a run while it trains: the terminal, `metrics.jsonl`, and TensorBoard. Only the first process writes."""

import contextlib
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

from prompt_jax.distributed.processes import is_first
from prompt_jax.report.metrics_log import read_log
from prompt_jax.report.terminal import Activity, clock, escape_control_characters
from prompt_jax.storage.files import add_path_to_errors, delete, write_text
from prompt_jax.storage.json_text import json_text
from prompt_jax.storage.paths import BucketPath

_REFRESH = 2.0  # seconds between updates of the bar


class Log:
    """Write metrics by step and member to `metrics.jsonl`, and to TensorBoard files with one folder per member.

    Resuming drops the lines after `resume_step`, since those steps run again; -1 drops all lines. The TensorBoard files
    are rebuilt from the remaining lines. Files in a bucket cannot be appended to, so `flush` copies local files there.
    """

    def __init__(self, folder: Path, resume_step: int, members: int):
        if not is_first():
            return
        self._folder = self._here = folder
        self._opened = contextlib.ExitStack()
        if isinstance(folder, BucketPath):
            self._here = Path(self._opened.enter_context(tempfile.TemporaryDirectory(prefix="prompt_jax_log")))
        kept = [line for line in read_log(folder) if line["step"] <= resume_step]
        path = self._here / "metrics.jsonl"
        write_text(path, "".join(json_text(line) + "\n" for line in kept))
        # Unbuffered, so that a failed write is not retried on closing.
        self._file = self._opened.enter_context(path.open("ab", buffering=0))
        if (folder / "tensorboard").exists():
            delete(folder / "tensorboard")
        self._events = [
            self._opened.enter_context(EventFile(self._here / "tensorboard" / f"member_{number}"))
            for number in range(members)
        ]
        for line in kept:
            self._add_events(line)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: Any) -> None:
        if is_first():
            self._opened.close()

    def flush(self) -> None:
        """Copy the files to the bucket. Files in a local folder are complete already."""
        if not is_first() or not isinstance(self._folder, BucketPath):
            return
        files = [path for path in self._here.rglob("*") if path.is_file()]
        self._folder.write_all({str(path.relative_to(self._here)): path.read_bytes() for path in files})

    def write(self, step: int, member: int, values: Mapping[str, float]) -> None:
        """Write one line of the JSONL file, and its events. Raise OSError."""
        if not is_first():
            return
        line = {"step": step, "member": member, **values}
        with add_path_to_errors(self._folder / "metrics.jsonl"):
            self._file.write((json_text(line) + "\n").encode())
        self._add_events(line)

    def _add_events(self, line: Mapping[str, Any]) -> None:
        for name, value in line.items():
            if name not in ("step", "member"):
                self._events[line["member"]].add_scalar(name, value, line["step"])


class EventFile:
    """A TensorBoard file of one member. Use as a context manager.

    Each event is written immediately. TensorBoard's writer uses a thread: a killed process loses two minutes of events,
    and errors are raised late.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = self._path.open("wb", buffering=0)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def __enter__(self) -> "EventFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Write one event. Raise OSError."""
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: Event) -> None:
        with add_path_to_errors(self._path):
            RecordWriter(self._file).write(event.SerializeToString())


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
