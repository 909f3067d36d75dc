"""Adapters of Hugging Face's PEFT, both ways: PROMPT_TUNING and PREFIX_TUNING; P_TUNING is read as well.

An adapter is a folder with `adapter_config.json` and `adapter_model.safetensors`. The latter has one tensor:

    prompt_embeddings  [S P, D]       virtual tokens; S is the configuration's num_transformer_submodules, and the first
                                      P rows are used
                       [P, 2 L H K]   a prefix of the self-attention of a causal model, or of a decoder

A prefix has 2 L slots, each [P, H, K]. Of a causal model layer i has its keys in slot 2 i and its values in the next.
Of an encoder-decoder PEFT repeats the slots, deals four to each layer, and drops the two that are for cross-attention:
layer i has the slots 4 i and 4 i + 1 modulo 2 L. So layers i and i + L / 2 have the same where L is even, and half of
the slots are not used. What reads this way was measured with PEFT 0.21.2.

An ensemble is a folder of adapters `member_0`, `member_1` and so on.

Adapters come from strangers: no pickle is read, no link followed, and sizes are compared before memory is taken.
"""

import contextlib
import io
import json
import math
import operator
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from prompt_jax.checkpoints.files import unique_names
from prompt_jax.checkpoints.load import T5X, Model
from prompt_jax.models import family
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import Prefix, Prompt, VirtualTokens, used_arrays
from prompt_jax.prompt_files import card
from prompt_jax.prompt_files.metadata import MAX_MEMBERS, PromptFormatError, PromptMetadata, StoredPrompt
from prompt_jax.storage.files import atomic_write

# With these the adapters written here generate the same text as this project (`make test-interop`).
VERIFIED = {"PEFT": "0.21.2", "Transformers": "5.23.0"}
VERSIONS_NOTE = (
    f"Verified with PEFT {VERIFIED['PEFT']} and Transformers {VERIFIED['Transformers']}. With Transformers 5.24.0, "
    "PEFT 0.21.2 generates other text, without an error."
)
CONFIG, TENSORS, PICKLE, CARD = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "README.md"
_NAME = "prompt_embeddings"

# What the three kinds of adapters are called here, and how often PEFT puts a prompt into models of each task.
_METHODS = {"PROMPT_TUNING": "soft_prompt", "P_TUNING": "p_tuning", "PREFIX_TUNING": "prefix"}
_SUBMODULES = {"CAUSAL_LM": 1, "SEQ_2_SEQ_LM": 2}
_DTYPES: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

MEMBER = re.compile(r"member_(0|[1-9][0-9]{0,3})", re.ASCII)
_MAX_JSON = 1 << 20  # bytes; PEFT's own has under a thousand
_MAX_NUMBER = 1 << 30


# --------------------------------------------------------------------------------------------------------------
# Reading


def read(folder: Path) -> tuple[list[StoredPrompt], bool]:
    """The prompts of a folder, and whether it is one of an ensemble's adapters.

    Beside an adapter others may be in subfolders, as PEFT saves several: they are not read.

    Raises:
      PromptFormatError: no adapter of a prompt, or a damaged one; it names the file.
    """
    if _present(folder / CONFIG):
        return [_read_adapter(folder)], False
    names: list[str] = []
    others: list[str] = []
    for path in folder.iterdir():
        if MEMBER.fullmatch(path.name):
            names.append(path.name)
        elif len(others) < 3 and _present(path / CONFIG):
            others.append(path.name)
    if not names:
        found = f"; there are some in {' and '.join(sorted(others))}" if others else ""
        raise PromptFormatError(
            f"{folder} is a folder without {CONFIG}, and so no adapter of PEFT, nor has it folders member_0, ... with "
            f"one each; name a prompt file or an adapter{found}"
        )
    if len(names) > MAX_MEMBERS:
        raise PromptFormatError(f"{folder}: {len(names)} members; an ensemble has at most {MAX_MEMBERS}")
    wanted = [_member(number) for number in range(len(names))]
    if missing := [name for name in wanted if name not in names]:
        raise PromptFormatError(f"{folder}: there are {len(names)} members and no {missing[0]}")
    for name in wanted:
        if (folder / name).is_symlink():
            raise PromptFormatError(f"{folder / name} is a symbolic link{_COPY}")
    return [_read_adapter(folder / name) for name in wanted], True


def _member(number: int) -> str:
    return f"member_{number}"


def _present(file: Path) -> bool:
    return file.is_symlink() or file.exists()


