"""config.json: tied weights and copies, defaults, and values that are refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import prompt_jax
from loaded_models import assert_same_model
from prompt_jax.checkpoints import config_files, load
from prompt_jax.errors import CheckpointError


@pytest.mark.parametrize(
    ("config", "output", "tied", "scaled"),
    [
        ({}, "absent", True, True),  # T5 1.0
        ({}, "copy", True, True),
        ({"tie_word_embeddings": False}, "own", False, False),  # T5 1.1
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, "own", False, False),  # by Transformers 5
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, "absent", True, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": True}, "absent", True, True),
        ({"model_type": "mt5", "tie_word_embeddings": False}, "own", False, False),
        ({"model_type": "mt5", "tie_word_embeddings": True}, "own", False, False),  # by Transformers 5
    ],
)
def test_ties(model_folder, deep_tensors, config, output, tied, scaled):
    tensors = dict(deep_tensors)
    if output == "absent":
        del tensors["lm_head.weight"]
    elif output == "copy":
        tensors["lm_head.weight"] = tensors["shared.weight"]
    model = load.load_model(model_folder(tensors, **({"tie_word_embeddings": None} | config)))
    assert (model.config.tied_output, model.config.scale_output) == (tied, scaled)
    assert ("lm_head" in model.params) is not tied


def test_missing_announced_output_weights_are_an_error(model_folder, deep_tensors):
    del deep_tensors["lm_head.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing:\n  lm_head.weight \[300, 20\]"):
        load.load_model(model_folder(deep_tensors, tie_word_embeddings=False))


def test_harmless_extras(model_folder, deep, deep_tensors):
    extras = {
        "encoder.embed_tokens.weight": deep_tensors["shared.weight"],
        "decoder.embed_tokens.weight": deep_tensors["shared.weight"],
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.zeros((16, 3), np.float32),
    }
    assert_same_model(load.load_model(model_folder(deep_tensors | extras)), load.load_model(deep))


def test_the_embedding_under_another_name(model_folder, deep, deep_tensors):
    deep_tensors["decoder.embed_tokens.weight"] = deep_tensors.pop("shared.weight")
    assert_same_model(load.load_model(model_folder(deep_tensors)), load.load_model(deep))


def test_another_embedding_is_no_harmless_extra(model_folder, deep_tensors):
    deep_tensors["encoder.embed_tokens.weight"] = deep_tensors["shared.weight"] + 1
    with pytest.raises(CheckpointError, match=r"1 surplus:\n  encoder.embed_tokens.weight \[300, 20\]"):
        load.load_model(model_folder(deep_tensors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert'; supported are t5, mt5, gpt2, bart"),
        ({"model_type": None}, "model_type None; supported are t5, mt5"),
        (
            {"feed_forward_proj": "gated-silu"},
            "feed_forward_proj is 'gated-silu'; supported: 'relu', 'gated-relu',",
        ),
        ({"feed_forward_proj": "gelu"}, "feed_forward_proj is 'gelu'; supported: 'relu',"),
        ({"feed_forward_proj": ["relu"]}, "config.json cannot be used: "),
        ({"d_model": "20"}, "config.json cannot be used: .*'d_model'.*expected int, got str"),
        ({"d_model": 20.5}, "config.json cannot be used: .*'d_model'.*expected int, got float"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"dropout_rate": float("nan")}, "dropout_rate is nan"),
        ({"layer_norm_epsilon": float("inf")}, "layer_norm_epsilon is inf"),
        ({"eos_token_id": 99999}, "eos_token_id is 99999, and vocab_size is "),
        ({"pad_token_id": -1}, "pad_token_id is -1; expected a whole number of at least 0"),
    ],
)
def test_unusable_configs(model_folder, deep_tensors, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load.load_model(model_folder(deep_tensors, **changes))


def test_a_sparse_config_has_transformers_defaults():
    config = config_files.model_config({"model_type": "t5", "eos_token_id": [1]}, {}, source="here")
    assert (config.vocab_size, config.d_model, config.d_ff, config.num_heads) == (32128, 512, 2048, 8)
    assert (config.encoder_layers, config.decoder_layers, config.activation, config.gated) == (6, 6, "relu", False)
    assert (config.eos_id, config.start_id, config.relative_max_distance) == (1, 0, 128)
    other = config_files.model_config({"model_type": "mt5", "num_layers": 2}, {}, source="here")
    assert (other.vocab_size, other.encoder_layers, other.decoder_layers) == (250112, 2, 2)
    assert (other.activation, other.gated, other.scale_output) == ("gelu", True, False)


def tensors_of(tiny_folders, family: str) -> dict[str, np.ndarray]:
    return load_file(tiny_folders[family] / "model.safetensors")


@pytest.mark.parametrize("dtype", (np.float32, np.uint8, bool))
def test_gpt2s_older_checkpoints(tiny_folders, copied, dtype):
    """Names without a prefix, the causal mask among the weights, and a copy of the embedding."""
    tensors = {name.removeprefix("transformer."): t for name, t in tensors_of(tiny_folders, "gpt2").items()}
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 64, 64))).astype(dtype)
        tensors[f"h.{layer}.attn.masked_bias"] = np.float32(-1e4)
    tensors["lm_head.weight"] = tensors["wte.weight"]
    assert_same_model(
        prompt_jax.load_model(str(copied("gpt2", tensors))), prompt_jax.load_model(str(tiny_folders["gpt2"]))
    )


def test_barts_base_model_alone(tiny_folders, copied):
    """As in bart-base: names without a prefix, copies of the embedding, and no logits bias, which counts as zero."""
    tensors = {name.removeprefix("model."): t for name, t in tensors_of(tiny_folders, "bart").items()}
    assert not tensors.pop("final_logits_bias").any()
    for side in ("encoder", "decoder"):
        tensors[f"{side}.embed_tokens.weight"] = tensors["shared.weight"]
    assert_same_model(
        prompt_jax.load_model(str(copied("bart", tensors))), prompt_jax.load_model(str(tiny_folders["bart"]))
    )


def test_untied_output_weights_are_refused(tiny_folders, copied):
    tensors = tensors_of(tiny_folders, "gpt2")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    with pytest.raises(CheckpointError, match=r"1 surplus:\n +lm_head.weight"):
        prompt_jax.load_model(str(copied("gpt2", tensors)))


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    (
        ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu'; supported: 'gelu_new'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", {"n_head": 5}, "n_embd 64 is no multiple of n_head"),
        ("gpt2", {"eos_token_id": 256}, "eos_token_id is 256, and vocab_size is 256"),
        ("gpt2", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ("bart", {"normalize_before": True}, "normalize_before is True; supported: False"),
        ("bart", {"decoder_start_token_id": 999}, "decoder_start_token_id is 999, and vocab_size is 256"),
        ("gpt2", {"n_positions": 63}, r"wpe.weight \[64, 64\], expected \[63, 64\]"),
        ("bart", {"decoder_attention_heads": 5}, "d_model 64 is no multiple of decoder_attention_heads"),
        ("bart", {"activation_function": "swish"}, "activation_function is 'swish'"),
        ("bart", {"encoder_layers": 0}, "encoder_layers is 0"),
    ),
)
def test_unusable_configs_of_gpt2_and_bart(copied, family, changes, message):
    with pytest.raises(CheckpointError, match=message):
        prompt_jax.load_model(str(copied(family, **changes)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 3000, "is not JSON: "),
        (b'{"model_type": {"a": 1}}', "has model_type {'a': 1}; supported are t5"),
        (b'{"model_type": ["t5"]}', r"has model_type \['t5'\]; supported are t5"),
        (b'{"model_type": "' + b"x" * 10**7 + b'"}', "has model_type 'xxx"),
        (b'{"model_type": "t5", "d_model": "' + b"x" * 10**7 + b'"}', "cannot be used: "),
        (b'{"model_type": "t5", "self": 1, "args": 2, "cls": 3}', "cannot be used: "),
        (b'{"model_type": "t5", "vocab_size": 256, "eos_token_id": 999}', "eos_token_id is 999, and vocab_size is 256"),
        (b'{"model_type": "t5", "vocab_size": 256, "pad_token_id": 999}', "pad_token_id is 999, and vocab_size is 256"),
    ],
    ids=range(8),
)
def test_configurations(changed, content, message):
    with pytest.raises(CheckpointError, match=message) as raised:
        prompt_jax.load_model(str(changed("t5", "config.json", content)))
    assert len(str(raised.value)) < 10_000


def test_a_billion_labels(changed, tiny_folders):
    """No supported model has labels; AutoConfig would create a name for each."""
    for family in ("t5", "gpt2", "bart"):
        content = json.loads((tiny_folders[family] / "config.json").read_text()) | {"num_labels": 10**9}
        prompt_jax.load_model(str(changed(family, "config.json", json.dumps(content).encode())))
