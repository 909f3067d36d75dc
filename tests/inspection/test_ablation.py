"""Leave-one-out ablation, against prompts that never had the token."""

import dataclasses

import jax
import numpy as np
import pytest

import prompt_jax
from adapters import random_prefix
from prompt_jax import Prompt, VirtualTokens
from prompt_jax.errors import UserError
from prompt_jax.inference import batching
from prompt_jax.inference.decoding import _score
from prompt_jax.inspection import ablation
from prompt_jax.inspection.ablation import leave_one_out
from prompt_jax.models.prompt import PromptPart
from target_losses import loss

TEXTS = ("a good film", "the plot is bad and the jokes are old", "great fun", "no fun, bad acting and a cold ending")
ANSWERS = ("positive", "negative", "positive", "a bad film")


@pytest.fixture(autouse=True)
def one_length(monkeypatch):
    """Pad all inputs to one length: there is less to compile."""
    monkeypatch.setattr(batching, "EVAL_BUCKETS", 1)


@pytest.fixture(scope="module", params=["t5", "gpt2", "bart"])
def model(request, tiny_folders):
    return prompt_jax.load_model(str(tiny_folders[request.param]))


def examples_of(model):
    from prompt_jax.data.examples import Examples
    from prompt_jax.metrics import accuracy

    tokenizer = model.tokenizer
    return Examples(
        name="films",
        split="test",
        inputs=[np.array(tokenizer.input_ids(text), np.int32) for text in TEXTS],
        targets=[np.array(tokenizer.target_ids(text), np.int32) for text in ANSWERS],
        input_texts=list(TEXTS),
        target_texts=list(ANSWERS),
        truncated={"inputs": 0, "targets": 0},
        format=None,
        metric_fns=(accuracy,),
    )


def cut(part: PromptPart, slot: int) -> PromptPart:
    axis = part.axes.index("P")
    return part.replace(**{name: np.delete(np.asarray(getattr(part, name)), slot, axis) for name in part.arrays})


def test_virtual_tokens(model):
    width = model.params["embedding"].shape[1]
    tokens = np.random.default_rng(0).normal(size=(5, width)).astype(np.float32)
    examples = examples_of(model)
    actual = leave_one_out(model, Prompt(VirtualTokens(tokens)), examples, batch_size=8)
    assert actual.loss == pytest.approx(loss(model, Prompt(VirtualTokens(tokens)), examples), rel=1e-5)
    expected = [loss(model, Prompt(cut(VirtualTokens(tokens), slot)), examples) for slot in range(5)]
    np.testing.assert_allclose(actual.without, expected, rtol=1e-5)
    np.testing.assert_allclose(actual.effects, np.array(expected) - actual.loss, atol=1e-5)
    assert np.ptp(actual.without) > 1e-3 and actual.tokens == sum(map(len, examples.targets))
    assert actual.data == "4 examples of films, test"


def test_a_prefix_loses_a_slot_of_every_site(model):
    prompt, examples = random_prefix(model, 3), examples_of(model)
    actual = leave_one_out(model, prompt, examples, batch_size=8)
    for slot in range(3):
        without = Prompt(**{site: cut(part, slot) for site, part in prompt.parts.items()})
        assert actual.without[slot] == pytest.approx(loss(model, without, examples), rel=1e-5)


def test_parts_of_different_lengths(tiny):
    """Slot i is removed from each part that has it."""
    tokens = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    prefix = random_prefix(tiny, 2, sites=("decoder_self",)).decoder_self
    examples = examples_of(tiny)
    actual = leave_one_out(tiny, Prompt(VirtualTokens(tokens), decoder_self=prefix), examples, batch_size=8)
    shorter = [cut(VirtualTokens(tokens), slot) for slot in range(3)]
    prefixes = [cut(prefix, 0), cut(prefix, 1), prefix]
    expected = [loss(tiny, Prompt(a, decoder_self=b), examples) for a, b in zip(shorter, prefixes, strict=True)]
    np.testing.assert_allclose(actual.without, expected, rtol=1e-5)


def test_unused_slots_are_passed_over(tiny):
    tokens = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    tokens[1] = 1e6
    masked = VirtualTokens(tokens, np.array([True, False, True, True]))
    actual = leave_one_out(tiny, Prompt(masked), examples_of(tiny), batch_size=64)
    plain = leave_one_out(tiny, Prompt(VirtualTokens(tokens[[0, 2, 3]])), examples_of(tiny), batch_size=64)
    assert len(actual.without) == 3
    np.testing.assert_allclose(actual.without, plain.without, rtol=1e-6)


def test_without_its_only_token_a_prompt_is_none(model):
    tokens = np.random.default_rng(0).normal(size=(1, model.params["embedding"].shape[1])).astype(np.float32)
    examples = examples_of(model)
    actual = leave_one_out(model, Prompt(VirtualTokens(tokens)), examples, batch_size=4)
    np.testing.assert_allclose(actual.without, [loss(model, None, examples)], rtol=1e-5)


def test_many_tokens_are_one_compilation(tiny, monkeypatch):
    """The number of prompts in memory at a time does not matter."""
    tokens = np.random.default_rng(0).normal(size=(9, 64)).astype(np.float32)
    examples, prompt = examples_of(tiny), Prompt(VirtualTokens(tokens))
    whole = leave_one_out(tiny, prompt, examples, batch_size=8)
    monkeypatch.setattr(ablation, "_STACK", 4)
    jax.clear_caches()  # other tests may have compiled these programs
    before = _score._cache_size()
    parts = leave_one_out(tiny, prompt, examples, batch_size=8)
    assert _score._cache_size() - before == 1
    np.testing.assert_allclose(parts.without, whole.without, rtol=1e-6)
    monkeypatch.setattr(ablation, "_STACK_BYTES", 1)  # less than a single one
    np.testing.assert_allclose(leave_one_out(tiny, prompt, examples, batch_size=8).without, whole.without, rtol=1e-6)


def test_examples_without_labels_have_no_loss(tiny):
    from prompt_jax.task_format import TaskFormat

    examples = dataclasses.replace(
        examples_of(tiny), format=TaskFormat("{text}", ("a", "b")), target_texts=["<unk>", "a", "b", "a"]
    )
    with pytest.raises(UserError, match="films, test: 1 of 4 examples have no label"):
        leave_one_out(tiny, Prompt(VirtualTokens(np.ones((2, 64), np.float32))), examples, batch_size=8)
