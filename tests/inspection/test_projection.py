"""Principal components, against the singular value decomposition of the whole table."""

import numpy as np
import pytest

from prompt_jax.inspection import projection
from prompt_jax.inspection.projection import pca_projection


@pytest.fixture
def table() -> np.ndarray:
    random = np.random.default_rng(0)
    wide = random.normal(size=(300, 8)) * np.array([9, 1, 1, 5, 1, 1, 1, 1])
    return (wide @ np.linalg.qr(random.normal(size=(8, 8)))[0] + 3).astype(np.float32)


def test_axes_are_those_of_the_vocabulary(table, monkeypatch):
    monkeypatch.setattr(projection, "_BLOCK", 64)
    tokens = [np.random.default_rng(1).normal(size=(count, 8)).astype(np.float32) for count in (4, 2)]
    actual = pca_projection(tokens, table, 250)
    mean = table[:250].mean(axis=0, dtype=np.float64)
    _, singular, axes = np.linalg.svd(table[:250] - mean, full_matrices=False)
    axes = axes[:2] * np.sign([axis[np.abs(axis).argmax()] for axis in axes[:2]])[:, None]
    assert actual.variance == pytest.approx(np.square(singular[:2]) / np.square(singular).sum(), rel=1e-5)
    np.testing.assert_allclose(actual.vocabulary, (table[:250] - mean) @ axes.T, atol=1e-4)
    for own, points in zip(tokens, actual.prompts, strict=True):
        np.testing.assert_allclose(points, (own - mean) @ axes.T, atol=1e-4)
    assert (actual.sample, actual.size) == (250, 250)


def test_a_sample_is_evenly_spaced(table):
    actual = pca_projection([], table, 300, sample=100, points=10)
    assert (actual.sample, actual.size, actual.vocabulary.shape) == (100, 300, (10, 2))
    chosen = np.linspace(0, 299, 100).round().astype(int)
    whole = pca_projection([], table[chosen], 100, points=10)
    np.testing.assert_array_equal(actual.vocabulary, whole.vocabulary)


def test_a_vocabulary_without_any_variance():
    actual = pca_projection([np.ones((1, 3), np.float32)], np.zeros((5, 3), np.float32), 5)
    assert actual.variance == (0, 0) and actual.prompts[0].shape == (1, 2)
