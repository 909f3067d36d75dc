"""SQuAD's F1."""

import pytest

from prompt_jax.metrics.generation import METRICS


@pytest.mark.parametrize(
    ("references", "prediction", "expected"),
    [
        (
            ["in the Denver Broncos' stadium"],
            "Denver Broncos",
            2 * 1 * 0.5 / 1.5,
        ),  # two of in, denver, broncos, stadium
        (["Denver", "the broncos of Denver", "x"], "Broncos, Denver!", 2 * 2 / 5),
        (["a a b b b"], "b b c c", 2 * 2 / (3 + 4)),  # each as often as both have it
        (["1990"], "1991", 0.0),
        (["the"], "a", 0.0),
        (["U.S."], "us", 1.0),
    ],
)
def test_squads_f1(references, prediction, expected):
    assert METRICS["squad_f1"]([references], [prediction]) == pytest.approx(expected)
    assert METRICS["squad_f1"]([references, ["x"]], [prediction, "x"]) == pytest.approx((expected + 1) / 2)
