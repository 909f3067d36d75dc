"""The baselines of prompts: adapters, the last layers, the full model. They change the base's weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prompt_jax
from adapters import assert_close, random_text, whole
from prompt_jax import PromptFormatError, load_prompt, save_ensemble, save_prompt
from prompt_jax.checkpoints.load import Model
from prompt_jax.config.data import DataConfig
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment, check
from prompt_jax.methods.adapter import AdapterTuning
from prompt_jax.methods.full import FullTuning
from prompt_jax.methods.last_layers import LastLayersTuning
from prompt_jax.models import family
from prompt_jax.models.delta import Delta, flat, merged_params, params_and_prompt
from prompt_jax.models.layers import depth
from prompt_jax.models.prompt import PromptStackError, stack_prompts
from prompt_jax.prompt_files.io import ModelId, PromptMetadata, read_prompts

FAMILIES = ("t5_v11", "gpt2", "bart")
METHODS = {
    "houlsby": AdapterTuning(width=3),
    "lin": AdapterTuning(kind="lin", width=3),
    "last_layers": LastLayersTuning(layers=1),
    "full": FullTuning(),
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, fixtures) -> Model:
    return prompt_jax.load_model(str(fixtures / request.param / "base"))


def trained(model: Model, name: str, noise: float = 0.1, seed: int = 0) -> Delta:
    """Return a method's initial parameters plus noise."""
    config = METHODS[name]
    variables = config.initialize(jax.random.key(seed), model)
    rng = np.random.default_rng(seed)
    moved = jax.tree.map(lambda leaf: leaf + noise * rng.normal(size=leaf.shape).astype(np.float32), variables)
    return config.apply(moved)


def batch_of(model: Model, rows: int = 2) -> dict[str, np.ndarray]:
    return whole(random_text(model, rows, 6)) | {"decoder_inputs": random_text(model, rows, 5, seed=1)}


def logits(model: Model, added: Delta | None = None, batch=None) -> np.ndarray:
    params, prompt = params_and_prompt(model.params, added)
    return np.asarray(prompt_jax.forward(params, model.config, batch or batch_of(model), prompt))


@pytest.mark.parametrize("name", METHODS)
def test_training_begins_at_the_base(model, name):
    """Initial adapters are almost the identity. Copies of layers equal these layers."""
    np.testing.assert_allclose(logits(model, trained(model, name, 0.0)), logits(model), atol=1e-3)
    assert np.abs(logits(model, trained(model, name)) - logits(model)).max() > 0.05


@pytest.mark.parametrize("name", METHODS)
def test_generation_is_the_argmax_of_forward(model, name):
    prompt = trained(model, name, 0.3)
    text, start = random_text(model, 3, 6), np.full((3, 1), model.config.start_id, np.int32)
    batch = whole(text)
    read = whole(np.concatenate([text, start], axis=1)) if family(model.config).causal else batch
    params = merged_params(model.params, prompt)
    tokens = np.asarray(prompt_jax.generate(params, model.config, read, max_new_tokens=5))
    fed = np.concatenate([start, tokens[:, :-1]], axis=1)
    best = np.argmax(logits(model, prompt, batch | {"decoder_inputs": fed}), axis=-1)
    going = np.cumprod(fed[:, 1:] != model.config.eos_id, axis=1, dtype=bool)
    np.testing.assert_array_equal(best[:, 0], tokens[:, 0])
    np.testing.assert_array_equal(best[:, 1:][going], tokens[:, 1:][going])
    assert (tokens != np.asarray(prompt_jax.generate(model.params, model.config, read, max_new_tokens=5))).any()


def test_the_full_model_is_the_model_of_these_weights(model):
    prompt = trained(model, "full")
    other = dataclasses.replace(model, params=merged_params(model.params, prompt))
    np.testing.assert_array_equal(logits(model, prompt), logits(other))
    assert flat(prompt.leaves).keys() == flat(model.params).keys()


