"""A model's config.json, and what the files of each family have that its parameters have not.

Transformers' `AutoConfig` reads the file. `transformers` is imported when a checkpoint is read, and not before.
"""

import re
import reprlib
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from prompt_jax.models import Config
from prompt_jax.models.bart import BartConfig
from prompt_jax.models.checkpoint_files import CheckpointError, Stored, Tensors, read_json
from prompt_jax.models.gpt2 import GPT2Config
from prompt_jax.models.t5 import T5Config
from prompt_jax.models.t5x import is_t5x
from prompt_jax.models.tokenizer import reading

SUPPORTED = ("t5", "mt5", "gpt2", "bart")
# Fields of models that classify. AutoConfig names each of the labels, however many there are.
_OF_CLASSIFIERS = ("num_labels", "id2label", "label2id")
# feed_forward_proj -> activation, gated. "gated-gelu" is the tanh approximation ("gelu_new"); "gelu" is not.
_FEED_FORWARD: dict[str, tuple[Literal["relu", "gelu"], bool]] = {
    "relu": ("relu", False),
    "gated-relu": ("relu", True),
    "gelu_new": ("gelu", False),
    "gated-gelu": ("gelu", True),
    "gated-gelu_new": ("gelu", True),
}


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json, of a model type that is supported.

    Raises:
      CheckpointError: there is none, it cannot be read, or the model type is another one.
    """
    file = folder / "config.json"
    if not file.exists() and not file.is_symlink():
        known = f"; for a checkpoint of T5X say t5x:{folder}" if is_t5x(folder) else ""
        raise CheckpointError(f"{folder} has no config.json, which every model folder on the hub has{known}")
    raw = read_json(file)
    model_type = raw.get("model_type") if isinstance(raw, dict) else None
    if not isinstance(model_type, str) or model_type not in SUPPORTED:
        raise CheckpointError(
            f"{file} is of model_type {reprlib.repr(model_type)}; supported are {', '.join(SUPPORTED)}"
        )
    return raw


def auto_config(raw: dict[str, Any], source: str) -> Any:
    """The content of a config.json as Transformers' configuration, with its defaults.

    Raises:
      CheckpointError: a value of the wrong type; `source` is named.
    """
    with reading(f"{source} cannot be used"):
        from transformers import AutoConfig

        return AutoConfig.for_model(**{name: value for name, value in raw.items() if name not in _OF_CLASSIFIERS})


def model_config(raw: dict[str, Any], tensors: Tensors, source: str) -> Config:
    """Our configuration of a model, and the checkpoint's tensors as its family has them.

    Args:
      raw: the content of config.json.
      tensors: of the checkpoint. Copies and what no model uses are removed, names are made those of the table.
      source: named in errors.

    Raises:
      CheckpointError: a value that is no model's, or one that is not supported.
    """
    values = _Values(auto_config(raw, source), source)
    match raw["model_type"]:
        case "gpt2":
            _rename(tensors, "transformer.")
            return _gpt2_config(values, tensors)
        case "bart":
            _rename(tensors, "model.")
            return _bart_config(values, tensors)
    # Transformers 5 says of every T5 that its output is tied, whatever the file says.
    return _t5_config(values, tied_output=_resolve_ties(tensors, announced=raw.get("tie_word_embeddings") is False))


class _Values:
    """The values of a configuration, checked as they are taken."""

    def __init__(self, hf: Any, source: str):
        self.hf, self.source = hf, source

    def get(self, name: str, default: Any = None) -> Any:
        """A value; the default where the configuration has none, or null."""
        value = getattr(self.hf, name, None)
        return default if value is None else value

    def whole(self, name: str, least: int = 1, default: int | None = None) -> int:
        value = self.get(name, default)
        if isinstance(value, list) and value:  # of several end tokens, the first ends targets
            value = value[0]
        if type(value) is not int or value < least:
            self._fail(name, value, f"a whole number from {least} on was expected")
        return value

    def token(self, name: str, default: int | None = None) -> int:
        """The id of a special token, which the vocabulary has."""
        value, entries = self.whole(name, 0, default), self.whole("vocab_size")
        if value >= entries:
            self._fail(name, value, f"and vocab_size is {entries}")
        return value

    def fraction(self, name: str) -> float:
        value = self.get(name)
        if type(value) not in (int, float) or not 0 <= value < 1:
            self._fail(name, value, "a number from 0 to 1 was expected")
        return float(value)

    def must_be(self, name: str, *allowed: Any) -> Any:
        """The value of an option, of which only some values are supported; the first where the file has none."""
        value = self.get(name, allowed[0])
        if value not in allowed:
            self._fail(name, value, f"supported is {' and '.join(map(repr, allowed))}")
        return value

    def parts(self, whole: str, count: str) -> None:
        if self.whole(whole) % self.whole(count):
            raise CheckpointError(f"{self.source}: {whole} {self.get(whole)} is no multiple of {count}")

    def _fail(self, name: str, value: Any, rest: str) -> NoReturn:
        separator = ", " if rest.startswith("and ") else "; "
        raise CheckpointError(f"{self.source}: {name} is {reprlib.repr(value)}{separator}{rest}")


def _t5_config(values: _Values, *, tied_output: bool) -> T5Config:
    """Return a T5's configuration. `tied_output`: whether the output weights are those of the embedding."""
    whole, fraction = values.whole, values.fraction
    projection = values.get("feed_forward_proj")
    if projection not in _FEED_FORWARD:
        raise CheckpointError(
            f"{values.source}: feed_forward_proj {reprlib.repr(projection)} is not supported; supported are "
            f"{', '.join(_FEED_FORWARD)}"
        )
    activation, gated = _FEED_FORWARD[projection]
    pad = values.token("pad_token_id", 0)
    return T5Config(
        vocab_size=whole("vocab_size"),
        d_model=whole("d_model"),
        d_kv=whole("d_kv"),
        d_ff=whole("d_ff"),
        num_heads=whole("num_heads"),
        encoder_layers=whole("num_layers"),
        decoder_layers=whole("num_decoder_layers"),
        activation=activation,
        gated=gated,
        tied_output=tied_output,
        # T5 1.0 alone. Other models of Transformers' T5 classes have no such field.
        scale_output=bool(values.get("scale_decoder_outputs", False)),
        relative_buckets=whole("relative_attention_num_buckets"),
        relative_max_distance=whole("relative_attention_max_distance"),
        norm_epsilon=fraction("layer_norm_epsilon"),
        pad_id=pad,
        eos_id=values.token("eos_token_id", 1),
        start_id=values.token("decoder_start_token_id", pad),
        dropout_rate=fraction("dropout_rate"),
    )


