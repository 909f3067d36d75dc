"""Random texts with references, and the mark of tests that run METEOR's program, for the tests of metrics."""

import importlib.util
import random
import shutil

import pytest

needs_meteor = pytest.mark.skipif(
    shutil.which("java") is None or importlib.util.find_spec("pycocoevalcap") is None,
    reason="needs Java and the extra meteor",
)

WORDS = (
    *("the", "a", "cat", "dog", "sat", "on", "mat,", "near", "riverside", ".", "£20-25", "it's"),
    *("family-friendly", "and", "Cheap", "The", "offers", "food"),
)


def texts(count: int, seed: int) -> tuple[list[list[str]], list[str]]:
    """Random references, one to four for each example, and predictions that overlap with them."""
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(3, 14)))

    references = [[text() for _ in range(draw.randint(1, 4))] for _ in range(count)]
    predictions = [f"{own[0][: draw.randint(5, 40)]} {text()}" for own in references]
    return references, predictions
