"""Frozen language models as pure functions of their parameters.

Shapes are written with these letters everywhere in the project:

    B batch        S source tokens   T target (or any) tokens   P prompt length
    L layers       D model width     H heads                    K head width
    F feed-forward V vocabulary      E ensemble members         C label classes

A family is a module with `forward`, `encode`, `decode`, `prefill` and `decode_step` of one signature, `parameters`,
the table of its weights, and a configuration class; `family` finds it by the configuration.
"""

from functools import partial
from types import ModuleType
from typing import Any

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from prompt_jax.models import t5
from prompt_jax.models.prompt import Prompt, check_prompt_ids


def family(config: Any) -> ModuleType:
    """The module that computes models of this configuration."""
    return {t5.T5Config: t5}[type(config)]


def forward(
    params: Any,
    config: Any,
    batch: dict[str, Any],
    prompt: Prompt | None = None,
    *,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "B T V"]:
    """Logits of the real positions, float32, with the prompt added to the frozen base.

    Args:
      params: a model's `.params`.
      config: its `.config`.
      batch: `inputs` [B, S] int32 and `inputs_mask` [B, S] bool, padded on any side. Encoder-decoders:
        `decoder_inputs` [B, T] int32 (start token first) and, if these are not padded on the right alone,
        `decoder_mask` [B, T]. Causal models: `inputs` are source, separator and target, `target_mask` [B, S] marks
        the positions that are scored, `source_length` [B] where the target begins. With a stacked prompt
        `prompt_ids` [B] int32: the number of each row's prompt, -1 for none.
      prompt: a Prompt; a stacked one (`prompt_jax.stack_prompts`) if rows have prompts of their own; None is the
        base model. A row gives what it gives alone with its prompt.
      key: turns dropout on.

    Raises:
      PromptStackError: a stacked prompt without `prompt_ids` or the other way round, or an id that is no prompt's.
        Inside a transformation the ids' values are not known; then the logits of such a row are NaN.
    """
    check_prompt_ids(prompt, batch.get("prompt_ids"), len(batch["inputs"]))
    return _forward(params, config, batch, prompt, key)


@partial(jax.jit, static_argnames="config")
def _forward(
    params: Any, config: Any, batch: dict[str, Any], prompt: Prompt | None, key: PRNGKeyArray | None
) -> Float[Array, "B T V"]:
    return family(config).forward(params, config, batch, prompt, key=key)
