"""GPT-2: compare outputs with Transformers and PEFT, and check invariants."""

import jax
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
from prompt_jax.config.decoding import Decoding
from prompt_jax.inference.decoding import generate_scored, score
from prompt_jax.models import ContextError, family
from prompt_jax.models.prompt import Prefix, PromptPartError


@pytest.fixture(scope="module")
def model(fixtures):
    return prompt_jax.load_model(str(fixtures / "gpt2" / "base"))


@pytest.fixture(scope="module")
def reference(fixtures):
    return np.load(fixtures / "gpt2" / "reference.npz")


def adapter(fixtures, variant: str) -> Prompt | None:
    return None if variant == "base" else peft_prompt(fixtures / "gpt2" / variant)


@pytest.mark.parametrize("variant", ("base", *PROMPTS, *PREFIXES))
def test_logits_equal_peft(model, fixtures, reference, variant):
    batch = forward_batch(reference)
    logits = prompt_jax.forward(model.params, model.config, batch, adapter(fixtures, variant))
    expected = reference[f"{variant}/logits"][:, -batch["inputs"].shape[1] :]  # without the logits of virtual tokens
    real = batch["inputs_mask"]
    assert_close(np.asarray(logits)[real], expected[real])


@pytest.mark.parametrize("variant", ("base", *PROMPTS, *PREFIXES))
def test_greedy_tokens_equal_peft(model, fixtures, reference, variant):
    """For soft prompts, only rows without left padding, because PEFT counts padding as positions."""
    batch = generate_batch(reference)
    tokens = prompt_jax.generate(model.params, model.config, batch, adapter(fixtures, variant), max_new_tokens=12)
    expected = reference[f"{variant}/greedy"][:, -12:]
    rows = [row for row in range(len(expected)) if variant not in PROMPTS or batch["inputs_mask"][row].all()]
    assert rows
    for row in rows:
        np.testing.assert_array_equal(tokens[row], expected[row])


@pytest.mark.slow
@pytest.mark.parametrize("variant", PROMPTS)
def test_left_padded_rows_of_soft_prompts_are_each_alone(model, fixtures, reference, variant):
    """Unlike PEFT's, greedy and beam search give the same for a row in a batch and for the row without padding."""
    batch, prompt = generate_batch(reference), adapter(fixtures, variant)
    for decoding in (Decoding(), Decoding(beams=5)):
        options = {"max_new_tokens": 12, "decoding": decoding}
        mixed = prompt_jax.generate(model.params, model.config, batch, prompt, **options)
        for row, mask in enumerate(batch["inputs_mask"]):
            own = whole(batch["inputs"][row : row + 1, mask])
            alone = prompt_jax.generate(model.params, model.config, own, prompt, **options)
            np.testing.assert_array_equal(mixed[row], alone[0])


@pytest.mark.parametrize("make", (random_tokens, random_prefix), ids=("tokens", "prefix"))
def test_scores_of_given_targets_are_those_of_the_logits(model, make):
    prompt, batch = make(model, 3), whole(random_text(model, 2, 6))
    targets = np.array([[7, 8, 1], [9, 1, 0]], np.int32)
    scores = score(model.params, model.config, batch, prompt, targets, targets > 0)
    together = (targets, targets > 0)
    for beams in (1, 3):
        options = {"max_new_tokens": 2, "decoding": Decoding(beams=beams), "targets": together}
        generated = generate_scored(model.params, model.config, batch, prompt, **options)
        np.testing.assert_allclose(generated.targets, scores, rtol=1e-6)
    for number, target in enumerate(targets):
        text = np.concatenate([batch["inputs"], np.tile(target[:-1], (2, 1))], axis=1).astype(np.int32)
        logits = prompt_jax.forward(model.params, model.config, whole(text), prompt)[:, -3:]
        chosen = np.asarray(jax.nn.log_softmax(logits))[:, range(3), target]
        np.testing.assert_allclose(scores[:, number], (chosen * (target > 0)).sum(axis=1), rtol=1e-5)


