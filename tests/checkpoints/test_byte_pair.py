"""GPT-2's and BART's folders: tokenizers, and checkpoints with more or fewer tensors."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import prompt_jax
from prompt_jax.errors import CheckpointError

FAMILIES = ("gpt2", "bart")


@pytest.fixture
def folder(tiny_folders, tmp_path):
    """Return a function that copies a family's folder and changes its weights, config or files."""

    def make(family: str, tensors=None, without=(), **config):
        copy = tmp_path / "copy"
        shutil.copytree(tiny_folders[family], copy)
        raw = json.loads((copy / "config.json").read_text()) | config
        (copy / "config.json").write_text(json.dumps(raw))
        for name in without:
            (copy / name).unlink()
        if tensors is not None:
            save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, copy / "model.safetensors")
        return copy

    return make


def tensors_of(tiny_folders, family: str) -> dict[str, np.ndarray]:
    return load_file(tiny_folders[family] / "model.safetensors")


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert one.config == other.config and one.fingerprint == other.fingerprint


def test_gpt2s_source_and_target_are_one_text(tiny_folders):
    """The source has no end token, since the start token follows it; both begin with a space."""
    tokenizer = prompt_jax.load_model(str(tiny_folders["gpt2"])).tokenizer
    assert tokenizer.input_ids("a good film") == tokenizer.encode(" a good film")
    assert tokenizer.target_ids("a good film") == [*tokenizer.encode(" a good film"), tokenizer.eos_id]
    assert tokenizer.decode([*tokenizer.target_ids("a good film"), 7, 8]) == "a good film"
    assert tokenizer.encode(" good") != tokenizer.encode("good")


def test_barts_texts_have_a_start_and_an_end(tiny_folders):
    tokenizer = prompt_jax.load_model(str(tiny_folders["bart"])).tokenizer
    ids = [0, *tokenizer.encode("a good film"), 2]
    assert tokenizer.input_ids("a good film") == tokenizer.target_ids("a good film") == ids
    assert tokenizer.decode(ids) == "a good film"


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_a_text_are_text(tiny_folders, family):
    tokenizer = prompt_jax.load_model(str(tiny_folders[family])).tokenizer
    special = {tokenizer.eos_id, tokenizer.pad_id, *tokenizer.start}
    assert not special & set(tokenizer.encode("a <|endoftext|> b </s> c <s> <pad> [PAD]"))


@pytest.mark.parametrize("family", FAMILIES)
def test_tokenizers_of_two_files_are_the_same(tiny_folders, folder, family):
    """vocab.json and merges.txt instead of tokenizer.json."""
    definition = json.loads((tiny_folders[family] / "tokenizer.json").read_text())["model"]
    copy = folder(family, without=["tokenizer.json"])
    assert prompt_jax.load_model(str(copy)).tokenizer is None
    (copy / "vocab.json").write_text(json.dumps(definition["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in definition["merges"]]
    (copy / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    one, other = (prompt_jax.load_model(str(f)).tokenizer for f in (copy, tiny_folders[family]))
    for text in ("a good film", " great fun, good acting and a warm ending", "a"):
        assert one.encode(text) == other.encode(text)
        assert one.decode(one.target_ids(text.strip())) == text.strip()


def test_truncation_and_padding_saved_in_a_file_are_ignored(tiny_folders, folder):
    from tokenizers import Tokenizer

    copy = folder("gpt2")
    saved = Tokenizer.from_file(str(copy / "tokenizer.json"))
    saved.enable_truncation(4)
    saved.enable_padding(length=12)
    saved.save(str(copy / "tokenizer.json"))
    one, other = (prompt_jax.load_model(str(f)).tokenizer for f in (copy, tiny_folders["gpt2"]))
    for text in ("a", "great fun, good acting and a warm ending"):
        assert one.encode(text) == other.encode(text)


def test_an_invalid_tokenizer_is_an_error(folder):
    copy = folder("gpt2", without=["generation_config.json"], eos_token_id=250)
    with pytest.raises(CheckpointError, match="has no token 250, which the model's configuration names as the end"):
        prompt_jax.load_model(str(copy))
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* \(tokenizer.json\) cannot be read"):
        prompt_jax.load_model(str(copy))


@pytest.mark.parametrize("dtype", (np.float32, np.uint8, bool))
def test_gpt2s_older_checkpoints(tiny_folders, folder, dtype):
    """Names without a prefix, the causal mask among the weights, and a copy of the embedding."""
    tensors = {name.removeprefix("transformer."): t for name, t in tensors_of(tiny_folders, "gpt2").items()}
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 64, 64))).astype(dtype)
        tensors[f"h.{layer}.attn.masked_bias"] = np.float32(-1e4)
    tensors["lm_head.weight"] = tensors["wte.weight"]
    assert_same(prompt_jax.load_model(str(folder("gpt2", tensors))), prompt_jax.load_model(str(tiny_folders["gpt2"])))


def test_barts_base_model_alone(tiny_folders, folder):
    """As in bart-base: names without a prefix, copies of the embedding, and no logits bias, which counts as zero."""
    tensors = {name.removeprefix("model."): t for name, t in tensors_of(tiny_folders, "bart").items()}
    assert not tensors.pop("final_logits_bias").any()
    for side in ("encoder", "decoder"):
        tensors[f"{side}.embed_tokens.weight"] = tensors["shared.weight"]
    assert_same(prompt_jax.load_model(str(folder("bart", tensors))), prompt_jax.load_model(str(tiny_folders["bart"])))


def test_untied_output_weights_are_refused(tiny_folders, folder):
    tensors = tensors_of(tiny_folders, "gpt2")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    with pytest.raises(CheckpointError, match=r"1 surplus:\n +lm_head.weight"):
        prompt_jax.load_model(str(folder("gpt2", tensors)))


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
def test_unusable_configs(folder, family, changes, message):
    with pytest.raises(CheckpointError, match=message):
        prompt_jax.load_model(str(folder(family, **changes)))
