"""Comparison of loaded models."""

import jax
import numpy as np

from prompt_jax.checkpoints import load


def leaves(model: load.Model) -> dict[str, np.ndarray]:
    flat, _ = jax.tree_util.tree_flatten_with_path(model.params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in flat}


def assert_same_model(actual: load.Model, expected: load.Model) -> None:
    assert actual.config == expected.config
    assert actual.fingerprint == expected.fingerprint
    assert leaves(actual).keys() == leaves(expected).keys()
    for path, leaf in leaves(actual).items():
        np.testing.assert_array_equal(leaf, leaves(expected)[path], err_msg=path)
