"""Prefix tuning's parameters: sizes, initial values, and the merged MLP."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prompt_jax
from adapters import assert_close, random_text, whole
from prompt_jax.checkpoints.load import Model
from prompt_jax.errors import ConfigError
from prompt_jax.methods.method import FROZEN
from prompt_jax.methods.prefix import PrefixTuning
from prompt_jax.models import bart, family, gpt2, t5
from prompt_jax.prompt_files.io import load_prompt, save_prompt
from prompt_jax.prompt_files.metadata import ModelId, PromptMetadata

FAMILIES = ("t5", "gpt2", "bart")
FREE = PrefixTuning(length=4, init="normal")
WITH_MLP = dataclasses.replace(FREE, mlp_width=8)
KEY = jax.random.key(0)

GPT2_MEDIUM = gpt2.GPT2Config(vocab_size=8, positions=8, d_model=1024, d_ff=4096, num_heads=16, layers=24)
GPT2_LARGE = gpt2.GPT2Config(vocab_size=8, positions=8, d_model=1280, d_ff=5120, num_heads=20, layers=36)
BART_LARGE = bart.BartConfig(8, 8, 1024, 12, 16, 4096, 12, 16, 4096)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tiny_folders) -> Model:
    return prompt_jax.load_model(str(tiny_folders[request.param]))


def of_shapes(config) -> Model:
    """Return a model without weights, which random initialization does not need."""
    return Model("shapes", None, {}, config, None, "sha256:00")


def size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def batch_of(model) -> dict[str, np.ndarray]:
    return whole(random_text(model, 2, 7)) | {"decoder_inputs": random_text(model, 2, 5, seed=1)}


@pytest.mark.parametrize(("config", "a_slot"), ((GPT2_MEDIUM, 49_152), (GPT2_LARGE, 92_160), (BART_LARGE, 73_728)))
def test_stored_sizes_are_the_papers(config, a_slot):
    """For GPT-2 medium, a prefix of 5 has 245,760 parameters, and one of 10 has 491,520."""
    for length in (5, 10):
        options = dataclasses.replace(FREE, length=length)
        shapes = jax.eval_shape(lambda: options.initialize(KEY, of_shapes(config)))  # noqa: B023
        prompt = jax.eval_shape(options.apply, shapes)
        assert size(prompt) == size(shapes) == length * a_slot


def test_trained_sizes_are_the_papers():
    """GPT-2 medium with a prefix of 5 and a hidden width of 512: 25,744,896, of which 245,760 are kept."""
    options = dataclasses.replace(FREE, length=5, mlp_width=512)
    shapes = jax.eval_shape(lambda: options.initialize(KEY, of_shapes(GPT2_MEDIUM)))
    assert size(shapes) == 25_744_896
    prompt = jax.eval_shape(options.apply, shapes)
    assert size(prompt) == 245_760


def test_the_mlp_is_merged_into_the_file(model, tmp_path):
    """Each site has a separate table and MLP. The file contains neither, and gives the same logits."""
    options = WITH_MLP
    trainable = options.initialize(KEY, model)
    assert set(trainable) == set(family(model.config).sites(model.config))
    assert all(len(variables["layers"]) == 2 for variables in trainable.values())
    prompt = options.apply(trainable)
    save_prompt(tmp_path / "p.npz", prompt)
    with pytest.warns(UserWarning, match="does not say which base"):
        read = load_prompt(tmp_path / "p.npz", model)
    jax.tree.map(np.testing.assert_array_equal, read, prompt)
    batch = batch_of(model)
    assert_close(
        prompt_jax.forward(model.params, model.config, batch, read),
        prompt_jax.forward(model.params, model.config, batch, prompt),
    )


def test_the_mlp_is_the_papers():
    """table W_1 + b_1, tanh, W_2 + b_2, by hand; then split into keys and values."""
    options = WITH_MLP
    config = dataclasses.replace(GPT2_MEDIUM, d_model=4, num_heads=2, layers=3)
    ((site, own),) = options.initialize(KEY, of_shapes(config)).items()
    (first, second), table = jax.tree.map(np.asarray, (own["layers"], own["table"]))
    assert table.shape == (4, 4) and first["weights"].shape == (4, 8) and second["weights"].shape == (8, 2, 3, 2, 2)
    made = np.tanh(table @ first["weights"] + first["bias"]) @ second["weights"].reshape(8, 24)
    made = (made + second["bias"].reshape(24)).reshape(4, 2, 3, 2, 2)
    prompt = options.apply({site: own})
    np.testing.assert_allclose(prompt.decoder_self.keys, made[:, 0].swapaxes(0, 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(prompt.decoder_self.values, made[:, 1].swapaxes(0, 1), rtol=1e-5, atol=1e-6)


def test_random_first_values():
    """Uniform as in the paper, normal as in its code, and zero."""
    of = of_shapes(GPT2_MEDIUM)
    uniform = dataclasses.replace(FREE, init="uniform", init_range=(0.0, 1.0)).initialize(KEY, of)["decoder_self"]
    assert 0 <= uniform["keys"].min() < 0.01 and 0.99 < uniform["keys"].max() <= 1
    normal = FREE.initialize(KEY, of)["decoder_self"]
    assert abs(normal["values"].mean()) < 0.01 and abs(normal["values"].std() - 1) < 0.01
    assert not np.allclose(normal["keys"], normal["values"], atol=0.1)
    zero = dataclasses.replace(FREE, init="zero").initialize(KEY, of)["decoder_self"]
    assert not zero["keys"].any() and not zero["values"].any()


def words_of(model, text: str = "great fun") -> PrefixTuning:
    return dataclasses.replace(FREE, init="text", init_text=text, length=len(model.tokenizer.encode(f" {text}")))


def test_activations_of_real_words(model):
    """Without an MLP, the prefix is exactly the keys and values of the words. Before a target, it equals the words."""
    options = words_of(model)
    trainable = options.initialize(KEY, model)
    ids = np.array(model.tokenizer.encode(" great fun"), np.int32)[None]  # as in the middle of a text
    text = whole(ids) | {"decoder_inputs": ids}
    kept = family(model.config).activations(model.params, model.config, text)
    for site, (keys, values) in kept.items():
        np.testing.assert_allclose(trainable[site]["keys"], keys[:, 0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(trainable[site]["values"], values[:, 0], rtol=1e-5, atol=1e-5)


def test_a_longer_text_gives_its_first_tokens(tiny_folders):
    """As in PEFT's `initialize_kv_prefix_from_text`. In a causal model they do not depend on the tokens after them."""
    model = prompt_jax.load_model(str(tiny_folders["gpt2"]))
    longer = words_of(model, "great fun and a good film")
    first = dataclasses.replace(longer, length=longer.length - 2)
    whole_text, part = (options.initialize(KEY, model)["decoder_self"] for options in (longer, first))
    for name in ("keys", "values"):
        np.testing.assert_allclose(part[name], whole_text[name][:, : first.length], rtol=1e-5, atol=1e-5)


