"""Attention over several blocks of keys and values, against plain NumPy, and dropout."""

import jax.numpy as jnp
import numpy as np

from prompt_jax.models.attention import MASKED, KeyValues, attend, attend_projected, visible_keys

RNG = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def plain_attention(q, keys, values, bias) -> np.ndarray:
    """Return softmax(q k + bias) v in float64. Keys and values are repeated for the query heads of their group."""
    q, keys, values = (np.asarray(each, np.float64) for each in (q, keys, values))
    keys, values = (np.repeat(each, q.shape[2] // each.shape[2], axis=2) for each in (keys, values))
    weights = np.exp(np.einsum("bthk,bshk->bhts", q, keys) + bias)
    return np.einsum("bhts,bshk->bthk", weights / weights.sum(axis=-1, keepdims=True), values)


def test_one_softmax_over_all_blocks():
    """The text's block, a prefix for the whole batch, and a block of the cache with a masked key."""
    q = random(2, 3, 4, 5)
    text = KeyValues(random(2, 6, 2, 5), random(2, 6, 2, 5), random(2, 4, 3, 6))
    prefix = KeyValues(random(4, 2, 5), random(4, 2, 5))
    hidden = np.array([0, MASKED, 0], np.float32).reshape(1, 1, 1, 3)
    cached = KeyValues(random(2, 2, 3, 5), random(2, 2, 3, 5), hidden, heads_first=True)

    def joined(name: str) -> np.ndarray:
        whole_batch = np.broadcast_to(getattr(prefix, name), (2, 4, 2, 5))
        return np.concatenate([getattr(text, name), whole_batch, getattr(cached, name).swapaxes(1, 2)], axis=1)

    bias = [np.broadcast_to(each, (2, 4, 3, each.shape[-1])) for each in (text.bias, np.zeros((1, 1, 1, 4)), hidden)]
    expected = plain_attention(q, joined("k"), joined("v"), np.concatenate(bias, axis=-1))
    np.testing.assert_allclose(attend(jnp.asarray(q), text, prefix, cached), expected, rtol=1e-4, atol=1e-5)


def test_attention_to_projections():
    """Attention to x without its keys and values equals attention to them."""
    q, x, w_k, w_v = (jnp.asarray(random(*shape)) for shape in ((2, 3, 4, 5), (2, 6, 7), (7, 4, 5), (7, 4, 5)))
    mask = jnp.asarray([[True] * 6, [True, False] * 3])
    bias, prefix = np.where(mask, 0, MASKED)[:, None, None], KeyValues(random(2, 4, 5), random(2, 4, 5))
    keys, values = (np.einsum("bsd,dhk->bshk", x, w) for w in (w_k, w_v))
    joined = [
        np.concatenate([of_text, np.broadcast_to(of_prefix, (2, 2, 4, 5))], axis=1)
        for of_text, of_prefix in ((keys, prefix.k), (values, prefix.v))
    ]
    expected = plain_attention(q, *joined, np.pad(bias, [(0, 0), (0, 0), (0, 0), (0, 2)]))
    actual = attend_projected(q, x, w_k, w_v, mask, [prefix], dropout_rate=0.0, key=None)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_row_without_any_key_is_finite():
    hidden = np.full((1, 1, 1, 3), MASKED, np.float32)
    mixed = attend(jnp.ones((1, 2, 2, 4)), KeyValues(random(1, 3, 2, 4), random(1, 3, 2, 4), hidden))
    assert np.isfinite(mixed).all()


def test_scores_are_capped_before_the_bias():
    q, k, v = (random(1, 2, 2, 4) for _ in range(3))
    bias = random(1, 2, 2, 2)
    scores = 3 * np.tanh(np.einsum("bthk,bshk->bhts", q, k) / 3) + bias
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    actual = attend(jnp.asarray(q), KeyValues(k, v, bias), softcap=3.0)
    np.testing.assert_allclose(actual, np.einsum("bhts,bshk->bthk", weights, v), rtol=1e-4, atol=1e-5)


def test_a_window_hides_keys_that_are_further_away():
    """With a window of 3, a query at position 5 sees the keys at 3, 4 and 5."""
    keys = KeyValues(None, None, positions=np.array([[2, 3, 4, 5, 6]]))  # type: ignore[arg-type]
    queries = np.array([[5, 6]])
    visible = visible_keys(keys, queries, jnp.int32(3))
    np.testing.assert_array_equal(visible[0], [[False, True, True, True, False], [False, False, True, True, True]])
    np.testing.assert_array_equal(visible_keys(keys, queries)[0], [[True] * 4 + [False], [True] * 5])
    assert visible_keys(keys._replace(positions=None), queries, jnp.int32(3)) is None
