"""Setup: shapes and numbers of parameters, by configuration."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from adapters import whole
from experiments import with_options
from prompt_jax import load_model, load_prompt, save_prompt
from prompt_jax.config.ensemble import EnsembleConfig
from prompt_jax.config.model import ModelConfig
from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.errors import ConfigError
from prompt_jax.methods.adapter import AdapterTuning
from prompt_jax.methods.full import FullTuning
from prompt_jax.methods.last_layers import LastLayersTuning
from prompt_jax.methods.multitask import MultitaskPromptTuning
from prompt_jax.methods.p_tuning import PTuning
from prompt_jax.methods.prefix import PrefixTuning
from prompt_jax.methods.soft_prompt import PromptTuning
from prompt_jax.models import check_context, family
from prompt_jax.models.rope import long_rope
from prompt_jax.prompt_files.metadata import ModelId, PromptMetadata
from prompt_jax.training.setup import prepare


@pytest.mark.parametrize(
    "method",
    [
        PromptTuning(init="text", init_text="a film", init_vocab=99),
        PromptTuning(length=5, mlp_width=7, init_vocab=99),
        MultitaskPromptTuning(length=5, task_part="concatenate", init_vocab=99),
        PTuning(length=5),
        PrefixTuning(length=5, mlp_width=7),
        AdapterTuning(),
        LastLayersTuning(layers=1),
        FullTuning(),
    ],
)
def test_shapes_are_known_before_initialization(tiny, method):
    made = method.initialize(jax.random.key(1), tiny, ["good", "bad"], tasks=2)
    shapes = method.shapes(tiny, ["good", "bad"], tasks=2)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )


@pytest.mark.parametrize("size", [2**40, 2**62])
@pytest.mark.parametrize("method", [PromptTuning(), PrefixTuning(mlp_width=4)], ids=lambda method: method.name)
def test_sizes_that_exceed_the_memory(experiment, method, size):
    """XLA would end the process."""
    method = dataclasses.replace(method, length=size)
    both = dataclasses.replace(experiment, prompt=method, ensemble=EnsembleConfig(size=2))
    told = rf"trainable parameters of 2 members take .* GiB in float32, and there are .*choose smaller .*length {size}"
    with pytest.raises(ConfigError, match=told):
        prepare(both)


def test_stored_parameters_are_those_of_the_files(experiment):
    """Stored parameters are the keys and values of every layer and site, without the MLP."""
    prefix = PrefixTuning(length=4, init="normal", mlp_width=8)
    setup = prepare(dataclasses.replace(experiment, prompt=prefix, ensemble=EnsembleConfig(length=(4, 2))))
    written = jax.tree.leaves(setup.make_prompts(setup.trainable(setup.states)))
    assert setup.stored_parameters == sum(leaf.size for leaf in written) != setup.trained_parameters


@pytest.mark.parametrize(("input_length", "long"), [(36, True), (8, False)])
def test_a_prefix_of_a_text_has_the_rotary_positions_of_the_run(experiment, tiny_folders, tmp_path, input_length, long):
    """Texts with prompt and answer have more than the 40 positions of longrope's first factors, or fewer."""
    run = dataclasses.replace(
        with_options(experiment, "data", input_length=input_length),
        model=ModelConfig(name=str(tiny_folders["phi3"])),
        prompt=PrefixTuning(length=4, init="text", init_text="a good film and long"),
    )
    setup = prepare(run)
    model, other = setup.model, load_model(str(tiny_folders["phi3"]))
    assert long_rope(model.config) == long and not long_rope(other.config)
    (prompt,) = setup.make_prompts(setup.trainable(setup.states))
    assert prompt.decoder_self.long_rope == long
    ids = np.array([model.tokenizer.word_ids("a good film and long")[:4]], np.int32)
    expected = family(model.config).activations(model.params, model.config, whole(ids))["decoder_self"][0]
    np.testing.assert_allclose(prompt.decoder_self.keys, np.asarray(expected)[:, 0], rtol=1e-5, atol=1e-6)
    save_prompt(tmp_path / "p.npz", prompt, PromptMetadata(base=ModelId(model.name, None, model.fingerprint)))
    config = check_context(other.config, load_prompt(tmp_path / "p.npz"), 5, 5)
    assert config.ropes == model.config.ropes
    again = dataclasses.replace(
        with_options(run, "data", input_length=8), prompt=PrefixTuning(4, init="file", init_file=tmp_path / "p.npz")
    )
    with contextlib.nullcontext() if not long else pytest.raises(ConfigError, match="was trained for longer texts"):
        prepare(again)


def test_an_adapter_that_was_trained_on_long_texts_says_so(experiment, tiny_folders, tmp_path):
    run = dataclasses.replace(
        with_options(experiment, "data", input_length=36),
        model=ModelConfig(name=str(tiny_folders["phi3"])),
        prompt=AdapterTuning(width=2),
    )
    setup = prepare(run)
    (delta,), (trained,) = setup.make_prompts(setup.trainable(setup.states)), setup.prompts
    save_prompt(tmp_path / "a.npz", delta, trained.metadata(setup.model, 1, {}))
    with pytest.warns(UserWarning, match="trained on long texts, with the factors of longrope"):
        load_prompt(tmp_path / "a.npz", setup.model)


def test_rates_in_units_of_the_embeddings(experiment):
    """Members have other rates in the same unit. Adafactor's first update moves each number by the rate."""
    options = OptimizerConfig(rate_unit="embedding_rms", weight_decay=0.0)
    run = dataclasses.replace(experiment, optimizer=options, ensemble=EnsembleConfig(seed=(0,), learning_rate=(0.1, 2)))
    setup = prepare(run)
    rms = np.sqrt(np.square(np.asarray(setup.model.params["embedding"])).mean())
    np.testing.assert_allclose(setup.rate_rms, rms, rtol=1e-6)
    start = np.stack([member["prompt"]["encoder_tokens"] for member in setup.trainable(setup.states)])
    (batch,) = next(iter(setup.batches))
    states, _ = setup.step(setup.states[0], setup.model.params, setup.place(batch), setup.keys[0])
    moved = np.asarray(states.trainable["prompt"]["encoder_tokens"]) - start
    sizes = np.sqrt(np.square(moved).mean(axis=(1, 2)))
    np.testing.assert_allclose(sizes, [0.1 * rms, 2 * rms], rtol=1e-3)
    assert prepare(experiment).rate_rms is None
