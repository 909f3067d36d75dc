"""The skeleton of decoder-only models such as GPT-2 and Llama. `prompt_jax.models` explains the shape letters.

A family's file provides `parameters`, `embed`, `add_positions`, `layer` and `logits` (see `DecoderOnlyModule`). From
these, the skeleton builds the forward pass, prefill and decoding, activations for prefixes, and the conversion of
virtual tokens to a prefix. A layer is written once. It calls `attend(q, k, v, key) -> (mixed, kept)`: in teacher
forcing this attends to the text and the prefix; in decoding it also appends to the cache.

A batch may split a text into source and target, as in Li and Liang (2021). The result equals reading one text, but only
the target's logits are computed, and batches look like those of encoder-decoders. `forward` reads source and target in
one loop over the layers: in each layer, the target attends to the keys and values that the source has just computed. So
weights that are sharded over devices are collected once in each pass, and with `remat full` a step keeps no keys and
values. Generation, and scores of several targets, need the source's keys and values of all layers: `encode` returns
them, and `decode` reads a target after them.

A prompt before the text does not depend on the text. So the loop reads virtual tokens once for the whole batch, and all
rows share their keys and values. `as_prefix` converts virtual tokens to the equivalent prefix.

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

from prompt_jax.models.attention import KeyValues, attend
from prompt_jax.models.cache import Cache, decode_layers, empty_cache
from prompt_jax.models.hugging_face import HuggingFace
from prompt_jax.models.inputs import PastKeyValues, gather_positions, left_aligned_order, prefix_kv, used_mask
from prompt_jax.models.layers import Params, apply_adapter, depth, run_layers, split_key
from prompt_jax.models.parameter import Parameter
from prompt_jax.models.prompt import Prefix, Prompt, PromptPartError, Site, check_parts, check_prompt_ids
from prompt_jax.models.rope import long_rope

Batch = Mapping[str, Any]
KeyValueArrays = tuple[Float[Array, "L B S G K"], Float[Array, "L B S G K"]]


class DecoderOnlyModule(Protocol):
    """The functions and constants in a family's file, such as `gpt2.py`.

    `config` has at least the fields `layers`, `kv_heads`, `d_kv`, `dropout_rate`, `remat`, `fused_attention`, `fsdp`,
    `pad_id`, `eos_id` and `start_id`.
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
    """Keys and values before the target: a prefix or infix, virtual tokens, and the source."""

    past: tuple[PastKeyValues, ...]
    position: Int[Array, "#B"]  # the start token's position


