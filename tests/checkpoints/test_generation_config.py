"""Generation settings of checkpoints, as Transformers reads them: which file counts, and refused settings."""

import dataclasses
import json
import shutil

import pytest

import prompt_jax
from adapters import random_text, whole
from prompt_jax.checkpoints.generation_config import generation_config, read_generation
from prompt_jax.errors import CheckpointError, ConfigError
from prompt_jax.models.generation_settings import GenerationSettings


@pytest.fixture
def folder(tmp_path):
    """Return a folder that contains only the configuration of a BART."""

    def make(config=None, generation=None):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bart", "vocab_size": 256} | (config or {})))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return tmp_path

    return make


def read(folder, encoder_decoder=True):
    return read_generation(folder, 256, encoder_decoder)


OLD = {"force_bos_token_to_be_generated": True, "bos_token_id": 0, "num_beams": 4, "no_repeat_ngram_size": 3}


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, None, {}),
        ({"forced_bos_token_id": 5}, None, {"forced_first": 5}),
        (OLD, None, {"forced_first": 0, "beams": 4, "no_repeat_ngram": 3}),  # as in a BART of 2020
        ({}, {"forced_bos_token_id": 5}, {"forced_first": 5}),  # as Transformers 5 writes a BART
        (OLD, {"num_beams": 2}, {"beams": 2}),  # one file counts
        ({"min_length": 3, "max_length": 9}, None, {"min_length": 3, "max_length": 9}),
        ({}, {"eos_token_id": [4, 5]}, {"end_ids": (4, 5)}),
        (
            {},
            {"eos_token_id": 4, "early_stopping": True, "length_penalty": 2},
            {"early_stopping": "true", "length_penalty": 2.0},
        ),
        ({}, {"early_stopping": "never", "num_beams": 3}, {"early_stopping": "never", "beams": 3}),
        ({}, {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 50, "min_p": 0.1}, {}),
        ({}, {"bad_words_ids": [[3], [2]], "eos_token_id": 2, "suppress_tokens": [7]}, {"banned": (3, 7)}),
        ({}, {"max_new_tokens": 7, "min_new_tokens": 2}, {"max_new_tokens": 7, "min_new_tokens": 2}),
    ],
)
def test_which_settings_count(folder, config, generation, expected):
    settings, _ = read(folder(config, generation))
    assert dataclasses.asdict(settings) == dataclasses.asdict(GenerationSettings(**expected))


@pytest.mark.parametrize("generation", [{}, {"eos_token_id": [4, 5], "pad_token_id": 6, "decoder_start_token_id": 0}])
def test_special_tokens_of_generation_config_replace_those_of_config(folder, generation):
    _, special = read(folder({"eos_token_id": 2}, generation))
    assert special == ({} if not generation else {"eos_id": 4, "pad_id": 6, "start_id": 0})
    (folder() / "generation_config.json").unlink()
    assert read(folder({"eos_token_id": 2}))[1] == {}, "which are read from config.json by the family"
    assert read(folder({"bos_token_id": 7}))[1] == {"start_id": 7}
    assert read(folder({}, {"bos_token_id": 8}))[1] == {"start_id": 8}
    assert read(folder({}, {"bos_token_id": 8}), encoder_decoder=False)[1] == {}


