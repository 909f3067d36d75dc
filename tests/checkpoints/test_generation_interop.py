"""Generation under a checkpoint's settings: the tokens of `generate` in Transformers on the same folder."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import prompt_jax
from adapters import whole

pytestmark = pytest.mark.interop

NEW, END, OTHER_END = 12, 7, 9
FAMILIES = {"t5_v11": "lm_head.weight", "bart": "final_logits_bias", "gpt2": "transformer.wte.weight"}

SETTINGS = {
    "none": {},
    "forced_bos_token_id": {"forced_bos_token_id": 33},
    "forced_eos_token_id": {"forced_eos_token_id": END},
    "suppress_tokens": {"suppress_tokens": [20, 84, 132, 164, 192, 235]},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(100, 256))},
    "forced_bos and begin_suppress": {"forced_bos_token_id": 33, "begin_suppress_tokens": list(range(100, 256))},
    "bad_words_ids": {"bad_words_ids": [[END], *([token] for token in range(100, 256))]},
    "several end tokens": {"eos_token_id": [END, OTHER_END, 164]},
    "no_repeat_ngram_size 1": {"no_repeat_ngram_size": 1},
    "no_repeat_ngram_size 2": {"no_repeat_ngram_size": 2},
    "no_repeat_ngram_size 3": {"no_repeat_ngram_size": 3},
    "encoder_no_repeat_ngram_size 1": {"encoder_no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size 2": {"encoder_no_repeat_ngram_size": 2, "no_repeat_ngram_size": 2},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "repetition_penalty below 1": {"repetition_penalty": 0.6},
    "min_length": {"min_length": 8},
    "min_new_tokens": {"min_new_tokens": 9},
    "max_length": {"max_length": 6},
    "max_new_tokens": {"max_new_tokens": 4},
    "renormalize_logits": {"renormalize_logits": True, "suppress_tokens": [20, 84, 132, 164, 192, 235]},
    "sampling is not used": {"do_sample": True, "temperature": 2.0, "top_k": 3},
    "beams": {"num_beams": 3},
    "beams, length penalty": {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
    "as bart-large-cnn": {
        "num_beams": 4,
        "length_penalty": 2.0,
        "early_stopping": True,
        "no_repeat_ngram_size": 3,
        "min_length": 5,
        "max_length": 11,
        "forced_bos_token_id": 33,
        "forced_eos_token_id": END,
    },
    "all": {
        "num_beams": 3,
        "length_penalty": 0.5,
        "early_stopping": "never",
        "no_repeat_ngram_size": 2,
        "encoder_no_repeat_ngram_size": 3,
        "repetition_penalty": 1.3,
        "min_new_tokens": 4,
        "forced_eos_token_id": [END],
        "eos_token_id": [END, OTHER_END],
        "suppress_tokens": [20, 84],
        "begin_suppress_tokens": [164, 192],
    },
}
# The settings that do not change a family's answers.
UNCHANGED = {
    "t5_v11": {"none", "sampling is not used", "begin_suppress_tokens"},
    "bart": {
        *("none", "sampling is not used", "suppress_tokens", "renormalize_logits"),
        "encoder_no_repeat_ngram_size 1",
    },
    "gpt2": {"none", "sampling is not used", "several end tokens", "no_repeat_ngram_size 3"},
}


def softened(tensors, name):
    """Return output weights with which several tokens are probable, including the end tokens."""
    tensor = tensors[name]
    if name == "final_logits_bias":
        tensor[0, [END, OTHER_END]] += 5.0, 4.0
        return
    tensor = tensor * 0.5
    tensor[END] = tensor[[164, 192, 235]].sum(axis=0)
    tensor[OTHER_END] = tensor[[20, 84]].sum(axis=0)
    tensors[name] = tensor


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, fixtures, tmp_path_factory):
    """Return a copy of a fixture whose end token is END, and a batch, padded except for GPT-2.

    For a causal model, Transformers counts padding as text in n-grams and lengths, so its rows have equal lengths.
    """
    copy = tmp_path_factory.mktemp(request.param) / "model"
    shutil.copytree(fixtures / request.param / "base", copy)
    tensors = {name: np.array(tensor) for name, tensor in load_file(copy / "model.safetensors").items()}
    softened(tensors, FAMILIES[request.param])
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"eos_token_id": END, "forced_eos_token_id": None}))
    mask = np.arange(9)[None] < np.array([9, 5, 7, 3, 9, 8, 6, 4])[:, None]
    text = np.random.default_rng(0).integers(10, 30, (8, 9)).astype(np.int32)  # few, so that n-grams repeat
    # Padding has the pad id. Transformers would count any other id as the row's source.
    padded = whole(np.where(mask, text, config["pad_token_id"])) | {"inputs_mask": mask}
    batch = whole(text) if request.param == "gpt2" else padded
    made = SimpleNamespace(
        name=request.param, path=copy, batch=batch, causal=request.param == "gpt2", both=request.param != "bart"
    )
    made.plain, _ = both(made, {})
    assert len({len(row) for row in made.plain}) > 1, "rows end at different lengths"
    return made


def both(folder, settings, prefix="", most=NEW, **options):
    """Return the new tokens [B, N] of Transformers and ours, up to each row's end, and the settings' effect on them."""
    import torch
    import transformers

    kind = transformers.AutoModelForCausalLM if folder.causal else transformers.AutoModelForSeq2SeqLM
    generation = json.loads((folder.path / "generation_config.json").read_text())
    generation = {name: value for name, value in generation.items() if name != "_from_model_config"}
    (folder.path / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": END} | settings))
    try:
        theirs = kind.from_pretrained(str(folder.path)).eval()
        ours = prompt_jax.load_model(str(folder.path))
    finally:
        (folder.path / "generation_config.json").write_text(json.dumps(generation))
    ids, mask = (torch.tensor(folder.batch[name]).long() for name in ("inputs", "inputs_mask"))
    with torch.no_grad():
        actual = theirs.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            return_dict_in_generate=True,
            **({} if most is None else {"max_new_tokens": most}),
            **options,
        )
    start = ids.shape[1] if folder.causal else 1
    tokens = actual.sequences[:, start:].numpy()
    own = prompt_jax.generate(ours.params, ours.config, folder.batch, max_new_tokens=most)
    ends = settings.get("eos_token_id", END)
    ends = ends if isinstance(ends, list) else [ends]
    return until_end(tokens, ends), until_end(np.asarray(own), ends)


def until_end(tokens, ends):
    rows = []
    for row in tokens.tolist():
        end = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
        rows.append(row[: end + 1])
    return rows


@pytest.mark.parametrize("beams", (1, 3))
@pytest.mark.parametrize("setting", SETTINGS)
def test_tokens_are_transformers(folder, setting, beams):
    settings = SETTINGS[setting]
    if beams > 1:
        if "num_beams" in settings or not folder.both:
            pytest.skip("done already")
        settings = settings | {"num_beams": beams}
    if folder.causal and "forced_bos_token_id" in settings:
        pytest.skip("of models with an encoder")
    most = None if {"max_length", "max_new_tokens"} & set(settings) else NEW
    for name in {"max_length", "min_length"} & set(settings) if folder.causal else ():
        settings = settings | {name: settings[name] + 9}
    theirs, ours = both(folder, settings, most=most)
    assert ours == theirs
    if beams == 1:
        assert (ours == folder.plain) == (setting in UNCHANGED[folder.name])


def test_each_setting_changes_answers():
    """Each setting changes the answers of some family. Otherwise the test above would compare unchanged answers."""
    assert set.intersection(*UNCHANGED.values()) == {"none", "sampling is not used"}