class _Text(NamedTuple):
    """Tokens that a loop over layers reads: the virtual tokens, the source, or the target.

    They attend to `past`, to the texts before them in the same loop, and to themselves.

    Attributes:
      x: embedded tokens, [B, T, D], or [N, P, D] for the virtual tokens of N prompts.
      positions: [#B, T].
      past: keys and values before them that are already computed, such as a prefix's.
      key: enables dropout.
      used: [N, P], which virtual tokens are used; None if all are. A source needs no mask: its padding comes last.
      seen: mask, positions and prompt ids with which later texts see these tokens; `as_past` adds keys and values.
      shared: whether all rows of later texts see the first row of this one.
    """

    x: Float[Array, "B T D"]
    positions: Int[Any, "#B T"]
    past: tuple[PastKeyValues, ...]
    key: PRNGKeyArray | None
    used: Any = None
    seen: PastKeyValues = PastKeyValues(None)
    shared: bool = False

    def as_past(self, keys: Array, values: Array) -> PastKeyValues:
        """Return the keys and values of all layers, or of one layer, as later texts see them."""
        layers = (jnp.squeeze(keys, -4), jnp.squeeze(values, -4)) if self.shared else (keys, values)
        return self.seen._replace(layers=layers)


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
            texts, encoded = self._before_target(params, config, batch, prompt, keys[0])
            return self._logits(params, config, texts, encoded, batch, keys[1])
        texts, before, between = self._prompt(params, config, batch, prompt, keys[0])
        if between is not None:
            raise PromptPartError("an infix stands between source and target; pass the target as `decoder_inputs`")
        encoded = Encoded(before, _used_slots(texts, before))
        target = {"decoder_inputs": batch["inputs"], "decoder_mask": batch["inputs_mask"]}
        return self._logits(params, config, texts, encoded, target, keys[1])

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
        texts, encoded = self._before_target(params, config, batch, prompt, key)
        read = self._run(params, config, texts, keep=True)
        past = [text.as_past(*kept) for text, (_, kept) in zip(texts, read, strict=True)]
        return encoded._replace(past=(*encoded.past, *past))

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
        return self._logits(params, config, (), encoded, batch, key)

    def _before_target(
        self, params: Params, config: Any, batch: Batch, prompt: Prompt | None, key: PRNGKeyArray | None
    ) -> tuple[tuple[_Text, ...], Encoded]:
        """Return the texts before the target (virtual tokens and source), and what is already computed."""
        keys = split_key(key, 2)
        texts, before, between = self._prompt(params, config, batch, prompt, keys[0])
        order = left_aligned_order(batch["inputs_mask"])
        ids = gather_positions(batch["inputs"], order)
        mask = gather_positions(batch["inputs_mask"], order).astype(bool)
        first = _used_slots(texts, before)
        positions = first[:, None] + np.arange(ids.shape[1])[None]
        seen = self._in_windows(config, PastKeyValues(None, used=mask, positions=positions))
        source = _Text(self.module.embed(params, ids, config), positions, before, keys[1], seen=seen)
        end = first + mask.sum(axis=1, dtype=jnp.int32)
        if between is None:
            return (*texts, source), Encoded(before, end)
        if between.positions is not None:
            between = between._replace(positions=between.positions + end[:, None])
        return (*texts, source), Encoded((*before, between), end + between.used_slots)

    def _logits(
        self,
        params: Params,
        config: Any,
        texts: tuple[_Text, ...],
        encoded: Encoded,
        batch: Batch,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "B T V"]:
        """Read the texts and the target, and return the target's logits."""
        ids, order = jnp.asarray(batch["decoder_inputs"]), None
        if batch.get("decoder_mask") is not None:
            order = left_aligned_order(batch["decoder_mask"])
            ids = gather_positions(ids, order)
        positions = encoded.position[:, None] + np.arange(ids.shape[1])[None]
        target = _Text(self.module.embed(params, ids, config), positions, encoded.past, key)
        *_, (x, _) = self._run(params, config, (*texts, target))
        if order is not None:
            x = gather_positions(x, jnp.argsort(order, axis=1))
        return self.module.logits(params, x, config)

    def activations(
        self, params: Params, config: Any, batch: Batch, prompt: Prompt | None = None
    ) -> dict[Site, KeyValueArrays]:
        """Return the keys and values of the inputs at each attention site: a prefix equivalent to these tokens.

        Arguments as for `forward`. Real positions come first in each row of the result.
        """
        texts, _ = self._before_target(params, config, batch, prompt, None)
        *_, (_, source) = self._run(params, config, texts, keep=True)
        return {"decoder_self": source}

    def _run(
        self, params: Params, config: Any, texts: Sequence[_Text], *, keep: bool = False
    ) -> list[tuple[Float[Array, "B T D"], Any]]:
        """Run texts through all layers, in one loop.

        Returns:
          for each text, the last layer's output and, with `keep`, the keys and values [L, B, T, G, K].
        """
        keys = [split_key(text.key, 2) for text in texts]
        embedded = [
            self.module.add_positions(params, text.x, text.positions, config, key)
            for text, (key, _) in zip(texts, keys, strict=True)
        ]

        def layer(xs, weights, past, keys):
            read: list[Any] = []
            for n, text in enumerate(texts):
                before = [
                    kv for each, one in zip(text.past, past[n], strict=True) for kv in each.key_values(one, dtype)
                ]
                for earlier, (_, kept) in zip(texts[:n], read, strict=True):
                    seen = earlier.as_past(*kept)
                    before += seen.key_values(seen.layers, dtype)
                read.append(self._read(text, xs[n], weights, embedded[n][1], before, config, keys[n]))
            return [x for x, _ in read], [kept if keep else None for _, kept in read]

        xs, dtype = [x for x, _ in embedded], embedded[0][0].dtype
        past = [tuple(each.layers for each in text.past) for text in texts]
        options: Any = {"config": config, "key": [key for _, key in keys]}
        xs, kept = run_layers(layer, xs, self._stacks(params, config), past, **options)
        return list(zip(xs, kept, strict=True))

    def _read(
        self, text: _Text, x: Array, weights: Params, shared: Any, before: list[KeyValues], config: Any, key: Any
    ) -> tuple[Array, tuple[Array, Array]]:
        """Apply one layer to a text. A token attends to what is before the text, earlier tokens and itself."""
        window, fused = weights.get("settings", {}).get("window"), config.fused_attention and text.used is None

        def self_attend(q, k, v, key=None, softcap=None):
            itself = KeyValues(k, v, None, text.used, text.positions)
            options: Any = {"softcap": softcap, "dropout_rate": config.dropout_rate, "fused": fused}
            return attend(q, itself, *before, positions=text.positions, window=window, key=key, **options), (k, v)

        keys = split_key(key, self.module.KEYS_PER_LAYER)
        x, kept = self.module.layer(x, weights, shared, self_attend, config, keys)
        return apply_adapter(x, weights), kept

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
        stacked = prompt.stacked is not None
        each: Any = prompt if stacked else jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], prompt)  # [N, ...]
        text = self._virtual_tokens(params, config, each, None, key)
        if text is None:
            return prompt
        ((_, (keys, values)),) = self._run(params, config, (text,), keep=True)
        keys, values = keys.swapaxes(0, 1), values.swapaxes(0, 1)  # [N, L, P, G, K]
        converted = Prefix(keys, values, text.used, long_rope=long_rope(config))
        if each.decoder_self is not None:
            converted = _concatenate(each.decoder_self, converted)
        result = Prompt(decoder_self=converted)
        return result if stacked else jax.tree.map(lambda leaf: leaf[0], result)

    def _virtual_tokens(
        self, params: Params, config: Any, prompt: Any, ids: Any, key: PRNGKeyArray | None
    ) -> _Text | None:
        """Return the virtual tokens of N prompts, as a text that is still to be read; None without virtual tokens.

        Args:
          params, config: the frozen base.
          prompt: leaves [N, ...].
          ids: each row's prompt; None if there is one prompt, or if no text follows.
          key: enables dropout.
        """
        self._check(prompt)
        tokens, prefix = prompt.encoder_tokens, prompt.decoder_self
        if tokens is None:
            return None
        x = jnp.asarray(tokens.embeddings).astype(params["embedding"].dtype)
        rows, slots = x.shape[:2]
        used = None if tokens.mask is None else jnp.asarray(tokens.mask, bool)
        if used is not None:  # an attention weight of 0 times a value that is not finite is NaN
            x = jnp.where(used[..., None], x, 0.0)
        past = self._placed(config, prefix_kv(prefix, jnp.arange(rows)))
        indices = jnp.arange(slots)[None] if used is None else jnp.maximum(jnp.cumsum(used, axis=1) - 1, 0)
        positions = past.used_slots[:, None] + indices
        if ids is None:
            seen = PastKeyValues(None, None, used, positions)
        else:
            of_rows = jnp.broadcast_to(positions, (rows, slots))[jnp.maximum(ids, 0)]
            seen = PastKeyValues(None, ids, used_mask(used, ids, slots), of_rows)
        return _Text(x, positions, (past,), key, used, self._in_windows(config, seen), shared=ids is None)

    def _prompt(
        self, params: Params, config: Any, batch: Batch, prompt: Prompt | None, key: PRNGKeyArray | None
    ) -> tuple[tuple[_Text, ...], tuple[PastKeyValues, ...], PastKeyValues | None]:
        """Return the virtual tokens, if any, the prefix before the text, if any, and the infix before the target."""
        ids = batch.get("prompt_ids")
        check_prompt_ids(prompt, ids, len(batch["inputs"]))
        if prompt is None:
            return (), (), None
        stacked = prompt if ids is not None else jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], prompt)
        tokens = self._virtual_tokens(params, config, stacked, None if ids is None else jnp.asarray(ids), key)
        texts, prefix = (() if tokens is None else (tokens,)), prompt.decoder_self
        if prefix is None:
            return texts, (), None
        past = prefix_kv(prefix, ids)
        if not prefix.always_visible:
            past = self._placed(config, past)
        return (texts, (), past) if prefix.placement == "after" else (texts, (past,), None)

    def _check(self, prompt: Any) -> None:
        """Check that the family supports all parts of a prompt."""
        check_parts(prompt, ("encoder_tokens", "decoder_self"), self.name)
        tokens, prefix = prompt.encoder_tokens, prompt.decoder_self
        if prefix is not None and not prefix.shift_positions:
            raise PromptPartError(
                f"{self.name} always counts positions on from a prefix; shift_positions=False is for BART"
            )
        if tokens is None:
            return
        if tokens.placement == "after":
            raise PromptPartError(
                f"virtual tokens after the input depend on it, and {self.name} does not support them; use an infix"
            )
        if prefix is not None and (prefix.placement == "after" or prefix.always_visible):
            kind = "an infix" if prefix.placement == "after" else "one that is always visible"
            raise PromptPartError(f"virtual tokens can be combined with a prefix, but not with {kind}")

    def _placed(self, config: Any, past: PastKeyValues) -> PastKeyValues:
        """Return a prefix with the positions of its slots, for sliding windows."""
        if past.layers is None:
            return past
        used = jnp.ones((1, past.length), bool) if past.used is None else past.used
        return self._in_windows(config, past._replace(positions=jnp.cumsum(used, axis=1) - 1))

    def _in_windows(self, config: Any, past: PastKeyValues) -> PastKeyValues:
        """Return the past without positions, so that it is always visible, if the family has no sliding windows."""
        return past if "window" in self._settings(config) else past._replace(positions=None)

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
                kept, generated = append(k, v)
                if window is not None:
                    steps = jnp.repeat(np.arange(cache.capacity), tokens.shape[1])
                    generated = generated._replace(positions=cache.position[:, None] + steps[None])
                before = [kv for number in range(len(cache.past)) for kv in past(number)]
                return attend(q, generated, *before, positions=positions, window=window, softcap=softcap), kept

            keys = split_key(None, self.module.KEYS_PER_LAYER)
            x, kept = self.module.layer(x, weights, shared, self_attend, config, keys)
            return apply_adapter(x, weights), kept

        x, cache = decode_layers(layer, x, self._stacks(params, config), cache)
        return self.module.logits(params, x, config), cache


def _used_slots(texts: Sequence[_Text], past: Sequence[PastKeyValues]) -> Int[Array, "#B"]:
    """Return the number of used slots in each row, of virtual tokens and a prefix."""
    slots = [each.used_slots for each in past]
    for text in texts:
        used = text.seen.used
        slots.append(jnp.full(1, text.x.shape[1], jnp.int32) if used is None else used.sum(axis=1, dtype=jnp.int32))
    return sum(slots, jnp.zeros(1, jnp.int32))


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
