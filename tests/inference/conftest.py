from types import SimpleNamespace

import jax
import numpy as np
import pytest

import prompt_jax
from prompt_jax import Prompt, VirtualTokens
from prompt_jax.inference import batching, beam_search, decoding, logits_rules
from small_model import LENGTH, ROWS, STEPS, small_encode, small_prefill, small_step


@pytest.fixture
def one_length(monkeypatch):
    """Pad all inputs to one length: there is less to compile."""
    monkeypatch.setattr(batching, "EVAL_BUCKETS", 1)


@pytest.fixture
def small(monkeypatch):
    """Return the small model's parameters. Generation runs it if the config is a SmallConfig."""
    family = SimpleNamespace(encode=small_encode, prefill=small_prefill, decode_step=small_step, causal=False)
    for module in (decoding, beam_search, logits_rules):
        monkeypatch.setattr(module, "family", lambda config: family)
    rng = np.random.default_rng(0)
    params = {"history": rng.normal(size=(LENGTH, LENGTH, 6, 6)), "rows": rng.normal(size=(ROWS, 6))}
    yield {name: value.astype(np.float32) for name, value in params.items()}
    jax.effects_barrier()
    STEPS.clear()


@pytest.fixture(scope="module")
def model(fixtures):
    return prompt_jax.load_model(str(fixtures / "t5_v11" / "base"))


@pytest.fixture(scope="module")
def prompts(tiny) -> list[Prompt]:
    rng = np.random.default_rng(0)
    return [Prompt(VirtualTokens(rng.normal(size=(length, 64)).astype(np.float32) * 3)) for length in (3, 1, 5)]
