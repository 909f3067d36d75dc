"""Stacked prompts: a row with its prompt gives the same result in a mixed batch and alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import prompt_jax
from prompt_jax import Prompt, VirtualTokens, stack_prompts
from prompt_jax.inference.decoding import _generate, generate_scored, score
from prompt_jax.models import _forward, family
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import PromptStackError, check_prompt_ids, unstack_prompts

LENGTHS = (3, 1, 6)
IDS = np.array([2, -1, 0, 0, 1, 2], np.int32)  # different lengths, a row without a prompt, rows that share a prompt
TOKENS = (5, 8, 5, 3, 8, 5)  # in the text of each row
PADDINGS = ("right", "left", "scattered")


@pytest.fixture(scope="module")
def model(fixtures):
    return prompt_jax.load_model(str(fixtures / "t5_v11" / "base"))


def random_prompts(model, placement="before", lengths=LENGTHS) -> list[Prompt]:
    rng = np.random.default_rng(0)
    shapes = [(length, model.config.d_model) for length in lengths]
    return [Prompt(VirtualTokens(rng.normal(size=s).astype(np.float32), placement=placement)) for s in shapes]


def mixed_batch(model, padding: str) -> dict[str, np.ndarray]:
    """Return six rows of different lengths in eight slots; padding holds arbitrary tokens."""
    rng = np.random.default_rng(1)
    rows, slots = len(TOKENS), 8
    mask = np.zeros((rows, slots), bool)
    for row, count in enumerate(TOKENS):
        places = {"right": range(count), "left": range(slots - count, slots)}.get(padding)
        mask[row, sorted(rng.permutation(slots)[:count]) if places is None else list(places)] = True
    return {
        "inputs": rng.integers(3, model.config.vocab_size, (rows, slots)).astype(np.int32),
        "inputs_mask": mask,
        "decoder_inputs": rng.integers(3, model.config.vocab_size, (rows, 4)).astype(np.int32),
        "prompt_ids": IDS,
    }


def alone(batch, row: int) -> dict[str, np.ndarray]:
    """Return the row without padding and prompt id."""
    own = {name: value[row : row + 1] for name, value in batch.items() if name != "prompt_ids"}
    real = own["inputs_mask"][0]
    return {**own, "inputs": own["inputs"][:, real], "inputs_mask": own["inputs_mask"][:, real]}


def own_prompt(prompts, row: int) -> Prompt | None:
    return prompts[IDS[row]] if IDS[row] >= 0 else None


def assert_close(actual, expected):
    """Compare to 1e-5 of the largest value."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("placement", ("before", "after"))
def test_a_row_has_the_results_it_has_alone(model, placement, padding):
    """Logits to 1e-5, generated tokens, and the log-probabilities of both generated and given answers."""
    prompts, batch = random_prompts(model, placement), mixed_batch(model, padding)
    stacked = stack_prompts(prompts)
    logits = prompt_jax.forward(model.params, model.config, batch, stacked)
    generated = generate_scored(model.params, model.config, batch, stacked, max_new_tokens=6)
    targets = np.array([[7, 8, 1], [9, 1, 0]], np.int32)
    scores = score(model.params, model.config, batch, stacked, targets, targets > 0)
    for row in range(len(IDS)):
        arguments = (model.params, model.config, alone(batch, row), own_prompt(prompts, row))
        assert_close(logits[row], prompt_jax.forward(*arguments)[0])
        expected = generate_scored(*arguments, max_new_tokens=6)
        np.testing.assert_array_equal(generated.tokens[row], expected.tokens[0])
        np.testing.assert_allclose(generated.log_probability[row], expected.log_probability[0], rtol=1e-5)
        assert_close(scores[row], score(*arguments, targets, targets > 0)[0])


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


def test_a_delta_is_refused_with_what_to_do():
    with pytest.raises(TypeError, match=r"not a Delta; .* pass merged_params\(params, delta\) as the parameters"):
        check_prompt_ids(Delta({}), None, 1)