def test_only_the_last_layers_change(model):
    prompt = trained(model, "last_layers")
    side = model.params if "layers" in model.params else model.params["decoder"]
    (stack,) = side["layers"]
    leaves = prompt.leaves if "layers" in model.params else prompt.leaves["decoder"]
    last = jax.tree.map(lambda leaf, new: leaf.at[-1:].set(new), stack, leaves["last_layers"])
    params = {**side, "layers": (last,)}
    params = params if "layers" in model.params else {**model.params, "decoder": params}
    assert_close(logits(model, prompt), logits(dataclasses.replace(model, params=params)))


def test_lower_layers_are_not_differentiated(model):
    """With the last layer trained, the backward pass runs one layer. In a causal model it also runs all layers once:
    the source and the target are read separately."""
    batch = batch_of(model)

    def backwards(jaxpr) -> int:
        layers = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "scan" and equation.params["reverse"]:
                layers += equation.params["length"]
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                layers += backwards(inner) if hasattr(inner, "eqns") else 0
        return layers

    def layers(name: str) -> int:
        def loss(base):
            params = merged_params(model.params, Delta(base))
            return jnp.square(prompt_jax.forward(params, model.config, batch)).mean()

        return backwards(jax.make_jaxpr(jax.grad(loss))(trained(model, name).leaves).jaxpr)

    sides = [model.params] if "layers" in model.params else [model.params["encoder"], model.params["decoder"]]
    count = sum(depth(side["layers"][0]) for side in sides)
    passes = layers("full") / count  # a causal model reads source and target separately
    assert passes == (2 if len(sides) == 1 else 1)
    assert layers("last_layers") == (1 if len(sides) == 2 else 1 + count)


# --------------------------------------------------------------------------------------------------------------
# Against PyTorch


