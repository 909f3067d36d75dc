"""Several processes that run one program together, on one machine or many: `jax.distributed`.

All of them take the same steps and see the same numbers. The first alone writes files and prints.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from prompt_jax.errors import SaveError, UserError
from prompt_jax.storage.locks import LockLost

_END_SECONDS = 10  # for the clean-up of all processes, where each has the same error
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


class DistributedError(UserError, RuntimeError):
    """Processes that cannot find each other, or that cannot begin because the first one cannot."""


class Preempted(UserError, RuntimeError):
    """The machine is wanted back; everything is saved."""

    exit_status = 75  # EX_TEMPFAIL: the same command goes on


class ProcessLost(UserError, RuntimeError):
    """Another process has gone, and without it nothing can be computed."""

    exit_status = 76


def initialize(heartbeat: int = 100) -> None:
    """Joins the other processes. Comes before anything is computed.

    Where JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID are set, they
    say who is who; otherwise JAX asks what it knows: Slurm, Open MPI, a TPU pod, Kubernetes.

    Args:
      heartbeat: seconds without a sign of life after which a process counts as lost, and the others end.

    Raises:
      DistributedError: no coordinator, or only some of the variables.
    """
    given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    arguments: dict[str, Any] = {}
    if "JAX_NUM_PROCESSES" in given or "JAX_PROCESS_ID" in given:
        if missing := [name for name in _VARIABLES if name not in given]:
            raise DistributedError(
                f"--distributed: {' and '.join(missing)} must be set too, beside {' and '.join(given)}"
            )
        try:
            numbers = {"num_processes": int(given[_VARIABLES[1]]), "process_id": int(given[_VARIABLES[2]])}
        except ValueError as error:
            raise DistributedError(f"--distributed: {_VARIABLES[1]} and {_VARIABLES[2]} are numbers: {error}") from None
        arguments = {"coordinator_address": given[_VARIABLES[0]], **numbers}
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=heartbeat)
    except (ValueError, RuntimeError) as error:
        raise DistributedError(
            f"--distributed: the processes could not be joined ({str(error).splitlines()[0]}). They are found on TPU "
            f"pods, under Slurm, Open MPI and Kubernetes, or by the variables {', '.join(_VARIABLES)}"
        ) from error


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns once all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def all_processes(mine: bool) -> bool:
    """Whether it is so in every process."""
    if jax.process_count() == 1:
        return mine
    return bool(multihost_utils.process_allgather(mine).all())


def on_first_process(action: Callable[[], object]) -> None:
    """Run an action in the first process. If it fails there, all processes raise an error.

    Raises:
      UserError, OSError: of the action. In the other processes it is a DistributedError.
    """
    failure: UserError | OSError | None = None
    if is_first():
        try:
            action()
        except (UserError, OSError) as error:
            failure = error
    if not all_processes(failure is None):
        raise failure or DistributedError("process 0 could not begin; its output says why")


class Preemption:
    """Notices SIGTERM, which schedulers send some seconds before they take a machine. Use as a context manager."""

    def __init__(self) -> None:
        self._noticed, self._asked = False, 0

    def __enter__(self) -> "Preemption":
        self._before: Any = None
        # Several processes have JAX's own handler, which tells all of them and makes them agree on a step.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._noticed = True

    def noticed(self) -> bool:
        """Whether to save and leave now, the same in all processes: true once for each SIGTERM.

        All processes ask together, and often: the more seldom, the later they agree.
        """
        if jax.process_count() == 1:
            noticed, self._noticed = self._noticed, False
            return noticed
        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked)


@contextlib.contextmanager
def exit_if_process_lost() -> Iterator[None]:
    """Exit at once, in a distributed run, after an error that only this process has.

    These errors are that another process is gone (the exit status is ProcessLost's) and that this process could not
    write. JAX's usual shutdown would wait for the other processes, which do not know of the error. After any other
    error, which they may have too, the shutdown gets a few seconds.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        # A save that fails because another process is gone is a user's error by its type alone.
        cause = error.__cause__ if isinstance(error, UserError) else error
        status = getattr(error, "exit_status", 1)
        if _is_of_a_lost_process(cause):
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            exit_now(
                ProcessLost.exit_status, f"another process was lost ({reason}); run the same command again to resume"
            )
        elif isinstance(error, SaveError | LockLost):
            exit_now(status, str(error))
        else:
            ending = threading.Timer(_END_SECONDS, exit_now, [status])
            ending.daemon = True
            ending.start()
            raise


def exit_now(status: int, message: str = "") -> None:
    """Exit at once, after a last message, without waiting for threads or other processes."""
    if message:
        print(f"prompt-jax: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _is_of_a_lost_process(error: BaseException | None) -> bool:
    if not isinstance(error, (ValueError, RuntimeError)):
        return False
    signs = ("gloo", "connection", "coordination", "heartbeat", "unavailable", "deadline", "peer", "barrier")
    return any(sign in str(error).lower() for sign in signs)
