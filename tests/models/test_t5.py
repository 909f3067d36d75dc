"""T5: compare outputs with Transformers and PEFT, and check invariants."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prompt_jax
from adapters import (
    PREFIXES,
    PROMPTS,
    assert_close,
    assert_rows_are_each_alone,
    forward_batch,
    generate_batch,
    peft_prompt,
    random_prefix,
    random_text,
    random_tokens,
    whole,
)
from prompt_jax import Prompt, VirtualTokens
from prompt_jax.inference.decoding import score
from prompt_jax.models import attention, family, relative_positions, t5
from prompt_jax.models.prompt import Prefix, PromptPartError

OWN_MODELS = ("t5_v10", "t5_deep")


@pytest.fixture(scope="module")
def model(fixtures):
    return prompt_jax.load_model(str(fixtures / "t5_v11" / "base"))


@pytest.fixture(scope="module")
def reference(fixtures):
    return np.load(fixtures / "t5_v11" / "reference.npz")


@pytest.mark.parametrize("name", ("base", *PROMPTS, "prompt_one_submodule", *PREFIXES))
def test_logits_equal_peft(model, reference, fixtures, name):
    prompt = None if name == "base" else peft_prompt(fixtures / "t5_v11" / name)
    logits = prompt_jax.forward(model.params, model.config, forward_batch(reference), prompt)
    assert logits.dtype == jnp.float32
    assert_close(logits, reference[f"{name}/logits"])


@pytest.mark.parametrize("name", ("base", *PROMPTS, "prompt_one_submodule", *PREFIXES))
def test_greedy_tokens_equal_peft(model, reference, fixtures, name):
    prompt = None if name == "base" else peft_prompt(fixtures / "t5_v11" / name)
    expected = reference[f"{name}/greedy"][:, 1:]  # without the start token
    tokens = prompt_jax.generate(
        model.params, model.config, generate_batch(reference), prompt, max_new_tokens=expected.shape[1]
    )
    np.testing.assert_array_equal(tokens, expected)


@pytest.mark.parametrize("name", ("prompt", "prompt_one_submodule", "ensemble_0"))
def test_gradient_equals_peft(model, reference, fixtures, name):
    prompt = peft_prompt(fixtures / "t5_v11" / name)
    labels = reference["inputs/forward/labels"]

    def loss(prompt):
        logits = prompt_jax.forward(model.params, model.config, forward_batch(reference), prompt)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
        return -jnp.where(labels >= 0, chosen, 0.0).sum() / (labels >= 0).sum()

    value, gradient = jax.value_and_grad(loss)(prompt)
    np.testing.assert_allclose(value, reference[f"{name}/loss"], rtol=1e-5)
    length = gradient.encoder_tokens.embeddings.shape[0]
    assert_close(gradient.encoder_tokens.embeddings, reference[f"{name}/grad"][:length], 1e-4)


@pytest.mark.parametrize("name", OWN_MODELS)
def test_fixtures_equal_hugging_face(fixtures, name):
    """T5 1.0 (relu, tied, scaled output), and a model of unequal depths with d_kv * heads != d_model."""
    model = prompt_jax.load_model(str(fixtures / name / "base"))
    reference = np.load(fixtures / name / "reference.npz")
    logits = prompt_jax.forward(model.params, model.config, forward_batch(reference))
    assert_close(logits, reference["base/logits"])
    expected = reference["base/greedy"][:, 1:]
    batch = {name: value for name, value in forward_batch(reference).items() if name != "decoder_inputs"}
    tokens = prompt_jax.generate(model.params, model.config, batch, max_new_tokens=expected.shape[1])
    np.testing.assert_array_equal(tokens, expected)


def test_a_prefix_of_real_tokens_is_these_tokens(model):
    """decoder_self takes keys and values of the tokens alone; encoder_self and decoder_cross together take those of a
    run on [tokens; text]."""
    text, target = random_text(model, 1, 40), random_text(model, 1, 25, seed=1)
    config, params = model.config, model.params
    expected = np.asarray(prompt_jax.forward(params, config, whole(text) | {"decoder_inputs": target}))
    kept = family(config).activations(params, config, whole(text) | {"decoder_inputs": target})

    def prefix(site, slots):
        return Prefix(*(leaf[:, 0, :slots] for leaf in kept[site]))

    own = Prompt(decoder_self=prefix("decoder_self", 7))
    logits = prompt_jax.forward(params, config, whole(text) | {"decoder_inputs": target[:, 7:]}, own)
    assert_close(logits, expected[:, 7:])
    both = Prompt(encoder_self=prefix("encoder_self", 12), decoder_cross=prefix("decoder_cross", 12))
    logits = prompt_jax.forward(params, config, whole(text[:, 12:]) | {"decoder_inputs": target}, both)
    assert_close(logits, expected)


@pytest.mark.parametrize("length", (3, 20))  # below and above the head width, where cross-attention takes another path
def test_prefixes_of_rows_are_each_alone(model, length):
    """Virtual tokens and prefixes at all sites, of different lengths, one with an unused slot, and rows without."""
    mask = np.array([True, False, True, True])
    prompts = [
        Prompt(**random_prefix(model, n, n, mask=m).parts, **random_tokens(model, n, n + 9, mask=m).parts)
        for n, m in ((3, None), (5, None), (4, mask))
    ]
    assert_rows_are_each_alone(model, prompts, length)


PADDINGS = {"right": [0, 1, 2, 3, 4], "left": [3, 4, 5, 6, 7], "scattered": [0, 2, 3, 6, 7]}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("placement", ("before", "after"))
def test_results_do_not_depend_on_padding_and_other_rows(model, padding, placement):
    """A row of five tokens gives the same result with any padding, and next to another row."""
    rng = np.random.default_rng(1)
    row, decoder_inputs = rng.integers(3, 256, 5).astype(np.int32), np.array([[0, 7, 9]], np.int32)
    prompt = random_tokens(model, 4, placement=placement)
    alone = {"inputs": row[None], "inputs_mask": np.ones((1, 5), bool), "decoder_inputs": decoder_inputs}
    expected = prompt_jax.forward(model.params, model.config, alone, prompt)[0]

    inputs, mask = rng.integers(3, 256, (2, 8)).astype(np.int32), np.ones((2, 8), bool)
    mask[0] = np.isin(np.arange(8), PADDINGS[padding])
    inputs[0, mask[0]] = row
    batch = {"inputs": inputs, "inputs_mask": mask, "decoder_inputs": np.repeat(decoder_inputs, 2, axis=0)}
    assert_close(prompt_jax.forward(model.params, model.config, batch, prompt)[0], expected)
    np.testing.assert_array_equal(
        prompt_jax.generate(model.params, model.config, batch, prompt, max_new_tokens=6)[0],
        prompt_jax.generate(model.params, model.config, alone, prompt, max_new_tokens=6)[0],
    )


def test_decoder_padding_does_not_matter(model):
    """With a decoder_mask, the target may be padded on any side; logits are at the positions of their tokens."""
    inputs = np.array([[5, 6, 7, 1]], np.int32)
    batch = {"inputs": inputs, "inputs_mask": np.ones((1, 4), bool), "decoder_inputs": np.array([[0, 8, 9]], np.int32)}
    expected = prompt_jax.forward(model.params, model.config, batch)[0]
    padded = {**batch, "decoder_inputs": np.array([[4, 0, 4, 8, 9]], np.int32)}
    padded["decoder_mask"] = np.array([[False, True, False, True, True]])
    assert_close(prompt_jax.forward(model.params, model.config, padded)[0][np.array([1, 3, 4])], expected)


@pytest.mark.parametrize("placement", ("before", "after"))
def test_prompt_of_real_embeddings_is_those_tokens(model, placement):
    """Embeddings of tokens, used as virtual tokens, give the same result as the tokens."""
    tokens, text = np.array([11, 12, 13], np.int32), np.array([21, 22, 23, 24, 1], np.int32)
    prompt = Prompt(VirtualTokens(model.params["embedding"][tokens], placement=placement))
    batch = {
        "inputs": np.array([[*text, 0, 0]], np.int32),
        "inputs_mask": np.array([[True] * 5 + [False] * 2]),
        "decoder_inputs": np.array([[0, 30]], np.int32),
    }
    whole = np.concatenate([tokens, text] if placement == "before" else [text, tokens])[None]
    spelled = {**batch, "inputs": whole, "inputs_mask": np.ones((1, 8), bool)}
    with_prompt = prompt_jax.forward(model.params, model.config, batch, prompt)
    assert_close(with_prompt, prompt_jax.forward(model.params, model.config, spelled))
    other = dataclasses.replace(prompt.encoder_tokens, placement="after" if placement == "before" else "before")
    elsewhere = prompt_jax.forward(model.params, model.config, batch, Prompt(other))
    assert np.abs(elsewhere - with_prompt).max() > 0.1


@pytest.mark.parametrize("placement", ("before", "after"))
def test_masked_slots_have_no_effect(model, reference, placement):
    """A prompt with unused slots away from the text equals the shorter prompt."""
    short = random_tokens(model, 4, placement=placement).encoder_tokens
    unused = np.full((3, model.config.d_model), 7.0, np.float32)
    parts = [unused, short.embeddings] if placement == "before" else [short.embeddings, unused]
    mask = np.concatenate(parts)[:, 0] != 7.0
    padded = VirtualTokens(np.concatenate(parts), mask, placement)
    batch = forward_batch(reference)
    expected = prompt_jax.forward(model.params, model.config, batch, Prompt(short))
    assert_close(prompt_jax.forward(model.params, model.config, batch, Prompt(padded)), expected)


@pytest.mark.parametrize("placement", ("before", "after"))
def test_unused_slots_between_used_ones_take_no_position(model, reference, placement):
    whole = random_tokens(model, 5, placement=placement).encoder_tokens
    mask = np.array([True, False, True, False, True])
    batch = forward_batch(reference)
    short = VirtualTokens(whole.embeddings[mask], placement=placement)
    expected = prompt_jax.forward(model.params, model.config, batch, Prompt(short))
    gaps = Prompt(VirtualTokens(whole.embeddings, mask, placement))
    assert_close(prompt_jax.forward(model.params, model.config, batch, gaps), expected)


def test_a_row_of_padding_is_finite(model, reference):
    batch = forward_batch(reference)
    batch["inputs_mask"][0] = False
    assert np.isfinite(prompt_jax.forward(model.params, model.config, batch)).all()


def test_stacks_may_be_split(model, reference):
    """Splitting `layers` into two stacks changes neither logits nor generation."""
    params = jax.tree.map(lambda x: x, model.params)
    for side in ("encoder", "decoder"):
        (stack,) = params[side]["layers"]
        params[side]["layers"] = tuple(jax.tree.map(lambda x, i=i: x[i : i + 1], stack) for i in range(2))
    batch = forward_batch(reference)
    expected = prompt_jax.forward(model.params, model.config, batch)
    np.testing.assert_array_equal(prompt_jax.forward(params, model.config, batch), expected)
    np.testing.assert_array_equal(
        prompt_jax.generate(params, model.config, batch, max_new_tokens=5),
        prompt_jax.generate(model.params, model.config, batch, max_new_tokens=5),
    )


def test_dropout_needs_a_key(model, reference):
    batch = forward_batch(reference)
    without = prompt_jax.forward(model.params, model.config, batch)
    first = prompt_jax.forward(model.params, model.config, batch, key=jax.random.key(1))
    again = prompt_jax.forward(model.params, model.config, batch, key=jax.random.key(1))
    other = prompt_jax.forward(model.params, model.config, batch, key=jax.random.key(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - without).max() > 0.1 and np.abs(first - other).max() > 0.1
    still = dataclasses.replace(model.config, dropout_rate=0.0)
    assert_close(prompt_jax.forward(model.params, still, batch, key=jax.random.key(1)), without)


def test_short_and_long_targets_agree(model, reference):
    """Cross-attention takes another path for targets shorter than the head width (16)."""
    batch, prompt = forward_batch(reference), random_tokens(model, 3)
    long = np.concatenate([batch["decoder_inputs"], np.full((3, 14), 5, np.int32)], axis=1)
    assert batch["decoder_inputs"].shape[1] < model.config.d_kv < long.shape[1]
    expected = prompt_jax.forward(model.params, model.config, {**batch, "decoder_inputs": long}, prompt)[:, :6]
    assert_close(prompt_jax.forward(model.params, model.config, batch, prompt), expected)


def test_dropout_has_its_rate():
    """Dropout zeroes at its rate, preserves the mean, and differs for each key."""
    ones = jnp.ones((1000, 301))
    for rate in (0.1, 0.5):
        dropped = np.asarray(attention.dropout(ones, rate, jax.random.key(0)))
        assert (dropped == 0).mean() == pytest.approx(rate, abs=0.003)
        np.testing.assert_allclose(dropped[dropped > 0], 1 / (1 - rate), rtol=1e-4)
        other = np.asarray(attention.dropout(ones, rate, jax.random.key(1)))
        assert ((dropped == 0) & (other == 0)).mean() == pytest.approx(rate**2, abs=0.003)
    assert attention.dropout(ones, 0.1, None) is ones


def test_bfloat16_is_near(fixtures, model, reference):
    half = prompt_jax.load_model(str(fixtures / "t5_v11" / "base"), dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    logits = prompt_jax.forward(half.params, half.config, forward_batch(reference), random_tokens(model, 5))
    exact = prompt_jax.forward(model.params, model.config, forward_batch(reference), random_tokens(model, 5))
    assert logits.dtype == jnp.float32
    assert_close(logits, exact, 0.05)
    assert half.fingerprint == model.fingerprint


def test_generation_is_the_argmax_of_forward(model, reference):
    """Each generated token is the most probable next one; only padding follows the end token."""
    prompt, batch = random_tokens(model, 3, seed=3), generate_batch(reference)
    tokens = np.asarray(prompt_jax.generate(model.params, model.config, batch, prompt, max_new_tokens=10))
    assert tokens.dtype == np.int32
    start = np.zeros((len(tokens), 1), np.int32)
    shifted = np.concatenate([start, tokens[:, :-1]], axis=1)
    best = prompt_jax.forward(model.params, model.config, {**batch, "decoder_inputs": shifted}, prompt).argmax(-1)
    for row, expected in zip(tokens, best, strict=True):
        end = np.flatnonzero(row == model.config.eos_id)
        length = end[0] + 1 if len(end) else len(row)
        np.testing.assert_array_equal(row[:length], expected[:length])
        assert not row[length:].any()


def test_generation_ends_with_its_rows(model, reference):
    """If only the end token is possible, generation takes one step for any max_new_tokens."""
    params = {**model.params, "lm_head": jnp.zeros_like(model.params["lm_head"])}
    config = dataclasses.replace(model.config, eos_id=0, pad_id=9)  # the argmax of equal logits is 0
    tokens = prompt_jax.generate(params, config, generate_batch(reference), max_new_tokens=4)
    np.testing.assert_array_equal(tokens, [[0, 9, 9, 9]] * 3)
    with pytest.raises(ValueError, match="max_new_tokens must be positive, not 0"):
        prompt_jax.generate(params, config, generate_batch(reference), max_new_tokens=0)


def test_score_is_the_sum_of_log_probabilities(model, reference):
    batch, prompt = generate_batch(reference), random_tokens(model, 3)
    targets = np.array([[7, 8, 1], [9, 1, 0]], np.int32)
    mask = targets > 0
    scores = score(model.params, model.config, batch, prompt, targets, mask)
    for c, target in enumerate(targets):
        decoder_inputs = np.repeat(np.array([[0, *target[:-1]]], np.int32), 3, axis=0)
        logits = prompt_jax.forward(model.params, model.config, {**batch, "decoder_inputs": decoder_inputs}, prompt)
        each = np.asarray(jax.nn.log_softmax(logits))[:, np.arange(3), target]
        np.testing.assert_allclose(scores[:, c], (each * mask[c]).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("bidirectional", (True, False))
@pytest.mark.parametrize(("buckets", "max_distance"), ((32, 128), (16, 20), (8, 64)))
def test_relative_buckets_are_exact(bidirectional, buckets, max_distance):
    """The published formula, with the floor of the logarithm in exact arithmetic."""

    def expected(distance: int) -> int:
        offset, count = 0, buckets
        if bidirectional:
            count //= 2
            offset, distance = (count if distance > 0 else 0), abs(distance)
        else:
            distance = max(-distance, 0)
        exact = count // 2
        if distance < exact:
            return offset + distance
        # floor(log(d / exact) / log(max / exact) * (count - exact)), by integer powers instead of logarithms.
        wide = count - exact
        n = 0
        while n + 1 < wide and distance**wide * exact ** (n + 1) >= max_distance ** (n + 1) * exact**wide:
            n += 1
        return offset + exact + n

    distances = np.arange(-600, 601)
    actual = relative_positions.relative_buckets(
        distances, bidirectional=bidirectional, buckets=buckets, max_distance=max_distance
    )
    assert actual.tolist() == [expected(int(d)) for d in distances]


def test_every_parameter_is_in_the_table(model):
    """The table has the paths, shapes and numbers of axes of the actual parameters."""
    table = {p.path: p for p in t5.parameters(model.config)}
    leaves = jax.tree_util.tree_leaves_with_path(model.params)
    paths = {"/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path): leaf for path, leaf in leaves}
    assert paths.keys() == table.keys()
    for path, leaf in paths.items():
        row = table[path]
        assert leaf.shape == (row.shape if row.layers is None else (row.layers, *row.shape))
        assert len(row.axes) == len(row.shape)
    assert math.prod(table["embedding"].shape) == 256 * 64


def test_an_infix_has_no_place(model):
    batch = whole(random_text(model, 1, 4)) | {"decoder_inputs": random_text(model, 1, 2)}
    with pytest.raises(PromptPartError, match="no place for a prefix of encoder_self after the input"):
        prompt_jax.forward(model.params, model.config, batch, random_prefix(model, 2, placement="after"))
