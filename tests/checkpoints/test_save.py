"""A saved model loads as the same model, here and in Transformers."""

import dataclasses

import jax
import numpy as np
import pytest

import prompt_jax
from adapters import assert_close, random_text, whole
from prompt_jax.checkpoints.save import save_model
from prompt_jax.errors import CheckpointError

NAMES = ("t5_v11", "t5_v10", "t5_deep", "gpt2", "bart")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_it_is_read_back(fixtures, tmp_path, name, dtype):
    model = prompt_jax.load_model(str(fixtures / name / "base"), dtype)
    save_model(tmp_path / "m", model)
    again = prompt_jax.load_model(str(tmp_path / "m"), dtype)
    assert again.config == model.config and (dtype == "bfloat16" or again.fingerprint == model.fingerprint)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_with_its_tokenizer(tiny_folders, tmp_path):
    for name, folder in tiny_folders.items():
        model = prompt_jax.load_model(str(folder))
        save_model(tmp_path / name, model)
        again = prompt_jax.load_model(str(tmp_path / name))
        text = "a good film with a great heart"
        assert again.tokenizer.target_ids(text) == model.tokenizer.target_ids(text)
        assert again.fingerprint == model.fingerprint


def test_refused_models_and_folders(fixtures, tmp_path):
    integers = prompt_jax.load_model(str(fixtures / "t5_v11" / "base"), "int8")
    with pytest.raises(
        CheckpointError, match="was quantized on loading, and there is no file layout for it; load it in float32"
    ):
        save_model(tmp_path / "m", integers)
    model = prompt_jax.load_model(str(fixtures / "t5_v11" / "base"))
    config = dataclasses.replace(model.config, relative_per_layer=True)
    with pytest.raises(CheckpointError, match="relative positions in each layer"):
        save_model(tmp_path / "m", dataclasses.replace(model, config=config))
    generation = dataclasses.replace(model.config.generation, not_applied=("stop_strings=['.']",))
    config = dataclasses.replace(model.config, generation=generation)
    with pytest.raises(CheckpointError, match=r"settings that would be lost: stop_strings=\['.'\]; remove them from"):
        save_model(tmp_path / "m", dataclasses.replace(model, config=config))
    assert not (tmp_path / "m").exists()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine.txt").touch()
    with pytest.raises(CheckpointError, match="is not empty"):
        save_model(tmp_path / "m", model)


@pytest.mark.interop
@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_it(fixtures, tmp_path, name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = prompt_jax.load_model(str(fixtures / name / "base"))
    save_model(tmp_path / "m", model)
    kind = transformers.AutoModelForCausalLM if name == "gpt2" else transformers.AutoModelForSeq2SeqLM
    theirs, info = kind.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    text, target = random_text(model, 2, 7), random_text(model, 2, 4, seed=1)
    inputs, outputs = torch.tensor(text).long(), torch.tensor(target).long()
    with torch.no_grad():
        if name == "gpt2":
            expected = theirs.eval()(input_ids=torch.cat([inputs, outputs], dim=1)).logits[:, 7:]
        else:
            expected = theirs.eval()(input_ids=inputs, decoder_input_ids=outputs).logits
    batch = whole(text) | {"decoder_inputs": target}
    assert_close(prompt_jax.forward(model.params, model.config, batch), expected.numpy())
