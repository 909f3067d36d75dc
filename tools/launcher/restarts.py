"""Which exit statuses lead to a restart, and after what delay. The statuses are those of `prompt-jax train`."""

import dataclasses

PREEMPTED = 75  # preempted or stopped, after saving
PEER_LOST = 76

RESTARTABLE = {
    PREEMPTED: "preempted after saving",
    PEER_LOST: "another process was lost",
    134: "SIGABRT, raised by JAX after losing another process",
    137: "SIGKILL",
    143: "SIGTERM, before it could save",
}
FINAL = {0: "done", 1: "an error", 2: "a wrong configuration", 3: "diverged"}

MAX_DELAY = 300.0  # seconds
MAX_DOUBLINGS = 20  # bounds the exponent; a first delay of 1 s exceeds MAX_DELAY after 9
RESET_AFTER = 600.0  # seconds; after an attempt of this length, counting restarts begins again


def exit_status(returncode: int) -> int:
    """Return the exit status that a shell reports: 137 for Python's -9, a process ended by SIGKILL."""
    return 128 - returncode if returncode < 0 else returncode


def meaning(status: int) -> str:
    return {**RESTARTABLE, **FINAL}.get(status, "unknown")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How an attempt ended, judged by the process that failed first: its failure causes those of the others.

    Attributes:
      status: exit status; 0 if all processes succeeded.
      process: the process that failed first.
    """

    status: int
    process: str = ""

    def __str__(self) -> str:
        return f"{self.process} ended with {self.status} ({meaning(self.status)})" if self.status else "done"


@dataclasses.dataclass
class Restarts:
    """Counts restarts in a row.

    Attributes:
      limit: most restarts in a row; an attempt of ten minutes resets the count.
      first_delay: seconds before the first restart. The delay doubles with each restart, up to five minutes.
    """

    limit: int
    first_delay: float
    count: int = 0

    def next_delay(self, duration: float) -> float | None:
        """Return the seconds to wait after an attempt of `duration` seconds, or None if the limit is reached."""
        self.count = 1 if duration >= RESET_AFTER else self.count + 1
        if self.count > self.limit:
            return None
        return min(self.first_delay * 2.0 ** min(self.count - 1, MAX_DOUBLINGS), MAX_DELAY)
