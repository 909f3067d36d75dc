"""Stacked prompts: a row with its prompt gives the same result in a mixed batch and alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prompt_jax
from adapters import assert_close
from mixed_prompts import IDS, LENGTHS, alone, mixed_batch, own_prompt, random_prompts
from prompt_jax import Prompt, VirtualTokens, stack_prompts
from prompt_jax.inference.decoding import _generate, generate_scored, score
from prompt_jax.models import _forward, family
from prompt_jax.models.inputs import gather_positions, left_aligned_order, prefix_kv, virtual_tokens
from prompt_jax.models.prompt import Prefix, unstack_prompts

PADDINGS = ("right", "left", "scattered")


@pytest.fixture(scope="module")
def model(fixtures):
    return prompt_jax.load_model(str(fixtures / "t5_v11" / "base"))


@pytest.mark.parametrize(
    ("placement", "padding"),
    [("after", "right"), *(pytest.param("before", padding, marks=pytest.mark.slow) for padding in PADDINGS)],
)
def test_a_row_has_the_results_it_has_alone(model, placement, padding):
    """Logits to 1e-5, generated tokens, and the log-probabilities of both generated and given answers."""
    prompts, batch = random_prompts(model, placement), mixed_batch(model, padding)
    stacked = stack_prompts(prompts)
    logits = prompt_jax.forward(model.params, model.config, batch, stacked)
    targets = np.array([[7, 8, 1], [9, 1, 0]], np.int32)
    given = targets, targets > 0
    generated = generate_scored(model.params, model.config, batch, stacked, max_new_tokens=6, targets=given)
    scores = score(model.params, model.config, batch, stacked, *given)
    for row in range(len(IDS)):
        arguments = (model.params, model.config, alone(batch, row), own_prompt(prompts, row))
        assert_close(logits[row], prompt_jax.forward(*arguments)[0])
        expected = generate_scored(*arguments, max_new_tokens=6, targets=given)
        np.testing.assert_array_equal(generated.tokens[row], expected.tokens[0])
        np.testing.assert_allclose(generated.log_probability[row], expected.log_probability[0], rtol=1e-5)
        for both in (scores, generated.targets):
            assert_close(both[row], expected.targets[0])


def test_prompts_make_a_difference(model):
    """Prompts change the results that the other tests compare."""
    batch = mixed_batch(model, "right")
    one_input = {**batch, "inputs": np.repeat(batch["inputs"][:1], len(IDS), axis=0)}
    one_input |= {"inputs_mask": np.ones_like(batch["inputs_mask"])}
    one_input |= {"decoder_inputs": np.repeat(batch["decoder_inputs"][:1], len(IDS), axis=0)}
    logits = np.asarray(prompt_jax.forward(model.params, model.config, one_input, stack_prompts(random_prompts(model))))
    assert_close(logits[2], logits[3])
    for a, b in ((0, 1), (0, 2), (0, 4), (1, 2), (1, 4), (2, 4)):
        assert np.abs(logits[a] - logits[b]).max() > 0.01 * np.abs(logits).max(), (a, b)


def test_prompts_of_one_length_need_no_mask(model):
    prompts, batch = random_prompts(model, lengths=(4, 4, 4)), mixed_batch(model, "right")
    stacked = stack_prompts(prompts)
    assert stacked.encoder_tokens.mask is None
    logits = prompt_jax.forward(model.params, model.config, batch, stacked)
    for row in range(len(IDS)):
        expected = prompt_jax.forward(model.params, model.config, alone(batch, row), own_prompt(prompts, row))
        assert_close(logits[row], expected[0])


@pytest.mark.parametrize("placement", ("before", "after"))
def test_a_stack_without_a_mask_costs_a_gather(model, placement):
    """A stack without a mask sorts no more than a single prompt: the text, and with tokens after it, both together.
    With a mask, both are always sorted."""
    batch = mixed_batch(model, "right")
    whole = 1 if placement == "before" else 2

    def sorts(prompt, ids=None):
        own, encode = {**batch, "prompt_ids": ids}, family(model.config).encode
        return str(jax.make_jaxpr(lambda prompt: encode(model.params, model.config, own, prompt))(prompt)).count(
            "sort["
        )

    assert sorts(None) == 1 and sorts(random_prompts(model, placement)[0]) == whole
    assert sorts(stack_prompts(random_prompts(model, placement, (4, 4, 4))), IDS) == whole
    assert sorts(stack_prompts(random_prompts(model, placement)), IDS) == 2


@pytest.mark.parametrize("placement", ("before", "after"))
@pytest.mark.parametrize("garbage", (1e9, np.nan))
def test_values_in_unused_slots_do_not_matter(model, placement, garbage):
    """Nor does their position: here they are between used slots."""
    prompts, batch = random_prompts(model, placement), mixed_batch(model, "right")
    embeddings = np.full((3, 8, model.config.d_model), garbage, np.float32)
    mask = np.zeros((3, 8), bool)
    for row, prompt in enumerate(prompts):
        mask[row, np.random.default_rng(row).permutation(8)[: LENGTHS[row]]] = True
        embeddings[row, mask[row]] = prompt.encoder_tokens.embeddings
    scattered = Prompt(VirtualTokens(embeddings, mask, placement))
    expected = prompt_jax.forward(model.params, model.config, batch, stack_prompts(prompts))
    assert_close(prompt_jax.forward(model.params, model.config, batch, scattered), expected)
    for one, other in zip(unstack_prompts(scattered), prompts, strict=True):
        np.testing.assert_array_equal(one.encoder_tokens.embeddings, other.encoder_tokens.embeddings)


def test_other_ids_need_no_compilation(model):
    batch, stacked = mixed_batch(model, "right"), stack_prompts(random_prompts(model, lengths=(2, 7)))

    def run(ids):
        prompt_jax.forward(model.params, model.config, {**batch, "prompt_ids": ids}, stacked)
        prompt_jax.generate(model.params, model.config, {**batch, "prompt_ids": ids}, stacked, max_new_tokens=3)

    run(np.zeros(6, np.int32))
    before = _forward._cache_size(), _generate._cache_size()
    for ids in ([-1] * 6, [1, 0, -1, 1, 1, 0], [1] * 6):
        run(np.array(ids, np.int32))
    assert (_forward._cache_size(), _generate._cache_size()) == before


def test_a_gradient_only_reaches_each_rows_prompt(model):
    """The gather adds up the rows' gradients in their prompts; unused slots and prompts have zero gradient."""
    prompts, batch = random_prompts(model), mixed_batch(model, "right")
    batch["prompt_ids"] = np.array([0, -1, 0, -1, -1, 2], np.int32)

    def loss(prompt, batch):
        return prompt_jax.forward(model.params, model.config, batch, prompt).sum()

    stacked = stack_prompts(prompts)
    mask = stacked.encoder_tokens.mask
    gradient = jax.grad(
        lambda e: loss(stacked.replace(encoder_tokens=stacked.encoder_tokens.replace(embeddings=e)), batch)
    )(jnp.asarray(stacked.encoder_tokens.embeddings))
    assert not gradient[1].any() and not np.asarray(gradient)[~mask].any()
    for number in (0, 2):
        rows = np.flatnonzero(batch["prompt_ids"] == number)
        total = sum(jax.grad(loss)(prompts[number], alone(batch, row)).encoder_tokens.embeddings for row in rows)
        np.testing.assert_allclose(
            np.asarray(gradient)[number][mask[number]], total, rtol=0, atol=1e-4 * abs(total).max()
        )


