"""A standard error that is a terminal."""

import io
import time


class Terminal(io.StringIO):
    """Text that was written, as to a terminal."""

    def isatty(self) -> bool:
        return True

    def wait_for(self, text: str) -> None:
        """Wait until a text was written."""
        end = time.monotonic() + 60
        while text not in self.getvalue():
            assert time.monotonic() < end, f"{text!r} is not in {self.getvalue()!r}"
            time.sleep(0.001)