def test_generation_continues_the_text(model):
    """A task's answer follows its input and the separator. An empty text begins with the start token."""
    prompt, text, target = random_prefix(model, 3), random_text(model, 2, 6), np.array([[7, 8]], np.int32)
    separated = whole(np.pad(text, ((0, 0), (0, 1)), constant_values=model.config.start_id))
    empty = {"inputs": text, "inputs_mask": np.zeros(text.shape, bool)}
    start = whole(np.full((2, 1), model.config.start_id, np.int32))
    for given, task in ((separated, whole(text)), (empty, start | {"inputs_mask": np.zeros((2, 1), bool)})):
        tokens = prompt_jax.generate(model.params, model.config, given, prompt, max_new_tokens=5)
        task["start_ids"] = np.full(len(tokens), model.config.start_id, np.int32)
        expected = generate_scored(model.params, model.config, task, prompt, max_new_tokens=5)
        np.testing.assert_array_equal(tokens, expected.tokens)
        scores = score(model.params, model.config, given, prompt, target, target > 0)
        expected = score(model.params, model.config, task, prompt, target, target > 0)
        np.testing.assert_allclose(scores, expected, rtol=1e-5)


@pytest.mark.parametrize("padding", ("left", "both"))
@pytest.mark.parametrize("make", (random_tokens, random_prefix), ids=("tokens", "prefix"))
def test_padding_changes_nothing(model, make, padding):
    """Padding changes neither source nor target, in a batch with other rows."""
    prompt, text, target = make(model, 3), random_text(model, 2, 6), random_text(model, 2, 4, seed=1)
    alone = [
        prompt_jax.forward(model.params, model.config, whole(text[:1, :4]) | {"decoder_inputs": target[:1]}, prompt),
        prompt_jax.forward(model.params, model.config, whole(text[1:]) | {"decoder_inputs": target[1:]}, prompt),
    ]
    before, after = (3, 0) if padding == "left" else (1, 2)
    inputs = np.zeros((2, 9), np.int32)
    mask = np.zeros((2, 9), bool)
    inputs[0, before + 2 : before + 6], mask[0, before + 2 : before + 6] = text[0, :4], True
    inputs[1, before : before + 6], mask[1, before : before + 6] = text[1], True
    batch = {"inputs": inputs, "inputs_mask": mask, "decoder_inputs": np.pad(target, [(0, 0), (before, after)])}
    batch["decoder_mask"] = np.pad(np.ones((2, 4), bool), [(0, 0), (before, after)])
    logits = np.asarray(prompt_jax.forward(model.params, model.config, batch, prompt))
    for row in range(2):
        assert_close(logits[row, before : before + 4], alone[row][0])


def test_source_and_target_are_one_text(model):
    text = random_text(model, 2, 9)
    for prompt in (None, random_tokens(model, 3), random_prefix(model, 3)):
        mixed = np.asarray(prompt_jax.forward(model.params, model.config, whole(text), prompt))
        named_sharding = whole(text[:, :5]) | {"decoder_inputs": text[:, 5:]}
        assert_close(prompt_jax.forward(model.params, model.config, named_sharding, prompt), mixed[:, 5:])


def test_a_prefix_of_real_tokens_is_these_tokens(model):
    """Keys and values of a text, used as prefix of another text."""
    text = random_text(model, 2, 9)
    kept = family(model.config).activations(model.params, model.config, whole(text[:, :4]))["decoder_self"]
    expected = np.asarray(prompt_jax.forward(model.params, model.config, whole(text)))
    for row in range(2):
        prefix = Prompt(decoder_self=Prefix(*(leaf[:, row] for leaf in kept)))
        logits = prompt_jax.forward(model.params, model.config, whole(text[row : row + 1, 4:]), prefix)
        assert_close(logits[0], expected[row, 4:])


def test_virtual_tokens_that_are_embeddings_are_these_tokens(model):
    text = random_text(model, 1, 9)
    tokens = Prompt(VirtualTokens(np.asarray(model.params["embedding"])[text[0, :4]]))
    expected = np.asarray(prompt_jax.forward(model.params, model.config, whole(text)))
    assert_close(prompt_jax.forward(model.params, model.config, whole(text[:, 4:]), tokens), expected[:, 4:])


@pytest.mark.parametrize("masked", (False, True))
def test_virtual_tokens_as_a_prefix(model, masked):
    """Virtual tokens alone, and after a prefix."""
    text = whole(random_text(model, 2, 5))
    mask = np.array([True, False, True, True]) if masked else None
    tokens, prefix = random_tokens(model, 4, mask=mask), random_prefix(model, 3)
    for prompt in (tokens, Prompt(tokens.encoder_tokens, decoder_self=prefix.decoder_self)):
        made = family(model.config).as_prefix(model.params, model.config, prompt)
        assert list(made.parts) == ["decoder_self"]
        expected = prompt_jax.forward(model.params, model.config, text, prompt)
        assert_close(prompt_jax.forward(model.params, model.config, text, made), np.asarray(expected))
    if masked:
        shorter = Prompt(VirtualTokens(tokens.encoder_tokens.embeddings[mask]))
        logits = prompt_jax.forward(model.params, model.config, text, tokens)
        assert_close(logits, np.asarray(prompt_jax.forward(model.params, model.config, text, shorter)))