def test_wrong_prompt_ids_are_nan_where_they_are_traced(model):
    """Only rows with wrong ids are NaN."""
    batch = mixed_batch(model, "right")
    for lengths in (LENGTHS, (4, 4, 4)):
        stacked = stack_prompts(random_prompts(model, lengths=lengths))

        def forward(ids, stacked=stacked):
            return prompt_jax.forward(model.params, model.config, {**batch, "prompt_ids": ids}, stacked)

        expected = np.asarray(forward(IDS))
        wrong = np.array([3, -1, 0, -2, 1, -5], np.int32)
        logits = np.asarray(jax.jit(forward)(wrong))
        for row in range(6):
            if wrong[row] == IDS[row]:
                assert_close(logits[row], expected[row])
            else:
                assert np.isnan(logits[row]).all()


def test_bfloat16(fixtures):
    half = prompt_jax.load_model(str(fixtures / "t5_v11" / "base"), dtype="bfloat16")
    prompts, batch = random_prompts(half), mixed_batch(half, "right")
    logits = np.asarray(prompt_jax.forward(half.params, half.config, batch, stack_prompts(prompts)))
    for row in range(3):
        expected = prompt_jax.forward(half.params, half.config, alone(batch, row), own_prompt(prompts, row))[0]
        np.testing.assert_allclose(logits[row], expected, rtol=0, atol=0.05 * np.abs(expected).max())


# --------------------------------------------------------------------------------------------------------------
# By hand


def test_real_positions_move_to_the_front():
    mask = np.array([[False, True, False, True], [True, True, False, False]])
    order = left_aligned_order(mask)
    np.testing.assert_array_equal(order, [[1, 3, 0, 2], [0, 1, 2, 3]])
    x = np.arange(16).reshape(2, 4, 2)
    np.testing.assert_array_equal(gather_positions(x, order)[0, :, 0], [2, 6, 0, 4])


def test_used_slots_of_a_prefix_move_next_to_the_text():
    keys = np.array([1.0, 2.0, np.nan, 4.0], np.float32).reshape(1, 4, 1, 1)  # [L, P, G, K]
    past = prefix_kv(Prefix(keys, 10 * keys, np.array([True, False, False, True])), None)
    np.testing.assert_array_equal(past.layers[0][0, :, 0, 0], [0, 0, 1, 4])
    np.testing.assert_array_equal(past.layers[1][0, :, 0, 0], [0, 0, 10, 40])
    np.testing.assert_array_equal(past.used, [[False, False, True, True]])
    assert past.used_slots.tolist() == [2] and past.length == 4
    assert prefix_kv(None, None).length == 0 and prefix_kv(None, None).key_values(None, np.float32) == []


def test_each_row_gets_its_virtual_tokens():
    embeddings = np.array([[[1.0], [2.0]], [[3.0], [4.0]]], np.float32)  # [N, P, D]
    tokens = VirtualTokens(embeddings, np.array([[True, True], [False, True]]))
    virtual, used = virtual_tokens(tokens, np.array([1, -1, 0], np.int32), 3, np.float32)
    np.testing.assert_array_equal(virtual[:, :, 0], [[0, 4], [0, 0], [1, 2]])
    np.testing.assert_array_equal(used, [[False, True], [False, False], [True, True]])
