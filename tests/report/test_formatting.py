"""Values as text in reports."""

import pytest

from prompt_jax.report import formatting


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([3], "3"), ([0, 1], "0, 1"), ([0, 1, 2], "0–2"), ([0, 2, 3, 4, 9], "0, 2–4, 9"), ([], "")],
)
def test_ranges(numbers, text):
    assert formatting.ranges(numbers) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "under 1 s"), (59.7, "1 min"), (61, "1 min 1 s"), (7200, "2 h"), (7265, "2 h 1 min 5 s")],
)
def test_duration(seconds, text):
    assert formatting.duration(seconds) == text
