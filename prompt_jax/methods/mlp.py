"""The reparameterization of Li and Liang 2021, section 4.3: train a small table and an MLP that produce the prefix.

After training, only the resulting prefix is kept.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

Variables = dict[str, Any]

FIT_STEPS, FIT_RATE = 500, 1e-4  # from the authors' code for small data sets


def init(key: PRNGKeyArray, table: Float[Array, "P D"], hidden: int, out: tuple[int, ...]) -> Variables:
    """Return the table and two random layers, initialized as PyTorch does: uniform within 1 / sqrt(inputs).

    Args:
      key: random key.
      table: one row per slot.
      hidden: width of the hidden layer.
      out: shape of the output for each slot.

    Returns:
      `{"table": [P, D], "layers": ({"weights": [in, *out], "bias": [*out]}, ...)}`, float32.
    """
    widths = [table.shape[1], hidden]
    outs: list[tuple[int, ...]] = [(hidden,), out]
    layers = []
    for layer_key, width, shape in zip(jax.random.split(key, len(outs)), widths, outs, strict=True):
        w_key, b_key = jax.random.split(layer_key)
        limit = width**-0.5
        weights = jax.random.uniform(w_key, (width, *shape), jnp.float32, -limit, limit)
        layers.append({"weights": weights, "bias": jax.random.uniform(b_key, shape, jnp.float32, -limit, limit)})
    return {"table": table, "layers": tuple(layers)}


def apply(variables: Variables) -> Float[Array, "P *out"]:
    """Return the output of the layers for each row of the table: linear layers with tanh between them."""
    x = variables["table"]
    for number, layer in enumerate(variables["layers"]):
        x = jnp.tanh(x) if number else x
        x = jnp.tensordot(x, layer["weights"], 1) + layer["bias"][None]
    return x


def fit(variables: Variables, target: Float[Array, "P *out"]) -> Variables:
    """Fit the layers to produce the target, by mean squared error, and return the variables. The table is unchanged.

    This is the paper's initialization with real words for small data sets: Adam, 500 steps at 1e-4.
    """
    optimizer = optax.adam(FIT_RATE)

    def loss(layers: Any) -> Array:
        return jnp.square(apply({**variables, "layers": layers}) - target).mean()

    def step(_: Array, carry: Any) -> Any:
        layers, state = carry
        updates, state = optimizer.update(jax.grad(loss)(layers), state)
        return optax.apply_updates(layers, updates), state

    layers = variables["layers"]
    fitted, _ = jax.jit(lambda start: jax.lax.fori_loop(0, FIT_STEPS, step, start))((layers, optimizer.init(layers)))
    return {**variables, "layers": fitted}
