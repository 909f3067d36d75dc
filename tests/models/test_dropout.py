"""Dropout: its rate, and masks that do not depend on each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_jax.models.dropout import dropout, element_index, kept, random_seeds


def test_dropout_has_its_rate():
    """Dropout zeroes at its rate, preserves the mean, and differs for each key."""
    ones = jnp.ones((1000, 301))
    for rate in (0.1, 0.5):
        dropped = np.asarray(dropout(ones, rate, jax.random.key(0)))
        assert (dropped == 0).mean() == pytest.approx(rate, abs=0.003)
        np.testing.assert_allclose(dropped[dropped > 0], 1 / (1 - rate), rtol=1e-4)
        other = np.asarray(dropout(ones, rate, jax.random.key(1)))
        assert ((dropped == 0) & (other == 0)).mean() == pytest.approx(rate**2, abs=0.003)
    assert dropout(ones, 0.1, None) is ones


def test_masks_of_two_keys_are_not_shifted_copies():
    """The masks of two keys, and of parts of one, are uncorrelated at every distance."""
    count = 2**14
    index = element_index((2 * count,))
    one, other = (np.asarray(kept(random_seeds(jax.random.key(seed)), index, 0.5)) for seed in (0, 1))
    signs = [np.fft.rfft(np.where(mask, 1.0, -1.0)) for mask in (one, other)]
    across = np.fft.irfft(signs[0].conj() * signs[1]) / (2 * count)
    within = np.fft.irfft(np.abs(signs[0]) ** 2)[1:count] / (2 * count)
    assert np.abs(across).max() < 6 / np.sqrt(2 * count) and np.abs(within).max() < 6 / np.sqrt(2 * count)


def test_elements_of_a_part_have_the_numbers_of_the_whole():
    whole = np.asarray(element_index((2, 3, 7)))
    np.testing.assert_array_equal(whole, np.arange(42).reshape(2, 3, 7))
    np.testing.assert_array_equal(element_index((2, 3, 4), 3, 7), whole[..., 3:])


def test_the_backward_pass_has_the_same_mask_and_stores_none():
    x = jnp.ones((64, 64))
    dropped, pull = jax.vjp(lambda x: dropout(x, 0.3, jax.random.key(0)), x)
    np.testing.assert_array_equal(pull(x)[0], dropped)
    assert sum(leaf.size for leaf in jax.tree.leaves(pull)) < 64


def test_members_have_their_own_masks():
    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.vmap(lambda key: dropout(jnp.ones((8, 8)), 0.5, key))(keys)
    for each, key in zip(together, keys, strict=True):
        np.testing.assert_array_equal(each, dropout(jnp.ones((8, 8)), 0.5, key))
    assert (together[0] != together[1]).any()
