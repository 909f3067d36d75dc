"""Generation, against Hugging Face's `generate`."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

import prompt_jax
from adapters import random_text, whole
from prompt_jax.config.decoding import Decoding
from prompt_jax.inference.decoding import beam_search, generate

pytestmark = pytest.mark.interop

NEW, END = 10, 7


def softer(tensor):
    """Return output weights that leave several tokens probable, including the end token."""
    tensor = tensor * 0.5
    tensor[END] = tensor[[164, 192, 235]].sum(axis=0)  # those that the model likes to repeat
    return tensor


@pytest.fixture(scope="module", params=["t5_v11", "bart"])
def both(request, fixtures):
    """Return the same model in both libraries, and a padded batch."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = str(fixtures / request.param / "base")
    theirs, ours = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), prompt_jax.load_model(folder)
    params = dict(ours.params)
    with torch.no_grad():
        if request.param == "t5_v11":
            params["lm_head"] = softer(np.array(params["lm_head"]))
            theirs.lm_head.weight.copy_(torch.tensor(params["lm_head"]))
        else:
            params["logits_bias"] = np.array(params["logits_bias"])
            params["logits_bias"][END] += 5.0
            theirs.final_logits_bias[0, END] += 5.0
    mask = np.arange(9)[None] < np.array([9, 5, 7, 3, 9, 8, 6, 4])[:, None]
    batch = whole(random_text(ours, 8, 9)) | {"inputs_mask": mask}
    return SimpleNamespace(theirs=theirs, params=params, config=ours.config, batch=batch)


def hugging_face(both, **options):
    """Return new tokens [B, n, NEW], padded with the pad id, and scores [B, n]."""
    import torch

    ids, mask = (torch.tensor(both.batch[name]).long() for name in ("inputs", "inputs_mask"))
    given = {"max_new_tokens": NEW, "eos_token_id": END, "return_dict_in_generate": True, "output_scores": True}
    with torch.no_grad():
        actual = both.theirs.generate(input_ids=ids, attention_mask=mask, do_sample=False, **given, **options)
    tokens = actual.sequences[:, 1:].numpy()
    tokens = np.pad(tokens, [(0, 0), (0, NEW - tokens.shape[1])], constant_values=END)
    # Beam search fills up with the end token where the pad id is 0.
    tokens = np.where(np.cumsum(tokens == END, axis=1) > (tokens == END), both.config.pad_id, tokens)
    scores = getattr(actual, "sequences_scores", None)
    return tokens.reshape(len(ids), -1, NEW), None if scores is None else scores.numpy().reshape(len(ids), -1)


SETTINGS = {
    "default": {},
    "length_penalty 0.6": {"length_penalty": 0.6},
    "length_penalty 2": {"length_penalty": 2.0},
    "length_penalty -1": {"length_penalty": -1.0},
    "first to finish": {"early_stopping": "true"},
    "first to finish, length_penalty 2": {"early_stopping": "true", "length_penalty": 2.0},
    "never": {"early_stopping": "never"},
    "never, length_penalty 2": {"early_stopping": "never", "length_penalty": 2.0},
    "min_new_tokens": {"min_new_tokens": 6},
    "banned_tokens": {"banned_tokens": (END + 1, 20, 84, 132, 164)},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_beams_equal_hugging_face(both, setting):
    """Compares the three best of four beams."""
    fields = SETTINGS[setting]
    options = dict(fields)
    if "early_stopping" in options:
        options["early_stopping"] = {"true": True, "never": "never"}[options["early_stopping"]]
    if "banned_tokens" in options:
        options["suppress_tokens"] = list(options.pop("banned_tokens"))
    tokens, scores = hugging_face(both, num_beams=4, num_return_sequences=3, **options)
    config = dataclasses.replace(both.config, eos_id=END)
    decoding = Decoding(beams=4, **fields)
    actual = beam_search(both.params, config, both.batch, max_new_tokens=NEW, decoding=decoding)
    np.testing.assert_array_equal(actual.tokens[:, :3], tokens)
    np.testing.assert_allclose(actual.score[:, :3], scores, rtol=1e-5, atol=1e-5)


def test_the_settings_differ(both):
    """Otherwise the test above would compare equal results. Answers end before the limit."""
    config, actual = dataclasses.replace(both.config, eos_id=END), {}
    for setting in ("default", "length_penalty -1", "first to finish, length_penalty 2", "never, length_penalty 2"):
        decoding = Decoding(beams=4, **SETTINGS[setting])
        tokens = beam_search(both.params, config, both.batch, max_new_tokens=NEW, decoding=decoding).tokens
        actual[setting] = np.asarray(tokens[:, :3])
    lengths = (np.cumsum(actual["default"] == END, axis=2) == 0).sum(axis=2)
    assert len(np.unique(lengths)) > 3
    assert len({tokens.tobytes() for tokens in actual.values()}) == len(actual)


@pytest.mark.parametrize("fields", ({}, {"min_new_tokens": 6}, {"banned_tokens": (20, 84, 132, 164)}), ids=str)
def test_greedy_tokens_equal_hugging_face(both, fields):
    options = dict(fields)
    if "banned_tokens" in options:
        options["suppress_tokens"] = list(options.pop("banned_tokens"))
    tokens, _ = hugging_face(both, **options)
    config = dataclasses.replace(both.config, eos_id=END)
    actual = generate(both.params, config, both.batch, max_new_tokens=NEW, decoding=Decoding(**fields))
    np.testing.assert_array_equal(actual, tokens[:, 0])


@pytest.mark.parametrize("both", ["bart"], indirect=True)
@pytest.mark.parametrize("beams", (1, 4))
def test_a_forced_first_token(both, beams):
    tokens, scores = hugging_face(both, forced_bos_token_id=33, num_beams=beams)
    generation = dataclasses.replace(both.config.generation, forced_first=33)
    config = dataclasses.replace(both.config, eos_id=END, generation=generation)
    decoding = Decoding(beams=beams)
    np.testing.assert_array_equal(
        generate(both.params, config, both.batch, max_new_tokens=NEW, decoding=decoding), tokens[:, 0]
    )
    if beams > 1:
        actual = beam_search(both.params, config, both.batch, max_new_tokens=NEW, decoding=decoding)
        np.testing.assert_allclose(actual.score[:, 0], scores[:, 0], rtol=0, atol=1e-5)
