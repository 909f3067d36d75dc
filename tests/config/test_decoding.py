"""Options of decoding that exclude each other."""

import math

import pytest

from prompt_jax.config.decoding import Decoding
from prompt_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "message"),
    (
        ({"beams": 0}, "decoding.beams must be positive, not 0"),
        ({"top_k": 0, "temperature": 1.0}, "decoding.top_k must be positive, not 0"),
        ({"min_new_tokens": -1}, "decoding.min_new_tokens must be zero or positive, not -1"),
        ({"temperature": math.nan}, "decoding.temperature must be finite, not nan"),
        ({"length_penalty": math.inf, "beams": 2}, "decoding.length_penalty must be finite, not inf"),
        ({"top_p": 0.0, "temperature": 1.0}, r"decoding.top_p must be in \(0, 1\], not 0.0"),
        ({"beams": 2, "temperature": 1.0}, "sampling needs 1 beam"),
        ({"top_k": 5}, "need sampling: set decoding.temperature"),
        ({"top_p": 0.9}, "need sampling: set decoding.temperature"),
        ({"beams": 1, "length_penalty": 0.6}, "need beam search: set decoding.beams"),
        ({"beams": 1, "early_stopping": "never"}, "need beam search: set decoding.beams"),
        ({"no_repeat_ngram": -1}, "decoding.no_repeat_ngram must be zero or positive, not -1"),
        ({"repetition_penalty": 0.0}, "decoding.repetition_penalty must be positive, not 0.0"),
    ),
    ids=str,
)
def test_contradictory_options(fields, message):
    with pytest.raises(ConfigError, match=message):
        Decoding(**fields)


def test_early_stopping_is_no_bool():
    """Hugging Face accepts a bool. (These tests check types, so the constructor would already refuse it.)"""
    decoding = Decoding(beams=2)
    object.__setattr__(decoding, "early_stopping", True)
    with pytest.raises(ConfigError, match="decoding.early_stopping is 'false', 'true' or 'never', not True"):
        decoding.__post_init__()
