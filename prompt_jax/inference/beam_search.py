"""Beam search with the rules, tokens and scores of Hugging Face's `GenerationMixin._beam_search` (transformers 5).

The beams of a row are queries of one row. What they share, such as the input's keys and values, is stored once. Shapes:
see `prompt_jax.models`; G beams.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prompt_jax.inference import logits_rules
from prompt_jax.models import Config, family
from prompt_jax.models.generation_settings import GenerationSettings
from prompt_jax.models.prompt import Prompt

# Hugging Face's value for the score of an empty slot, and the penalty on a hypothesis that must not continue.
_NEVER = -1e9


class Hypotheses(NamedTuple):
    """All hypotheses that beam search finished for each row, best first. Tokens are padded as in `Generated`."""

    tokens: Int[Array, "B G N"]
    log_probability: Float[Array, "B G"]
    score: Float[Array, "B G"]  # log-probability / tokens ** length_penalty; -1e9 if there are fewer hypotheses


class _Running(NamedTuple):
    """Unfinished hypotheses, best first."""

    tokens: Int[Array, "B G N"]
    log_probability: Float[Array, "B G"]
    last: Int[Array, "B G"]  # their last tokens
    parent: Int[Array, "B G"]  # the beam that each continues


def search_beams(
    params: Any,
    config: Config,
    encoded: Any,
    batch: dict[str, Any],
    prompt: Prompt | None,
    max_new_tokens: int,
    lengths: Int[Array, "B"] | None,
    rules: GenerationSettings,
) -> Hypotheses:
    """Return the hypotheses of each row. Called while tracing.

    `encoded` is the family's `encode` of the batch. The other arguments are those of `decoding.beam_search`.
    """
    model, beams, rows = family(config), rules.beams, len(batch["inputs"])
    limits = jnp.full(rows, max_new_tokens) if lengths is None else jnp.asarray(lengths)
    penalties = jnp.asarray(np.arange(1, max_new_tokens + 1) ** float(rules.length_penalty), jnp.float32)
    # Each end token finishes one beam. This many candidates leave enough unfinished ones.
    candidates = max(2, 1 + len(rules.end_ids)) * beams
    start, cache = model.prefill(params, config, encoded, batch, prompt, max_new_tokens, beams)
    given = logits_rules.given_tokens(config, batch, start[:, 0], limits)

    def append(position, logits, running, finished, is_finished, done):
        """Append one token to each running hypothesis.

        `is_finished` [B, G] marks the used slots of `finished`. `done` [B] marks rows that cannot improve any more.
        """
        vocabulary = logits.shape[-1]
        log_probabilities = logits_rules.log_softmax(logits)
        scores = logits_rules.apply_rules(log_probabilities, position, running.tokens, given, rules)
        sums = scores + running.log_probability[..., None]
        best, index = jax.lax.top_k(sums.reshape(rows, beams * vocabulary), candidates)
        parent, token = index // vocabulary, index % vocabulary
        tokens = _pick(running.tokens, parent).at[:, :, position].set(token)
        at_limit = position + 1 >= limits
        ends = logits_rules.is_end(token, rules) | at_limit[:, None]

        best_open, chosen = jax.lax.top_k(jnp.where(ends, best + _NEVER, best), beams)
        running = _Running(_pick(tokens, chosen), best_open, _pick(token, chosen), _pick(parent, chosen))

        # Written so that NaN counts as real and shows in the result.
        real = ~(best <= _NEVER / 2)
        ending = ends & real & (np.arange(candidates) < beams)[None] & ~done[:, None]
        scores = jnp.where(ending, best / penalties[position], _NEVER)
        merged = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), finished, Hypotheses(tokens, best, scores))
        scores, chosen = jax.lax.top_k(merged.score, beams)
        finished = Hypotheses(_pick(merged.tokens, chosen), _pick(merged.log_probability, chosen), scores)
        is_finished = _pick(jnp.concatenate([is_finished, ending], axis=1), chosen)

        full = is_finished.all(axis=1)
        length = limits if rules.early_stopping == "never" and rules.length_penalty > 0 else position + 1
        hopeless = best_open[:, 0] / penalties[length - 1] <= jnp.where(full, scores[:, -1], _NEVER)
        done |= hopeless | at_limit | (full if rules.early_stopping == "true" else False)
        return running, finished, is_finished, done

    def unfinished(carry):
        position, *_, done, _ = carry
        return (position < max_new_tokens) & ~done.all()

    def step(carry):
        position, running, *others, cache = carry
        logits, cache = model.decode_step(params, config, running.last, cache.reorder_beams(running.parent))
        return position + 1, *append(position, logits, running, *others), cache

    logits, cache = model.decode_step(params, config, start, cache)
    nothing = jnp.full((rows, beams, max_new_tokens), config.pad_id, jnp.int32)
    no_beam = jnp.zeros((rows, beams), jnp.int32)
    # The search begins with one beam. Equal beams would find the same hypotheses.
    first_only = jnp.broadcast_to(jnp.where(np.arange(beams) == 0, 0.0, _NEVER)[None], (rows, beams))
    never = jnp.full((rows, beams), _NEVER)
    first = append(
        0,
        logits,
        _Running(nothing, first_only, no_beam, no_beam),
        Hypotheses(nothing, never, never),
        jnp.zeros((rows, beams), bool),
        jnp.zeros(rows, bool),
    )
    return jax.lax.while_loop(unfinished, step, (jnp.int32(1), *first, cache))[2]


def _pick(x: Array, index: Int[Array, "B _"]) -> Array:
    """Return the entries `index` of each row along axis 1."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1, mode="promise_in_bounds")
