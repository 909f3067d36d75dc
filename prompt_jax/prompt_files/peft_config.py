"""PEFT's `adapter_config.json`: the kind of prompt in an adapter, and the shape of its tensor."""

import dataclasses
import reprlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from prompt_jax.config.convert import from_dict
from prompt_jax.errors import UserError
from prompt_jax.models.prompt import Prefix, Prompt, VirtualTokens
from prompt_jax.prompt_files.metadata import PromptFormatError

# How many times PEFT inserts a prompt into a model of each task.
SUBMODULES = {"CAUSAL_LM": 1, "SEQ_2_SEQ_LM": 2}
_METHODS = {"PROMPT_TUNING": "soft_prompt", "P_TUNING": "p_tuning", "PREFIX_TUNING": "prefix", "CARTRIDGE": "prefix"}
_MAX_NUMBER = 1 << 30


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """The fields of an `adapter_config.json` that determine its tensor, under PEFT's names. 0 stands for null.

    The other fields concern training, or PEFT ignores them.
    """

    peft_type: Literal["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE"]
    task_type: Literal["CAUSAL_LM", "SEQ_2_SEQ_LM"]
    num_virtual_tokens: int = 0
    num_transformer_submodules: int = 0
    token_dim: int = 0
    num_layers: int = 0
    num_attention_heads: int = 0
    num_frozen_tokens: int = 0  # of a CARTRIDGE

    def __post_init__(self) -> None:
        prefix = self.method == "prefix"
        if self.peft_type == "CARTRIDGE" and self.task_type != "CAUSAL_LM":
            raise PromptFormatError(
                "a CARTRIDGE of SEQ_2_SEQ_LM; expected CAUSAL_LM, a model that PEFT can use it with"
            )
        if not 0 <= self.num_frozen_tokens <= self.num_virtual_tokens:
            raise PromptFormatError(
                f"num_frozen_tokens is {self.num_frozen_tokens}; expected 0 to {self.num_virtual_tokens}, "
                "num_virtual_tokens"
            )
        required = ["num_virtual_tokens", *(["num_layers", "num_attention_heads"] if prefix else [])]
        for name in (*required, "num_transformer_submodules", "token_dim"):
            value = getattr(self, name)
            if value == 0 and name in required:
                raise PromptFormatError(
                    f"{name} is 0 or missing. PEFT completes such a file from the base: load the adapter with it and "
                    "save it again"
                )
            if not 0 <= value <= _MAX_NUMBER:
                raise PromptFormatError(f"{name} is {reprlib.repr(value)}, not a number from 1 to {_MAX_NUMBER}")
        expected = SUBMODULES[self.task_type]
        # With 1, PEFT's own logits for a prefix of an encoder-decoder are wrong: it fills the other attention's cache.
        allowed = [expected] if prefix else sorted({1, expected})
        if self.submodules not in allowed:
            raise PromptFormatError(
                f"num_transformer_submodules is {self.submodules}; {self.peft_type} of {self.task_type} has "
                f"{' or '.join(map(str, allowed))}"
            )
        if prefix and (self.token_dim == 0 or self.token_dim % self.num_attention_heads):
            raise PromptFormatError(
                f"token_dim is {self.token_dim}; expected a multiple of the {self.num_attention_heads} heads of "
                "num_attention_heads"
            )

    @property
    def method(self) -> str:
        """The name of the method in this project."""
        return _METHODS[self.peft_type]

    @property
    def submodules(self) -> int:
        return self.num_transformer_submodules or SUBMODULES[self.task_type]

    @property
    def tensor_shape(self) -> tuple[int, int | None]:
        """The shape of the tensor; None stands for any size."""
        if self.method != "prefix":
            return self.num_virtual_tokens * self.submodules, self.token_dim or None
        return self.num_virtual_tokens, 2 * self.num_layers * self.token_dim

    def prompt(self, array: np.ndarray) -> Prompt:
        """Return the prompt of a tensor that has this shape."""
        if self.method != "prefix":
            return Prompt(VirtualTokens(array[: self.num_virtual_tokens].copy()))
        slots = array.reshape(self.num_virtual_tokens, 2 * self.num_layers, self.num_attention_heads, -1)
        of_keys = key_slots(self.num_layers, causal=self.task_type == "CAUSAL_LM")
        keys, values = (np.ascontiguousarray(slots[:, chosen].swapaxes(0, 1)) for chosen in (of_keys, of_keys + 1))
        return Prompt(decoder_self=Prefix(keys, values))


def parse_config(where: str, values: Mapping[str, Any]) -> AdapterConfig:
    """Return the checked configuration of an adapter.

    Raises:
      PromptFormatError: not the adapter of a prompt. The message names `where` and the field.
    """
    if values.get("modules_to_save"):
        raise PromptFormatError(f"{where}: modules_to_save: the adapter changes the base, so it is not only a prompt")
    try:
        not_null = {name: value for name, value in values.items() if value is not None}
        return from_dict(AdapterConfig, not_null, unknown="ignore")
    except (UserError, RecursionError) as error:
        raise PromptFormatError(f"{where}: {error}") from error


def key_slots(layers: int, *, causal: bool) -> np.ndarray:
    """Return the slot of each layer's keys (see `prompt_jax.prompt_files.peft`). Its values are in the next slot."""
    return (2 if causal else 4) * np.arange(layers) % (2 * layers)
