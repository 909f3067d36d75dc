"""Text on terminals: escaped control characters, and what is going on."""

import contextlib
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator
from typing import Any


def escape_control_characters(text: str) -> str:
    r"""Escape the characters of a text that a terminal would interpret or hide, such as `\x1b`.

    Line feeds stay, as do spaces of all widths and the joiners of emoji and of Persian and Indic scripts.
    """
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character in "\n\u200c\u200d" or unicodedata.category(character) == "Zs"


class Activity:
    """Show a line on the terminal while something runs: its name, and the elapsed time or the time left.

    Use as a context manager. It shows nothing during the first second, and nothing if stderr is not a terminal. At the
    end the line disappears.
    """

    _DELAY, _PERIOD = 1.0, 0.5  # seconds

    def __init__(self, text: str, *, enabled: bool = True):
        self._text = text
        self._done, self._first = 0, 0  # parts; `_first` of them were done at `_start`
        self._total: int | None = None
        self._compiling = False
        self._start = time.monotonic()
        self._ended = threading.Event()
        self._printing = threading.Lock()
        self._thread: threading.Thread | None = None
        if enabled and sys.stderr.isatty():
            self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "Activity":
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def update(self, done: int, total: int | None) -> None:
        """Set how many parts are done, and how many there are; None if that is unknown."""
        if done == 0:  # the first part, or of another pass
            self._start, self._first = time.monotonic(), 0
        self._done, self._total, self._compiling = done, total, False

    def before_batch(self, number: int, total: int | None) -> None:
        """Set the batch that begins. The first one includes compilation, so the time left follows from the others."""
        if self._compiling:
            self._start, self._first = time.monotonic(), number
        self.update(number, total)
        self._compiling = number == 0

    @contextlib.contextmanager
    def hidden(self, hide: bool = True) -> Iterator[None]:
        """Clear the line while the caller prints or reads on the terminal, unless `hide` is false."""
        if self._thread is None or not hide:
            yield
            return
        with self._printing:
            _clear()
            yield

    def line(self, seconds: float) -> str:
        """Return the line after this many seconds."""
        if not self._done:
            return f"{self._text}{', compiling' if self._compiling else ''} {clock(seconds)}"
        parts = f"{self._text} {self._done}{f'/{self._total}' if self._total else ''}"
        if self._total is None or self._done == self._first:
            return f"{parts}, {clock(seconds)}"
        left = seconds / (self._done - self._first) * (self._total - self._done)
        return f"{parts}, {clock(left)} left"

    def _show(self) -> None:
        if self._ended.wait(self._DELAY):
            return
        while not self._ended.wait(self._PERIOD):
            with self._printing:
                # The cursor returns to the start, so that a warning overwrites the line.
                print(f"\r{self.line(time.monotonic() - self._start)}\x1b[K\r", end="", file=sys.stderr, flush=True)
        with self._printing:
            _clear()


def _clear() -> None:
    print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Return a duration as `2:05` or `1:02:05`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