def _read_adapter(folder: Path) -> StoredPrompt:
    with _opened(folder / CONFIG) as (file, size):
        if size > _MAX_JSON:
            raise PromptFormatError(f"{folder / CONFIG}: {size} bytes; an adapter's has at most {_MAX_JSON}")
        config = _Config(folder / CONFIG, _object(folder / CONFIG, file.read(size)))
    shape = config.shape
    if not _present(folder / TENSORS) and _present(folder / PICKLE):
        raise PromptFormatError(
            f"{folder / PICKLE} is a pickle, which can run code, and is not read. Where you trust it, load the adapter "
            f"with PEFT and save it again: that writes {TENSORS}"
        )
    with _opened(folder / TENSORS) as (file, size):
        array = _read_tensor(folder / TENSORS, file, size, shape)
    return config.prompt(array), PromptMetadata(method=config.method)


class _Config:
    """The values of an adapter_config.json that say what its tensor is.

    The others are not looked at: they are of training, or such that PEFT drops them, as it does what it does not know.
    """

    def __init__(self, file: Path, values: Mapping[str, Any]):
        self.file, self.values = file, values
        self.kind = self._one_of("peft_type", tuple(_METHODS))
        self.task = self._one_of("task_type", tuple(_SUBMODULES))
        self.method = _METHODS[self.kind]
        self.length = self._whole("num_virtual_tokens")
        if values.get("modules_to_save"):
            raise PromptFormatError(f"{file}: modules_to_save: the adapter changes the base, and is no prompt alone")
        self.submodules = self._whole("num_transformer_submodules", _SUBMODULES[self.task])
        own = _SUBMODULES[self.task]
        # PEFT's own logits of an encoder-decoder's prefix with 1 are wrong: it fills the cache of another attention.
        if self.submodules != own and (self.method == "prefix" or self.submodules != 1):
            allowed = str(own) if self.method == "prefix" or own == 1 else f"1 or {own}"
            raise PromptFormatError(
                f"{file}: num_transformer_submodules is {self.submodules}; {self.kind} of {self.task} has {allowed}"
            )

    @property
    def shape(self) -> tuple[int, int | None]:
        """Of the tensor; None is any size."""
        width = self._whole("token_dim", 0) or None
        if self.method != "prefix":
            return self.length * self.submodules, width
        slots = 2 * self._whole("num_layers")
        heads = self._whole("num_attention_heads")
        if width is None or width % heads:
            raise PromptFormatError(
                f"{self.file}: token_dim is {width}; expected a multiple of the {heads} heads of num_attention_heads"
            )
        return self.length, slots * width

    def prompt(self, array: np.ndarray) -> Prompt:
        """The prompt of the tensor, which has the shape."""
        if self.method != "prefix":
            return Prompt(VirtualTokens(array[: self.length].copy()))
        layers, heads = self._whole("num_layers"), self._whole("num_attention_heads")
        slots = array.reshape(self.length, 2 * layers, heads, -1)
        of_keys = _slots_of_keys(layers, causal=self.task == "CAUSAL_LM")
        keys, values = (np.ascontiguousarray(slots[:, chosen].swapaxes(0, 1)) for chosen in (of_keys, of_keys + 1))
        return Prompt(decoder_self=Prefix(keys, values))

    def _whole(self, name: str, default: int | None = None) -> int:
        value = self.values.get(name)
        if value is None and default is not None:  # null is as good as nothing
            return default
        if value is None:
            raise PromptFormatError(
                f"{self.file}: there is no {name}. PEFT completes such a file from the base: load the adapter with it "
                "and save it again"
            )
        if type(value) is not int or not 0 < value <= _MAX_NUMBER:
            raise PromptFormatError(
                f"{self.file}: {name} is {reprlib.repr(value)}, not a number from 1 to {_MAX_NUMBER}"
            )
        return value

    def _one_of(self, name: str, choices: Sequence[str]) -> str:
        value = self.values.get(name)
        if not isinstance(value, str) or value not in choices:
            raise PromptFormatError(
                f"{self.file}: {name} is {reprlib.repr(value)}; what is read here is {', '.join(choices)}"
            )
        return value


def _slots_of_keys(layers: int, *, causal: bool) -> np.ndarray:
    """The slot of each layer's keys; that of its values is the next."""
    return (2 if causal else 4) * np.arange(layers) % (2 * layers)


_COPY = (
    ", which may lead anywhere, and is not followed; where you trust it, copy the folder with what it leads to "
    "(cp -rL SOURCE DEST)"
)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[tuple[io.BufferedIOBase, int]]:
    """A file and its size in bytes; an ordinary one, since others may have no end."""
    if file.is_symlink():
        raise PromptFormatError(f"{file} is a symbolic link{_COPY}")
    if not file.exists():
        raise PromptFormatError(f"{file.parent}: no {file.name}, which an adapter of PEFT has")
    if not file.is_file():
        raise PromptFormatError(f"{file}: not an ordinary file")
    with file.open("rb") as opened:
        size = opened.seek(0, 2)
        opened.seek(0)
        yield opened, size