def test_frozen_tokens_are_apart_and_come_first(tiny_folders):
    """`apply` puts them back, without a gradient."""
    model = prompt_jax.load_model(str(tiny_folders["gpt2"]))
    free = words_of(model, "great fun and a good film")
    fixed = dataclasses.replace(free, frozen_tokens=2)
    trainable, plain = fixed.initialize(KEY, model), free.initialize(KEY, model)
    assert trainable["decoder_self"]["keys"].shape[1] == free.length - 2
    jax.tree.map(np.testing.assert_array_equal, fixed.apply(trainable), free.apply(plain))
    gradient = jax.grad(lambda variables: fixed.apply(variables).decoder_self.keys.sum())(trainable)["decoder_self"]
    assert not gradient[FROZEN]["keys"].any() and (gradient["keys"] == 1).all()


@pytest.mark.parametrize(("name", "init"), [("llama", "text"), ("gpt2", "normal")])
def test_the_default_of_later_models_is_a_text(tiny_folders, name, init):
    """The papers' families and MLPs start from noise, as in the papers."""
    model = prompt_jax.load_model(str(tiny_folders[name]))
    default = PrefixTuning(length=150)
    assert default.default_init(model) == init
    keys = default.initialize(KEY, model)["decoder_self"]["keys"]
    again = default.initialize(jax.random.key(1), model)["decoder_self"]["keys"]
    assert keys.shape[1] == 150 and (keys == again).all() == (init == "text")
    assert dataclasses.replace(default, mlp_width=4).default_init(model) == "normal"


