"""The skeleton of decoder-only models such as GPT-2 and Llama. `prompt_jax.models` explains the shape letters.

A family's file provides `parameters`, `embed`, `add_positions`, `layer` and `logits` (see `DecoderOnlyModule`). From
these, the skeleton builds the forward pass, prefill and decoding, activations for prefixes, and the conversion of
virtual tokens to a prefix. A layer is written once. It calls `attend(q, k, v, key) -> (mixed, kept)`: in teacher
forcing this attends to the text and the prefix; in decoding it also appends to the cache.

A batch may split a text into source and target, as in Li and Liang (2021). `encode` reads the source and keeps its keys
and values, and `decode` reads the start token and the target. The result equals reading one text, but only the target's
logits are computed, and batches look like those of encoder-decoders.

A prompt before the text does not depend on the text. So virtual tokens are converted to the equivalent prefix
(`as_prefix`), computed once for the whole batch and shared by all rows.

Positions count real tokens only, so padding on any side changes nothing.

Layers may differ in settings (`layer_settings`), such as a sliding window: then a token attends only to the last
`window` positions, itself included. A prefix leaves the window like text, unless it is `always_visible`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from prompt_jax.models.attention import MASKED, KeyValues, attend, window_bias
from prompt_jax.models.cache import Cache, decode_layers, empty_cache
from prompt_jax.models.hugging_face import HuggingFace
from prompt_jax.models.inputs import PastKeyValues, gather_positions, left_aligned_order, prefix_kv
from prompt_jax.models.layers import Params, apply_adapter, depth, run_layers, split_key
from prompt_jax.models.parameter import Parameter
from prompt_jax.models.prompt import Prefix, Prompt, PromptPartError, Site, check_parts, check_prompt_ids
from prompt_jax.models.rope import long_rope

Batch = Mapping[str, Any]
KeyValueArrays = tuple[Float[Array, "L B S G K"], Float[Array, "L B S G K"]]


class DecoderOnlyModule(Protocol):
    """The functions and constants in a family's file, such as `gpt2.py`.

    `config` has at least the fields `layers`, `kv_heads`, `d_kv`, `dropout_rate`, `remat`, `pad_id`, `eos_id` and
    `start_id`.
    """

    NAME: str
    HUGGING_FACE: HuggingFace
    KEYS_PER_LAYER: int  # dropout keys that `layer` needs
    LEADING_SPACE: bool  # whether texts begin with a space (see `Tokenizer`); false if omitted

    def layer_settings(self, config: Any) -> Mapping[str, np.ndarray]:
        """Return what differs between layers, [L]; `layer` finds it in `weights["settings"]`.

        The skeleton applies the setting `window`. A family whose layers are alike omits this function.
        """

    def parameters(self, config: Any) -> list[Parameter]:
        """Return the table of parameters."""

    def for_length(self, config: Any, length: int) -> Any:
        """Return the config for texts of `length` tokens, prompt included. May be omitted."""

    def embed(self, params: Params, ids: Int[Array, "B T"], config: Any) -> Float[Array, "B T D"]:
        """Embed tokens, without positions. Virtual tokens are vectors in this space."""

    def add_positions(
        self, params: Params, x: Float[Array, "B T D"], positions: Int[Array, "#B #T"], config: Any, key: Any
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Return the first layer's input, and a value for all layers (such as rotary angles, or None)."""

    def layer(
        self, x: Float[Array, "B T D"], weights: Params, shared: Any, attend: Any, config: Any, keys: Any
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Call `mixed, kept = attend(q, k, v, key)` with scaled q, and return the layer's output and `kept`.

        `attend` also takes a `softcap`, as `attention.attend`.
        """

    def logits(self, params: Params, x: Float[Array, "B T D"], config: Any) -> Float[Array, "B T V"]:
        """Return the logits, float32."""


class Encoded(NamedTuple):
    """Keys and values before the target: prefix, source and infix."""

    past: tuple[PastKeyValues, ...]
    position: Int[Array, "#B"]  # the start token's position


@dataclasses.dataclass(frozen=True)
class DecoderOnly:
    """The functions of a decoder-only family. They take parameters and a config."""

    module: Any  # the family's file, a DecoderOnlyModule
    causal: bool = dataclasses.field(default=True, init=False)

    @property
    def name(self) -> str:
        return self.module.NAME

    @property
    def hugging_face(self) -> HuggingFace:
        return self.module.HUGGING_FACE

    @property
    def leading_space(self) -> bool:
        return getattr(self.module, "LEADING_SPACE", False)

    def parameters(self, config: Any) -> list[Parameter]:
        """Return the table of parameters."""
        return self.module.parameters(config)

    def sites(self, config: Any) -> dict[Site, tuple[int, int, int]]:
        """Return (layers, key-value heads, head width) of each attention site that takes a prefix."""
        return {"decoder_self": (config.layers, config.kv_heads, config.d_kv)}

    def positions_needed(self, prompt: Prompt | None, source: int, target: int) -> dict[str, int]:
        """Return how many positions a prompt, `source` tokens and `target` tokens (with the start token) need.

        The keys of the result name the counted texts, for error messages.
        """
        slots = sum(part.slots for part in (prompt or Prompt()).parts.values())
        return {"prompt, source and target": source + target + slots}

    def for_length(self, config: Any, length: int) -> Any:
        """Return the config for texts of `length` tokens, prompt included."""
        return self.module.for_length(config, length) if hasattr(self.module, "for_length") else config

    # ----------------------------------------------------------------------------------------------------------
    # Teacher forcing

    def forward(
        self,
        params: Params,
        config: Any,
        batch: Batch,
        prompt: Prompt | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T V"]:
        """Return the logits of the target's positions, or of all positions without `decoder_inputs`.

        Arguments and result as for `prompt_jax.models.forward`. The decoder inputs are the start token and the target
        without its last token.
        """
        keys = split_key(key, 2)
        if "decoder_inputs" in batch:
            encoded = self.encode(params, config, batch, prompt, key=keys[0])
            return self.decode(params, config, encoded, batch, prompt, key=keys[1])
        before, between = self._prefixes(params, config, batch, prompt, keys[0])
        if between.layers is not None:
            raise PromptPartError("an infix stands between source and target; pass the target as `decoder_inputs`")
        text = {"decoder_inputs": batch["inputs"], "decoder_mask": batch["inputs_mask"]}
        return self.decode(params, config, Encoded((before,), before.used_slots), text, prompt, key=keys[1])

    def encode(
        self,
        params: Params,
        config: Any,
        batch: Batch,
        prompt: Prompt | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Encoded:
        """Read the source after the prompt. Arguments as for `forward`."""
        keys = split_key(key, 2)
        before, between = self._prefixes(params, config, batch, prompt, keys[0])
        order = left_aligned_order(batch["inputs_mask"])
        ids = gather_positions(batch["inputs"], order)
        mask = gather_positions(batch["inputs_mask"], order).astype(bool)
        first = before.used_slots
        x = self.module.embed(params, ids, config)
        positions = first[:, None] + np.arange(ids.shape[1])[None]
        _, source = self._run(params, config, x, positions, (before,), key=keys[1])
        end = first + mask.sum(axis=1, dtype=jnp.int32)
        read = self._placed(config, PastKeyValues(source, used=mask), first)
        if between.positions is not None:
            between = between._replace(positions=between.positions + end[:, None])
        return Encoded((before, read, between), end + between.used_slots)

    def decode(
        self,
        params: Params,
        config: Any,
        encoded: Encoded,
        batch: Batch,
        prompt: Prompt | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T V"]:
        """Read the target after the encoded source, and return its logits. Arguments as for `forward`."""
        ids, order = jnp.asarray(batch["decoder_inputs"]), None
        if batch.get("decoder_mask") is not None:
            order = left_aligned_order(batch["decoder_mask"])
            ids = gather_positions(ids, order)
        positions = encoded.position[:, None] + np.arange(ids.shape[1])[None]
        x = self.module.embed(params, ids, config)
        x, _ = self._run(params, config, x, positions, encoded.past, key=key)
        if order is not None:
            x = gather_positions(x, jnp.argsort(order, axis=1))
        return self.module.logits(params, x, config)

    def activations(
        self, params: Params, config: Any, batch: Batch, prompt: Prompt | None = None
    ) -> dict[Site, KeyValueArrays]:
        """Return the keys and values of the inputs at each attention site: a prefix equivalent to these tokens.

        Arguments as for `forward`. Real positions come first in each row of the result.
        """
        source = self.encode(params, config, batch, prompt).past[1].layers
        assert source is not None
        return {"decoder_self": source}

    def _run(
        self,
        params: Params,
        config: Any,
        x: Float[Array, "B T D"],
        positions: Int[Any, "#B T"],
        past: Sequence[PastKeyValues],
        *,
        used: Any = None,
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B T D"], KeyValueArrays]:
        """Run embedded tokens through all layers. A token attends to the past, earlier tokens and itself.

        Args:
          x: embedded tokens.
          positions: the positions of the tokens.
          past: keys and values before them, such as a prefix or the source.
          used: [B, T], false for tokens that nothing attends to; None means all are used.
          key: enables dropout.

        Returns:
          the last layer's output, and the tokens' keys and values.
        """
        indices = np.arange(x.shape[1])
        bias = jnp.asarray(np.where(indices[None, :] <= indices[:, None], 0.0, MASKED)[None, None], jnp.float32)
        if used is not None:
            bias = bias + jnp.where(used, 0.0, MASKED)[:, None, None, :]
        keys = split_key(key, 2)
        x, shared = self.module.add_positions(params, x, positions, config, keys[0])

        def layer(x, weights, extra, keys):
            window = weights.get("settings", {}).get("window")
            before = [
                kv
                for each, one in zip(past, extra, strict=True)
                for kv in each.key_values(one, x.dtype, window_bias(window, positions, each.positions))
            ]
            nearby = window_bias(window, positions, positions)

            def self_attend(q, k, v, key=None, softcap=None):
                itself = KeyValues(k, v, bias if nearby is None else bias + nearby)
                mixed = attend(q, itself, *before, softcap=softcap, dropout_rate=config.dropout_rate, key=key)
                return mixed, (k, v)

            x, kept = self.module.layer(x, weights, shared, self_attend, config, keys)
            return apply_adapter(x, weights), kept

        extra = tuple(each.layers for each in past)
        options: Any = {"remat": config.remat, "key": keys[1], "keys_per_layer": self.module.KEYS_PER_LAYER}
        return run_layers(layer, x, self._stacks(params, config), extra, **options)

    def _settings(self, config: Any) -> Mapping[str, np.ndarray]:
        return self.module.layer_settings(config) if hasattr(self.module, "layer_settings") else {}

    def _stacks(self, params: Params, config: Any) -> tuple[Params, ...]:
        """Return the stacks of layers, with the layers' settings among their weights."""
        settings = self._settings(config)
        if not settings:
            return params["layers"]
        ends = np.cumsum([depth(stack) for stack in params["layers"]])
        parts = {name: np.split(values, ends[:-1]) for name, values in settings.items()}
        return tuple(
            stack | {"settings": {name: part[number] for name, part in parts.items()}}
            for number, stack in enumerate(params["layers"])
        )

    # ----------------------------------------------------------------------------------------------------------
    # Prompts

    def as_prefix(self, params: Params, config: Any, prompt: Prompt, *, key: PRNGKeyArray | None = None) -> Prompt:
        """Replace virtual tokens by their keys and values; the logits are equal.

        Args:
          params, config: the frozen base, on which the result depends.
          prompt: a single or stacked prompt.
          key: enables dropout.

        Raises:
          PromptPartError: virtual tokens after the input, whose keys and values depend on the input.
        """
        check_parts(prompt, ("encoder_tokens", "decoder_self"), self.name)
        tokens, prefix = prompt.encoder_tokens, prompt.decoder_self
        if prefix is not None and not prefix.shift_positions:
            raise PromptPartError(
                f"{self.name} always counts positions on from a prefix; shift_positions=False is for BART"
            )
        if tokens is None:
            return prompt
        if tokens.placement == "after":
            raise PromptPartError(
                f"virtual tokens after the input depend on it, and {self.name} does not support them; use an infix"
            )
        if prefix is not None and (prefix.placement == "after" or prefix.always_visible):
            kind = "an infix" if prefix.placement == "after" else "one that is always visible"
            raise PromptPartError(f"virtual tokens can be combined with a prefix, but not with {kind}")
        stacked = prompt.stacked is not None
        each: Any = prompt if stacked else jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], prompt)
        tokens, prefix = each.encoder_tokens, each.decoder_self  # [N, ...]
        x = jnp.asarray(tokens.embeddings).astype(params["embedding"].dtype)
        rows, slots = x.shape[:2]
        used = None if tokens.mask is None else jnp.asarray(tokens.mask, bool)
        past = self._placed(config, prefix_kv(prefix, jnp.arange(rows)))
        indices = jnp.arange(slots)[None] if used is None else jnp.maximum(jnp.cumsum(used, axis=1) - 1, 0)
        positions = past.used_slots[:, None] + indices
        _, (keys, values) = self._run(params, config, x, positions, (past,), used=used, key=key)
        keys, values = keys.swapaxes(0, 1), values.swapaxes(0, 1)  # [N, L, P, G, K]
        converted = Prefix(keys, values, used, long_rope=long_rope(config))
        if prefix is not None:
            converted = _concatenate(prefix, converted)
        result = Prompt(decoder_self=converted)
        return result if stacked else jax.tree.map(lambda leaf: leaf[0], result)

    def _prefixes(
        self, params: Params, config: Any, batch: Batch, prompt: Prompt | None, key: PRNGKeyArray | None
    ) -> tuple[PastKeyValues, PastKeyValues]:
        """Return the prefix before the text, and the infix between source and target."""
        ids = batch.get("prompt_ids")
        check_prompt_ids(prompt, ids, len(batch["inputs"]))
        prefix = None if prompt is None else self.as_prefix(params, config, prompt, key=key).decoder_self
        past = prefix_kv(prefix, ids)
        if prefix is None or not prefix.always_visible:
            past = self._placed(config, past)
        if prefix is not None and prefix.placement == "after":
            return PastKeyValues(None), past
        return past, PastKeyValues(None)

    def _placed(self, config: Any, past: PastKeyValues, first: Int[Array, "#B"] | int = 0) -> PastKeyValues:
        """Return the past with the positions of its slots, the first of which is `first`, for sliding windows."""
        if past.layers is None or "window" not in self._settings(config):
            return past
        used = jnp.ones((1, past.length), bool) if past.used is None else past.used
        return past._replace(positions=jnp.asarray(first).reshape(-1, 1) + jnp.cumsum(used, axis=1) - 1)

    # ----------------------------------------------------------------------------------------------------------
    # Decoding

    def prefill(
        self,
        params: Params,
        config: Any,
        encoded: Encoded,
        batch: Batch,
        prompt: Prompt | None,
        capacity: int,
        beams: int = 1,
    ) -> tuple[Int[Array, "B beams"], Cache]:
        """Return the start tokens, and a cache for `capacity` generated tokens.

        The start tokens are the batch's `start_ids` [B]. By default they are `config.start_id`, the separator between
        a task's source and target.
        """
        rows = len(batch["inputs"])
        cache = empty_cache(
            params["layers"],
            encoded.past,
            rows=rows,
            beams=beams,
            capacity=capacity,
            heads=config.kv_heads,
            width=config.d_kv,
            dtype=params["embedding"].dtype,
            position=encoded.position,
        )
        start = jnp.asarray(batch.get("start_ids", np.full(rows, config.start_id, np.int32)))
        return jnp.broadcast_to(start[:, None], (rows, beams)), cache

    def decode_step(
        self, params: Params, config: Any, tokens: Int[Array, "B beams"], cache: Cache
    ) -> tuple[Float[Array, "B beams V"], Cache]:
        """Append one token to each beam of each row, and return the next token's logits."""
        positions = (cache.position + cache.length)[:, None]
        x = self.module.embed(params, tokens, config)
        x, shared = self.module.add_positions(params, x, positions, config, None)

        def layer(x, weights, append, past):
            window = weights.get("settings", {}).get("window")

            def self_attend(q, k, v, key=None, softcap=None):
                steps = np.arange(cache.capacity)[None]
                kept, generated = append(k, v, window_bias(window, cache.length[None, None], steps))
                before = [
                    kv
                    for number, each in enumerate(cache.past)
                    for kv in past(number, window_bias(window, positions, each.positions))
                ]
                return attend(q, generated, *before, softcap=softcap), kept

            keys = split_key(None, self.module.KEYS_PER_LAYER)
            x, kept = self.module.layer(x, weights, shared, self_attend, config, keys)
            return apply_adapter(x, weights), kept

        x, cache = decode_layers(layer, x, self._stacks(params, config), cache)
        return self.module.logits(params, x, config), cache


def _concatenate(first: Any, second: Prefix) -> Prefix:
    """Concatenate two prefixes [N, L, P, G, K]."""
    keys, values = (
        jnp.concatenate([jnp.asarray(a).astype(b.dtype), b], axis=2)
        for a, b in ((first.keys, second.keys), (first.values, second.values))
    )
    if first.mask is None and second.mask is None:
        return first.replace(keys=keys, values=values)
    rows = len(keys)
    masks = [
        jnp.ones((rows, prefix.keys.shape[2]), bool) if prefix.mask is None else jnp.asarray(prefix.mask, bool)
        for prefix in (first, second)
    ]
    return first.replace(keys=keys, values=values, mask=jnp.concatenate(masks, axis=1))