def _read_tensor(file: Path, opened: io.BufferedIOBase, size: int, shape: tuple[int, int | None]) -> np.ndarray:
    """The one tensor of a safetensors file, float32 (https://github.com/huggingface/safetensors#format).

    Stricter than the format's own library, which takes the last of entries of one name.
    """
    length = int.from_bytes(opened.read(8), "little")
    if length > min(size - 8, _MAX_JSON):
        raise PromptFormatError(
            f"{file}: no safetensors file, or a truncated one: {size} bytes, with a header of {length}"
        )
    header = _object(file, opened.read(length))
    header.pop("__metadata__", None)
    if header.keys() != {_NAME}:
        found = ", ".join(sorted(header))[:100] or "none"
        raise PromptFormatError(f"{file}: it has the tensors {found}; the adapter of a prompt has {_NAME} alone")
    entry = header[_NAME] if isinstance(header[_NAME], dict) else {}
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise PromptFormatError(
            f"{file}: {_NAME} is {reprlib.repr(dtype)}; a prompt is of floats, {', '.join(_DTYPES)}"
        )
    sizes: Any = entry.get("shape")
    place = entry.get("data_offsets")
    if not _are_sizes(sizes) or any(s != w for s, w in zip(sizes, shape, strict=True) if w is not None):
        wanted = f"[{shape[0]}, {shape[1] or 'any'}]"
        raise PromptFormatError(f"{file}: {_NAME} is {reprlib.repr(sizes)}; {CONFIG} makes it {wanted}")
    expected = math.prod(sizes) * np.dtype(_DTYPES[dtype]).itemsize
    if place != [0, expected] or size != 8 + length + expected:
        raise PromptFormatError(
            f"{file}: {_NAME} claims {dtype} {sizes} at {reprlib.repr(place)} and has {size - 8 - length} bytes of data"
        )
    with np.errstate(over="ignore"):  # what overflows float32 is found below
        array = np.frombuffer(opened.read(expected), _DTYPES[dtype]).reshape(sizes).astype(np.float32)
    if not np.isfinite(array).all():
        raise PromptFormatError(f"{file}: {_NAME} has {int((~np.isfinite(array)).sum())} values that are not finite")
    return array


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(size) is int and size > 0 for size in value)


