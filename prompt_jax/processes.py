"""Several processes that run one program together, on one machine or many: `jax.distributed`.

All of them take the same steps and see the same numbers. The first alone writes files and prints.
"""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from prompt_jax.errors import UserError

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


class DistributedError(UserError, RuntimeError):
    """Processes that cannot find each other."""


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
            raise DistributedError(f"--distributed: {' and '.join(given)} are set, and {' and '.join(missing)} is not")
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


def all_agree(mine: bool) -> bool:
    """Whether it is so in every process."""
    if jax.process_count() == 1:
        return mine
    return bool(multihost_utils.process_allgather(mine).all())


class Preemption:
    """Notices SIGTERM, which schedulers send some seconds before they take a machine. Use as a context manager."""

    def __init__(self) -> None:
        self._noticed = False

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

    def at(self, step: int) -> bool:
        """Whether to save and leave after this step, the same in all processes. To be asked at each step."""
        if jax.process_count() == 1:
            return self._noticed
        return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def others_may_be_lost() -> Iterator[None]:
    """Ends this process with ProcessLost's exit status if what fails inside is that another process has gone.

    At once, and without the usual clean-up: at the end of a process JAX waits for all the others.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:  # JaxRuntimeError is one
        # A save that fails since another process has gone is an error of the user's only by its type.
        cause = error.__cause__ if isinstance(error, UserError) else error
        if jax.process_count() == 1 or not _is_of_a_lost_process(cause):
            raise
        traceback.print_exc()
        text = f"prompt-jax: another process was lost ({str(error).splitlines()[0][:200]}); the same command goes on"
        print(text, file=sys.stderr, flush=True)
        os._exit(ProcessLost.exit_status)


def _is_of_a_lost_process(error: BaseException | None) -> bool:
    if not isinstance(error, (ValueError, RuntimeError)):
        return False
    signs = ("gloo", "connection", "coordination", "heartbeat", "unavailable", "deadline", "peer", "barrier")
    return any(sign in str(error).lower() for sign in signs)
