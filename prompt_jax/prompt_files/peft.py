"""Adapters of Hugging Face's PEFT: PROMPT_TUNING, PREFIX_TUNING and CARTRIDGE are read and written, P_TUNING is read.

An adapter is a folder with `adapter_config.json` and `adapter_model.safetensors`. The latter holds one tensor:

    prompt_embeddings  [S P, D]       virtual tokens; S is the configuration's num_transformer_submodules, and the first
                                      P rows are used
                       [P, 2 L H K]   a prefix of the self-attention of a causal model, or of a decoder

A CARTRIDGE is a prefix of a causal model, of which training does not change the first num_frozen_tokens. With grouped
queries, H is the number of key-value heads; PEFT calls it num_attention_heads.

A prefix has 2 L slots, each [P, H, K]. In a causal model, layer i has its keys in slot 2 i and its values in the next.
For an encoder-decoder, PEFT repeats the slots, assigns four to each layer, and drops the two for cross-attention. Layer
i then has the slots 4 i and 4 i + 1 modulo 2 L. So for even L, layers i and i + L / 2 share their slots, and half of
the slots are unused. This was measured with PEFT 0.21.2.

An ensemble is a folder of adapters `member_0`, `member_1` and so on.

Adapters may come from strangers: pickles are not read, links are not followed, and sizes are compared before memory is
allocated.
"""

import json
import operator
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prompt_jax.checkpoints.load import T5X, Model
from prompt_jax.checkpoints.packaged import PACKAGED
from prompt_jax.config.ensemble import MAX_MEMBERS
from prompt_jax.models import family
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prefix, Prompt, used_arrays
from prompt_jax.prompt_files import card
from prompt_jax.prompt_files.metadata import PromptFormatError, PromptMetadata, StoredPrompt
from prompt_jax.prompt_files.peft_config import SUBMODULES, key_slots, parse_config
from prompt_jax.prompt_files.peft_tensors import (
    CONFIG,
    LINK_ADVICE,
    PICKLE,
    TENSOR,
    TENSORS,
    exists,
    read_config_json,
    read_tensor,
)
from prompt_jax.storage.files import atomic_write

# With these versions, exported adapters generate the same text as this project (`make test-interop`).
VERIFIED = {"PEFT": "0.21.2", "Transformers": "5.23.0"}
VERSIONS_NOTE = (
    f"Verified with PEFT {VERIFIED['PEFT']} and Transformers {VERIFIED['Transformers']}. With Transformers 5.24.0, "
    "PEFT 0.21.2 generates different text, without an error."
)
CARD = "README.md"
MEMBER = re.compile(r"member_(0|[1-9][0-9]{0,3})", re.ASCII)


# --------------------------------------------------------------------------------------------------------------
# Reading


def read(folder: Path) -> tuple[list[StoredPrompt], bool]:
    """Return the prompts of a folder, and whether it is an ensemble of adapters.

    Subfolders of an adapter are not read; PEFT saves further adapters there.

    Raises:
      PromptFormatError: not the adapter of a prompt, or a damaged one; the message names the file.
    """
    if exists(folder / CONFIG):
        return [_read_adapter(folder)], False
    names: list[str] = []
    others: list[str] = []
    for path in folder.iterdir():
        if MEMBER.fullmatch(path.name):
            names.append(path.name)
        elif len(others) < 3 and exists(path / CONFIG):
            others.append(path.name)
    if not names:
        hint = f"; there are some in {' and '.join(sorted(others))}" if others else ""
        raise PromptFormatError(
            f"{folder} is a folder without {CONFIG}, so not a PEFT adapter, and has no adapters member_0, ...; name a "
            f"prompt file or an adapter{hint}"
        )
    if len(names) > MAX_MEMBERS:
        raise PromptFormatError(f"{folder}: {len(names)} members; an ensemble has at most {MAX_MEMBERS}")
    expected = [member_folder(number) for number in range(len(names))]
    if missing := [name for name in expected if name not in names]:
        raise PromptFormatError(f"{folder}: there are {len(names)} members and no {missing[0]}")
    for name in expected:
        if (folder / name).is_symlink():
            raise PromptFormatError(f"{folder / name} is a symbolic link{LINK_ADVICE}")
    return [_read_adapter(folder / name) for name in expected], True


