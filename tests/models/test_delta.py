"""Deltas: where their leaves go in the base's parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prompt_jax
from deltas import FAMILIES, trained
from prompt_jax import Prompt, PromptFormatError, load_prompt
from prompt_jax.checkpoints.load import Model
from prompt_jax.models.delta import (
    Delta,
    check_ensemble,
    flat,
    merged_params,
    params_and_prompt,
    whole_model,
)
from prompt_jax.models.layers import depth
from prompt_jax.models.prompt import PromptStackError, stack_prompts


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, fixtures) -> Model:
    return prompt_jax.load_model(str(fixtures / request.param / "base"))


UP = np.arange(12.0, dtype=np.float32).reshape(3, 2, 2)  # three layers


@pytest.fixture
def params():
    layers = {"mlp": {"up": jnp.asarray(UP), "norm": jnp.ones((3, 2))}}
    return {"embedding": jnp.ones((4, 2), jnp.bfloat16), "decoder": {"layers": (layers,)}}


def test_leaves_replace_and_extend_the_bases(params):
    delta = Delta({"decoder": {"layers": {"0": {"mlp": {"norm": np.zeros((3, 2)), "adapter": {"up": UP + 1}}}}}})
    merged, prompt = params_and_prompt(params, delta)
    assert prompt is None
    leaves = flat(merged)
    assert sorted(leaves) == [*(f"decoder/layers/0/mlp/{name}" for name in ("adapter/up", "norm", "up")), "embedding"]
    assert leaves["decoder/layers/0/mlp/up"] is params["decoder"]["layers"][0]["mlp"]["up"]
    assert not leaves["decoder/layers/0/mlp/norm"].any()
    assert leaves["decoder/layers/0/mlp/adapter/up"].dtype == jnp.bfloat16, "the dtype of activations"
    assert "adapter" not in params["decoder"]["layers"][0]["mlp"], "the base's parameters are unchanged"
    with pytest.raises(ValueError, match="adapters cannot be merged into the base's weights"):
        whole_model(params, delta)


def test_the_last_layers_are_a_stack_of_their_own(params):
    delta = Delta({"decoder": {"last_layers": {"mlp": {"up": UP[:2] + 100, "norm": np.zeros((2, 2), np.float32)}}}})
    lower, last = merged_params(params, delta)["decoder"]["layers"]
    np.testing.assert_array_equal(lower["mlp"]["up"], UP[:1])
    np.testing.assert_array_equal(last["mlp"]["up"], (UP[:2] + 100).astype(jnp.bfloat16))
    (joined,) = whole_model(params, delta)["decoder"]["layers"]
    assert jax.tree.map(np.shape, joined) == jax.tree.map(np.shape, params["decoder"]["layers"][0])
    np.testing.assert_array_equal(joined["mlp"]["norm"], [[1, 1], [0, 0], [0, 0]])


def test_a_prompt_leaves_the_parameters_as_they_are(params):
    prompt = Prompt()
    assert params_and_prompt(params, prompt) == (params, prompt)


def test_deltas_of_other_weights_form_no_ensemble():
    first, second = (Delta({"embedding": np.ones((4, width))}) for width in (2, 3))
    check_ensemble([first, first])
    for other in (second, Prompt()):
        with pytest.raises(PromptStackError, match="a.npz and b.npz do not change the same weights of the base"):
            check_ensemble([first, other], ["a.npz", "b.npz"])


def test_leaves_without_a_place_are_refused(model, tmp_path):
    place = "layers/0" if "layers" in model.params else "decoder/layers/0"
    width = model.config.d_model
    for path, shape, message in (
        (f"{place}/mlp/adapter/down", (1, width, 3), "the base has"),
        (f"{place}/mlp/adapter/other", (2, width), "no such leaf"),
        (f"{place}/self/nothing", (2, width), "no such leaf"),
        ("embedding", (2, width), "the base has"),
        (place.replace("layers/0", "last_layers") + "/mlp/norm", (99, width), "the base has|no such leaf"),
    ):
        np.savez(tmp_path / "p.npz", **{f"base/{path}": np.ones(shape, np.float32)})
        with pytest.raises(PromptFormatError, match=f"does not go with .*base/{path} is .*({message})"):
            load_prompt(tmp_path / "p.npz", model)
    layers = (model.params if "layers" in model.params else model.params["decoder"])["layers"][0]
    count = depth(layers)
    np.savez(tmp_path / "p.npz", **{f"base/{place}/mlp/adapter/down": np.ones((count, width, 3), np.float32)})
    with pytest.raises(PromptFormatError, match="mlp/adapter has down, and should have down, down_bias, up"):
        load_prompt(tmp_path / "p.npz", model)
    both = {path: np.asarray(leaf) for path, leaf in flat(trained(model, "houlsby").leaves).items()}
    both |= {path: np.asarray(leaf) for path, leaf in flat(trained(model, "last_layers").leaves).items()}
    np.savez(tmp_path / "p.npz", **{f"base/{path}": leaf for path, leaf in both.items()})
    with pytest.raises(PromptFormatError, match="has both last_layers and leaves of all layers"):
        load_prompt(tmp_path / "p.npz", model)
    arrays = {"base/embedding": np.ones((2, 2), np.float32), "base/embedding/more": np.ones((2, 2), np.float32)}
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(PromptFormatError, match="base/embedding is an array and has others below it"):
        load_prompt(tmp_path / "p.npz")


def test_they_are_not_stacked(model):
    prompts = [trained(model, "houlsby", seed=seed) for seed in range(2)]
    with pytest.raises(PromptStackError, match="prompt 0 changes weights of the base"):
        stack_prompts(prompts)
