"""Norms of embeddings."""

import numpy as np
import pytest

from directions import TABLE
from prompt_jax.inspection.vectors import norm_range, row_norms


def test_norms():
    assert row_norms(TABLE, 5).tolist() == pytest.approx([0, 2, 3, 2**0.5, 4])
    actual = norm_range(np.arange(101.0))
    assert (actual.mean, actual.low, actual.high) == (50, 5, 95)
