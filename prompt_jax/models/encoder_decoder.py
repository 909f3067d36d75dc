"""The skeleton of encoder-decoder models such as T5 and BART. `prompt_jax.models` explains the shape letters.

A family's file provides `parameters`, `embed`, `add_positions`, `encoder_layer`, `decoder_layer`, `final_norm`,
`logits`, and the projections of cross-attention (see `EncoderDecoderModule`). From these, the skeleton builds the
forward pass, prefill and decoding, and activations for prefixes. A layer is written once. It calls
`attend(q, k, v, key) -> (mixed, kept)`: in teacher forcing this attends to the text and the prefix; in decoding it also
appends to the cache. It calls `attend_cross(q, weights, key) -> mixed` to attend to the encoder's output.

Positions count real tokens only, so padding on any side changes nothing. The order of positions is: prefix, virtual
tokens, text.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prompt_jax.models.attention import KeyValues, attend
from prompt_jax.models.cache import Cache, decode_layers, empty_cache
from prompt_jax.models.hugging_face import HuggingFace
from prompt_jax.models.inputs import PastKeyValues, gather_positions, left_aligned_order, prefix_kv, virtual_tokens
from prompt_jax.models.layers import Params, apply_adapter, join_stacks, run_layers, split_key
from prompt_jax.models.parameter import Parameter
from prompt_jax.models.prompt import Prefix, Prompt, Site, check_no_infix, check_prompt_ids

Batch = Mapping[str, Any]
KeyValueArrays = tuple[Float[Array, "L B S G K"], Float[Array, "L B S G K"]]
# From a layer's weights to its self-attention biases: for the text, and for a prefix.
Biases = Callable[[Params], tuple[Any, Any]]


class EncoderDecoderModule(Protocol):
    """The functions and constants in a family's file, such as `t5.py`.

    `config` has at least the fields `dropout_rate`, `remat`, `fused_attention`, `fsdp`, `pad_id`, `eos_id` and
    `start_id`. `side` is "encoder" or "decoder", or the parameters of that side.
    """

    NAME: str
    HUGGING_FACE: HuggingFace
    ENCODER_KEYS: int  # dropout keys that an encoder layer needs
    DECODER_KEYS: int

    def parameters(self, config: Any) -> list[Parameter]:
        """Return the table of parameters."""

    def shape(self, config: Any, side: str) -> tuple[int, int, int]:
        """Return the number of layers, key-value heads and head width of a side."""

    def embed(self, params: Params, ids: Int[Array, "B T"], config: Any) -> Float[Array, "B T D"]:
        """Embed tokens, without positions. Virtual tokens are vectors in this space."""

    def add_positions(
        self, side: Params, x: Float[Array, "B T D"], positions: Int[Array, "#B #T"], config: Any, key: Any
    ) -> Float[Array, "B T D"]:
        """Return the first layer's input."""

    def biases(
        self,
        side: Params,
        config: Any,
        places: np.ndarray,
        prefix: int,
        bidirectional: bool,
        row: Any = None,
    ) -> Biases:
        """Return the self-attention biases.

        Args:
          places: [T], the positions of queries and keys.
          prefix: the length of the prefix.
          bidirectional: whether queries attend to later keys.
          row: index of the only query to return, or None for all queries.
        """

    def encoder_layer(
        self, x: Float[Array, "B T D"], weights: Params, attend: Any, config: Any, keys: Any
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Return the layer's output, and `kept` of its call of `attend`."""

    def decoder_layer(
        self, x: Float[Array, "B T D"], weights: Params, attend: Any, attend_cross: Any, config: Any, keys: Any
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Return the layer's output, and `kept` of its call of `attend`."""

    def cross_key_values(self, encoded: Float[Array, "B S D"], weights: Params) -> tuple[Array, Array]:
        """Project the encoder's output to one layer's keys and values [B, S, G, K]."""

    def attend_encoded(
        self, q: Array, encoded: Float[Array, "B S D"], weights: Params, mask: Array, prefix: Any, config: Any, key: Any
    ) -> Float[Array, "B T H K"]:
        """Attend to the encoder's output and a prefix in teacher forcing."""

    def final_norm(self, side: Params, x: Float[Array, "B T D"], config: Any, key: Any) -> Float[Array, "B T D"]:
        """Return a side's output from its last layer's output."""

    def logits(self, params: Params, x: Float[Array, "B T D"], config: Any) -> Float[Array, "B T V"]:
        """Return the logits, float32."""


class Encoded(NamedTuple):
    """The encoder's output, and the mask of its real positions."""

    output: Float[Array, "B S D"]
    mask: Bool[Array, "B S"]


_CROSS, _SELF_PREFIX, _CROSS_PREFIX = range(3)  # indices into `Cache.past`


@dataclasses.dataclass(frozen=True)
class EncoderDecoder:
    """The functions of an encoder-decoder family. They take parameters and a config."""

    module: Any  # the family's file, an EncoderDecoderModule
    causal: bool = dataclasses.field(default=False, init=False)
    leading_space: bool = dataclasses.field(default=False, init=False)

    @property
    def name(self) -> str:
        return self.module.NAME

    @property
    def hugging_face(self) -> HuggingFace:
        return self.module.HUGGING_FACE

    def parameters(self, config: Any) -> list[Parameter]:
        """Return the table of parameters."""
        return self.module.parameters(config)

    def sites(self, config: Any) -> dict[Site, tuple[int, int, int]]:
        """Return (layers, key-value heads, head width) of each attention site that takes a prefix."""
        decoder = self.module.shape(config, "decoder")
        return {"encoder_self": self.module.shape(config, "encoder"), "decoder_self": decoder, "decoder_cross": decoder}

    def positions_needed(self, prompt: Prompt | None, source: int, target: int) -> dict[str, int]:
        """Return how many positions encoder and decoder need for a prompt, `source` tokens and `target` tokens.

        The target includes the start token. The keys of the result name the counted texts, for error messages.
        """
        prompt = prompt or Prompt()
        tokens = 0 if prompt.encoder_tokens is None else prompt.encoder_tokens.slots

        def shift(prefix: Prefix | None) -> int:
            return prefix.slots if prefix is not None and prefix.shift_positions else 0

        return {
            "prompt and source": shift(prompt.encoder_self) + tokens + source,
            "prompt and target": shift(prompt.decoder_self) + target,
        }

    def for_length(self, config: Any, length: int) -> Any:
        """Return the config, which does not depend on the length of texts."""
        return config

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
        """Return the logits of the decoder's positions.

        Arguments and result as for `prompt_jax.models.forward`. The decoder inputs are the start token and the target
        without its last token.
        """
        keys = split_key(key, 2)
        encoded = self.encode(params, config, batch, prompt, key=keys[0])
        return self.decode(params, config, encoded, batch, prompt, key=keys[1])

    def encode(
        self,
        params: Params,
        config: Any,
        batch: Batch,
        prompt: Prompt | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Encoded:
        """Run the encoder over virtual tokens and text. The output's positions may be reordered; see its mask."""
        return self._encode(params, config, batch, prompt, key)[0]

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
        """Run the decoder over all target positions at once, and return the logits. Arguments as for `forward`."""
        return self._decode(params, config, encoded, batch, prompt, key)[0]

    def activations(
        self, params: Params, config: Any, batch: Batch, prompt: Prompt | None = None
    ) -> dict[Site, KeyValueArrays]:
        """Return the keys and values of the text at each attention site: a prefix equivalent to these tokens.

        Arguments as for `forward`. Real positions come first in each row of the result.
        """
        encoded, encoder_self = self._encode(params, config, batch, prompt, capture=True)
        _, decoder_self = self._decode(params, config, encoded, batch, prompt, capture=True)
        cross = self._cross_key_values(params, encoded)
        return {"encoder_self": encoder_self, "decoder_self": decoder_self, "decoder_cross": cross}

    def _encode(
        self,
        params: Params,
        config: Any,
        batch: Batch,
        prompt: Prompt | None,
        key: PRNGKeyArray | None = None,
        capture: bool = False,
    ) -> tuple[Encoded, Any]:
        """Return `encode`'s result and, with `capture`, the self-attention's keys and values [L, B, S, G, K]."""
        prompt_ids, prompt = batch.get("prompt_ids"), prompt or Prompt()
        check_prompt_ids(prompt, prompt_ids, len(batch["inputs"]))
        check_no_infix(prompt, self.name)
        # Real positions move to the front of each row. Then virtual tokens are adjacent to the text, and one table of
        # relative positions serves the whole batch. They are not moved back, because cross-attention has no positions.
        order = left_aligned_order(batch["inputs_mask"])
        ids, mask = (gather_positions(batch[name], order) for name in ("inputs", "inputs_mask"))
        x, mask = self.module.embed(params, ids, config), mask.astype(bool)
        prefix = prefix_kv(prompt.encoder_self, prompt_ids)
        if (tokens := prompt.encoder_tokens) is not None:
            after = tokens.placement == "after"
            virtual, used = virtual_tokens(tokens, prompt_ids, len(x), x.dtype)
            x = jnp.concatenate([x, virtual] if after else [virtual, x], axis=1)
            mask = jnp.concatenate([mask, used] if after else [used, mask], axis=1)
            if after or tokens.mask is not None or (prompt_ids is not None and prefix.length):
                order = left_aligned_order(mask)
                x, mask = gather_positions(x, order), gather_positions(mask, order)

        side, keys, places = params["encoder"], split_key(key, 3), np.arange(x.shape[1])
        biases = self.module.biases(side, config, places, prefix.length, bidirectional=True)
        positions = _offset(prefix, prompt.encoder_self)[:, None] + places[None]

        def layer(x, weights, extra, key):
            keys = split_key(key, self.module.ENCODER_KEYS)
            self_attend = self._teacher_forced_attention(biases(weights), prefix, extra, config, mask=mask)
            x, kept = self.module.encoder_layer(x, weights, self_attend, config, keys)
            return apply_adapter(x, weights), kept if capture else None

        x = self.module.add_positions(side, x, positions, config, keys[0])
        x, captured = run_layers(layer, x, side["layers"], prefix.layers, config=config, key=keys[1])
        return Encoded(self.module.final_norm(side, x, config, keys[2]), mask), captured

    def _decode(
        self,
        params: Params,
        config: Any,
        encoded: Encoded,
        batch: Batch,
        prompt: Prompt | None,
        key: PRNGKeyArray | None = None,
        capture: bool = False,
    ) -> tuple[Float[Array, "B T V"], Any]:
        """Return `decode`'s result and, with `capture`, the self-attention's keys and values [L, B, T, G, K]."""
        prompt, prompt_ids = prompt or Prompt(), batch.get("prompt_ids")
        check_prompt_ids(prompt, prompt_ids, len(batch["decoder_inputs"]))
        prefix, cross_prefix = (prefix_kv(each, prompt_ids) for each in (prompt.decoder_self, prompt.decoder_cross))
        ids, order = jnp.asarray(batch["decoder_inputs"]), None
        if batch.get("decoder_mask") is not None:
            order = left_aligned_order(batch["decoder_mask"])
            ids = gather_positions(ids, order)

        side, keys, places = params["decoder"], split_key(key, 3), np.arange(ids.shape[1])
        biases = self.module.biases(side, config, places, prefix.length, bidirectional=False)
        positions = _offset(prefix, prompt.decoder_self)[:, None] + places[None]

        def layer(x, weights, extra, key):
            keys = split_key(key, self.module.DECODER_KEYS)
            self_attend = self._teacher_forced_attention(
                biases(weights), prefix, extra[0], config, positions=places[None]
            )
            before = cross_prefix.key_values(extra[1], x.dtype)

            def attend_cross(q, weights, key=None):
                return self.module.attend_encoded(q, encoded.output, weights, encoded.mask, before, config, key)

            x, kept = self.module.decoder_layer(x, weights, self_attend, attend_cross, config, keys)
            return apply_adapter(x, weights), kept if capture else None

        x = self.module.add_positions(side, self.module.embed(params, ids, config), positions, config, keys[0])
        extra = prefix.layers, cross_prefix.layers
        x, captured = run_layers(layer, x, side["layers"], extra, config=config, key=keys[1])
        x = self.module.final_norm(side, x, config, keys[2])
        if order is not None:
            x = gather_positions(x, jnp.argsort(order, axis=1))
        return self.module.logits(params, x, config), captured

    def _teacher_forced_attention(
        self,
        biases: tuple[Any, Any],
        prefix: PastKeyValues,
        layer: Any,
        config: Any,
        *,
        mask: Any = None,
        positions: Any = None,
    ) -> Callable[..., Any]:
        """Return a layer's `attend` for teacher forcing, with one layer of the prefix.

        `mask` or `positions` are those of the text, as in `KeyValues`.
        """
        text_bias, prefix_bias = biases
        options: Any = {"dropout_rate": config.dropout_rate, "fused": config.fused_attention}

        def self_attend(q, k, v, key=None):
            text = KeyValues(k, v, text_bias, mask, positions)
            before = prefix.key_values(layer, q.dtype, prefix_bias)
            return attend(q, text, *before, positions=positions, key=key, **options), (k, v)

        return self_attend

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
        """Return the start tokens, and a cache for `capacity` generated tokens."""
        prompt_ids = batch.get("prompt_ids")
        prompt, (_, heads, width) = prompt or Prompt(), self.module.shape(config, "decoder")
        prefix = prefix_kv(prompt.decoder_self, prompt_ids)
        cross = PastKeyValues(self._cross_key_values(params, encoded), used=encoded.mask)
        cache = empty_cache(
            params["decoder"]["layers"],
            (cross, prefix, prefix_kv(prompt.decoder_cross, prompt_ids)),
            rows=len(encoded.mask),
            beams=beams,
            capacity=capacity,
            heads=heads,
            width=width,
            dtype=encoded.output.dtype,
            position=_offset(prefix, prompt.decoder_self),
        )
        return jnp.full((len(encoded.mask), beams), config.start_id, jnp.int32), cache

    def decode_step(
        self, params: Params, config: Any, tokens: Int[Array, "B beams"], cache: Cache
    ) -> tuple[Float[Array, "B beams V"], Cache]:
        """Append one token to each beam of each row, and return the next token's logits."""
        side, places = params["decoder"], np.arange(cache.capacity)
        prefix = cache.past_length(_SELF_PREFIX)
        biases = self.module.biases(side, config, places, prefix, bidirectional=False, row=cache.length)

        def layer(x, weights, append, past):
            text_bias, prefix_bias = biases(weights)

            def self_attend(q, k, v, key=None):
                kept, generated = append(k, v, text_bias)
                return attend(q, generated, *past(_SELF_PREFIX, prefix_bias)), kept

            def attend_cross(q, weights, key=None):
                return attend(q, *past(_CROSS), *past(_CROSS_PREFIX))

            keys = split_key(None, self.module.DECODER_KEYS)
            x, kept = self.module.decoder_layer(x, weights, self_attend, attend_cross, config, keys)
            return apply_adapter(x, weights), kept

        positions = (cache.position + cache.length)[:, None]
        x = self.module.add_positions(side, self.module.embed(params, tokens, config), positions, config, None)
        x, cache = decode_layers(layer, x, side["layers"], cache)
        return self.module.logits(params, self.module.final_norm(side, x, config, None), config), cache

    def _cross_key_values(self, params: Params, encoded: Encoded) -> KeyValueArrays:
        """Project the encoder's output to the keys and values of all decoder layers."""
        cross = join_stacks(params["decoder"]["layers"])["cross"]

        # The cache has heads first. In this order, XLA makes no second copy of all layers to swap the axes.
        def heads_first(layer: Params) -> tuple[Array, Array]:
            k, v = self.module.cross_key_values(encoded.output, layer)
            return k.swapaxes(1, 2), v.swapaxes(1, 2)

        k, v = jax.lax.map(heads_first, cross)
        return k.swapaxes(2, 3), v.swapaxes(2, 3)


def _offset(prefix_key_values: PastKeyValues, prefix: Prefix | None) -> Int[Array, "#B"]:
    """Return the position of the first token after a prefix."""
    shifts = prefix is not None and prefix.shift_positions
    return prefix_key_values.used_slots if shifts else jnp.zeros(1, jnp.int32)
