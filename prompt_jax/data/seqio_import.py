"""Import seqio and TensorFlow on demand: only tasks of TFDS and seqio need them (the extra `tasks`)."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from prompt_jax.errors import MissingPackage

INSTALL = "pip install '.[tasks]'"
PACKAGES = ("seqio", "tensorflow", "tensorflow_datasets", "tensorflow_text")


def import_seqio() -> Any:
    """Return seqio, and keep TensorFlow from allocating accelerator memory, which JAX needs.

    Raises:
      MissingPackage: seqio or TensorFlow is not installed.
    """
    try:
        with contextlib.nullcontext() if "tensorflow" in sys.modules else _quiet_stderr():
            import seqio
            import tensorflow as tf
    except ModuleNotFoundError as error:
        raise MissingPackage(f"tasks of TFDS and seqio need the package {error.name}: {INSTALL}") from error

    with contextlib.suppress(RuntimeError):  # TensorFlow is already initialized with the user's configuration
        tf.config.set_visible_devices([], "GPU")
        tf.config.set_visible_devices([], "TPU")
    return seqio


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Silence standard error, because TensorFlow logs to it during import with any settings."""
    sys.stderr.flush()
    saved, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)
