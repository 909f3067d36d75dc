"""Frozen language models as pure functions of their parameters.

These letters name the axes of shapes everywhere in the project:

    B batch        S source tokens   T target (or any) tokens   P prompt length
    L layers       D model width     H heads                    G key-value heads   K head width
    F feed-forward V vocabulary      E ensemble members         C label classes
    N prompts in a stack, or new tokens

A family of models is one file and one line in `FAMILIES`. The file has the family's configuration, how Hugging Face
writes it, its table of parameters, and its layer. `decoder_only` and `encoder_decoder` make the rest.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from prompt_jax.errors import UserError
from prompt_jax.models import bart, gpt2, t5
from prompt_jax.models.decoder_only import DecoderOnly
from prompt_jax.models.encoder_decoder import EncoderDecoder
from prompt_jax.models.prompt import Prompt, check_prompt_ids

Config = Any  # an instance of one of the classes in FAMILIES
Family = DecoderOnly | EncoderDecoder

FAMILIES: dict[type, Family] = {
    t5.T5Config: EncoderDecoder(t5),
    gpt2.GPT2Config: DecoderOnly(gpt2),
    bart.BartConfig: EncoderDecoder(bart),
}


class ContextError(UserError, ValueError):
    """A text that is longer, with its prompt, than the model has positions; the message gives both numbers."""


def family(config: Any) -> Family:
    """Return the functions that compute models of this configuration."""
    return FAMILIES[type(config)]


def forward(
    params: Any,
    config: Any,
    batch: dict[str, Any],
    prompt: Prompt | None = None,
    *,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "B T V"]:
    """Logits of the target's real positions, float32, with the prompt added to the frozen base.

    Args:
      params: a model's `.params`.
      config: its `.config`.
      batch: `inputs` [B, S] int32 and `inputs_mask` [B, S] bool, padded on any side; `decoder_inputs` [B, T] int32
        (start token first, `config.start_id`) and, if these are not padded on the right alone, `decoder_mask` [B, T].
        A causal model reads both as one text, and the inputs alone where there are no `decoder_inputs`: then the
        logits are those of all the inputs. With a stacked prompt `prompt_ids` [B] int32: the number of each row's
        prompt, -1 for none.
      prompt: a Prompt; a stacked one (`prompt_jax.stack_prompts`) if rows have prompts of their own; None is the
        base model. A row gives what it gives alone with its prompt.
      key: turns dropout on.

    Raises:
      PromptStackError: a stacked prompt without `prompt_ids` or the other way round, or an id that is no prompt's.
        Inside a transformation the ids' values are not known; then the logits of such a row are NaN.
      PromptPartError: a prompt with a part that the model has no place for.
      ContextError: more than the model has positions for, as far as masks are known.
    """
    check_prompt_ids(prompt, batch.get("prompt_ids"), len(batch["inputs"]))
    target = batch.get("decoder_inputs")
    check_context(config, prompt, longest(batch["inputs_mask"]), 0 if target is None else target.shape[1])
    return _forward(params, config, batch, prompt, key)


@partial(jax.jit, static_argnames="config")
def _forward(
    params: Any, config: Any, batch: dict[str, Any], prompt: Prompt | None, key: PRNGKeyArray | None
) -> Float[Array, "B T V"]:
    return family(config).forward(params, config, batch, prompt, key=key)


def check_context(config: Any, prompt: Prompt | None, source: int, target: int) -> None:
    """Raises ContextError unless source and target of so many tokens have positions, with the prompt."""
    if not hasattr(config, "positions"):  # they are relative
        return
    for what, needed in family(config).positions_needed(prompt, source, target).items():
        if needed > config.positions:
            raise ContextError(
                f"{what} together have {needed} tokens, and the model has {config.positions} positions: shorten the "
                "text (data.input_length, data.target_length) or the prompt (prompt.length)"
            )


def longest(mask: Any) -> int:
    """The most real tokens of a row; what the mask has room for, where it is not known."""
    if isinstance(mask, jax.core.Tracer):
        return mask.shape[1]
    return int(np.asarray(jax.device_get(mask)).sum(axis=1).max(initial=0))
