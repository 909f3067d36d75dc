"""Which ends of a process are worth another start, and when. The exit statuses are those of `prompt-jax train`."""

import dataclasses

RESTARTABLE = {
    75: "preempted, after saving",
    76: "another process was lost",
    134: "SIGABRT, as JAX ends a process that has lost another",
    137: "SIGKILL",
    143: "SIGTERM, before it could save",
}
FINAL = {0: "done", 1: "an error", 2: "a wrong configuration", 3: "diverged"}

LONGEST_WAIT = 300.0  # seconds
MOST_DOUBLINGS = 20  # bounds the exponent; a first wait of 1 s exceeds LONGEST_WAIT after 9
GOOD_SITTING = 600.0  # seconds after which the count of restarts begins anew


def exit_status(returncode: int) -> int:
    """As a shell has it: Python's -9 of a process that SIGKILL has ended is 137."""
    return 128 - returncode if returncode < 0 else returncode


def meaning(status: int) -> str:
    return {**RESTARTABLE, **FINAL}.get(status, "unknown")


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a sitting has ended, by the process that failed first: the ends of the others follow from that one.

    Attributes:
      status: exit status; 0 if all processes have done their work.
      who: the process that failed first.
    """

    status: int
    who: str = ""

    def __str__(self) -> str:
        return f"{self.who} ended with {self.status} ({meaning(self.status)})" if self.status else "done"


@dataclasses.dataclass
class Restarts:
    """Counts restarts in a row.

    Attributes:
      most: restarts in a row; a sitting of ten minutes begins the count anew.
      first_wait: seconds before the first one, twice as many before each further one, and never above five minutes.
    """

    most: int
    first_wait: float
    count: int = 0

    def wait(self, lasted: float) -> float | None:
        """Seconds to wait before the next start, after a sitting of `lasted` seconds; None: there is to be none."""
        self.count = 1 if lasted >= GOOD_SITTING else self.count + 1
        if self.count > self.most:
            return None
        return min(self.first_wait * 2.0 ** min(self.count - 1, MOST_DOUBLINGS), LONGEST_WAIT)
