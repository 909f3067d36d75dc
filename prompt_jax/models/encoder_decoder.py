"""The skeleton of an encoder-decoder model: all that a family such as T5 or BART does not need to say itself.

A family provides `parameters, embed, begin, encoder_layer, decoder_layer, end, logits` and the projections of
cross-attention (`Family`). The skeleton makes from them the forward pass, prefill and decoding, and the activations
for prefixes. Each layer is written once. It receives `attend(q, k, v, key) -> (mixed, kept)`, which attends to these
keys and the prefix in teacher forcing, and appends to the cache in decoding; and `attend_cross(q, weights, key) ->
mixed`, which attends to the encoder's output.

Positions are counted over real tokens, so padding on any side changes nothing. The order of positions is: prefix,
virtual tokens, text. Shapes: see `prompt_jax.models`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prompt_jax.models.attention import MASKED, KeyValues, attend, mask_bias
from prompt_jax.models.cache import Cache, decode_layers, empty_cache
from prompt_jax.models.hugging_face import HuggingFace
from prompt_jax.models.inputs import PastKeyValues, gather_positions, prefix_kv, real_first, virtual_tokens
from prompt_jax.models.layers import Params, apply_adapter, join_stacks, run_layers, split_key
from prompt_jax.models.parameter import Parameter
from prompt_jax.models.prompt import Prefix, Prompt, Site, check_no_infix, check_prompt_ids

Batch = Mapping[str, Any]
KeysAndValues = tuple[Float[Array, "L B S G K"], Float[Array, "L B S G K"]]
# From a layer's weights to the biases of its self-attention: over text, and over a prefix.
Biases = Callable[[Params], tuple[Any, Any]]


class Family(Protocol):
    """What a file such as `t5.py` provides. `config` has `dropout_rate` and `remat`; `side` is encoder or decoder."""

    NAME: str
    HUGGING_FACE: HuggingFace
    ENCODER_KEYS: int
    DECODER_KEYS: int

    def parameters(self, config: Any) -> list[Parameter]:
        """Return every parameter of a model, with its name in a checkpoint."""

    def shape(self, config: Any, side: str) -> tuple[int, int, int]:
        """Return the layers, key-value heads and head width of a side."""

    def embed(self, params: Params, ids: Int[Array, "B T"], config: Any) -> Float[Array, "B T D"]:
        """Embed tokens, without positions. Virtual tokens stand in this space."""

    def begin(
        self, side: Params, x: Float[Array, "B T D"], positions: Int[Array, "#B #T"], config: Any, key: Any
    ) -> Float[Array, "B T D"]:
        """Return the input of the first layer."""

    def biases(
        self,
        side: Params,
        config: Any,
        places: np.ndarray,
        mask: Any,
        prefix: int,
        bidirectional: bool,
        row: Any = None,
    ) -> Biases:
        """Return the biases of self-attention, the mask included.

        Args:
          places: [T] of queries and keys.
          mask: the bias of masked positions, or None.
          prefix: the length of the prefix.
          row: the only query wanted, or None for all.
        """

    def encoder_layer(
        self, x: Float[Array, "B T D"], weights: Params, attend: Any, config: Any, keys: Any
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Return the layer's output, and `kept` of its call of `attend`."""

    def decoder_layer(
        self, x: Float[Array, "B T D"], weights: Params, attend: Any, attend_cross: Any, config: Any, keys: Any
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Return the layer's output, and `kept` of its call of `attend`."""

    def cross_keys(self, encoded: Float[Array, "B S D"], weights: Params) -> tuple[Array, Array]:
        """Return the keys and values [B, S, G, K] of the encoder's output in one layer."""

    def attend_encoded(
        self, q: Array, encoded: Float[Array, "B S D"], weights: Params, bias: Array, prefix: Any, config: Any, key: Any
    ) -> Float[Array, "B T H K"]:
        """Attend to the encoder's output and a prefix in teacher forcing."""

    def end(self, side: Params, x: Float[Array, "B T D"], config: Any, key: Any) -> Float[Array, "B T D"]:
        """Return the output of a side, given that of its last layer."""

    def logits(self, params: Params, x: Float[Array, "B T D"], config: Any) -> Float[Array, "B T V"]:
        """Return the logits, float32."""


class Encoded(NamedTuple):
    """What the decoder sees of the input: the encoder's output, and which of its positions are real."""

    output: Float[Array, "B S D"]
    mask: Bool[Array, "B S"]


_CROSS, _SELF_PREFIX, _CROSS_PREFIX = range(3)  # the items of the cache's `seen`


@dataclasses.dataclass(frozen=True)
class EncoderDecoder:
    """An encoder-decoder model of a family, as functions of parameters and configuration."""

    module: Any  # see Family
    causal: bool = dataclasses.field(default=False, init=False)

    @property
    def name(self) -> str:
        return self.module.NAME

    @property
    def hugging_face(self) -> HuggingFace:
        return self.module.HUGGING_FACE

    def parameters(self, config: Any) -> list[Parameter]:
        """Return every parameter of a model."""
        return self.module.parameters(config)

    def sites(self, config: Any) -> dict[Site, tuple[int, int, int]]:
        """Return the attention sites that take a prefix, with their layers, key-value heads and head width."""
        decoder = self.module.shape(config, "decoder")
        return {"encoder_self": self.module.shape(config, "encoder"), "decoder_self": decoder, "decoder_cross": decoder}

    def positions_needed(self, prompt: Prompt | None, source: int, target: int) -> dict[str, int]:
        """Return how many positions texts of these lengths take; the start token is one of the target's."""
        prompt = prompt or Prompt()
        tokens = 0 if prompt.encoder_tokens is None else prompt.encoder_tokens.slots

        def shift(prefix: Prefix | None) -> int:
            return prefix.slots if prefix is not None and prefix.shift_positions else 0

        return {
            "prompt and source": shift(prompt.encoder_self) + tokens + source,
            "prompt and target": shift(prompt.decoder_self) + target,
        }

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

        Args:
          params: the frozen base.
          config: its architecture.
          batch: `inputs` [B, S] int32 and `inputs_mask` [B, S] bool; `decoder_inputs` [B, T] int32 (the start token,
            then the target without its last token) and, if these are not padded on the right only, `decoder_mask`
            [B, T] bool. A stacked prompt needs `prompt_ids` [B] int32.
          prompt: what is added to the base; None is the base model.
          key: turns dropout on.

        Returns:
          float32; masked positions have no meaning.
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
        """Run the encoder over virtual tokens and text. The order of the output's positions is the encoder's own."""
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
    ) -> dict[Site, KeysAndValues]:
        """Return the keys and values of text at each attention site: the prefix that these tokens amount to.

        Args:
          params, config, batch, prompt: as for `forward`. Real positions come first in each row.
        """
        encoded, encoder_self = self._encode(params, config, batch, prompt, capture=True)
        _, decoder_self = self._decode(params, config, encoded, batch, prompt, capture=True)
        cross = self._cross_keys(params, encoded)
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
        """Return what `encode` returns and, if wanted, the keys and values of the self-attention [L, B, S, G, K]."""
        prompt_ids, prompt = batch.get("prompt_ids"), prompt or Prompt()
        check_prompt_ids(prompt, prompt_ids, len(batch["inputs"]))
        check_no_infix(prompt, self.name)
        # Real positions move to the front of each row, so that text and virtual tokens touch and one table of relative
        # positions serves the whole batch. Nothing moves back: cross-attention has no positions.
        order = real_first(batch["inputs_mask"])
        ids, mask = (gather_positions(batch[name], order) for name in ("inputs", "inputs_mask"))
        x, mask = self.module.embed(params, ids, config), mask.astype(bool)
        prefix = prefix_kv(prompt.encoder_self, prompt_ids)
        if (tokens := prompt.encoder_tokens) is not None:
            after = tokens.placement == "after"
            virtual, used = virtual_tokens(tokens, prompt_ids, len(x), x.dtype)
            x = jnp.concatenate([x, virtual] if after else [virtual, x], axis=1)
            mask = jnp.concatenate([mask, used] if after else [used, mask], axis=1)
            if after or tokens.mask is not None or (prompt_ids is not None and prefix.length):
                order = real_first(mask)
                x, mask = gather_positions(x, order), gather_positions(mask, order)

        side, keys, places = params["encoder"], split_key(key, 3), np.arange(x.shape[1])
        biases = self.module.biases(side, config, places, mask_bias(mask), prefix.length, bidirectional=True)
        positions = _offset(prefix, prompt.encoder_self)[:, None] + places[None]

        def layer(x, weights, extra, keys):
            attend_here = self._teacher_forced(biases(weights), prefix, extra, config)
            x, kept = self.module.encoder_layer(x, weights, attend_here, config, keys)
            return apply_adapter(x, weights), kept if capture else None

        x = self.module.begin(side, x, positions, config, keys[0])
        options: Any = {"remat": config.remat, "key": keys[1], "keys_per_layer": self.module.ENCODER_KEYS}
        x, captured = run_layers(layer, x, side["layers"], prefix.layers, **options)
        return Encoded(self.module.end(side, x, config, keys[2]), mask), captured

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
        """Return what `decode` returns and, if wanted, the keys and values of the self-attention [L, B, T, G, K]."""
        prompt, prompt_ids = prompt or Prompt(), batch.get("prompt_ids")
        check_prompt_ids(prompt, prompt_ids, len(batch["decoder_inputs"]))
        prefix, cross_prefix = (prefix_kv(each, prompt_ids) for each in (prompt.decoder_self, prompt.decoder_cross))
        ids, order = jnp.asarray(batch["decoder_inputs"]), None
        if batch.get("decoder_mask") is not None:
            order = real_first(batch["decoder_mask"])
            ids = gather_positions(ids, order)

        side, keys, places = params["decoder"], split_key(key, 3), np.arange(ids.shape[1])
        causal = np.where(places[None, :] <= places[:, None], 0.0, MASKED).astype(np.float32)[None, None]
        biases = self.module.biases(side, config, places, causal, prefix.length, bidirectional=False)
        cross_bias = mask_bias(encoded.mask)
        positions = _offset(prefix, prompt.decoder_self)[:, None] + places[None]

        def layer(x, weights, extra, keys):
            attend_here = self._teacher_forced(biases(weights), prefix, extra[0], config)
            before = cross_prefix.key_values(extra[1], x.dtype)

            def attend_cross(q, weights, key=None):
                return self.module.attend_encoded(q, encoded.output, weights, cross_bias, before, config, key)

            x, kept = self.module.decoder_layer(x, weights, attend_here, attend_cross, config, keys)
            return apply_adapter(x, weights), kept if capture else None

        x = self.module.begin(side, self.module.embed(params, ids, config), positions, config, keys[0])
        extra = prefix.layers, cross_prefix.layers
        options: Any = {"remat": config.remat, "key": keys[1], "keys_per_layer": self.module.DECODER_KEYS}
        x, captured = run_layers(layer, x, side["layers"], extra, **options)
        x = self.module.end(side, x, config, keys[2])
        if order is not None:
            x = gather_positions(x, jnp.argsort(order, axis=1))
        return self.module.logits(params, x, config), captured

    def _teacher_forced(
        self, biases: tuple[Any, Any], prefix: PastKeyValues, layer: Any, config: Any
    ) -> Callable[..., Any]:
        """Return the `attend` of a layer that sees all positions at once."""
        text, before = biases

        def attend_here(q, k, v, key=None):
            key_values = KeyValues(k, v, text), *prefix.key_values(layer, q.dtype, before)
            return attend(q, *key_values, dropout_rate=config.dropout_rate, key=key), (k, v)

        return attend_here

    # ----------------------------------------------------------------------------------------------------------
    # Decoding, one token at a time

    def prefill(
        self, params: Params, config: Any, batch: Batch, prompt: Prompt | None, capacity: int, beams: int = 1
    ) -> tuple[Int[Array, "B beams"], Cache]:
        """Read the input, and return the start tokens and a cache for `capacity` generated tokens."""
        encoded, prompt_ids = self.encode(params, config, batch, prompt), batch.get("prompt_ids")
        prompt, (_, heads, width) = prompt or Prompt(), self.module.shape(config, "decoder")
        prefix = prefix_kv(prompt.decoder_self, prompt_ids)
        cross = PastKeyValues(self._cross_keys(params, encoded), used=encoded.mask)
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
        """Append one token to each beam of each row, and return the logits of the next."""
        side, places = params["decoder"], np.arange(cache.capacity)
        prefix = cache.past_length(_SELF_PREFIX)
        biases = self.module.biases(side, config, places, None, prefix, bidirectional=False, row=cache.length)

        def layer(x, weights, append, past):
            text, before = biases(weights)

            def attend_here(q, k, v, key=None):
                kept, generated = append(k, v, text)
                return attend(q, generated, *past(_SELF_PREFIX, before)), kept

            def attend_cross(q, weights, key=None):
                return attend(q, *past(_CROSS), *past(_CROSS_PREFIX))

            keys = split_key(None, self.module.DECODER_KEYS)
            x, kept = self.module.decoder_layer(x, weights, attend_here, attend_cross, config, keys)
            return apply_adapter(x, weights), kept

        positions = (cache.position + cache.length)[:, None]
        x = self.module.begin(side, self.module.embed(params, tokens, config), positions, config, None)
        x, cache = decode_layers(layer, x, side["layers"], cache)
        return self.module.logits(params, self.module.end(side, x, config, None), config), cache

    def _cross_keys(self, params: Params, encoded: Encoded) -> KeysAndValues:
        """Return the decoder's keys and values of the encoder's output, in all layers."""
        cross = join_stacks(params["decoder"]["layers"])["cross"]
        return jax.lax.map(lambda layer: self.module.cross_keys(encoded.output, layer), cross)


def _offset(prefix_key_values: PastKeyValues, prefix: Prefix | None) -> Int[Array, "#B"]:
    """Return the position of what follows a prefix."""
    shifts = prefix is not None and prefix.shift_positions
    return prefix_key_values.used_slots if shifts else jnp.zeros(1, jnp.int32)
