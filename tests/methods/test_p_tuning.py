"""P-tuning: the encoder by hand and against PEFT's, training, and the prompt that is stored."""

import dataclasses

import jax
import numpy as np
import pytest

from adapters import random_text, whole
from prompt_jax import OptimizerConfig, PTuning, forward, load_prompt
from prompt_jax.errors import ConfigError
from prompt_jax.prompt_files.io import read_prompts
from prompt_jax.training.loop import train

KEY = jax.random.key(0)


def moved(trainable, seed=0):
    """Return the parameters with noise, so that none is special."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), trainable)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_by_hand(weights, x):
    """Return the hidden states of one direction: Hochreiter and Schmidhuber 1997 with PyTorch's order of gates."""
    hidden = cell = np.zeros(weights["hidden"].shape[0])
    states = []
    for row in x:
        i, f, g, o = np.split(row @ weights["input"] + hidden @ weights["hidden"] + weights["bias"].sum(0), 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        states.append(hidden)
    return np.array(states)


def head_by_hand(layers, x):
    for number, layer in enumerate(layers):
        x = (np.maximum(x, 0) if number else x) @ layer["weights"] + layer["bias"]
    return x


@pytest.mark.parametrize("layers", (1, 2))
def test_the_lstm_by_hand(tiny, layers):
    method = PTuning(length=5, width=3, layers=layers)
    trainable = moved(method.initialize(KEY, tiny))
    x = trainable["table"]
    for layer in trainable["lstm"]:
        forwards = lstm_by_hand(layer["forward"], x)
        x = np.concatenate([forwards, lstm_by_hand(layer["backward"], x[::-1])[::-1]], axis=1)
    tokens = method.apply(trainable).encoder_tokens.embeddings
    np.testing.assert_allclose(tokens, head_by_hand(trainable["head"], x), rtol=1e-4, atol=1e-5)


def test_the_mlp_by_hand(tiny):
    method = PTuning(length=5, width=7, encoder="mlp")
    trainable = moved(method.initialize(KEY, tiny))
    assert set(trainable) == {"table", "head"} and len(trainable["head"]) == 3
    tokens = method.apply(trainable).encoder_tokens.embeddings
    np.testing.assert_allclose(tokens, head_by_hand(trainable["head"], trainable["table"]), rtol=1e-4, atol=1e-5)


def test_dropout_is_between_lstm_layers(tiny):
    method = PTuning(length=5, width=3, dropout=0.5)
    method.check()
    trainable = method.initialize(KEY, tiny)
    plain, dropped = (method.apply(trainable, key).encoder_tokens.embeddings for key in (None, KEY))
    without = dataclasses.replace(method, dropout=0.0).apply(trainable, KEY).encoder_tokens.embeddings
    np.testing.assert_array_equal(plain, without)
    assert np.abs(plain - dropped).max() > 1e-3


@pytest.mark.parametrize("options", ({"encoder": "mlp"}, {"layers": 1}))
def test_dropout_needs_several_lstm_layers(options):
    with pytest.raises(ConfigError, match="prompt.dropout is 0.1, but it acts between LSTM layers"):
        PTuning(dropout=0.1, **options).check()


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ("mlp", "lstm"))
def test_a_run_stores_the_prompt(experiment, tiny, encoder):
    """The file holds the virtual tokens, not the encoder. They give the logits of the trained parameters."""
    method = PTuning(length=4, width=8, encoder=encoder)
    run = dataclasses.replace(experiment, prompt=method, optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3))
    setup, _ = train(run)
    ((stored, metadata),) = read_prompts(run.folder / "last.npz")
    assert metadata.method == "p_tuning" and set(stored.parts) == {"encoder_tokens"}
    assert stored.encoder_tokens.embeddings.shape == (4, tiny.config.d_model)
    assert setup.stored_parameters == 4 * tiny.config.d_model < setup.trained_parameters
    (start,) = setup.make_prompts(setup.trainable(setup.states))
    assert np.abs(stored.encoder_tokens.embeddings - np.asarray(start.encoder_tokens.embeddings)).max() > 1e-3


# --------------------------------------------------------------------------------------------------------------
# Against PEFT