def member_folder(number: int) -> str:
    return f"member_{number}"


def _read_adapter(folder: Path) -> StoredPrompt:
    config = parse_config(str(folder / CONFIG), read_config_json(folder / CONFIG))
    if not exists(folder / TENSORS) and exists(folder / PICKLE):
        raise PromptFormatError(
            f"{folder / PICKLE} is a pickle, which can run code, and is not read. If you trust it, load the adapter "
            f"with PEFT and save it again: that writes {TENSORS}"
        )
    array = read_tensor(folder / TENSORS, config.tensor_shape)
    return config.prompt(array), PromptMetadata(method=config.method, frozen_tokens=config.num_frozen_tokens)


# --------------------------------------------------------------------------------------------------------------
# Writing


def write(folder: Path, members: Sequence[StoredPrompt], model: Model, *, ensemble: bool) -> None:
    """Write a prompt as an adapter, or the members of an ensemble as a folder of adapters.

    A half-written folder is neither an adapter nor an ensemble.

    Args:
      folder: new or empty.
      members: single prompts of the model, with finite values.
      model: the base, whose sizes and name go into the adapter.
      ensemble: whether to write one subfolder for each member.

    Raises:
      PromptFormatError: PEFT cannot hold a prompt, or the folder is not empty.
    """
    places = [folder / member_folder(number) for number in range(len(members))] if ensemble else [folder]
    adapters = [_adapter(str(place), *member, model) for place, member in zip(places, members, strict=True)]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PromptFormatError(f"{folder}: an adapter needs a new or empty folder, and this one has files")
    for place, files in reversed(list(zip(places, adapters, strict=True))):  # without member_0 it is no ensemble
        for name, content in files.items():
            atomic_write(place / name, operator.methodcaller("write", content))


def _adapter(where: str, prompt: Prompt | Delta, metadata: PromptMetadata, model: Model) -> dict[str, bytes]:
    """Return the files of an adapter. A folder is an adapter once the last of them is written."""
    from safetensors.numpy import save

    prompt = _exportable(where, prompt, model)
    model_family = family(model.config)
    sites, causal = model_family.sites(model.config), model_family.causal
    task = "CAUSAL_LM" if causal else "SEQ_2_SEQ_LM"
    prefix = prompt.decoder_self is not None
    layers, heads, width = sites["decoder_self" if prefix or causal else "encoder_self"]
    if prefix:
        array = _flat_prefix(where, used_arrays(prompt.decoder_self), causal=causal)
        method_fields: dict[str, Any] = {
            "num_transformer_submodules": SUBMODULES[task],
            "token_dim": heads * width,
        }
        if causal and metadata.frozen_tokens:
            method_fields |= {"peft_type": "CARTRIDGE", "num_frozen_tokens": metadata.frozen_tokens}
        else:
            method_fields |= {
                "peft_type": "PREFIX_TUNING",
                "encoder_hidden_size": heads * width,
                "init_weights": None,
                "prefix_projection": False,
            }
    else:
        array = used_arrays(prompt.encoder_tokens)["embeddings"]
        method_fields = {
            "peft_type": "PROMPT_TUNING",
            "num_transformer_submodules": 1,  # with 2, PEFT expects twice as many rows and ignores half
            "token_dim": array.shape[1],
            "prompt_tuning_init": "RANDOM",
            "prompt_tuning_init_text": None,
            "tokenizer_kwargs": None,
            "tokenizer_name_or_path": None,
        }
    config = method_fields | {
        "auto_mapping": None,
        # PEFT can load neither T5X's checkpoints nor the models of Python packages.
        "base_model_name_or_path": None if model.name.startswith(T5X) or model.name in PACKAGED else model.name,
        "inference_mode": True,
        "modules_to_save": None,
        "num_attention_heads": heads,
        "num_layers": layers,
        "num_virtual_tokens": len(array),
        "peft_version": VERIFIED["PEFT"],
        "revision": model.revision,
        "task_type": task,
    }
    # PEFT adds this tag for models whose Transformers class has the body as `model`, such as BART.
    tags = ["transformers"] if model_family.hugging_face.body == "model" else []
    return {
        TENSORS: save({TENSOR: np.ascontiguousarray(array, np.float32)}, metadata={"format": "pt"}),
        CARD: _card(config, tags, metadata).encode("utf-8"),
        CONFIG: json.dumps(config, indent=2, sort_keys=True).encode("utf-8"),
    }


