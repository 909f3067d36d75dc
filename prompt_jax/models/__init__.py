"""Frozen language models as pure functions of their parameters. Start reading here.

These letters name the axes of arrays in the whole project:

    B batch               S source tokens     T target (or any) tokens   P prompt length
    L layers              D model width       H heads                    G key-value heads   K head width
    F feed-forward width  V vocabulary        E ensemble members         C label classes
    N prompts in a stack, or new tokens

`forward` computes logits from frozen parameters, a batch and a `Prompt` (prompt.py). A prefix enters attention in
`PastKeyValues.key_values` (inputs.py): it yields one layer's prefix as additional keys and values, and `attend`
(attention.py) attends to them and to the text's with one softmax.

To add a model family:
  1. Write one file like gpt2.py or t5.py: the config, Hugging Face's names for it (`HUGGING_FACE`), the table of
     parameters, and the layer, written once. `DecoderOnlyModule` (decoder_only.py) and `EncoderDecoderModule`
     (encoder_decoder.py) list what the file provides. tests/toy_family.py is a minimal example.
  2. Add its config to `FAMILIES` and `Config` below.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from prompt_jax.errors import UserError
from prompt_jax.models import bart, gpt2, llama, t5
from prompt_jax.models.decoder_only import DecoderOnly
from prompt_jax.models.encoder_decoder import EncoderDecoder
from prompt_jax.models.prompt import Prompt, check_prompt_ids
from prompt_jax.models.rope import long_rope

# For type checkers: the configs of `FAMILIES`, so that code for all families uses fields that all of them have.
if TYPE_CHECKING:
    Config = t5.T5Config | gpt2.GPT2Config | bart.BartConfig | llama.LlamaConfig
else:
    Config = Any
Family = DecoderOnly | EncoderDecoder

FAMILIES: dict[type, Family] = {
    t5.T5Config: EncoderDecoder(t5),
    gpt2.GPT2Config: DecoderOnly(gpt2),
    bart.BartConfig: EncoderDecoder(bart),
    llama.LlamaConfig: DecoderOnly(llama),
}
IN_PAPERS = (t5.T5Config, gpt2.GPT2Config, bart.BartConfig)


def embedding_table(params: Any, config: Config) -> Float[Array, "V D"]:
    """Return the embeddings of all tokens, as the model reads them: the space of virtual tokens."""
    table, scale = params["embedding"], getattr(config, "embedding_scale", 1.0)
    return table if scale == 1.0 else table * jnp.asarray(scale, table.dtype)


class ContextError(UserError, ValueError):
    """A text and its prompt need more positions than the model has, or than the prompt was trained for."""


def family(config: Config) -> Family:
    """Return the family of a model's config."""
    return FAMILIES[type(config)]


def is_in_papers(config: Config) -> bool:
    """Return whether the papers used this family. For those, the defaults of options are the papers'."""
    return isinstance(config, IN_PAPERS)


def forward(
    params: Any,
    config: Config,
    batch: dict[str, Any],
    prompt: Prompt | None = None,
    *,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "B T V"]:
    """Return the logits of the target's positions, float32, with the prompt added to the frozen base.

    Logits at padded positions are meaningless.

    Args:
      params: a model's `.params`.
      config: its `.config`.
      batch: a dict of arrays:
        `inputs` [B, S] int32 and `inputs_mask` [B, S] bool, padded on any side.
        `decoder_inputs` [B, T] int32, which start with `config.start_id`. A causal model appends them to the inputs.
          Without them, it returns the logits of the inputs.
        `decoder_mask` [B, T] bool, only needed if the decoder inputs are not padded on the right.
        `prompt_ids` [B] int32, only with a stacked prompt: the index of each row's prompt, or -1 for none.
      prompt: None for the base model. A stacked prompt (`prompt_jax.stack_prompts`) gives each row its prompt. A row's
        logits do not depend on other rows.
      key: enables dropout.

    Raises:
      PromptStackError: a stacked prompt without `prompt_ids`, `prompt_ids` without a stacked prompt, or an id out of
        range. Under `jit`, where ids have no values, a row with such an id has NaN logits.
      PromptPartError: the model does not support a part of the prompt.
      TypeError: the prompt is none, such as a Delta; `merged_params` returns the parameters for it.
      ContextError: text and prompt need more positions than the model has. Under `jit`, padding counts as text.
    """
    check_prompt_ids(prompt, batch.get("prompt_ids"), len(batch["inputs"]))
    target = batch.get("decoder_inputs")
    config = check_context(config, prompt, longest_row(batch["inputs_mask"]), 0 if target is None else target.shape[1])
    return _forward(params, config, batch, prompt, key)


@partial(jax.jit, static_argnames="config")
def _forward(
    params: Any, config: Config, batch: dict[str, Any], prompt: Prompt | None, key: PRNGKeyArray | None
) -> Float[Array, "B T V"]:
    return family(config).forward(params, config, batch, prompt, key=key)


def check_context(config: Config, prompt: Prompt | None, source: int, target: int) -> Config:
    """Return the config for a prompt, `source` tokens and `target` tokens. Some rotary positions depend on the length.

    Raises:
      ContextError: they need more positions than the model has, or other rotary positions than the prompt's.
    """
    if not hasattr(config, "positions"):  # relative positions have no limit
        return config
    trained = {part.long_rope for part in (prompt or Prompt()).parts.values()}
    for name, needed in family(config).positions_needed(prompt, source, target).items():
        if needed > config.positions:
            raise ContextError(
                f"{name} together have {needed} tokens, and the model has {config.positions} positions: shorten the "
                "text (data.input_length, data.target_length) or the prompt (prompt.length)"
            )
        config = family(config).for_length(config, config.positions if True in trained else needed)
        if False in trained and long_rope(config):
            raise ContextError(
                f"{name} together have {needed} tokens, so the model's rotary positions take other factors (longrope) "
                "than those that the prompt was trained with: shorten the text, or train a prompt for long texts "
                "(data.input_length)"
            )
    return config


def longest_row(mask: Any) -> int:
    """Return the largest number of real tokens in a row; under `jit`, the padded length."""
    if isinstance(mask, jax.core.Tracer):
        return mask.shape[1]
    return int(np.asarray(jax.device_get(mask)).sum(axis=1).max(initial=0))
