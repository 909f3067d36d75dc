"""Values of a config.json, and which are refused."""

import dataclasses
from types import SimpleNamespace

import pytest

from prompt_jax.errors import CheckpointError
from prompt_jax.models.hugging_face import ConfigValues, HuggingFace


@dataclasses.dataclass(frozen=True)
class Config:
    width: int
    rate: float
    activation: str
    pad_id: int
    eos_id: int
    start_id: int


FORMAT = HuggingFace(
    "small",
    "SmallModel",
    {"width": "d_model", "rate": "dropout", "activation": "act"},
    options={"act": ("relu", "gelu")},
    multiples=(("d_model", "heads"),),
)
JSON = {"d_model": 8, "heads": 2, "dropout": 0.1, "act": "gelu", "vocab_size": 10, "eos_token_id": [4, 5]}


def values(**changes) -> ConfigValues:
    return ConfigValues(SimpleNamespace(**{**JSON, **changes}), "a/config.json")


def test_the_end_token_stands_for_missing_special_tokens_of_a_causal_model():
    """Of several end tokens, the first is used."""
    config = FORMAT.config(Config, values(), tied_output=True, causal=True)
    assert config == Config(8, 0.1, "gelu", pad_id=4, eos_id=4, start_id=4)
    config = FORMAT.config(Config, values(pad_token_id=3), tied_output=True, causal=False)
    assert config == Config(8, 0.1, "gelu", pad_id=3, eos_id=4, start_id=3)


def test_a_config_is_written_as_it_was_read():
    config = FORMAT.config(Config, values(), tied_output=True, causal=True)
    written = FORMAT.config_json(config)
    assert written["model_type"] == "small" and written["architectures"] == ["SmallModel"]
    assert FORMAT.config(Config, values(**written), tied_output=True, causal=True) == config


def test_a_padding_token_of_minus_one_is_none():
    """So it is in the first Llamas' files. The end token is padding."""
    config = FORMAT.config(Config, values(pad_token_id=-1), tied_output=True, causal=True)
    assert config.pad_id == config.eos_id


def test_null_values_with_a_default():
    form = dataclasses.replace(FORMAT, multiples=(), defaults=lambda values: {"d_model": 6, "dropout": 0.0})
    config = form.config(Config, values(d_model=None, dropout=None), tied_output=True, causal=True)
    assert (config.width, config.rate) == (6, 0.0)
    with pytest.raises(CheckpointError, match="dropout is 2"):
        form.config(Config, values(dropout=2), tied_output=True, causal=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": "8"}, "d_model is '8'; expected a whole number of at least 1"),
        ({"d_model": True}, "d_model is True; expected a whole number"),
        ({"d_model": 0}, "d_model is 0; expected a whole number of at least 1"),
        ({"heads": 3}, "d_model 8 is no multiple of heads 3"),
        ({"dropout": 1}, r"dropout is 1; expected a number in \[0, 1\)"),
        ({"dropout": None}, r"dropout is None; expected a number in \[0, 1\)"),
        ({"act": "silu"}, "act is 'silu'; supported: 'relu', 'gelu'"),
        ({"eos_token_id": 10}, "eos_token_id is 10, and vocab_size is 10"),
        ({"pad_token_id": -2}, "pad_token_id is -2; expected a whole number of at least 0"),
    ],
)
def test_invalid_values_are_refused(changes, message):
    with pytest.raises(CheckpointError, match=f"^a/config.json: {message}"):
        FORMAT.config(Config, values(**changes), tied_output=True, causal=True)
