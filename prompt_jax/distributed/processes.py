"""One program in several processes, on one machine or many, with `jax.distributed`.

All processes run the same steps and see the same numbers. Only the first writes files and prints.
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
import numpy as np
from jax.experimental import multihost_utils

from prompt_jax.errors import SaveError, UserError
from prompt_jax.storage.locks import LockLost

_END_SECONDS = 10  # for clean-up when all processes have the same error
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


class DistributedError(UserError, RuntimeError):
    """The processes cannot connect, or the first one failed."""


class Preempted(UserError, RuntimeError):
    """The machine was preempted; everything is saved."""

    exit_status = 75  # EX_TEMPFAIL: the same command resumes


class ProcessLost(UserError, RuntimeError):
    """Another process died, so this one cannot continue."""

    exit_status = 76


def initialize(heartbeat: int = 100) -> None:
    """Connect to the other processes. Call it before any computation.

    JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID identify the
    processes. Without them, JAX detects Slurm, Open MPI, a TPU pod or Kubernetes.

    Args:
      heartbeat: seconds without a heartbeat after which a process counts as lost, and the others exit.

    Raises:
      DistributedError: no coordinator, or only some of the variables are set.
    """
    given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    arguments: dict[str, Any] = {}
    if "JAX_NUM_PROCESSES" in given or "JAX_PROCESS_ID" in given:
        if missing := [name for name in _VARIABLES if name not in given]:
            raise DistributedError(f"--distributed: {' and '.join(given)} is set; set {' and '.join(missing)} too")
        try:
            numbers = {"num_processes": int(given[_VARIABLES[1]]), "process_id": int(given[_VARIABLES[2]])}
        except ValueError as error:
            raise DistributedError(
                f"--distributed: {_VARIABLES[1]} and {_VARIABLES[2]} must be numbers: {error}"
            ) from None
        arguments = {"coordinator_address": given[_VARIABLES[0]], **numbers}
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=heartbeat)
    except (ValueError, RuntimeError) as error:
        raise DistributedError(
            f"--distributed: the processes could not be connected ({str(error).splitlines()[0]}). They are detected on "
            f"TPU pods, under Slurm, Open MPI and Kubernetes, or set {', '.join(_VARIABLES)}"
        ) from error


def is_first() -> bool:
    """Return whether this process is the first, which writes and prints."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Wait until all processes have reached this call."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def all_processes(value: bool) -> bool:
    """Return whether the value is true in every process."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(value).all())


def smallest(value: int) -> int:
    """Return the smallest value of all processes. It must be less than 2**31."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.int32(value)).min())


def on_first_process(action: Callable[[], object]) -> None:
    """Run an action in the first process. If it fails, all processes raise an error.

    Raises:
      UserError, OSError: the action's error. The other processes raise DistributedError.
    """
    failure: UserError | OSError | None = None
    if is_first():
        try:
            action()
        except (UserError, OSError) as error:
            failure = error
    if not all_processes(failure is None):
        raise failure or DistributedError("process 0 could not start; its output says why")


class Preemption:
    """Detects SIGTERM, which schedulers send seconds before they preempt a machine. Use as a context manager."""

    def __init__(self) -> None:
        self._requested, self._calls = False, 0

    def __enter__(self) -> "Preemption":
        self._previous: Any = None
        # With several processes, JAX's handler notifies all of them and makes them agree on a step.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._requested = True

    def requested(self) -> bool:
        """Return whether to save and exit now, the same in all processes. True once for each SIGTERM.

        All processes must call this at the same steps, and often. They agree on the call at which it returns True.
        """
        if jax.process_count() == 1:
            requested, self._requested = self._requested, False
            return requested
        self._calls += 1
        return multihost_utils.reached_preemption_sync_point(self._calls)


@contextlib.contextmanager
def exit_if_process_lost() -> Iterator[None]:
    """In a distributed run, exit at once after an error that only this process has.

    Such errors are a lost peer (with ProcessLost's exit status) and a failed write. JAX's shutdown would wait for the
    other processes, which do not know of the error. Other errors may occur in
    all processes. After them, the shutdown gets a few seconds.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        # A save that fails because a peer was lost raises a UserError too.
        cause = error.__cause__ if isinstance(error, UserError) else error
        status = getattr(error, "exit_status", 1)
        if _is_lost_process(cause):
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


def _is_lost_process(error: BaseException | None) -> bool:
    if not isinstance(error, (ValueError, RuntimeError)):
        return False
    signs = ("gloo", "connection", "coordination", "heartbeat", "unavailable", "deadline", "peer", "barrier")
    return any(sign in str(error).lower() for sign in signs)
