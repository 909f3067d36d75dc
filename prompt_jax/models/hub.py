"""Getting base models in: from a local folder, from the Hugging Face hub, or the demo model.

    model = load_model("google/t5-v1_1-small")

`config.json` is read here and not through Transformers, whose import takes a second and pulls in PyTorch where that is
installed, and whose version 5 forgets which T5s have tied output weights.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prompt_jax.models.checkpoint_files import CheckpointError, Tensors
from prompt_jax.models.fingerprint import fingerprint
from prompt_jax.models.t5 import Params, T5Config, parameters
from prompt_jax.models.tokenizer import TOKENIZER_FILES, Tokenizer, load_tokenizer
from prompt_jax.models.weights import DTYPES, FORMATS, Placement, assemble, open_checkpoint, shard_names


@dataclasses.dataclass(frozen=True)
class Model:
    """A frozen base model."""

    name: str  # as it was asked for
    revision: str | None  # the hub's commit hash; None for a folder and for the demo
    params: Params = dataclasses.field(repr=False)
    config: T5Config
    tokenizer: Tokenizer | None  # None if the folder has none
    fingerprint: str  # see `prompt_jax.models.fingerprint`


def load_model(
    name_or_path: str | Path,
    dtype: str = "float32",
    revision: str | None = None,
    *,
    local_files_only: bool = False,
    placement: Placement = None,
) -> Model:
    """Loads a T5 (1.0, 1.1, LM-adapted, Flan) or mT5.

    Args:
      name_or_path: "demo" (see `prompt_jax.models.demo`); a folder with `config.json`, weights and, usually, a
        tokenizer; or a name on the Hugging Face hub, from which only these files are fetched, into its usual cache.
        A folder that is called "demo" is "./demo".
      dtype: of the parameters, "float32" or "bfloat16".
      revision: a branch, tag or commit on the hub.
      local_files_only: use the hub's cache alone, as the environment variable HF_HUB_OFFLINE=1 does.
      placement: where parameters go: None for the default device, a sharding for all, or a function from a
        parameter's path ("encoder/layers/0/self/q") to its sharding.

    Raises:
      CheckpointError: nothing that can be loaded is there; it says what was found and what was expected.
      MissingPackage: a package is needed (PyTorch for `pytorch_model.bin`, the demo's packages); it says which.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not supported; choose one of {', '.join(DTYPES)}")
    folder, revision = _locate(name_or_path, revision, local_files_only)
    raw = _read_config(folder)
    with open_checkpoint(folder) as tensors:
        config = t5_config(raw, tied_output=_resolve_ties(tensors, raw), source=str(folder / "config.json"))
        params, samples = assemble(parameters(config), tensors, dtype, placement, source=str(folder))
    return Model(
        name=str(name_or_path),
        revision=revision,
        params=params,
        config=config,
        tokenizer=load_tokenizer(folder),
        fingerprint=fingerprint(config, samples),
    )


# --------------------------------------------------------------------------------------------------------------
# The folder


def _locate(name_or_path: str | Path, revision: str | None, local_files_only: bool) -> tuple[Path, str | None]:
    """The model's folder, and the commit if it is from the hub."""
    if name_or_path == "demo":
        from prompt_jax.models.demo import demo_folder

        return demo_folder(), None
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path, None
    if path.is_file():
        raise CheckpointError(f"{name_or_path} is a file; give the folder that it is in, with its config.json")
    if isinstance(name_or_path, Path) or path.is_absolute() or name_or_path.startswith((".", "~")):
        raise CheckpointError(f"{name_or_path} is not a folder. A model folder has config.json and weights.")
    return _fetch_model(name_or_path, revision, local_files_only)


def _fetch_model(name: str, revision: str | None, local_files_only: bool) -> tuple[Path, str]:
    """Brings a model's files into the hub's cache, unless they are there; gives its folder there and its commit."""
    config = _fetch(name, "config.json", revision, local_files_only)
    if config is None:
        where = "in the cache" if _offline(local_files_only) else "on the hub"
        raise CheckpointError(_not_found(name, revision, f"its config.json is not {where}"))
    commit = config.parent.name  # .../snapshots/<commit>/config.json

    def fetch(file: str) -> Path | None:
        return _fetch(name, file, commit, local_files_only)

    for form in FORMATS:
        if fetch(form.file) is not None:
            break
        if (index := fetch(form.index_file)) is not None:
            for shard in shard_names(index):
                fetch(shard)  # `open_checkpoint` says so if one is missing
            break
    any(fetch(file) is not None for file in TOKENIZER_FILES)  # the first that exists
    return config.parent, commit


def _fetch(name: str, file: str, revision: str | None, local_files_only: bool) -> Path | None:
    """One file of a model on the hub; None if the model has no such file (offline: if the cache has none)."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.hf_hub_download(name, file, revision=revision, local_files_only=local_files_only))
    except errors.LocalEntryNotFoundError as error:
        if _offline(local_files_only):
            return None
        raise CheckpointError(
            _not_found(name, revision, f"the hub could not be reached for {file}, which is not in the cache")
        ) from error
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        reason = "its owners grant access by request; ask on its page, then log in with `hf auth login`"
        raise CheckpointError(_not_found(name, revision, reason)) from error
    except errors.RepositoryNotFoundError as error:
        reason = "the hub has no such model, or it is private and you are not logged in (`hf auth login`)"
        raise CheckpointError(_not_found(name, revision, reason)) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(_not_found(name, revision, "the model exists, but not that revision")) from error
    except errors.HFValidationError as error:
        raise CheckpointError(_not_found(name, revision, f"it is no valid name on the hub ({error})")) from error
    except (errors.HTTPError, OSError) as error:
        raise CheckpointError(_not_found(name, revision, f"fetching {file} failed: {error}")) from error


def _offline(local_files_only: bool) -> bool:
    from huggingface_hub import constants

    return local_files_only or constants.HF_HUB_OFFLINE


def _not_found(name: str, revision: str | None, reason: str) -> str:
    at = "" if revision is None else f" at revision {revision!r}"
    return (
        f"{name!r} is not a folder here, and could not be loaded from the Hugging Face hub{at}: {reason}. "
        "Give the path of a folder with config.json and weights, a full name like 'google/t5-v1_1-small', or 'demo'."
    )


# --------------------------------------------------------------------------------------------------------------
# The config

# model_type -> what Transformers assumes where config.json is silent.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "t5": {"vocab_size": 32128, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "feed_forward_proj": "relu"},
    "mt5": {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu"},
}
_COMMON_DEFAULTS: dict[str, Any] = {
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


def _read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json, of a model type that is supported."""
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} has no config.json, which every model folder on the hub has")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("model_type") not in _DEFAULTS:
        found = raw.get("model_type") if isinstance(raw, dict) else None
        supported = ", ".join(_DEFAULTS)
        raise CheckpointError(f"{file} is of model_type {found!r}; supported are {supported} (T5 1.0, 1.1, Flan, mT5)")
    return {name: value for name, value in raw.items() if value is not None}  # null is Transformers' "not set"


