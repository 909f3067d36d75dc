"""The final answer of a solution, against values read by hand."""

import math

import pytest

from prompt_jax import metrics
from prompt_jax.metrics.final_answer import final_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"It is $4^2 = \boxed{16}$.The answer is: 16", 16),
        ("48 / 2 = 24. 48 + 24 = 72\n#### 72", 72),
        ("The answer is: 1. No, wait. The answer is: 65.50.", 65.5),
        ("The answer is 20 / 14!", 20 / 14),
        ("The final answer is: $5%\n\nQuestion: more", 5),
        ("The answer is: 1,000", "1,000"),
        (r"The answer is: \frac{1}{2}", r"\frac{1}{2}"),
        ("The answer is: 1/0", "1/0"),
        ("The answer is: 1/2/3", "1/2/3"),
        ("The answer is: 1e999999999", math.inf),
        ("The answer is: 20/35", 0.5714285714285714),
        ("I do not know", None),
    ],
)
def test_final_answers(text, answer):
    assert final_answer(text) == answer


def test_the_score_is_the_share_of_equal_answers():
    solutions = ["#### 72", "#### 0.5", "#### 3", "#### 3"]
    given = ["The answer is: 72.0", "The answer is 1/2", "3", "The answer is: 4"]
    assert metrics.corpus_score(solutions, given, name="final_answer") == {"final_answer": 0.5}
