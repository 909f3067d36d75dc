"""Tiny random models of Transformers: logits, tokens, soft prompts and prefixes, with every switch.

The models of tools/make_causal_fixtures.py use each switch; the variants here use other combinations.
"""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

import prompt_jax
from adapters import assert_close, random_prefix, random_tokens, whole
from prompt_jax.config.decoding import Decoding
from prompt_jax.models.llama import MODEL_TYPES

pytestmark = pytest.mark.interop

_LONG = {"rope_type": "longrope", "rope_theta": 100.0, "partial_rotary_factor": 1.0, "factor": 4.0}
_LONG |= {"original_max_position_embeddings": 8, "short_factor": [1.0, 1.2], "long_factor": [2.0, 5.0]}
_YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0, "original_max_position_embeddings": 16}
VARIANTS = {
    **{name: (name, {}) for name in MODEL_TYPES},
    "llama without switches": ("llama", {"num_key_value_heads": 4, "attention_bias": False, "mlp_bias": False}),
    "llama, tied, gelu": ("llama", {"tie_word_embeddings": True, "hidden_act": "gelu", "head_dim": 8}),
    "mistral without a window": ("mistral", {"sliding_window": None, "rope_parameters": _YARN}),
    "qwen3 with windows": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2, "tie_word_embeddings": True},
    ),
    "smollm3 with biases": (
        "smollm3",
        {"attention_bias": True, "mlp_bias": True, "use_sliding_window": False, "no_rope_layers": [0, 1, 1, 0]},
    ),
    "phi3, long texts": (
        "phi3",
        {"hidden_size": 16, "original_max_position_embeddings": 8, "rope_parameters": _LONG, "sliding_window": 6},
    ),
    "gemma2 without caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3 with a cap and biases": ("gemma3_text", {"final_logit_softcapping": 3.0, "attention_bias": True}),
}


@pytest.fixture(scope="module")
def tools():
    """Return the module tools/make_causal_fixtures.py."""
    path = Path(__file__).parents[2] / "tools" / "make_causal_fixtures.py"
    spec = importlib.util.spec_from_file_location("make_causal_fixtures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=VARIANTS)
def both(request, tools, tmp_path_factory):
    """Return this project's model, Transformers', and the folder."""
    model_type, changes = VARIANTS[request.param]
    theirs = tools.random_model(model_type, tools.COMMON | tools.MODELS[model_type] | changes, seed=100)
    folder = tmp_path_factory.mktemp("model") / "model"
    theirs.save_pretrained(folder, max_shard_size="20kB")
    return prompt_jax.load_model(str(folder)), theirs, folder


def test_logits_and_tokens(both, tools):
    ours, theirs, _ = both
    ids, mask = tools.left_padded(48, seed=1)
    batch = {"inputs": ids.astype(np.int32), "inputs_mask": mask > 0}
    expected = tools.logits(theirs, ids, mask)
    logits = np.asarray(prompt_jax.forward(ours.params, ours.config, batch))
    assert_close(logits[mask > 0], expected[mask > 0])
    for beams in (1, 3):
        tokens = prompt_jax.generate(ours.params, ours.config, batch, max_new_tokens=8, decoding=Decoding(beams=beams))
        made = tools.generated(theirs, ids, mask, beams, new_tokens=8)
        for row, expected_tokens in enumerate(made):
            if ours.config.ropes[0].rope_type != "longrope" or mask[row].all():  # see `llama.for_length`
                np.testing.assert_array_equal(tokens[row], expected_tokens)


def test_bfloat16_is_as_precise_as_transformers(both, tools):
    """The error against float32 is at most 1.5 times the error of Transformers."""
    import copy

    ours, theirs, folder = both
    ids, mask = tools.left_padded(48, seed=2)
    exact = tools.logits(theirs, ids, mask)[mask > 0]
    rounded = tools.logits(copy.deepcopy(theirs).bfloat16(), ids, mask)[mask > 0]
    half = prompt_jax.load_model(str(folder), "bfloat16")
    batch = {"inputs": ids.astype(np.int32), "inputs_mask": mask > 0}
    logits = np.asarray(prompt_jax.forward(half.params, half.config, batch))[mask > 0]
    error, their_error = (np.sqrt(np.square(each - exact).mean()) for each in (logits, rounded))
    assert error < 1.5 * their_error


def test_soft_prompts(both):
    """A soft prompt is `inputs_embeds` before the text."""
    import torch

    ours, theirs, _ = both
    ids = np.random.default_rng(3).integers(3, 48, (2, 9)).astype(np.int32)
    prompt = random_tokens(ours, 4)
    with torch.no_grad():
        text = theirs.get_input_embeddings()(torch.tensor(ids.astype(np.int64)))
        tokens = torch.tensor(np.array(prompt.encoder_tokens.embeddings))[None].expand(2, -1, -1)
        expected = theirs(inputs_embeds=torch.cat([tokens, text], dim=1)).logits[:, 4:].numpy()
    assert_close(prompt_jax.forward(ours.params, ours.config, whole(ids), prompt), expected)


def test_prefixes(both):
    """A prefix is what the cache holds: keys after rotation and norms. It leaves sliding windows."""
    import torch
    from transformers import DynamicCache

    ours, theirs, _ = both
    ids = np.random.default_rng(4).integers(3, 48, (2, 12)).astype(np.int64)
    prompt = random_prefix(ours, 4)
    arrays = (prompt.decoder_self.keys, prompt.decoder_self.values)
    leaves = [torch.tensor(np.array(leaf)).permute(0, 2, 1, 3)[:, None] for leaf in arrays]

    def cache():
        made = DynamicCache(config=theirs.config)
        for layer, (keys, values) in enumerate(zip(*leaves, strict=True)):
            made.update(keys.expand(2, -1, -1, -1), values.expand(2, -1, -1, -1), layer)
        return made

    with torch.no_grad():
        options = {"attention_mask": torch.ones(2, 16), "position_ids": torch.arange(4, 16)[None]}
        expected = theirs(torch.tensor(ids), past_key_values=cache(), **options).logits.numpy()
    logits = prompt_jax.forward(ours.params, ours.config, whole(ids.astype(np.int32)), prompt)
    assert_close(logits, expected)


def test_transformers_reads_a_saved_model(both, tmp_path):
    import torch
    import transformers

    from prompt_jax.checkpoints.save import save_model

    ours, theirs, _ = both
    save_model(tmp_path / "saved", ours)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="eager").eval()
    ids = torch.tensor(np.random.default_rng(5).integers(3, 48, (2, 12)))
    with torch.no_grad():
        np.testing.assert_array_equal(again(ids).logits, theirs(ids).logits)
    jax.tree.map(np.testing.assert_array_equal, prompt_jax.load_model(str(tmp_path / "saved")).params, ours.params)
