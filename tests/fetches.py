"""Find copies from device to host that no `jax.device_get` asks for.

JAX's transfer guard does not see them on CPUs, where the host's memory is the device's.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import prompt_jax

PACKAGE = str(Path(prompt_jax.__file__).parent)


@contextlib.contextmanager
def implicit_fetches() -> Iterator[list[str]]:
    """Collect the lines of the package that copy an array to the host, other than by `jax.device_get`."""
    places: list[str] = []
    explicit = threading.local()
    array, get = type(jax.numpy.zeros(())), jax.device_get

    def device_get(tree: Any) -> Any:
        explicit.depth = getattr(explicit, "depth", 0) + 1
        try:
            return get(tree)
        finally:
            explicit.depth -= 1

    def note() -> None:
        frame = sys._getframe(2)
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        if frame is not None and not getattr(explicit, "depth", 0):
            places.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")

    def noted(real: Callable, *, method: bool) -> Callable:
        def called(first: Any, *rest: Any, **options: Any) -> Any:
            if method or any(isinstance(leaf, array) for leaf in jax.tree.leaves(first)):
                note()
            return real(first, *rest, **options)

        return called

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_get", device_get)
        patch.setattr(array, "_value", property(noted(array._value.fget, method=True)))
        patch.setattr(array, "item", noted(array.item, method=True))
        for name in ("asarray", "array", "stack", "concatenate"):  # these read the buffer
            patch.setattr(np, name, noted(getattr(np, name), method=False))
        yield places