def _object(file: Path, text: bytes) -> dict[str, Any]:
    """A JSON object in which no name comes twice."""
    try:
        values = json.loads(text.decode("utf-8"), object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise PromptFormatError(f"{file}: damaged: no JSON: {error}") from error
    if not isinstance(values, dict):
        raise PromptFormatError(f"{file}: a JSON {type(values).__name__}, not an object")
    return values


# --------------------------------------------------------------------------------------------------------------
# Writing


def write(folder: Path, members: Sequence[StoredPrompt], model: Model, *, ensemble: bool) -> None:
    """Writes a prompt as an adapter, or the members of an ensemble as a folder of adapters.

    A folder that is half written is not read as an adapter, nor as an ensemble.

    Args:
      folder: a new one, or an empty one.
      members: single prompts of the model, of finite values.
      model: what they are used with: its sizes and name go into the adapter.
      ensemble: whether each has a folder in the folder.

    Raises:
      PromptFormatError: PEFT cannot hold a prompt, or there is something in the folder.
    """
    places = [folder / _member(number) for number in range(len(members))] if ensemble else [folder]
    adapters = [_adapter(str(place), *member, model) for place, member in zip(places, members, strict=True)]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PromptFormatError(f"{folder}: an adapter is a new folder, and here is something already")
    for place, files in reversed(list(zip(places, adapters, strict=True))):  # without member_0 it is no ensemble
        for name, content in files.items():
            atomic_write(place / name, operator.methodcaller("write", content))


def _adapter(where: str, prompt: Prompt | Delta, metadata: PromptMetadata, model: Model) -> dict[str, bytes]:
    """The files of an adapter; the one that makes a folder an adapter is the last."""
    from safetensors.numpy import save

    prompt = _checked_for_peft(where, prompt, model)
    model_family = family(model.config)
    sites, causal = model_family.sites(model.config), model_family.causal
    task = "CAUSAL_LM" if causal else "SEQ_2_SEQ_LM"
    prefix = prompt.decoder_self is not None
    layers, heads, width = sites["decoder_self" if prefix or causal else "encoder_self"]
    if prefix:
        array = _flat_prefix(where, used_arrays(prompt.decoder_self), causal=causal)
        own: dict[str, Any] = {
            "peft_type": "PREFIX_TUNING",
            "num_transformer_submodules": _SUBMODULES[task],
            "token_dim": heads * width,
            "encoder_hidden_size": heads * width,
            "init_weights": None,
            "prefix_projection": False,
        }
    else:
        array = used_arrays(prompt.encoder_tokens)["embeddings"]
        own = {
            "peft_type": "PROMPT_TUNING",
            "num_transformer_submodules": 1,  # with PEFT's 2 there would be as many rows again, which it does not use
            "token_dim": array.shape[1],
            "prompt_tuning_init": "RANDOM",
            "prompt_tuning_init_text": None,
            "tokenizer_kwargs": None,
            "tokenizer_name_or_path": None,
        }
    config = own | {
        "auto_mapping": None,
        "base_model_name_or_path": None if model.name.startswith(T5X) else model.name,  # which PEFT cannot load
        "inference_mode": True,
        "modules_to_save": None,
        "num_attention_heads": heads,
        "num_layers": layers,
        "num_virtual_tokens": len(array),
        "peft_version": VERIFIED["PEFT"],
        "revision": model.revision,
        "task_type": task,
    }
    # PEFT gives this tag to models of Transformers in whose classes `model` is the body, such as BART's.
    tags = ["transformers"] if model_family.hugging_face.prefix == "model." else []
    return {
        TENSORS: save({_NAME: np.ascontiguousarray(array, np.float32)}, metadata={"format": "pt"}),
        CARD: _card(config, tags, metadata).encode("utf-8"),
        CONFIG: json.dumps(config, indent=2, sort_keys=True).encode("utf-8"),
    }


def _checked_for_peft(where: str, prompt: Prompt | Delta, model: Model) -> Prompt:
    """Raises PromptFormatError, with the reason and the way out, for what no adapter can hold."""
    if isinstance(prompt, Delta):
        raise PromptFormatError(f"{where}: changes of the base's weights are not exported to PEFT; npz holds them")
    parts = prompt.parts
    if others := [name for name in parts if name not in ("encoder_tokens", "decoder_self")]:
        raise PromptFormatError(
            f"{where}: PEFT has no prefix of {' and '.join(others)}, only of the decoder's self-attention. Train with "
            "prompt.sites decoder_self and, where the decoder's layers are even, prompt.tie_layers, or keep the prompt "
            "as .npz"
        )
    if len(parts) > 1:
        raise PromptFormatError(
            f"{where}: the prompt has {' and '.join(parts)}; an adapter of PEFT has virtual tokens or a prefix. "
            "Keep the prompt as .npz"
        )
    (part,) = parts.values()
    if part.placement != "before":
        raise PromptFormatError(
            f"{where}: the prompt stands {part.placement} the input, and PEFT puts it before. Train with "
            "prompt.placement 'before', or keep it as .npz"
        )
    learned = hasattr(model.config, "positions")  # relative positions are always counted on
    if isinstance(part, Prefix) and learned and not part.shift_positions:
        raise PromptFormatError(
            f"{where}: PEFT counts {family(model.config).name}'s positions on from a prefix, and this one is not "
            "counted. Train with prompt.shift_positions true, or keep the prompt as .npz"
        )
    return prompt


def _flat_prefix(where: str, arrays: Mapping[str, np.ndarray], *, causal: bool) -> np.ndarray:
    """Keys and values [L, P, H, K] as PEFT has them, [P, 2 L H K]; zero where it does not look."""
    keys, values = arrays["keys"], arrays["values"]
    layers, length, heads, width = keys.shape
    of_keys = _slots_of_keys(layers, causal=causal)
    slots = np.zeros((length, 2 * layers, heads, width), np.float32)
    slots[:, of_keys], slots[:, of_keys + 1] = keys.swapaxes(0, 1), values.swapaxes(0, 1)
    # Of layers that share slots the last was written.
    if (slots[:, of_keys] != keys.swapaxes(0, 1)).any() or (slots[:, of_keys + 1] != values.swapaxes(0, 1)).any():
        raise PromptFormatError(
            f"{where}: PEFT gives layers i and i + {layers // 2} of a decoder of {layers} one prefix, and here they "
            "differ. Train with prompt.tie_layers, or keep the prompt as .npz"
        )
    return slots.reshape(length, -1)


def _card(config: Mapping[str, Any], tags: Sequence[str], metadata: PromptMetadata) -> str:
    """The model card: PEFT's entries for the hub, and what a user has to know instead of its empty headings."""
    base = config["base_model_name_or_path"]
    lines = card.header(base, adapter=True, causal=config["task_type"] == "CAUSAL_LM", tags=tags)
    what = "keys and values in each layer" if config["peft_type"] == "PREFIX_TUNING" else "virtual tokens"
    lines += ["", "# A prompt for a frozen language model", ""]
    lines += [f"{config['num_virtual_tokens']} {what}, exported by prompt_jax.", ""]
    lines += card.block({"base": base, "revision": config["revision"]} | card.facts(metadata))
    versions = [f"- {name} {version}" for name, version in VERIFIED.items()]
    return "\n".join([*lines, "", VERSIONS_NOTE, "", "### Framework versions", "", *versions]) + "\n"