@pytest.mark.slow
@pytest.mark.parametrize("make", (random_tokens, random_prefix))
def test_mixed_prompts_are_each_alone(model, make):
    """Prompts of three and four slots, one of them with an unused slot, and rows without a prompt."""
    prompts = [make(model, 4), make(model, 4, seed=1), make(model, 4, seed=2, mask=np.array([True, False, True, True]))]
    assert_rows_are_each_alone(model, prompts, 3)


def test_an_infix_is_not_seen_by_the_source(model):
    """The infix stands between source and target: it changes the target's logits but not the source's keys and values.
    An infix made of real tokens equals these tokens."""
    text = random_text(model, 1, 9)
    batch = whole(text[:, :3]) | {"decoder_inputs": text[:, 6:]}
    infix = random_prefix(model, 3, placement="after")
    before = family(model.config).activations(model.params, model.config, batch)
    after = family(model.config).activations(model.params, model.config, batch, infix)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert not np.allclose(
        prompt_jax.forward(model.params, model.config, batch, infix),
        prompt_jax.forward(model.params, model.config, batch),
        atol=0.1,
    )
    real = family(model.config).activations(model.params, model.config, whole(text[:, :6]))["decoder_self"]
    infix = Prompt(decoder_self=Prefix(*(leaf[:, 0, 3:] for leaf in real), placement="after"))
    expected = np.asarray(prompt_jax.forward(model.params, model.config, whole(text)))[:, 6:]
    assert_close(prompt_jax.forward(model.params, model.config, batch, infix), expected)
    with pytest.raises(PromptPartError, match="pass the target as `decoder_inputs`"):
        prompt_jax.forward(model.params, model.config, whole(text), infix)


def test_a_prompt_is_computed_once_for_the_batch(model):
    """Ten times the rows take no more work for the prompt; only scores have axes for both slots and batch."""
    slots = 40

    def flops(rows: int, prompt: Prompt | None) -> float:
        batch = whole(random_text(model, rows, 8))
        compute = jax.jit(family(model.config).forward, static_argnums=1)
        return compute.lower(model.params, model.config, batch, prompt).compile().cost_analysis()["flops"]

    tokens, prefix = random_tokens(model, slots), random_prefix(model, slots)
    own = flops(2, tokens) - flops(2, prefix)
    assert own > 0
    assert flops(20, tokens) - flops(20, prefix) == pytest.approx(own, rel=0.05)
    text = jax.make_jaxpr(family(model.config).forward, static_argnums=1)(
        model.params, model.config, whole(random_text(model, 7, 8)), prefix
    )
    _, heads, width = family(model.config).sites(model.config)["decoder_self"]
    assert f"[7,{slots},{heads},{width}]" not in str(text).replace(" ", "")


def test_unsupported_parts_are_errors(model):
    batch = whole(random_text(model, 1, 4)) | {"decoder_inputs": random_text(model, 1, 2)}
    wrong = Prompt(encoder_self=random_prefix(model, 2).decoder_self)
    for prompt, message in (
        (wrong, "GPT-2 has no place for a prefix of encoder_self; it takes encoder_tokens and decoder_self"),
        (random_tokens(model, 2, placement="after"), "virtual tokens after the input depend on it"),
        (random_prefix(model, 2, shift_positions=False), "always counts positions on from a prefix"),
    ):
        with pytest.raises(PromptPartError, match=message):
            prompt_jax.forward(model.params, model.config, batch, prompt)


def test_the_context_is_checked(model):
    """Prompt, source and target together have 64 positions; padding does not count."""
    limit = model.config.positions
    batch = whole(random_text(model, 1, limit - 10))
    batch = {name: np.pad(value, [(0, 0), (0, 20)]) for name, value in batch.items()}
    prompt_jax.forward(model.params, model.config, batch, random_tokens(model, 10))
    with pytest.raises(ContextError, match="prompt, source and target together have 65 tokens, and the model has 64"):
        prompt_jax.forward(model.params, model.config, batch, random_prefix(model, 11))
    with pytest.raises(ContextError, match="69 tokens"):
        prompt_jax.generate(model.params, model.config, batch, random_prefix(model, 10), max_new_tokens=6)