def _gpt2_config(values: _Values, tensors: Tensors) -> GPT2Config:
    values.must_be("activation_function", "gelu_new", "gelu_pytorch_tanh")
    values.must_be("scale_attn_weights", True)
    values.must_be("scale_attn_by_inverse_layer_idx", False)
    values.must_be("reorder_and_upcast_attn", False)  # float32 scores, which ours are anyway, in another order
    values.must_be("add_cross_attention", False)
    values.must_be("tie_word_embeddings", True)
    values.parts("n_embd", "n_head")
    for name in [name for name in tensors if re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name)]:
        del tensors[name]  # the causal mask, in checkpoints of older versions
    _drop_copies(tensors, "wte.weight", "lm_head.weight")
    end = values.token("eos_token_id")
    return GPT2Config(
        vocab_size=values.whole("vocab_size"),
        positions=values.whole("n_positions"),
        d_model=values.whole("n_embd"),
        d_ff=values.whole("n_inner", default=4 * values.whole("n_embd")),
        num_heads=values.whole("n_head"),
        layers=values.whole("n_layer"),
        norm_epsilon=values.fraction("layer_norm_epsilon"),
        pad_id=values.token("pad_token_id", end),
        eos_id=end,
        start_id=end,
        dropout_rate=values.fraction("resid_pdrop"),
    )


def _bart_config(values: _Values, tensors: Tensors) -> BartConfig:
    for name in ("normalize_before", "add_final_layer_norm"):
        values.must_be(name, False)
    values.parts("d_model", "encoder_attention_heads")
    values.parts("d_model", "decoder_attention_heads")
    for name in ("encoder.version", "decoder.version"):  # in checkpoints of older versions
        tensors.pop(name, None)
    _drop_copies(
        tensors, "shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"
    )
    entries = values.whole("vocab_size")
    # Files of the model without a language modelling head, as bart-base's, lack it; Transformers has zeros then.
    tensors.setdefault("final_logits_bias", Stored((1, entries), lambda: np.zeros((1, entries), np.float32)))
    return BartConfig(
        vocab_size=entries,
        positions=values.whole("max_position_embeddings"),
        d_model=values.whole("d_model"),
        encoder_layers=values.whole("encoder_layers"),
        encoder_heads=values.whole("encoder_attention_heads"),
        encoder_d_ff=values.whole("encoder_ffn_dim"),
        decoder_layers=values.whole("decoder_layers"),
        decoder_heads=values.whole("decoder_attention_heads"),
        decoder_d_ff=values.whole("decoder_ffn_dim"),
        activation=values.must_be("activation_function", "gelu", "gelu_new", "relu"),
        scale_embedding=values.must_be("scale_embedding", False, True),
        pad_id=values.token("pad_token_id"),
        eos_id=values.token("eos_token_id"),
        start_id=values.token("decoder_start_token_id"),
        bos_id=values.token("bos_token_id"),
        dropout_rate=values.fraction("dropout"),
    )


# --------------------------------------------------------------------------------------------------------------
# Tensors that a checkpoint may have more than once, or for nothing

_SHARED, _OUTPUT = "shared.weight", "lm_head.weight"
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"  # in checkpoints from 2020


def _resolve_ties(tensors: Tensors, announced: bool) -> bool:
    """Removes the embedding's copies and what no model uses from a T5's tensors; says whether the output is tied.

    `announced` says whether config.json promises output weights; to miss them then is an error.
    """
    tensors.pop(_UNUSED, None)
    _drop_copies(tensors, _SHARED, *_COPIES)  # `safetensors.torch.save_model` keeps one name, not this
    if _OUTPUT not in tensors:
        return not announced
    if _equal(tensors, _OUTPUT, _SHARED):
        del tensors[_OUTPUT]
        return True
    return False


def _rename(tensors: Tensors, prefix: str) -> None:
    """Removes the prefix that names have in files of a model with a language modelling head."""
    for name in [name for name in tensors if name.startswith(prefix)]:
        tensors.setdefault(name.removeprefix(prefix), tensors.pop(name))


def _drop_copies(tensors: Tensors, original: str, *copies: str) -> None:
    """Removes copies of a tensor. One that differs is left, and will be reported as surplus."""
    if original not in tensors and (names := [name for name in copies if name in tensors]):
        tensors[original] = tensors.pop(names[0])
    for name in copies:
        if _equal(tensors, name, original):
            del tensors[name]


def _equal(tensors: Tensors, name: str, original: str) -> bool:
    if name not in tensors or original not in tensors or tensors[name].shape != tensors[original].shape:
        return False
    return bool(np.array_equal(tensors[name].read(), tensors[original].read()))
