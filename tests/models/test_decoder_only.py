"""A new decoder-only family is one file (`toy_family.py`) and one line in the table of families.

It is compared with plain full attention in NumPy, with each key and value repeated for the heads of its group.
"""

import dataclasses

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

import prompt_jax
import toy_family
from adapters import whole
from prompt_jax import Decoding, Prompt, stack_prompts
from prompt_jax.checkpoints.load import Model
from prompt_jax.methods.prefix import PrefixTuning
from prompt_jax.models import FAMILIES, family
from prompt_jax.models.decoder_only import DecoderOnly
from prompt_jax.models.prompt import Prefix, VirtualTokens

CONFIG = toy_family.ToyConfig()
TEXTS = (np.array([5, 9, 20, 7, 30, 2, 11], np.int32), np.array([8, 3, 29, 14], np.int32))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(FAMILIES, toy_family.ToyConfig, DecoderOnly(toy_family))


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    leaves = {}
    for seed, row in enumerate(toy_family.parameters(CONFIG)):
        shape = row.shape if row.layers is None else (row.layers, *row.shape)
        leaves[row.path] = random(seed, *shape) * 0.4 + ("norm" in row.path)
    layers = {path.removeprefix("layers/0/"): leaf for path, leaf in leaves.items() if "/" in path}
    params = {"embedding": leaves["embedding"], "final_norm": leaves["final_norm"], "layers": (layers,)}
    return jax.tree.map(jnp.asarray, params)


def random_prefix(slots: int, seed: int = 50) -> Prompt:
    keys, values = random(seed, 2, CONFIG.layers, slots, CONFIG.kv_heads, CONFIG.d_kv)
    return Prompt(decoder_self=Prefix(keys, values))


def random_tokens(slots: int, seed: int = 60) -> Prompt:
    return Prompt(encoder_tokens=VirtualTokens(random(seed, slots, CONFIG.d_model)))


PROMPTS = {
    "none": None,
    "prefix": random_prefix(3),
    "soft prompt": random_tokens(4),
    "both": random_prefix(3).replace(encoder_tokens=random_tokens(4).encoder_tokens),
}


def reference(params, ids: np.ndarray, prompt: Prompt | None) -> np.ndarray:
    """Return the logits [T, V] of one text without padding, by a loop over layers; rotations as complex numbers."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    prompt, (layers,) = prompt or Prompt(), params["layers"]
    x, slots = params["embedding"][ids], 0
    if prompt.encoder_tokens is not None:
        x = np.concatenate([prompt.encoder_tokens.embeddings, x])
    if prompt.decoder_self is not None:
        slots = prompt.decoder_self.keys.shape[1]
    width, group = CONFIG.d_kv, CONFIG.num_heads // CONFIG.kv_heads
    frequencies = toy_family.THETA ** (-np.arange(0, width, 2) / width)
    turn = np.exp(1j * (slots + np.arange(len(x)))[:, None] * frequencies[None])[:, None]

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + toy_family.EPSILON) * scale

    def rotated(x):
        turned = (x[..., : width // 2] + 1j * x[..., width // 2 :]) * turn
        return np.concatenate([turned.real, turned.imag], axis=-1)

    for number in range(CONFIG.layers):
        weights = {name: leaf[number] for name, leaf in layers.items()}
        normal = norm(x, weights["attention_norm"])
        q, k, v = (np.einsum("td,dhk->thk", normal, weights[name]) for name in "qkv")
        q, k = rotated(q), rotated(k)
        if prompt.decoder_self is not None:
            k = np.concatenate([prompt.decoder_self.keys[number], k])
            v = np.concatenate([prompt.decoder_self.values[number], v])
        k, v = (np.repeat(each, group, axis=1) for each in (k, v))
        scores = np.einsum("thk,shk->hts", q, k) / np.sqrt(width)
        seen = np.arange(len(k))[None] <= slots + np.arange(len(x))[:, None]
        attention = np.where(seen, np.exp(scores - scores.max(axis=-1, keepdims=True)), 0.0)
        attention /= attention.sum(axis=-1, keepdims=True)
        x = x + np.einsum("hts,shk,hkd->td", attention, v, weights["o"])
        hidden = norm(x, weights["mlp_norm"]) @ weights["up"]
        x = x + (hidden / (1 + np.exp(-hidden))) @ weights["down"]
    return (norm(x, params["final_norm"]) @ params["embedding"].T)[-len(ids) :]


def padded(left: bool) -> dict[str, np.ndarray]:
    """Return both texts in a batch."""
    length = max(map(len, TEXTS)) + 2
    batch = {"inputs": np.full((2, length), 4, np.int32), "inputs_mask": np.zeros((2, length), bool)}
    for row, text in enumerate(TEXTS):
        place = slice(length - len(text), None) if left else slice(0, len(text))
        batch["inputs"][row, place], batch["inputs_mask"][row, place] = text, True
    return batch


@pytest.mark.parametrize("left", (False, True), ids=("right", "left"))
@pytest.mark.parametrize("name", PROMPTS)
def test_logits_are_those_of_full_attention(params, name, left):
    batch = padded(left)
    logits = np.asarray(prompt_jax.forward(params, CONFIG, batch, PROMPTS[name]))
    for row, text in enumerate(TEXTS):
        expected = reference(params, text, PROMPTS[name])
        np.testing.assert_allclose(logits[row, batch["inputs_mask"][row]], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PROMPTS)
def test_source_and_target_are_one_text(params, name):
    """Teacher forcing: the logits of a target after a source."""
    (text, _), source = TEXTS, 4
    batch = whole(text[None, :source]) | {"decoder_inputs": text[None, source:]}
    logits = prompt_jax.forward(params, CONFIG, batch, PROMPTS[name])[0]
    np.testing.assert_allclose(logits, reference(params, text, PROMPTS[name])[source:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PROMPTS)
def test_greedy_decoding_is_the_plain_loop(params, name):
    tokens = prompt_jax.generate(
        params, CONFIG, padded(left=True), PROMPTS[name], max_new_tokens=6, decoding=Decoding(min_new_tokens=6)
    )
    for row, text in enumerate(TEXTS):
        for _ in range(6):
            scores = reference(params, text, PROMPTS[name])[-1]
            scores[CONFIG.eos_id] = -np.inf
            text = np.append(text, scores.argmax())
        np.testing.assert_array_equal(tokens[row], text[-6:])


def test_each_row_with_its_prompt(params):
    """Prompts of two lengths and a row without a prompt: beams find what a plain loop scores best."""
    prompts = [random_prefix(2), random_prefix(5, seed=51)]
    batch = whole(np.tile(TEXTS[0], (3, 1))) | {"prompt_ids": np.array([1, -1, 0], np.int32)}
    logits = prompt_jax.forward(params, CONFIG, batch, stack_prompts(prompts))
    tokens = prompt_jax.generate(
        params, CONFIG, batch, stack_prompts(prompts), max_new_tokens=1, decoding=Decoding(beams=3)
    )
    for row, prompt in enumerate((prompts[1], None, prompts[0])):
        expected = reference(params, TEXTS[0], prompt)
        np.testing.assert_allclose(logits[row], expected, rtol=1e-4, atol=1e-4)
        assert tokens[row, 0] == expected[-1].argmax()


def loops_over_layers(jaxpr) -> int:
    """Return the number of loops over the layers in a program."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == "scan" and equation.params["length"] == CONFIG.layers
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            count += loops_over_layers(inner)
    return count


