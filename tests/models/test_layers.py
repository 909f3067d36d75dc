"""`run_layers`: what the backward pass recomputes."""

import dataclasses
from typing import get_args

import jax
import pytest

import prompt_jax
from adapters import assert_close, random_text, random_tokens, whole
from prompt_jax.config.model import Remat
from prompt_jax.models import family


@pytest.mark.slow
def test_rematerialisation_changes_memory_alone(fixtures):
    """The recomputation draws the same dropout masks."""
    model = prompt_jax.load_model(fixtures / "t5_v11" / "base")
    batch = whole(random_text(model, 8, 24)) | {"decoder_inputs": random_text(model, 8, 12, seed=1)}
    prompt, key = random_tokens(model, 5), jax.random.key(0)

    def gradient(remat):
        config = dataclasses.replace(model.config, remat=remat)

        def loss(prompt):
            return family(config).forward(model.params, config, batch, prompt, key=key).sum()

        return jax.jit(jax.grad(loss)).lower(prompt).compile()

    compiled = {remat: gradient(remat) for remat in get_args(Remat)}
    expected = compiled["none"](prompt).encoder_tokens.embeddings
    for each in compiled.values():
        assert_close(each(prompt).encoder_tokens.embeddings, expected, 1e-4)
    none, dots, full = (compiled[remat].memory_analysis().temp_size_in_bytes for remat in ("none", "dots", "full"))
    assert full < 0.8 * dots and dots < 0.85 * none