def test_a_text_begins_with_the_start_token(tiny_folders, monkeypatch):
    """It is an attention sink, which `frozen_tokens` 1 keeps."""
    model = prompt_jax.load_model(str(tiny_folders["llama"]))
    monkeypatch.setattr(type(model.tokenizer), "start", property(lambda self: (2,)))
    options = dataclasses.replace(FREE, init="text", init_text="a good film, and great fun", frozen_tokens=1)
    ids = [2, *model.tokenizer.encode("a good film, and great fun")][: options.length]
    text = whole(np.array([ids], np.int32))
    keys, _ = family(model.config).activations(model.params, model.config, text)["decoder_self"]
    prompt = options.apply(options.initialize(KEY, model))
    assert_close(prompt.decoder_self.keys, keys[:, 0])


def test_the_mlp_is_fitted_to_real_words(model):
    """500 steps bring the MLP's output closer to the words' keys and values. The table is unchanged."""
    options = dataclasses.replace(words_of(model), mlp_width=32)
    fitted = options.initialize(KEY, model)
    start = dataclasses.replace(options, init="normal").initialize(KEY, model)
    exact = words_of(model).apply(words_of(model).initialize(KEY, model))

    def error(trainable) -> float:
        made = options.apply(trainable)
        differences = jax.tree.leaves(jax.tree.map(lambda a, b: jnp.square(a - b).mean(), made, exact))
        return float(sum(differences))

    assert error(fitted) < 0.9 * error(start)
    for site in fitted:
        np.testing.assert_array_equal(fitted[site]["table"], start[site]["table"])


def test_any_sites(model):
    sites = list(family(model.config).sites(model.config))
    options = dataclasses.replace(FREE, sites=(sites[-1],))
    trainable = options.initialize(KEY, model)
    prompt = options.apply(trainable)
    assert list(trainable) == list(prompt.parts) == [sites[-1]]
    assert prompt_jax.forward(model.params, model.config, batch_of(model), prompt).shape[:2] == (2, 5)


def test_dropout_is_of_keys_and_values():
    options = dataclasses.replace(FREE, dropout=0.25, length=50)
    trainable = options.initialize(KEY, of_shapes(GPT2_MEDIUM))
    plain = options.apply(trainable)
    np.testing.assert_array_equal(plain.decoder_self.keys, trainable["decoder_self"]["keys"])
    dropped = options.apply(trainable, KEY)
    keys, values = dropped.decoder_self.keys, dropped.decoder_self.values
    for leaf in (keys, values):
        assert abs((leaf == 0).mean() - 0.25) < 0.01
    kept = keys != 0
    np.testing.assert_allclose(keys[kept], plain.decoder_self.keys[kept] / 0.75, rtol=1e-6)
    assert ((keys == 0) != (values == 0)).any()


@pytest.fixture
def saved(tiny_folders, tmp_path):
    """Return a model, a prefix of it, and the prefix's file."""
    model = prompt_jax.load_model(str(tiny_folders["gpt2"]))
    prompt = FREE.apply(FREE.initialize(KEY, model))
    metadata = PromptMetadata(base=ModelId(model.name, None, model.fingerprint))
    save_prompt(tmp_path / "p.npz", prompt, metadata)
    return model, prompt, tmp_path / "p.npz"


