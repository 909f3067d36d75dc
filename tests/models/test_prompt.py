"""Stacking of prompts, and the checks of prompt ids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import prompt_jax
from mixed_prompts import mixed_batch, random_prompts
from prompt_jax import Prompt, VirtualTokens, stack_prompts
from prompt_jax.inference.decoding import score
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import PromptStackError, check_prompt_ids, unstack_prompts


@pytest.fixture(scope="module")
def model(fixtures):
    return prompt_jax.load_model(str(fixtures / "t5_v11" / "base"))


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