def peft_encoder(method: PTuning, trainable, d_model: int):
    """Return PEFT's encoder with these weights."""
    import torch
    from peft import PromptEncoder, PromptEncoderConfig

    config = PromptEncoderConfig(
        peft_type="P_TUNING",
        task_type="SEQ_2_SEQ_LM",
        num_virtual_tokens=method.length,
        token_dim=d_model,
        num_transformer_submodules=1,
        encoder_reparameterization_type=method.encoder.upper(),
        encoder_hidden_size=method.width,
        encoder_num_layers=method.layers,
        encoder_dropout=0.0,
    )
    encoder = PromptEncoder(config)

    def put(parameter, array) -> None:
        with torch.no_grad():
            parameter.copy_(torch.tensor(np.array(array)))

    put(encoder.embedding.weight, trainable["table"])
    for number, layer in enumerate(trainable.get("lstm", ())):
        for direction, suffix in (("forward", ""), ("backward", "_reverse")):
            weights = layer[direction]
            put(getattr(encoder.lstm_head, f"weight_ih_l{number}{suffix}"), weights["input"].T)
            put(getattr(encoder.lstm_head, f"weight_hh_l{number}{suffix}"), weights["hidden"].T)
            put(getattr(encoder.lstm_head, f"bias_ih_l{number}{suffix}"), weights["bias"][0])
            put(getattr(encoder.lstm_head, f"bias_hh_l{number}{suffix}"), weights["bias"][1])
    head = encoder.mlp_head
    for linear, layer in zip((module for module in head if hasattr(module, "weight")), trainable["head"], strict=True):
        put(linear.weight, layer["weights"].T)
        put(linear.bias, layer["bias"])
    return encoder


@pytest.mark.interop
@pytest.mark.parametrize("encoder", ("lstm", "mlp"))
def test_the_encoder_is_pefts(tiny, encoder):
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    method = PTuning(length=5, width=6, encoder=encoder)
    trainable = moved(method.initialize(KEY, tiny))
    theirs = peft_encoder(method, trainable, tiny.config.d_model)
    with torch.no_grad():
        expected = theirs(torch.arange(5)[None])[0].numpy()
    ours = method.apply(trainable).encoder_tokens.embeddings
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.interop
@pytest.mark.parametrize("encoder", ("lstm", "mlp"))
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Position ids are not supported")
def test_exchange_with_peft(fixtures, tmp_path, encoder):
    """A P-tuning adapter that PEFT saves is the prompt that `apply` makes, and ours gives PEFT the same logits."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    import prompt_jax
    from prompt_jax import save_prompt

    folder = fixtures / "gpt2" / "base"
    model = prompt_jax.load_model(str(folder))
    method = PTuning(length=5, width=6, encoder=encoder)
    trainable = moved(method.initialize(KEY, model))
    prompt = jax.device_get(method.apply(trainable))

    base = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    config = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=5,
        encoder_hidden_size=6,
        encoder_reparameterization_type=encoder.upper(),
        encoder_dropout=0.0,
    )
    theirs = peft.get_peft_model(base, config)
    theirs.prompt_encoder["default"] = peft_encoder(method, trainable, model.config.d_model)
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.warns(UserWarning, match="does not say which base"):
        read = load_prompt(tmp_path / "theirs", model, allow_other_base=True)
    np.testing.assert_allclose(read.encoder_tokens.embeddings, prompt.encoder_tokens.embeddings, rtol=1e-4, atol=1e-5)

    metadata = prompt_jax.PromptMetadata(method="p_tuning")
    save_prompt(tmp_path / "ours", prompt, metadata, format="peft", model=model)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    text = random_text(model, 2, 6)
    with torch.no_grad():
        expected = loaded(input_ids=torch.tensor(text).long(), attention_mask=torch.ones(2, 6).long()).logits
    batch = whole(text[:, :-1]) | {"decoder_inputs": text[:, -1:]}
    ours = forward(model.params, model.config, batch, prompt)
    np.testing.assert_allclose(ours[:, 0], expected[:, -1].numpy(), rtol=1e-4, atol=1e-4)