def test_errors_name_the_problem(saved, tiny_folders):
    model, _, file = saved
    text, from_file = {"init": "text", "init_text": "great fun"}, {"init": "file", "init_file": file}
    for changes, message in (
        ({"sites": ("encoder_self",)}, "prompt.sites: .* has decoder_self, not encoder_self"),
        ({"init": "zero", "mlp_width": 8}, "prompt.init 'zero' cannot initialize the table of an MLP"),
        ({**text, "length": 50}, "'great fun' has . tokens, but prompt.length is 50"),
        ({**from_file, "length": 5}, "has decoder_self of 4, but prompt.length is 5"),
        ({**from_file, "mlp_width": 8}, "leave prompt.mlp_width out"),
        (
            {**from_file, "placement": "after"},
            "has placement 'before', but prompt.placement is 'after'",
        ),
        ({"frozen_tokens": 4}, "prompt.frozen_tokens is 4 of prompt.length 4"),
        ({"frozen_tokens": 1}, "keeps the keys and values of prompt.init 'text' or 'file', not of 'normal'"),
        ({**text, "frozen_tokens": 1, "mlp_width": 8}, "not of an MLP"),
        ({"shift_positions": False}, "prompt.shift_positions false is for BART"),
        ({"always_visible": True}, "prompt.always_visible: .* has no sliding windows; leave it out"),
    ):
        with pytest.raises(ConfigError, match=message):
            options = dataclasses.replace(FREE, **changes)
            options.check()
            options.initialize(KEY, model)
    with pytest.raises(ConfigError, match="an infix, needs a causal model"):
        t5_model = prompt_jax.load_model(str(tiny_folders["t5"]))
        dataclasses.replace(FREE, placement="after").initialize(KEY, t5_model)


def test_a_prefix_from_a_file(saved):
    model, prompt, file = saved
    trainable = dataclasses.replace(FREE, init="file", init_file=file).initialize(KEY, model)
    np.testing.assert_array_equal(trainable["decoder_self"]["keys"], prompt.decoder_self.keys)
    np.testing.assert_array_equal(trainable["decoder_self"]["values"], prompt.decoder_self.values)


def test_a_prefix_from_a_file_of_other_sites(tiny, tmp_path):
    config = PrefixTuning(length=2, init="zero")
    prompt = config.apply(config.initialize(KEY, tiny))
    save_prompt(tmp_path / "p.npz", prompt, PromptMetadata(base=ModelId(tiny.name, None, tiny.fingerprint)))
    fewer = dataclasses.replace(config, init="file", init_file=tmp_path / "p.npz", sites=("decoder_self",))
    with pytest.raises(ConfigError, match="has encoder_self and .*, but prompt.sites asks for decoder_self"):
        fewer.initialize(KEY, tiny)


def test_a_prefix_from_a_file_with_unused_slots(saved, tmp_path):
    model, prompt, _ = saved
    mask = np.array([True, False, True, True])
    masked = dataclasses.replace(prompt, decoder_self=dataclasses.replace(prompt.decoder_self, mask=mask))
    save_prompt(tmp_path / "m.npz", masked, PromptMetadata(base=ModelId(model.name, None, model.fingerprint)))
    options = dataclasses.replace(FREE, init="file", init_file=tmp_path / "m.npz", length=3)
    trainable = options.initialize(KEY, model)
    np.testing.assert_array_equal(trainable["decoder_self"]["keys"], prompt.decoder_self.keys[:, mask])
    np.testing.assert_array_equal(trainable["decoder_self"]["values"], prompt.decoder_self.values[:, mask])


def test_the_relative_bias_counts_a_prefix_as_text(tiny_folders):
    """T5's rule: the last key of a prefix is at distance 1 from the first token of the text."""
    model = prompt_jax.load_model(str(tiny_folders["t5"]))
    shape = model.config.relative_buckets, model.config.num_heads
    table = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    side = {"relative_bias": jnp.asarray(table)}
    _, bias = t5.biases(side, model.config, np.arange(3), 4, bidirectional=False)({})
    for query in range(3):
        for slot in range(4):
            np.testing.assert_array_equal(bias[0, :, query, slot], table[query + 4 - slot])
