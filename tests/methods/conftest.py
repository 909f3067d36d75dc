"""A model of each family."""

import pytest

import prompt_jax
from deltas import FAMILIES
from prompt_jax.checkpoints.load import Model


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, fixtures) -> Model:
    return prompt_jax.load_model(str(fixtures / request.param / "base"))