def test_wrong_prompt_ids_are_refused_where_they_are_known(model):
    batch, stacked = mixed_batch(model, "right"), stack_prompts(random_prompts(model))
    targets = np.array([[7, 1]], np.int32)
    for ids, message in (
        (np.array([0, 1, 2, 3, 0, 0], np.int32), "row 3 has the prompt id 3; there are 3 prompts"),
        (np.array([0, -2, 2, 1, 0, 0], np.int32), "row 1 has the prompt id -2"),
        (jnp.array([0, 0, 0, 0, 0, 9]), "row 5 has the prompt id 9"),
        (np.zeros(5, np.int32), r"an integer array \(6,\), a number for each row, not int32 \(5,\)"),
        (np.zeros((6, 1), np.int32), r"not int32 \(6, 1\)"),
        (np.zeros(6, np.float32), "not float32"),
        ([0] * 6, "not a list"),
    ):
        wrong = {**batch, "prompt_ids": ids}
        for function in (
            lambda batch: prompt_jax.forward(model.params, model.config, batch, stacked),
            lambda batch: prompt_jax.generate(model.params, model.config, batch, stacked, max_new_tokens=2),
            lambda batch: score(model.params, model.config, batch, stacked, targets, targets > 0),
        ):
            with pytest.raises(ValueError, match=message):
                function(wrong)


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


def test_prompt_ids_need_stacked_prompts_and_vice_versa(model):
    batch, prompts = mixed_batch(model, "right"), random_prompts(model)
    stacked = stack_prompts(prompts)
    without = {name: value for name, value in batch.items() if name != "prompt_ids"}
    for given_batch, prompt, message in (
        (without, stacked, "needs the rows' `prompt_ids`"),
        (batch, prompts[0], "need a stacked prompt"),
        (batch, None, "need a stacked prompt, .* not None"),
        (batch, Prompt(), "need a stacked prompt"),
    ):
        with pytest.raises(PromptStackError, match=message):
            prompt_jax.forward(model.params, model.config, given_batch, prompt)
        with pytest.raises(PromptStackError, match=message):  # under jit, too
            jax.jit(lambda batch, prompt: prompt_jax.forward(model.params, model.config, batch, prompt))(
                given_batch, prompt
            )


def test_bfloat16(fixtures):
    half = prompt_jax.load_model(str(fixtures / "t5_v11" / "base"), dtype="bfloat16")
    prompts, batch = random_prompts(half), mixed_batch(half, "right")
    logits = np.asarray(prompt_jax.forward(half.params, half.config, batch, stack_prompts(prompts)))
    for row in range(3):
        expected = prompt_jax.forward(half.params, half.config, alone(batch, row), own_prompt(prompts, row))[0]
        np.testing.assert_allclose(logits[row], expected, rtol=0, atol=0.05 * np.abs(expected).max())


# --------------------------------------------------------------------------------------------------------------
# Generation with its log-probability