def _exportable(where: str, prompt: Prompt | Delta, model: Model) -> Prompt:
    """Return the prompt. Raise PromptFormatError, with the reason and a remedy, if no adapter can hold it."""
    if isinstance(prompt, Delta):
        raise PromptFormatError(f"{where}: changes of the base's weights are not exported to PEFT; npz holds them")
    parts = prompt.parts
    if others := [name for name in parts if name not in ("encoder_tokens", "decoder_self")]:
        raise PromptFormatError(
            f"{where}: PEFT has no prefix of {' and '.join(others)}, only of the decoder's self-attention. Train with "
            "prompt.sites decoder_self and, if the decoder has an even number of layers, prompt.tie_layers, or keep "
            "the prompt as .npz"
        )
    if len(parts) > 1:
        raise PromptFormatError(
            f"{where}: the prompt has {' and '.join(parts)}; a PEFT adapter has virtual tokens or a prefix. Keep "
            "the prompt as .npz"
        )
    (part,) = parts.values()
    if part.placement != "before":
        raise PromptFormatError(
            f"{where}: the prompt is {part.placement} the input, and PEFT inserts it before. Train with "
            "prompt.placement 'before', or keep it as .npz"
        )
    if isinstance(part, Prefix) and part.always_visible:
        raise PromptFormatError(
            f"{where}: in PEFT, a prefix leaves sliding windows, and this one is always visible. Train with "
            "prompt.always_visible false, or keep the prompt as .npz"
        )
    if part.long_rope:
        warnings.warn(
            f"{where}: the prompt was trained with the factors of longrope for long texts. With PEFT, short texts get "
            "the others, for which it was not trained",
            stacklevel=2,
        )
    learned = hasattr(model.config, "positions")  # with relative positions, a prefix always shifts
    if isinstance(part, Prefix) and learned and not part.shift_positions:
        raise PromptFormatError(
            f"{where}: in PEFT, a prefix shifts the positions of {family(model.config).name}, and this one does not. "
            "Train with prompt.shift_positions true, or keep the prompt as .npz"
        )
    return prompt


def _flat_prefix(where: str, arrays: Mapping[str, np.ndarray], *, causal: bool) -> np.ndarray:
    """Return keys and values [L, P, H, K] in PEFT's layout [P, 2 L H K], with zeros in unused slots."""
    keys, values = arrays["keys"], arrays["values"]
    layers, length, heads, width = keys.shape
    of_keys = key_slots(layers, causal=causal)
    slots = np.zeros((length, 2 * layers, heads, width), np.float32)
    slots[:, of_keys], slots[:, of_keys + 1] = keys.swapaxes(0, 1), values.swapaxes(0, 1)
    # If layers share slots, the last one was written.
    if (slots[:, of_keys] != keys.swapaxes(0, 1)).any() or (slots[:, of_keys + 1] != values.swapaxes(0, 1)).any():
        raise PromptFormatError(
            f"{where}: in PEFT, layers i and i + {layers // 2} of a decoder with {layers} share a prefix, and here "
            "they differ. Train with prompt.tie_layers, or keep the prompt as .npz"
        )
    return slots.reshape(length, -1)


def _card(config: Mapping[str, Any], tags: Sequence[str], metadata: PromptMetadata) -> str:
    """Return the model card: PEFT's metadata for the Hub, and facts instead of PEFT's empty headings."""
    base = config["base_model_name_or_path"]
    lines = [card.yaml_header(base, adapter=True, causal=config["task_type"] == "CAUSAL_LM", tags=tags)]
    what = (
        "keys and values in each layer" if config["peft_type"] in ("PREFIX_TUNING", "CARTRIDGE") else "virtual tokens"
    )
    lines += ["", "# A prompt for a frozen language model", ""]
    lines += [f"{config['num_virtual_tokens']} {what}, exported by prompt_jax.", ""]
    lines += card.indented_block({"base": base, "revision": config["revision"]} | card.facts(metadata))
    versions = [f"- {name} {version}" for name, version in VERIFIED.items()]
    return "\n".join([*lines, "", VERSIONS_NOTE, "", "### Framework versions", "", *versions]) + "\n"
