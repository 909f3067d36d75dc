"""Prefix tuning (Li and Liang 2021): train extra keys and values in every attention layer."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from prompt_jax.config.constraints import BELOW_ONE, DISTINCT, INTERVAL, NOT_NEGATIVE, POSITIVE
from prompt_jax.config.prompt import PromptPlacement, Site
from prompt_jax.errors import ConfigError
from prompt_jax.methods.method import FROZEN, MLP_RATE, Method, Trainable, check_init

if TYPE_CHECKING:
    from jaxtyping import Array, PRNGKeyArray

    from prompt_jax.checkpoints.load import Model
    from prompt_jax.models.prompt import Prompt


# A text about any task, which is repeated for long prefixes.
_INSTRUCTION = (
    "You are a careful assistant. Read the text below, think about what it says and what is asked, and then answer "
    "briefly and correctly, in the form that the examples have. Do not add anything that was not asked for."
)


@dataclasses.dataclass(frozen=True)
class PrefixTuning(Method):
    """Prefix tuning: train keys and values in every attention layer (Li and Liang 2021)."""

    name: ClassVar[str] = "prefix"

    length: Annotated[int, POSITIVE] = 100
    """Number of keys and values in each layer."""
    sites: Annotated[tuple[Site, ...], DISTINCT] = ()
    """Attention sites with a prefix; empty means all that the model has."""
    placement: PromptPlacement = "before"
    """Put the prefix before the input, or after it: the infix of a causal model, between source and target."""
    init: Literal["uniform", "normal", "zero", "text", "file"] | None = None
    """Initialization: `uniform` or `normal` noise, `zero`, `text` (the activations of a text), `file` (another prefix).
    With an MLP this initializes its input table. None means `text` for Llama and later models without an MLP, and
    `normal` otherwise."""
    init_range: Annotated[tuple[float, float], INTERVAL] = (-0.5, 0.5)
    """Range of `uniform`. The paper's code draws from 0 to 1."""
    init_text: str = ""
    """Text for `text`, with at least `length` tokens. The first ones are used. It is tokenized with a leading space, or
    for models with a start token, after that token. If `init` is None, the default is a
    general instruction."""
    init_file: Path | None = None
    """Prefix for `file`: `.npz` or a PEFT folder, of the same length and base model."""
    init_member: Annotated[int, NOT_NEGATIVE] | None = None
    """Number of the prefix in `init_file`, if the file holds an ensemble."""
    tie_layers: bool = False
    """Share one prefix between layers i and i + L / 2 of the decoder, as PEFT does for encoder-decoders. Only such
    prefixes can be exported to PEFT for them. Needs `sites decoder_self`."""
    mlp_width: Annotated[int, POSITIVE] | None = None
    """Width of the MLP that makes the prefix from an input table during training (512 in the paper, 800 for
    summarization). It is not stored. None trains the prefix directly."""
    frozen_tokens: Annotated[int, NOT_NEGATIVE] = 0
    """Number of first slots that keep their initial values, such as a start token that serves as an attention sink, as
    in PEFT's CARTRIDGE. Needs `init` text or file."""
    dropout: Annotated[float, BELOW_ONE] = 0.0
    """Dropout rate of the prefix's keys and values during training."""
    shift_positions: bool = True
    """Count the text's learned positions from the end of the prefix. For BART, PEFT does this, and the paper's code
    does not."""
    always_visible: bool = False
    """In layers with a sliding window, attend to the prefix from all positions. By default, as in PEFT, it leaves the
    window like text."""

    @property
    def default_rate(self) -> float:
        return 5e-3 if self.mlp_width is None else MLP_RATE  # without an MLP, that of PEFT's benchmark with a text

    def check(self) -> None:
        check_init(self)
        if self.init == "zero" and self.mlp_width is not None:
            raise ConfigError("prompt.init 'zero' cannot initialize the table of an MLP: all rows would stay the same")
        if self.init == "file" and self.mlp_width is not None:
            raise ConfigError("prompt.init 'file' has a prefix but no MLP that makes it; leave prompt.mlp_width out")
        if self.frozen_tokens and self.tie_layers:
            raise ConfigError("prompt.frozen_tokens is for causal models; leave prompt.tie_layers out")
        if self.init is None and self.init_file is not None:
            raise ConfigError("prompt.init_file needs prompt.init 'file'")
        if self.frozen_tokens >= self.length:
            raise ConfigError(
                f"prompt.frozen_tokens is {self.frozen_tokens} of prompt.length {self.length}; leave some to train"
            )
        if self.frozen_tokens and (self.mlp_width is not None or self.init not in ("text", "file", None)):
            raise ConfigError(
                "prompt.frozen_tokens keeps the keys and values of prompt.init 'text' or 'file', not of "
                f"{'an MLP (prompt.mlp_width)' if self.mlp_width is not None else repr(self.init)}"
            )
        if self.tie_layers and self.sites != ("decoder_self",):
            sites = " and ".join(self.sites) or "all sites"
            raise ConfigError(f"prompt.tie_layers needs prompt.sites decoder_self, not {sites}")
        if self.tie_layers and self.init == "text":
            raise ConfigError(
                "prompt.init 'text' gives each layer different activations, so leave prompt.tie_layers out"
            )

    def initialize(
        self, key: "PRNGKeyArray", model: "Model", labels: Sequence[str] = (), *, tasks: int = 1
    ) -> Trainable:
        """Return `{site: {"keys": [L, P, H, K], "values": ...}}`, or with an MLP `{site: <mlp.init's result>}`.

        L is half the number of layers with `tie_layers`. Each site has its own MLP and table. With `frozen_tokens` F,
        the first F slots are in `{site: {FROZEN: {"keys": [L, F, H, K], "values": ...}}}`, and the others as above.
        """
        import jax
        import jax.numpy as jnp

        from prompt_jax.methods import initializers, mlp

        if self.init is None:
            init = self.default_init(model)
            if self.init_text and init != "text":
                raise ConfigError(
                    f"prompt.init_text needs prompt.init 'text'; the default for {model.name} is {init!r}"
                )
            chosen = dataclasses.replace(self, init=init, init_text=self.init_text or _INSTRUCTION)
            chosen.check()
            return chosen.initialize(key, model)
        shapes = self.trained_sites(model)
        if self.init == "file":
            return self._with_frozen_slots(self._prefixes_of_file(model, shapes))
        activations = self.activations(model) if self.init == "text" else {}
        trainable: dict[str, Any] = {}
        keys = jax.random.split(key, len(shapes))
        for (site, (layers, heads, width)), site_key in zip(shapes.items(), keys, strict=True):
            out = 2, layers, heads, width  # keys and values
            target = activations.get(site)
            if self.mlp_width is None:
                both = self._random(site_key, out) if target is None else target
                trainable[site] = {"keys": jnp.moveaxis(both[:, 0], 0, 1), "values": jnp.moveaxis(both[:, 1], 0, 1)}
                continue
            table_key, layers_key = jax.random.split(site_key)
            row = (model.config.d_model,)
            # With real words, the table is drawn as usual, and the MLP is fitted to the activations.
            table = self._random(table_key, row) if target is None else initializers.normal(table_key, self.length, row)
            variables = mlp.init(layers_key, table, self.mlp_width, out)
            trainable[site] = variables if target is None else mlp.fit(variables, target)
        return self._with_frozen_slots(trainable)

    def apply(self, trainable: Trainable, key: "PRNGKeyArray | None" = None) -> "Prompt":
        """Return the prefix. With a key, `dropout` is on."""
        import jax
        import jax.numpy as jnp

        from prompt_jax.methods import mlp
        from prompt_jax.models.dropout import dropout
        from prompt_jax.models.prompt import Prefix, Prompt

        site_keys = (None,) * len(trainable) if key is None else jax.random.split(key, len(trainable))
        prefixes: dict[str, Any] = {}
        for (site, variables), site_key in zip(sorted(trainable.items()), site_keys, strict=True):
            if "layers" in variables:
                both = jnp.moveaxis(mlp.apply(variables), 0, 2)  # from [P, 2, L, H, K]
            else:
                both = jnp.stack([variables["keys"], variables["values"]])
            if self.tie_layers:
                both = jnp.concatenate([both, both], axis=1)
            k, v = dropout(both, self.dropout, site_key)
            if FROZEN in variables:
                frozen = jax.lax.stop_gradient((variables[FROZEN]["keys"], variables[FROZEN]["values"]))
                k, v = (jnp.concatenate(pair, axis=1) for pair in zip(frozen, (k, v), strict=True))
            rules: Any = {"placement": self.placement, "shift_positions": self.shift_positions}
            prefixes[site] = Prefix(k, v, **rules, always_visible=self.always_visible)
        return Prompt(**prefixes)

    def default_init(self, model: "Model") -> Literal["text", "normal"]:
        """Return what `init` None means. In PEFT's benchmark of Llama 3.2, text gives 41.6 % and noise 18.6 %."""
        from prompt_jax.models import is_in_papers

        return "normal" if is_in_papers(model.config) or self.mlp_width is not None else "text"

    def trained_sites(self, model: "Model") -> dict[Site, tuple[int, int, int]]:
        """Return the sites with a prefix, each with its numbers of layers and heads and its head width.

        Raises:
          ConfigError: the model lacks a site, or an option does not suit the model.
        """
        from prompt_jax.models import family

        model_family = family(model.config)
        sites = model_family.sites(model.config)
        for site in self.sites:
            if site not in sites:
                raise ConfigError(f"prompt.sites: {model.name} has {' and '.join(sites)}, not {site}")
        if self.placement == "after" and not model_family.causal:
            raise ConfigError(
                "prompt.placement 'after', an infix, needs a causal model; an encoder-decoder takes 'before'"
            )
        if not self.shift_positions and model_family.causal:
            raise ConfigError("prompt.shift_positions false is for BART; a causal model always counts from the prefix")
        if self.always_visible and not any(getattr(model.config, "windows", ())):
            raise ConfigError(f"prompt.always_visible: {model.name} has no sliding windows; leave it out")
        if not self.tie_layers:
            return {site: shape for site, shape in sites.items() if not self.sites or site in self.sites}
        layers, heads, width = sites["decoder_self"]
        if model_family.causal or layers % 2:
            problem = f"the decoder of {model.name} has {layers} layers" if layers % 2 else f"{model.name} is causal"
            raise ConfigError(f"prompt.tie_layers: {problem}, so PEFT gives each layer its own prefix; leave it out")
        return {"decoder_self": (layers // 2, heads, width)}

    def activations(self, model: "Model") -> dict[Site, "Array"]:
        """Return the base's keys and values of the first tokens of `init_text` at every site, [P, 2, L, H, K].

        Raises:
          ConfigError: no tokenizer, or the text has fewer tokens than `length`.
        """
        import jax
        import jax.numpy as jnp
        import numpy as np

        from prompt_jax.distributed.sharding import to_host
        from prompt_jax.methods.initializers import token_ids, word_ids
        from prompt_jax.models import family

        start = model.tokenizer.start if model.tokenizer is not None and family(model.config).causal else ()
        text = self.init_text
        if text == _INSTRUCTION:
            text = " ".join([text] * self.length)
        words = token_ids(model, text) if start else word_ids(model, text)
        ids = np.array([*start, *words], np.int32)[None, : self.length]
        if ids.shape[1] < self.length:
            raise ConfigError(
                f"prompt.init_text {self.init_text!r:.200} has {ids.shape[1]} tokens, but prompt.length is "
                f"{self.length}; a prefix of activations has one slot per token"
            )
        batch = {"inputs": ids, "inputs_mask": np.ones(ids.shape, bool), "decoder_inputs": ids}
        compute = jax.jit(family(model.config).activations, static_argnums=1)
        return {
            site: jnp.moveaxis(jnp.stack(pair)[:, :, 0], 2, 0).astype(jnp.float32)
            for site, pair in to_host(compute(model.params, model.config, batch)).items()
        }

    def _with_frozen_slots(self, trainable: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters of all slots with the first `frozen_tokens` slots under FROZEN."""
        count = self.frozen_tokens
        if not count:
            return trainable
        return {
            site: {name: array[:, count:] for name, array in both.items()}
            | {FROZEN: {name: array[:, :count] for name, array in both.items()}}
            for site, both in trainable.items()
        }

    def _random(self, key: "PRNGKeyArray", shape: tuple[int, ...]) -> "Array":
        """Return initial values [P, *shape]."""
        import jax
        import jax.numpy as jnp

        from prompt_jax.methods import initializers

        match self.init:
            case "uniform":
                return jax.random.uniform(key, (self.length, *shape), jnp.float32, *self.init_range)
            case "normal":
                return initializers.normal(key, self.length, shape)
            case _:
                return jnp.zeros((self.length, *shape))

    def _prefixes_of_file(self, model: "Model", shapes: Mapping[Site, tuple[int, int, int]]) -> Trainable:
        from prompt_jax.methods.initializers import prompt_of_file

        assert self.init_file is not None  # `check`
        parts = prompt_of_file(self.init_file, self.init_member, model).parts
        if set(parts) != set(shapes):
            raise ConfigError(
                f"{self.init_file} has {' and '.join(parts)}, but prompt.sites asks for {' and '.join(shapes)}"
            )
        return {site: self._arrays_of_part(parts[site], site, layers, model) for site, (layers, *_) in shapes.items()}

    def _arrays_of_part(self, prefix: Any, site: Site, layers: int, model: "Model") -> dict[str, "Array"]:
        import jax.numpy as jnp

        from prompt_jax.models.prompt import used_arrays
        from prompt_jax.models.rope import long_rope

        arrays = used_arrays(prefix)
        if (length := arrays["keys"].shape[1]) != self.length:
            raise ConfigError(f"{self.init_file} has {site} of {length}, but prompt.length is {self.length}")
        for option in ("placement", "shift_positions", "always_visible"):
            theirs, ours = getattr(prefix, option), getattr(self, option)
            if theirs != ours:
                raise ConfigError(f"{self.init_file} has {option} {theirs!r}, but prompt.{option} is {ours!r}")
        if prefix.long_rope is not None and prefix.long_rope != long_rope(model.config):
            length = "longer" if prefix.long_rope else "shorter"
            raise ConfigError(
                f"{self.init_file} was trained for {length} texts, for which {model.name} has other rotary positions "
                "(longrope); change data.input_length, or train another prefix to start from"
            )
        if self.tie_layers and any((array[:layers] != array[layers:]).any() for array in arrays.values()):
            raise ConfigError(f"{self.init_file} has a different prefix in each layer, but prompt.tie_layers is set")
        return {name: jnp.asarray(array[:layers]) for name, array in arrays.items()}
