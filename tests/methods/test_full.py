"""Full fine-tuning."""

import dataclasses

import jax
import numpy as np
import pytest

import prompt_jax
from deltas import METHODS, logits, trained
from prompt_jax.errors import ConfigError
from prompt_jax.models.delta import flat, merged_params


def test_the_full_model_is_the_model_of_these_weights(model):
    prompt = trained(model, "full")
    other = dataclasses.replace(model, params=merged_params(model.params, prompt))
    np.testing.assert_array_equal(logits(model, prompt), logits(other))
    assert flat(prompt.leaves).keys() == flat(model.params).keys()


def test_a_base_of_integers_cannot_be_trained(fixtures):
    integers = prompt_jax.load_model(str(fixtures / "t5_v11" / "base"), "int8")
    with pytest.raises(ConfigError, match="they are quantized; set model.dtype to float32 or bfloat16"):
        METHODS["full"].initialize(jax.random.key(0), integers)
