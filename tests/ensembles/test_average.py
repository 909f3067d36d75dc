"""Averages of prompts. `tests/cli/test_average.py` tests those of files."""

import numpy as np
import pytest

from adapters import random_tokens
from prompt_jax.ensembles.average import AverageError, average_prompts


def test_the_average_of_one_prompt_with_itself_is_that_prompt(tiny):
    prompt = random_tokens(tiny, 5)
    for weights in (None, (0.25, 0.25, 0.5), (3, -1, -1)):
        actual = average_prompts([prompt] * 3, weights)
        np.testing.assert_array_equal(actual.encoder_tokens.embeddings, prompt.encoder_tokens.embeddings)
        assert actual.encoder_tokens.embeddings.dtype == np.float32


def test_prompts_without_names_are_called_by_their_numbers(tiny):
    with pytest.raises(AverageError, match="prompt 0 has 5 slots of encoder_tokens, and prompt 1 4"):
        average_prompts([random_tokens(tiny, 5), random_tokens(tiny, 4)])
    with pytest.raises(AverageError, match="needs two or more prompts, and there is 0"):
        average_prompts([])
