"""A model's config.json, and what the files of each family have that its parameters have not.

`config.json` is read here and not through Transformers, whose import takes a second and pulls in PyTorch where that is
installed, and whose version 5 forgets which T5s have tied output weights.
"""

import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prompt_jax.models import Config
from prompt_jax.models.bart import BartConfig
from prompt_jax.models.checkpoint_files import CheckpointError, Stored, Tensors
from prompt_jax.models.gpt2 import GPT2Config
from prompt_jax.models.t5 import T5Config
from prompt_jax.models.t5x import is_t5x

# model_type -> what Transformers assumes where config.json is silent.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "t5": {"vocab_size": 32128, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "feed_forward_proj": "relu"},
    "mt5": {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu"},
    "gpt2": {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.1,
        "eos_token_id": 50256,
    },
    "bart": {
        "vocab_size": 50265,
        "max_position_embeddings": 1024,
        "d_model": 1024,
        "encoder_layers": 12,
        "encoder_attention_heads": 16,
        "encoder_ffn_dim": 4096,
        "decoder_layers": 12,
        "decoder_attention_heads": 16,
        "decoder_ffn_dim": 4096,
        "activation_function": "gelu",
        "scale_embedding": False,
        "dropout": 0.1,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    },
}
_T5_DEFAULTS: dict[str, Any] = {
    "d_model": 512,
    "d_kv": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": 0.1,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
# feed_forward_proj -> activation, gated. "gated-gelu" is the tanh approximation ("gelu_new"); "gelu" is not.
_FEED_FORWARD: dict[str, tuple[Literal["relu", "gelu"], bool]] = {
    "relu": ("relu", False),
    "gated-relu": ("relu", True),
    "gelu_new": ("gelu", False),
    "gated-gelu": ("gelu", True),
    "gated-gelu_new": ("gelu", True),
}


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json, of a model type that is supported."""
    file = folder / "config.json"
    if not file.is_file():
        known = f"; for a checkpoint of T5X say t5x:{folder}" if is_t5x(folder) else ""
        raise CheckpointError(f"{folder} has no config.json, which every model folder on the hub has{known}")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("model_type") not in _DEFAULTS:
        found = raw.get("model_type") if isinstance(raw, dict) else None
        supported = ", ".join(_DEFAULTS)
        raise CheckpointError(f"{file} is of model_type {found!r}; supported are {supported}")
    return {name: value for name, value in raw.items() if value is not None}  # null is Transformers' "not set"


def model_config(raw: dict[str, Any], tensors: Tensors, source: str) -> Config:
    """Our config from a config.json, and the checkpoint's tensors as its family has them.

    Args:
      raw: the content of the file.
      tensors: of the checkpoint. Copies and what no model uses are removed, names are made those of the table.
      source: named in errors.

    Raises:
      CheckpointError: a value that is no model's, or one that is not supported.
    """
    match raw["model_type"]:
        case "gpt2":
            _rename(tensors, "transformer.")
            return _gpt2_config(_Values(raw, source), tensors)
        case "bart":
            _rename(tensors, "model.")
            return _bart_config(_Values(raw, source), tensors)
    return t5_config(raw, tied_output=_resolve_ties(tensors, raw), source=source)


class _Values:
    """The values of a config.json, checked as they are taken."""

    def __init__(self, raw: dict[str, Any], source: str, defaults: dict[str, Any] | None = None):
        self.values = (defaults or {}) | _DEFAULTS[raw["model_type"]] | raw
        self.source = source

    def whole(self, name: str, least: int = 1) -> int:
        value = self.values[name]
        if isinstance(value, list) and len(value) == 1:  # Transformers 5 allows several end tokens
            value = value[0]
        if type(value) is not int or value < least:
            raise CheckpointError(f"{self.source}: {name} is {value!r}; a whole number from {least} on was expected")
        return value

    def token(self, name: str) -> int:
        """The id of a special token, which the vocabulary has."""
        value, entries = self.whole(name, 0), self.whole("vocab_size")
        if value >= entries:
            raise CheckpointError(f"{self.source}: {name} is {value}, and vocab_size is {entries}")
        return value

    def fraction(self, name: str) -> float:
        value = self.values[name]
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise CheckpointError(f"{self.source}: {name} is {value!r}; a number from 0 to 1 was expected")
        return float(value)

    def must_be(self, name: str, *allowed: Any) -> Any:
        """The value of an option, of which only some values are supported; the first where the file has none."""
        value = self.values.get(name, allowed[0])
        if value not in allowed:
            supported = " and ".join(map(repr, allowed))
            raise CheckpointError(f"{self.source}: {name} is {value!r}; supported is {supported}")
        return value

    def parts(self, whole: str, count: str) -> None:
        if self.whole(whole) % self.whole(count):
            raise CheckpointError(f"{self.source}: {whole} {self.values[whole]} is no multiple of {count}")


def t5_config(raw: dict[str, Any], *, tied_output: bool, source: str) -> T5Config:
    """A T5's config from a config.json.

    Args:
      raw: its content.
      tied_output: whether the checkpoint has output weights of its own; config files no longer say that.
      source: named in errors.
    """
    own = _Values(raw, source, _T5_DEFAULTS)
    values, whole, fraction = own.values, own.whole, own.fraction
    projection = values["feed_forward_proj"]
    if not isinstance(projection, str) or projection not in _FEED_FORWARD:
        supported = ", ".join(_FEED_FORWARD)
        raise CheckpointError(f"{source}: feed_forward_proj {projection!r} is not supported; supported are {supported}")
    activation, gated = _FEED_FORWARD[projection]
    values.setdefault("num_decoder_layers", values["num_layers"])
    values.setdefault("decoder_start_token_id", values["pad_token_id"])
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
        scale_output=_scales_output(raw),
        relative_buckets=whole("relative_attention_num_buckets"),
        relative_max_distance=whole("relative_attention_max_distance"),
        norm_epsilon=fraction("layer_norm_epsilon"),
        pad_id=whole("pad_token_id", 0),
        eos_id=whole("eos_token_id", 0),
        start_id=whole("decoder_start_token_id", 0),
        dropout_rate=fraction("dropout_rate"),
    )


def _gpt2_config(own: _Values, tensors: Tensors) -> GPT2Config:
    own.must_be("activation_function", "gelu_new", "gelu_pytorch_tanh")
    own.must_be("scale_attn_weights", True)
    own.must_be("scale_attn_by_inverse_layer_idx", False)
    own.must_be("reorder_and_upcast_attn", False)  # float32 scores, which ours are anyway, in another order
    own.must_be("add_cross_attention", False)
    own.must_be("tie_word_embeddings", True)
    own.parts("n_embd", "n_head")
    for name in [name for name in tensors if re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name)]:
        del tensors[name]  # the causal mask, in checkpoints of older versions
    _drop_copies(tensors, "wte.weight", "lm_head.weight")
    end = own.token("eos_token_id")
    own.values.setdefault("n_inner", 4 * own.whole("n_embd"))
    own.values.setdefault("pad_token_id", end)
    return GPT2Config(
        vocab_size=own.whole("vocab_size"),
        positions=own.whole("n_positions"),
        d_model=own.whole("n_embd"),
        d_ff=own.whole("n_inner"),
        num_heads=own.whole("n_head"),
        layers=own.whole("n_layer"),
        norm_epsilon=own.fraction("layer_norm_epsilon"),
        pad_id=own.token("pad_token_id"),
        eos_id=end,
        start_id=end,
        dropout_rate=own.fraction("resid_pdrop"),
    )


def _bart_config(own: _Values, tensors: Tensors) -> BartConfig:
    for name in ("normalize_before", "add_final_layer_norm"):
        own.must_be(name, False)
    own.parts("d_model", "encoder_attention_heads")
    own.parts("d_model", "decoder_attention_heads")
    for name in ("encoder.version", "decoder.version"):  # in checkpoints of older versions
        tensors.pop(name, None)
    _drop_copies(
        tensors, "shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"
    )
    entries = own.whole("vocab_size")
    # Files of the model without a language modelling head, as bart-base's, lack it; Transformers has zeros then.
    tensors.setdefault("final_logits_bias", Stored((1, entries), lambda: np.zeros((1, entries), np.float32)))
    forced = own.values.get("forced_bos_token_id")
    return BartConfig(
        vocab_size=entries,
        positions=own.whole("max_position_embeddings"),
        d_model=own.whole("d_model"),
        encoder_layers=own.whole("encoder_layers"),
        encoder_heads=own.whole("encoder_attention_heads"),
        encoder_d_ff=own.whole("encoder_ffn_dim"),
        decoder_layers=own.whole("decoder_layers"),
        decoder_heads=own.whole("decoder_attention_heads"),
        decoder_d_ff=own.whole("decoder_ffn_dim"),
        activation=own.must_be("activation_function", "gelu", "gelu_new", "relu"),
        scale_embedding=own.must_be("scale_embedding", False, True),
        pad_id=own.token("pad_token_id"),
        eos_id=own.token("eos_token_id"),
        start_id=own.token("decoder_start_token_id"),
        bos_id=own.token("bos_token_id"),
        forced_start_id=None if forced is None else own.token("forced_bos_token_id"),
        dropout_rate=own.fraction("dropout"),
    )


def _scales_output(raw: dict[str, Any]) -> bool:
    """Whether the decoder's output is scaled: in T5 1.0, whose files said so by tying the output weights.

    Transformers 5 writes `tie_word_embeddings: true` for every T5, and this under a name of its own.
    """
    default = raw.get("tie_word_embeddings", True) if raw["model_type"] == "t5" else False
    return bool(raw.get("scale_decoder_outputs", default))


# --------------------------------------------------------------------------------------------------------------
# Tensors that a checkpoint may have more than once, or for nothing

_SHARED, _OUTPUT = "shared.weight", "lm_head.weight"
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"  # in checkpoints from 2020


def _resolve_ties(tensors: Tensors, raw: dict[str, Any]) -> bool:
    """Removes the embedding's copies and what no model uses from a T5's tensors; says whether the output is tied."""
    tensors.pop(_UNUSED, None)
    _drop_copies(tensors, _SHARED, *_COPIES)  # `safetensors.torch.save_model` keeps one name, not this
    if _OUTPUT not in tensors:
        # Transformers ties it, whatever the file says; but weights that were announced and are absent are an error.
        return raw.get("tie_word_embeddings") is not False
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
