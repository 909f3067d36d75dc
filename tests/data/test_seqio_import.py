"""Importing seqio: what is missing, and the messages of TensorFlow."""

import os
import sys

import pytest

from prompt_jax.data.seqio_import import _quiet_stderr, import_seqio
from prompt_jax.errors import MissingPackage


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "seqio", None)  # importing it fails
    with pytest.raises(
        MissingPackage, match=r"tasks of TFDS and seqio need the package seqio: pip install '\.\[tasks\]'"
    ):
        import_seqio()


def test_standard_error_is_silent_only_inside(capfd):
    with pytest.raises(KeyError), _quiet_stderr():
        os.write(2, b"from TensorFlow")
        raise KeyError
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_accelerators_are_hidden_from_tensorflow():
    import_seqio()
    import tensorflow as tf

    assert tf.config.get_visible_devices("GPU") == tf.config.get_visible_devices("TPU") == []
