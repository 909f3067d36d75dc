"""Ways to interrupt a run at a step."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import pytest

from prompt_jax.training import loop
from prompt_jax.training.run import Run


class Interrupted(Exception):
    """What ends the run."""


def interrupt(_: object) -> None:
    raise Interrupted


@contextlib.contextmanager
def before_step(step: int, do: Callable[[Run], object] = interrupt) -> Iterator[None]:
    """Call `do` before a step of the runs inside; without it, interrupt them."""
    real = loop._step

    def patched(run, *arguments):
        if run.progress.step == step - 1:
            do(run)
        return real(run, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_step", patched)
        yield


@contextlib.contextmanager
def interrupted_at(call: int) -> Iterator[None]:
    """Expect the run inside to be interrupted at this call of its compiled step. Groups of members have own calls."""
    real, calls = loop.prepare, [0]

    def prepare(*args):
        setup = real(*args)

        def step(*step_args):
            calls[0] += 1
            if calls[0] == call:
                raise Interrupted
            return setup.step(*step_args)

        return dataclasses.replace(setup, step=step)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "prepare", prepare)
        yield