def t5_config(raw: dict[str, Any], *, tied_output: bool, source: str) -> T5Config:
    """Our config from a config.json.

    Args:
      raw: its content.
      tied_output: whether the checkpoint has output weights of its own; config files no longer say that.
      source: named in errors.
    """
    values = _COMMON_DEFAULTS | _DEFAULTS[raw["model_type"]] | raw

    def whole(name: str, least: int = 1) -> int:
        value = values[name]
        if isinstance(value, list) and len(value) == 1:  # Transformers 5 allows several end tokens
            value = value[0]
        if type(value) is not int or value < least:
            raise CheckpointError(f"{source}: {name} is {value!r}; a whole number from {least} on was expected")
        return value

    def fraction(name: str) -> float:
        value = values[name]
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise CheckpointError(f"{source}: {name} is {value!r}; a number from 0 to 1 was expected")
        return float(value)

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
    """Removes the embedding's copies and what no model uses from the tensors; says whether the output is tied.

    A copy that differs from the embedding is left, and will be reported as surplus.
    """
    tensors.pop(_UNUSED, None)
    if _SHARED not in tensors and (names := [name for name in _COPIES if name in tensors]):
        tensors[_SHARED] = tensors.pop(names[0])  # `safetensors.torch.save_model` keeps one name, not this
    for name in _COPIES:
        if _equals_embedding(tensors, name):
            del tensors[name]
    if _OUTPUT not in tensors:
        # Transformers ties it, whatever the file says; but weights that were announced and are absent are an error.
        return raw.get("tie_word_embeddings") is not False
    if _equals_embedding(tensors, _OUTPUT):
        del tensors[_OUTPUT]
        return True
    return False


def _equals_embedding(tensors: Tensors, name: str) -> bool:
    if name not in tensors or _SHARED not in tensors or tensors[name].shape != tensors[_SHARED].shape:
        return False
    return bool(np.array_equal(tensors[name].read(), tensors[_SHARED].read()))
