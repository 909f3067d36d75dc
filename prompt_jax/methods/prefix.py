"""Prefix tuning (Li and Liang 2021): keys and values for every layer are trained, and nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from prompt_jax.checkpoints.load import Model
from prompt_jax.config.prompt import PromptConfig
from prompt_jax.distributed.sharding import to_host
from prompt_jax.errors import ConfigError
from prompt_jax.methods import initializers, mlp
from prompt_jax.models import family
from prompt_jax.models.attention import dropout
from prompt_jax.models.prompt import Prefix, Prompt, Site, used_arrays

Trainable = dict[str, Any]


def init(key: PRNGKeyArray, config: PromptConfig, model: Model, labels: Sequence[str] = ()) -> Trainable:
    """First values for each site: `{"keys": [L, P, H, K], "values": ...}`, or with `config.mlp_width` what `mlp.init`
    gives, each site with a table and layers of its own; float32. With `config.tie_layers` L is half of the layers.

    Raises:
      ConfigError: a site that the model has not, or an initialization that asks for what is not there.
    """
    del labels
    shapes = chosen_sites(config, model)
    if config.init == "text":
        words = activations(config, model)
    elif config.init == "file":
        if config.mlp_width is not None:
            raise ConfigError(
                "prompt.init 'file': a file has a prefix, and no MLP that makes it; leave prompt.mlp_width out"
            )
        parts = initializers.prompt_of_file(config, model).parts
        if set(parts) != set(shapes):
            raise ConfigError(
                f"{config.init_file} has {' and '.join(parts)}, and prompt.sites asks for {' and '.join(shapes)}"
            )
        return {site: _from_file(config, parts, site, shapes[site][0]) for site in shapes}

    trainable: Trainable = {}
    for (site, (layers, heads, width)), own in zip(shapes.items(), jax.random.split(key, len(shapes)), strict=True):
        out = 2, layers, heads, width  # keys and values
        target = words[site] if config.init == "text" else None
        if config.mlp_width is None:
            made = _random(own, config, out) if target is None else target
            trainable[site] = {"keys": jnp.moveaxis(made[:, 0], 0, 1), "values": jnp.moveaxis(made[:, 1], 0, 1)}
            continue
        table_key, layers_key = jax.random.split(own)
        # The table is what the random initialization is of; with real words, it is the authors' normal one.
        row = (model.config.d_model,)
        table = (
            _random(table_key, config, row) if target is None else initializers.normal(table_key, config.length, row)
        )
        variables = mlp.init(layers_key, table, config.mlp_width, config.mlp_layers, out)
        trainable[site] = variables if target is None else mlp.fit(variables, target)
    return trainable


def apply(
    trainable: Trainable, params: Any, key: PRNGKeyArray | None = None, *, config: PromptConfig
) -> tuple[Any, Prompt]:
    """The base as it is, and the prefix; with a key, after `config.dropout`."""
    keys = (None,) * len(trainable) if key is None else jax.random.split(key, len(trainable))
    prefixes: dict[str, Any] = {}
    for (site, variables), own in zip(sorted(trainable.items()), keys, strict=True):
        if "layers" in variables:
            made = mlp.apply(variables)  # [P, 2, L, H, K]
            keys_and_values = jnp.moveaxis(made, 0, 2)
        else:
            keys_and_values = jnp.stack([variables["keys"], variables["values"]])
        if config.tie_layers:
            keys_and_values = jnp.concatenate([keys_and_values, keys_and_values], axis=1)
        k, v = dropout(keys_and_values, config.dropout, own)
        prefixes[site] = Prefix(k, v, placement=config.placement, shift_positions=config.shift_positions)
    return params, Prompt(**prefixes)


def chosen_sites(config: PromptConfig, model: Model) -> dict[Site, tuple[int, int, int]]:
    """The sites that are trained, with the layers that have a prefix of their own, heads and width of a head."""
    model_family = family(model.config)
    there = model_family.sites(model.config)
    for site in config.sites:
        if site not in there:
            raise ConfigError(f"prompt.sites: {model.name} has {' and '.join(there)}, not {site}")
    if config.placement == "after" and not model_family.causal:
        raise ConfigError("prompt.placement 'after', an infix, is for causal models; an encoder-decoder takes 'before'")
    if not config.shift_positions and model_family.causal:
        raise ConfigError(
            "prompt.shift_positions false is of BART; a causal model's positions are counted on from a prefix"
        )
    chosen = {site: shape for site, shape in there.items() if not config.sites or site in config.sites}
    if not config.tie_layers:
        return chosen
    layers, heads, width = there["decoder_self"]
    if model_family.causal or layers % 2:
        which = f"the decoder of {model.name} has {layers} layers" if layers % 2 else f"{model.name} is a causal model"
        raise ConfigError(f"prompt.tie_layers: {which}, of which PEFT gives each a prefix of its own; leave it out")
    return {"decoder_self": (layers // 2, heads, width)}


def activations(config: PromptConfig, model: Model) -> dict[Site, Float[Array, "P 2 L H K"]]:
    """The base's keys and values of the words `config.init_text`, at every site.

    Raises:
      ConfigError: no tokenizer, or another number of tokens than the prefix is long (`initializers.word_ids`).
    """
    ids = np.array(initializers.word_ids(model, config.init_text), np.int32)[None]
    if ids.shape[1] != config.length:
        raise ConfigError(
            f"prompt.init_text {config.init_text!r} has {ids.shape[1]} tokens; a prefix of their activations has that "
            f"length, and prompt.length is {config.length}"
        )
    batch = {"inputs": ids, "inputs_mask": np.ones(ids.shape, bool), "decoder_inputs": ids}
    compute = jax.jit(family(model.config).activations, static_argnums=1)
    return {
        site: jnp.moveaxis(jnp.stack(pair)[:, :, 0], 2, 0).astype(jnp.float32)
        for site, pair in to_host(compute(model.params, model.config, batch)).items()
    }


def _random(key: PRNGKeyArray, config: PromptConfig, shape: tuple[int, ...]) -> Float[Array, "P *shape"]:
    match config.init:
        case "uniform":
            return jax.random.uniform(key, (config.length, *shape), jnp.float32, *config.init_range)
        case "normal":
            return initializers.normal(key, config.length, shape)
        case "zero" if config.mlp_width is None:
            return jnp.zeros((config.length, *shape))
    choices = "'uniform', 'normal', 'text' or, without an MLP, 'zero' or 'file'"
    raise ConfigError(f"prompt.init {config.init!r} is not for this prefix; it takes {choices}")


def _from_file(config: PromptConfig, parts: Mapping[str, Any], site: Site, layers: int) -> Trainable:
    arrays = {name: used_arrays(part) for name, part in parts.items()}
    lengths = {name: own[parts[name].arrays[0]].shape[parts[name].axes.index("P")] for name, own in arrays.items()}
    if lengths.get(site) != config.length:
        found = ", ".join(f"{name} of {length}" for name, length in lengths.items())
        raise ConfigError(f"{config.init_file} has {found}, and prompt asks for {site} of {config.length}")
    prefix, both = parts[site], arrays[site]
    if (prefix.placement, prefix.shift_positions) != (config.placement, config.shift_positions):
        raise ConfigError(
            f"{config.init_file} has placement {prefix.placement!r} and shift_positions {prefix.shift_positions}, and "
            f"prompt has {config.placement!r} and {config.shift_positions}"
        )
    if config.tie_layers and any((array[:layers] != array[layers:]).any() for array in both.values()):
        raise ConfigError(f"{config.init_file} has a prefix for each layer, and prompt.tie_layers asks for one for two")
    return {name: jnp.asarray(array[:layers]) for name, array in both.items()}