@pytest.mark.interop
@pytest.mark.parametrize("name", ("houlsby", "lin"))
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_in_pytorch(fixtures, family, name):
    """Compare with hooks on Hugging Face's modules that follow the papers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = fixtures / family / "base"
    model = prompt_jax.load_model(str(folder))
    kind = transformers.AutoModelForCausalLM if family == "gpt2" else transformers.AutoModelForSeq2SeqLM
    theirs = kind.from_pretrained(folder, attn_implementation="eager").eval()
    if family == "t5_v11":
        theirs.config.scale_decoder_outputs = False
    prompt = trained(model, name, 0.3)
    leaves = {path: torch.tensor(np.asarray(leaf)) for path, leaf in flat(prompt.leaves).items()}

    def hook(path: str, layer: int, module, arguments, output):
        own = {leaf: leaves[f"{path}/adapter/{leaf}"][layer] for leaf in ("down", "down_bias", "up", "up_bias")}
        x = output[0] if isinstance(output, tuple) else output
        normal = x
        if name == "lin":
            scale, bias = (leaves[f"{path}/adapter/norm/{leaf}"][layer] for leaf in ("scale", "bias"))
            normal = torch.nn.functional.layer_norm(x, x.shape[-1:], scale, bias)
        hidden = normal @ own["down"] + own["down_bias"]
        hidden = torch.relu(hidden) if name == "lin" else torch.nn.functional.gelu(hidden, approximate="tanh")
        x = x + hidden @ own["up"] + own["up_bias"]
        return (x, *output[1:]) if isinstance(output, tuple) else x

    def modules(side: str, number: int):
        if family == "t5_v11":
            block = getattr(theirs, side).block[number]
            parts = {"self": block.layer[0].SelfAttention, "mlp": block.layer[-1].DenseReluDense}
            if side == "decoder":
                parts["cross"] = block.layer[1].EncDecAttention
        elif family == "gpt2":
            block = theirs.transformer.h[number]
            parts = {"self": block.attn, "mlp": block.mlp}
        else:
            block = getattr(theirs.model, side).layers[number]
            parts = {"self": block.self_attn, "mlp": block.fc2}
            if side == "decoder":
                parts["cross"] = block.encoder_attn
        return block, parts

    for side in ("",) if family == "gpt2" else ("encoder", "decoder"):
        path = f"{side}/layers/0" if side else "layers/0"
        count = len(next(leaf for place, leaf in leaves.items() if place.startswith(path)))
        for number in range(count):
            block, parts = modules(side, number)
            named = {path: block} if name == "lin" else {f"{path}/{part}": module for part, module in parts.items()}
            for place, module in named.items():
                module.register_forward_hook(functools.partial(hook, place, number))
    batch = batch_of(model)
    inputs, target = (torch.tensor(batch[key]).long() for key in ("inputs", "decoder_inputs"))
    with torch.no_grad():
        if family == "gpt2":
            expected = theirs(input_ids=torch.cat([inputs, target], dim=1)).logits[:, inputs.shape[1] :]
        else:
            expected = theirs(input_ids=inputs, decoder_input_ids=target).logits
    assert_close(logits(model, prompt), expected.numpy(), 2e-5)


# --------------------------------------------------------------------------------------------------------------
# Sizes, options, files


@pytest.mark.parametrize("kind", ("houlsby", "lin"))
def test_adapters_have_their_share_of_the_parameters(model, kind):
    base = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    for share in (0.1, 0.03):
        config = AdapterTuning(kind=kind, share=share)
        made = config.initialize(jax.random.key(0), model)
        count = sum(leaf.size for leaf in jax.tree.leaves(made))
        one_more = sum(leaf.size for path, leaf in flat(made).items() if path.endswith("adapter/up"))
        width = next(leaf.shape[1] for path, leaf in flat(made).items() if path.endswith("adapter/up"))
        assert abs(count - share * base) <= 2 * one_more / width
    config = AdapterTuning(kind=kind, share=1e-6)
    with pytest.raises(ConfigError, match="adapters of width 1 have a share of"):
        config.initialize(jax.random.key(0), model)


def test_bases_and_options_that_cannot_be_trained(model, fixtures):
    config = LastLayersTuning(layers=9)
    with pytest.raises(ConfigError, match="prompt.layers is 9, and .* has"):
        config.initialize(jax.random.key(0), model)
    integers = prompt_jax.load_model(str(fixtures / "t5_v11" / "base"), "int8")
    with pytest.raises(ConfigError, match="which model.dtype int8 rules out"):
        METHODS["full"].initialize(jax.random.key(0), integers)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (AdapterTuning(share=-1.0), "prompt.share must be between 0 and 1, not -1.0"),
        (AdapterTuning(share=0.03, width=7), "prompt.share is 0.03 and prompt.width is 7: .* give one of them"),
        (AdapterTuning(width=0), "prompt.width must be positive, not 0"),
        (LastLayersTuning(layers=0), "prompt.layers must be positive, not 0"),
    ],
)
def test_impossible_options_are_refused(prompt, message):
    with pytest.raises(ConfigError, match=message):
        check(Experiment(data=DataConfig(task="t"), prompt=prompt))


@pytest.mark.parametrize("name", METHODS)
def test_files_are_exact_both_ways(model, tmp_path, name):
    prompts = [trained(model, name, seed=seed) for seed in range(2)]
    metadata = PromptMetadata(ModelId(model.name, None, model.fingerprint), METHODS[name].name)
    save_prompt(tmp_path / "p.npz", prompts[0], metadata)
    read = load_prompt(tmp_path / "p.npz", model)
    assert flat(read.leaves).keys() == flat(prompts[0].leaves).keys()
    jax.tree.map(np.testing.assert_array_equal, read.leaves, prompts[0].leaves)
    np.testing.assert_array_equal(logits(model, read), logits(model, prompts[0]))
    save_ensemble(tmp_path / "e.npz", prompts, [metadata] * 2)
    for (member, _), prompt in zip(read_prompts(tmp_path / "e.npz"), prompts, strict=True):
        jax.tree.map(np.testing.assert_array_equal, member.leaves, prompt.leaves)
    for message, write in (
        ("use npz", lambda: save_prompt(tmp_path / "p.npy", prompts[0], metadata)),
        (
            "are not exported to PEFT",
            lambda: save_prompt(tmp_path / "p", prompts[0], metadata, format="peft", model=model),
        ),
    ):
        with pytest.raises(PromptFormatError, match=message):
            write()


def test_they_are_not_stacked(model):
    prompts = [trained(model, "houlsby", seed=seed) for seed in range(2)]
    with pytest.raises(PromptStackError, match="prompt 0 changes weights of the base"):
        stack_prompts(prompts)


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