def test_log_probability_is_that_of_forward(model):
    """The sum over the answer's tokens, including the end token."""
    batch, stacked = mixed_batch(model, "right"), stack_prompts(random_prompts(model))
    config = dataclasses.replace(model.config, eos_id=first_token(model, batch, stacked))  # makes a row end early
    tokens, log_probability = map(np.asarray, generate_scored(model.params, config, batch, stacked, max_new_tokens=5))
    assert log_probability.dtype == np.float32
    shifted = np.concatenate([np.full((6, 1), config.start_id, np.int32), tokens[:, :-1]], axis=1)
    logits = prompt_jax.forward(model.params, config, {**batch, "decoder_inputs": shifted}, stacked)
    each = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[..., None], axis=-1)[..., 0]
    ended = np.cumsum(tokens == config.eos_id, axis=1) - (tokens == config.eos_id) > 0
    assert ended.any() and not ended.all()
    np.testing.assert_allclose(log_probability, np.where(ended, 0.0, each).sum(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(tokens, prompt_jax.generate(model.params, config, batch, stacked, max_new_tokens=5))


def test_rows_may_have_different_lengths(model):
    """A row with limit n gets the tokens and log-probability of max_new_tokens=n."""
    batch, stacked = mixed_batch(model, "right"), stack_prompts(random_prompts(model))
    lengths = np.array([1, 3, 3, 1, 5, 5], np.int32)
    tokens, log_probability = generate_scored(
        model.params, model.config, batch, stacked, max_new_tokens=5, lengths=lengths
    )
    for row, length in enumerate(lengths.tolist()):
        short = generate_scored(model.params, model.config, batch, stacked, max_new_tokens=length)
        np.testing.assert_array_equal(tokens[row, :length], short.tokens[row])
        assert (np.asarray(tokens[row, length:]) == model.config.pad_id).all()
        np.testing.assert_allclose(log_probability[row], short.log_probability[row], rtol=1e-6)


def first_token(model, batch, stacked) -> int:
    """Return the first token of the first row's answer."""
    return int(prompt_jax.generate(model.params, model.config, batch, stacked, max_new_tokens=1)[0, 0])


# --------------------------------------------------------------------------------------------------------------
# Stacking


@st.composite
def prompts_of_one_width(draw) -> list[Prompt]:
    width, placement = draw(st.integers(1, 4)), draw(st.sampled_from(["before", "after"]))
    prompts = []
    for length in draw(st.lists(st.integers(1, 5), min_size=1, max_size=5)):
        values = draw(hnp.arrays(np.float32, (length, width), elements=st.floats(-4, 4, width=32)))
        mask = draw(st.none() | hnp.arrays(bool, length))
        prompts.append(Prompt(VirtualTokens(values, mask, placement)))
    return prompts


@given(prompts_of_one_width())
def test_stacking_is_undone_exactly(prompts):
    stacked = stack_prompts(prompts)
    tokens = stacked.encoder_tokens
    used = [p.encoder_tokens.embeddings[... if (m := p.encoder_tokens.mask) is None else m] for p in prompts]
    assert tokens.embeddings.shape == (len(prompts), max(map(len, used)), used[0].shape[1])
    assert tokens.mask is None or not tokens.mask.all()
    if tokens.mask is not None:
        assert (np.diff(tokens.mask.astype(int), axis=1) >= 0).all(), "unused slots come first"
    for again, own in zip(unstack_prompts(stacked), used, strict=True):
        assert again.encoder_tokens.placement == tokens.placement == prompts[0].encoder_tokens.placement
        assert again.encoder_tokens.mask is None
        assert again.encoder_tokens.embeddings.tobytes() == own.tobytes()
    twice = stack_prompts(unstack_prompts(stacked)).encoder_tokens
    np.testing.assert_array_equal(twice.embeddings, tokens.embeddings)
    assert (twice.mask is None) == (tokens.mask is None)


def test_arrays_of_a_device_are_stacked_and_unstacked():
    prompt = Prompt(VirtualTokens(jnp.ones((2, 3)), jnp.array([True, False])))
    stacked = stack_prompts([prompt, Prompt(VirtualTokens(jnp.zeros((2, 3))))])
    assert isinstance(stacked.encoder_tokens.embeddings, np.ndarray)
    np.testing.assert_array_equal(stacked.encoder_tokens.mask, [[False, True], [True, True]])
    placed = unstack_prompts(jax.device_put(stacked))
    assert [len(each.encoder_tokens.embeddings) for each in placed] == [1, 2]


def test_prompts_that_cannot_be_stacked():
    def prompt(*shape, **fields):
        return Prompt(VirtualTokens(np.ones(shape, np.float32), **fields))

    for prompts, message in (
        ([], "at least one prompt"),
        ([prompt(2, 3), prompt(2, 3, placement="after")], "a.npz has its virtual tokens before .* and b.npz after it"),
        ([prompt(2, 3), prompt(2, 4)], "a.npz has virtual tokens of width 3 and b.npz of width 4"),
        ([prompt(2, 3), Prompt()], "b.npz: only single prompts that are not empty .* not an empty prompt"),
        ([prompt(2, 3, 4)], r"a.npz: only single prompts .* not encoder_tokens \(2, 3, 4\)"),
    ):
        with pytest.raises(PromptStackError, match=message):
            stack_prompts(prompts, ["a.npz", "b.npz"][: len(prompts)])
    with pytest.raises(PromptStackError, match="prompt 1"):
        stack_prompts([prompt(2, 3), prompt(2, 4)])
    for single in (prompt(2, 3), Prompt()):
        with pytest.raises(PromptStackError, match="a stacked prompt has a leading axis N, and this one does not"):
            unstack_prompts(single)
