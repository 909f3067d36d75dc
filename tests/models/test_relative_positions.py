"""T5's buckets of relative positions, against the published formula in exact arithmetic."""

import numpy as np
import pytest

from prompt_jax.models import relative_positions


@pytest.mark.parametrize("bidirectional", (True, False))
@pytest.mark.parametrize(("buckets", "max_distance"), ((32, 128), (16, 20), (8, 64)))
def test_relative_buckets_are_exact(bidirectional, buckets, max_distance):
    """The published formula, with the floor of the logarithm in exact arithmetic."""

    def expected(distance: int) -> int:
        offset, count = 0, buckets
        if bidirectional:
            count //= 2
            offset, distance = (count if distance > 0 else 0), abs(distance)
        else:
            distance = max(-distance, 0)
        exact = count // 2
        if distance < exact:
            return offset + distance
        # floor(log(d / exact) / log(max / exact) * (count - exact)), by integer powers instead of logarithms.
        wide = count - exact
        n = 0
        while n + 1 < wide and distance**wide * exact ** (n + 1) >= max_distance ** (n + 1) * exact**wide:
            n += 1
        return offset + exact + n

    distances = np.arange(-600, 601)
    actual = relative_positions.relative_buckets(
        distances, bidirectional=bidirectional, buckets=buckets, max_distance=max_distance
    )
    assert actual.tolist() == [expected(int(d)) for d in distances]
