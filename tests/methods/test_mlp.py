"""The MLP of a reparameterization: by hand, its initial values, and fitting it to a target."""

import jax
import numpy as np

from prompt_jax.methods import mlp

KEY = jax.random.key(0)


def table(rows: int, width: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (rows, width))


def test_two_layers_with_tanh_between_them():
    variables = mlp.init(KEY, table(3, 4), 5, (2, 6))
    x, (first, second) = jax.tree.map(np.asarray, (variables["table"], variables["layers"]))
    hidden = np.tanh(x @ first["weights"] + first["bias"])
    expected = np.einsum("ph,hkd->pkd", hidden, second["weights"]) + second["bias"]
    np.testing.assert_allclose(mlp.apply(variables), expected, rtol=1e-5, atol=1e-6)


def test_initial_values_are_those_of_pytorch():
    """Weights and biases are uniform within 1 / sqrt(inputs)."""
    variables = mlp.init(KEY, table(2, 64), 400, (64,))
    for layer, inputs in zip(variables["layers"], (64, 400), strict=True):
        limit = inputs**-0.5
        for leaf in layer.values():
            assert np.abs(leaf).max() <= limit
            assert abs(np.std(leaf) - limit / 3**0.5) < 0.1 * limit


def test_fitting_leaves_the_table():
    """Adam moves each weight by at most about 1e-4 in each of 500 steps."""
    variables = mlp.init(KEY, table(3, 4), 16, (2,))
    target = mlp.apply(variables) + 0.05
    fitted = mlp.fit(variables, target)
    np.testing.assert_array_equal(fitted["table"], variables["table"])
    error, before = (np.square(mlp.apply(each) - target).mean() for each in (fitted, variables))
    assert error < 0.1 * before
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), fitted["layers"], variables["layers"])
    assert 1e-3 < max(jax.tree.leaves(moved)) < 0.06