@pytest.mark.parametrize("name", PROMPTS)
def test_each_pass_has_one_loop_over_the_layers(params, name):
    """One loop reads virtual tokens, source and target. Another one computes their gradients."""
    batch = whole(TEXTS[0][None, :4]) | {"decoder_inputs": TEXTS[0][None, 3:]}

    def total(prompt):
        return prompt_jax.forward(params, CONFIG, batch, prompt).sum()

    prompt = PROMPTS[name]
    assert loops_over_layers(jax.make_jaxpr(total)(prompt).jaxpr) == 1
    if prompt is not None:
        assert loops_over_layers(jax.make_jaxpr(jax.grad(total))(prompt).jaxpr) == 2


def test_a_text_is_its_prefix(params):
    """Keys and values of a text replace the text."""
    text = TEXTS[0]
    keys, values = family(CONFIG).activations(params, CONFIG, whole(text[None, :3]))["decoder_self"]
    prompt = Prompt(decoder_self=Prefix(keys[:, 0], values[:, 0]))
    logits = prompt_jax.forward(params, CONFIG, whole(text[None, 3:]), prompt)[0]
    np.testing.assert_allclose(logits, reference(params, text, None)[3:], rtol=1e-4, atol=1e-4)


def test_a_prefix_has_the_key_value_heads(params):
    model = Model(name="toy", revision=None, params=params, config=CONFIG, tokenizer=None, fingerprint="")
    trainable = PrefixTuning(length=5, init="normal").initialize(jax.random.key(0), model)
    shape = CONFIG.layers, 5, CONFIG.kv_heads, CONFIG.d_kv
    assert jax.tree.map(np.shape, trainable) == {"decoder_self": {"keys": shape, "values": shape}}


def test_dropout_and_rematerialization(params):
    """Dropout on attention weights: none without a key, and remat draws the same masks again."""
    batch, prompt = padded(left=False), PROMPTS["both"]
    config = dataclasses.replace(CONFIG, dropout_rate=0.5)
    without = prompt_jax.forward(params, config, batch, prompt)
    np.testing.assert_array_equal(without, prompt_jax.forward(params, CONFIG, batch, prompt))
    dropped = prompt_jax.forward(params, config, batch, prompt, key=jax.random.key(0))
    assert np.abs(dropped - without).max() > 0.1
    again = prompt_jax.forward(params, dataclasses.replace(config, remat="full"), batch, prompt, key=jax.random.key(0))
    np.testing.assert_allclose(dropped, again, rtol=1e-5, atol=1e-5)
