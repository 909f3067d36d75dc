"""TensorBoard's files of a run."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from prompt_jax.storage.files import add_path_to_errors, delete
from prompt_jax.training.tracker import TrackedRun, Tracker


class TensorBoard(Tracker):
    """Write TensorBoard's files, with one folder per member. They are rebuilt when a run is resumed."""

    def __init__(self, local_folder: Path):
        self._local_folder = local_folder
        self._files: dict[int, EventFile] = {}

    def start(self, run: TrackedRun) -> None:
        if (run.folder / "tensorboard").exists():
            delete(run.folder / "tensorboard")
        for line in run.history:
            values = {name: value for name, value in line.items() if name not in ("step", "member")}
            self.log(line["step"], line["member"], values)

    def log(self, step: int, member: int, values: Mapping[str, float]) -> None:
        if member not in self._files:
            self._files[member] = EventFile(self._local_folder / "tensorboard" / f"member_{member}")
        for name, value in values.items():
            self._files[member].add_scalar(name, value, step)

    def finish(self, status: str, summary: Mapping[str, Any] | None) -> None:
        for file in self._files.values():
            file.close()


class EventFile:
    """A TensorBoard file of one member.

    Each event is written immediately. TensorBoard's writer uses a thread: a killed process loses two minutes of events,
    and errors are raised late.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = self._path.open("wb", buffering=0)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def close(self) -> None:
        self._file.close()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Write one event. Raise OSError."""
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: Event) -> None:
        with add_path_to_errors(self._path):
            RecordWriter(self._file).write(event.SerializeToString())
