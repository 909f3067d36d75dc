"""What a run says while it trains: progress on the terminal, a JSONL file, TensorBoard. Of several processes only the
first says anything."""

import contextlib
import json
import math
import sys
import tempfile
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prompt_jax.json_text import json_text
from prompt_jax.paths import BucketPath
from prompt_jax.processes import is_first
from prompt_jax.whole_file import write_text

# TensorBoard takes TensorFlow for its files if that is installed, which is some seconds and 500 MB; this module, which
# it looks for first, tells it to use its own code.
sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
from tensorboard.summary import Writer  # noqa: E402


class Log:
    """Numbers by step and member, to `metrics.jsonl` and to TensorBoard files, a folder for each member.

    Resuming at a step drops what was logged after it, since those steps are run again; -1 begins anew. On a bucket,
    where nothing can be appended, the files are as of the last `flush`.
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
        # Without a buffer: what cannot be written is not tried again.
        self._file = self._opened.enter_context(path.open("ab", buffering=0))
        self._writers = [Writer(str(self._here / "tensorboard" / f"member_{number}")) for number in range(members)]

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, failed: Any, *_: Any) -> None:
        if not is_first():
            return
        if failed is not None:  # otherwise the loop has done so
            with contextlib.suppress(OSError):  # which is not to hide what failed first
                self.flush()
        for writer in self._writers:
            writer.close()
        self._opened.close()

    def flush(self) -> None:
        """Copies what was logged to the bucket. On this machine it is in its place already."""
        if not is_first() or not isinstance(self._folder, BucketPath):
            return
        for writer in self._writers:
            writer.flush()
        files = [path for path in self._here.rglob("*") if path.is_file()]
        self._folder.write_all({str(path.relative_to(self._here)): path.read_bytes() for path in files})

    def write(self, step: int, member: int, values: Mapping[str, float]) -> None:
        """One line of the JSONL file; the values are plain numbers."""
        if not is_first():
            return
        self._file.write((json_text({"step": step, "member": member, **values}) + "\n").encode())
        for name, value in values.items():
            self._writers[member].add_scalar(name, value, step)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, with NaN for null; a last line that was cut off by a crash is left out."""
    path = folder / "metrics.jsonl"
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(values, dict):  # `json_text` writes null for what is not finite
            values = {name: math.nan if value is None else value for name, value in values.items()}
        lines.append(values)
    return lines


class Display:
    """A bar on a terminal, plain lines elsewhere: step, loss, validation score, examples a second, time left.

    Loss and score are means over the members that are trained.
    """

    def __init__(self, steps: int, start: int, every: int):
        self._steps, self._start, self._every = steps, start, every
        self._since = time.monotonic()
        self._examples = 0
        self._score = ""
        self._bar = None
        if sys.stderr.isatty() and is_first():
            self._bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True)

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, step: int, loss: float, examples: int) -> None:
        self._examples += examples
        seconds = time.monotonic() - self._since
        rate = self._examples / seconds
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}{self._score} {rate:.1f} examples/s", refresh=False)
            self._bar.update(1)
        elif step % self._every == 0 or step == self._steps:
            left = seconds / (step - self._start) * (self._steps - step)
            self.say(
                f"step {step}/{self._steps}  loss {loss:.3f}{self._score}  {rate:.1f} examples/s  {_clock(left)} left"
            )

    def score(self, name: str, values: Sequence[float]) -> None:
        """The latest validation scores of the members, of which the mean is shown from now on."""
        self._score = f"  {name} {sum(values) / len(values):.3f}"

    def say(self, text: str) -> None:
        """A line of text that does not break the bar."""
        if not is_first():
            return
        tqdm.write(text, file=sys.stderr) if self._bar is not None else print(text, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