@pytest.mark.parametrize(
    ("generation", "named"),
    [
        ({"guidance_scale": 1.5}, "guidance_scale=1.5"),
        ({"encoder_repetition_penalty": 2.0}, "encoder_repetition_penalty=2.0"),
        ({"exponential_decay_length_penalty": [5, 1.1]}, r"exponential_decay_length_penalty=\[5, 1.1\]"),
        ({"sequence_bias": [[[3], 2.0]]}, "sequence_bias="),
        ({"bad_words_ids": [[3, 4]]}, "bad_words_ids with words of several tokens"),
        ({"stop_strings": ["\n"]}, "stop_strings="),
        ({"num_beam_groups": 2, "num_beams": 4, "diversity_penalty": 0.5}, "diversity_penalty=0.5, num_beam_groups=2"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha=0.6"),
    ],
)
def test_unsupported_settings_are_refused_by_name(folder, generation, named, tiny):
    """The error comes only when text is generated: such a model can be trained and scored."""
    settings, _ = read(folder({}, generation))
    config = dataclasses.replace(tiny.config, generation=settings)
    with pytest.raises(
        ConfigError, match=f"the checkpoint's generation settings have {named}.*cannot be applied: remove"
    ):
        prompt_jax.generate(tiny.params, config, whole(random_text(tiny, 1, 4)), max_new_tokens=3)


def test_a_forced_first_token_needs_an_encoder(folder):
    settings, _ = read(folder({}, {"forced_bos_token_id": 5}), encoder_decoder=False)
    assert settings.forced_first is None
    assert settings.not_applied == ("forced_bos_token_id=5 (of a model without an encoder)",)


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ("", "generation_config.json is empty"),
        ("[]", "generation_config.json cannot be read"),
        ("[" * 3000, "generation_config.json cannot be read"),
        ('{"eos_token_id": 256}', "eos_token_id is 256; expected token ids from 0 to 255"),
        ('{"eos_token_id": [1, "x"]}', "eos_token_id is 'x'; expected token ids"),
        ('{"forced_bos_token_id": -1}', "forced_bos_token_id is -1"),
        ('{"suppress_tokens": [true]}', "suppress_tokens is True"),
        ('{"num_beams": 1.5}', "(num_beams is 1.5; expected a whole number from 0 to 1000|cannot be read)"),
        ('{"num_beams": 1000000000}', "num_beams is 1000000000; expected a whole number from 0 to 1000"),
        ('{"max_length": 1000000000000}', "max_length is 1000000000000; expected a whole number from 0 to 100000"),
        ('{"no_repeat_ngram_size": "3"}', "no_repeat_ngram_size is '3'"),
        ('{"repetition_penalty": 0}', "repetition_penalty is 0; expected a positive number"),
        ('{"length_penalty": NaN, "num_beams": 2}', "length_penalty is nan; expected a number"),
        (
            '{"early_stopping": 3, "num_beams": 2}',
            "(early_stopping is 3; expected true, false or 'never'|cannot be read)",
        ),
        ('{"bad_words_ids": 3}', "bad_words_ids is 3; expected a list of lists of ids"),
        ('{"bad_words_ids": [[300]]}', "bad_words_ids is 300; expected token ids"),
    ],
)
def test_values_that_make_no_sense(folder, generation, message):
    path = folder()
    (path / "generation_config.json").write_text(generation)
    with pytest.raises(CheckpointError, match=message):
        read(path)


def test_written_settings_are_read_back(folder):
    written = GenerationSettings(
        end_ids=(4, 5),
        forced_first=3,
        forced_last=(4,),
        banned=(9,),
        banned_first=(8,),
        no_repeat_ngram=3,
        encoder_no_repeat_ngram=4,
        repetition_penalty=1.5,
        min_length=2,
        min_new_tokens=1,
        max_length=20,
        max_new_tokens=19,
        renormalize=True,
        beams=4,
        length_penalty=2.0,
        early_stopping="never",
    )
    for settings in (written, GenerationSettings()):
        content = generation_config(settings, pad_id=1, eos_id=4, start_id=2)
        actual, special = read(folder({}, content))
        assert (actual, special) == (settings, {"pad_id": 1, "eos_id": 4, "start_id": 2})


def test_an_exported_model_keeps_its_settings_and_tokenizer(tiny_folders, tmp_path):
    from prompt_jax.checkpoints.save import save_model

    folder = tmp_path / "bart"
    shutil.copytree(tiny_folders["bart"], folder)
    settings = {"forced_bos_token_id": 0, "num_beams": 3, "no_repeat_ngram_size": 2, "eos_token_id": [2, 9]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model = prompt_jax.load_model(str(folder))
    save_model(tmp_path / "written", model)
    again = prompt_jax.load_model(str(tmp_path / "written"))
    assert again.config == model.config and again.fingerprint == model.fingerprint
    assert again.tokenizer.encode("a good film") == model.tokenizer.encode("a good film")
