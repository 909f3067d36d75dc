"""The key-value cache: what beams attend to, and that reordering beams copies nothing."""

import jax.numpy as jnp
import numpy as np

from prompt_jax.models.attention import attend
from prompt_jax.models.cache import decode_layers, empty_cache

ROWS, BEAMS, CAPACITY, HEADS, WIDTH, LAYERS = 2, 3, 4, 2, 4, 3


def stacks():
    """Return layers without weights, in two stacks."""
    return ({"weights": jnp.zeros((1,))}, {"weights": jnp.zeros((LAYERS - 1,))})


def empty():
    sizes = {"rows": ROWS, "beams": BEAMS, "capacity": CAPACITY, "heads": HEADS, "width": WIDTH}
    return empty_cache(stacks(), (), **sizes, dtype=jnp.float32)


def attention(x, weights, append, past):
    """Return a layer that adds attention with each token as query, key and value."""
    heads = jnp.broadcast_to(x[:, :, None], (*x.shape[:2], HEADS, WIDTH))
    kept, generated = append(heads, heads)
    return x + attend(heads, generated)[:, :, 0], kept


def test_a_beam_attends_to_the_tokens_of_its_hypothesis():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(CAPACITY, ROWS, BEAMS, WIDTH)).astype(np.float32)
    parents = rng.integers(0, BEAMS, (CAPACITY, ROWS, BEAMS)).astype(np.int32)
    cache = empty()
    inputs = [
        [[[] for _ in range(LAYERS)] for _ in range(BEAMS)] for _ in range(ROWS)
    ]  # tokens that each beam attends to
    for step in range(CAPACITY):
        cache = cache.reorder_beams(jnp.asarray(parents[step]))
        inputs = [
            [[list(seen) for seen in row[parent]] for parent in chosen]
            for row, chosen in zip(inputs, parents[step], strict=True)
        ]
        out, cache = decode_layers(attention, jnp.asarray(tokens[step]), stacks(), cache)
        for row in range(ROWS):
            for beam in range(BEAMS):
                x = tokens[step, row, beam].astype(float)
                for layer in range(LAYERS):
                    seen = inputs[row][beam][layer]
                    seen.append(x)
                    weights = np.exp(np.array(seen) @ x)
                    x = x + weights @ np.array(seen) / weights.sum()
                np.testing.assert_allclose(out[row, beam], x, rtol=2e-5)


def test_the_order_of_beams_moves_no_keys_and_values():
    cache = empty()
    reordered = cache.reorder_beams(jnp.ones((ROWS, BEAMS), jnp.int32))
    assert reordered.generated is cache.generated
