"""The report's section on one test."""

from prompt_jax.report import details


def test_spread():
    assert details._spread("abc") == ["a", "b", "c"] and details._spread([]) == []
    assert details._spread(range(24)) == list(range(0, 24, 2))
