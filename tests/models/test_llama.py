"""Llama, Mistral, Qwen, SmolLM3, Phi and Gemma: compare tiny models with Transformers, and check invariants."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import prompt_jax
from adapters import assert_close, assert_rows_are_each_alone, random_prefix, random_text, random_tokens, whole
from prompt_jax import Prompt, VirtualTokens
from prompt_jax.checkpoints.save import save_model
from prompt_jax.cli import main
from prompt_jax.config.decoding import Decoding
from prompt_jax.errors import CheckpointError
from prompt_jax.methods.adapter import AdapterTuning
from prompt_jax.methods.full import FullTuning
from prompt_jax.methods.last_layers import LastLayersTuning
from prompt_jax.models import ContextError, embedding_table, family
from prompt_jax.models.delta import params_and_prompt
from prompt_jax.models.llama import MODEL_TYPES
from prompt_jax.models.prompt import Prefix, PromptPartError, PromptStackError
from prompt_jax.prompt_files.io import read_prompts
from prompt_jax.prompt_files.metadata import ModelId, PromptFormatError, PromptMetadata
from prompt_jax.prompt_files.peft import write as write_peft


# Rotation in all layers; in some; and two kinds, with sliding windows.
@pytest.fixture(scope="module", params=("llama", pytest.param("smollm3", marks=pytest.mark.slow), "gemma3_text"))
def model(request, fixtures):
    return prompt_jax.load_model(str(fixtures / request.param / "base"))


def padded_batch(reference):
    """Return the reference's batch, and which of its tokens are real."""
    real = reference["inputs/attention_mask"].astype(bool)
    return {"inputs": reference["inputs/input_ids"].astype(np.int32), "inputs_mask": real}, real


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_logits_and_tokens_equal_transformers(fixtures, name):
    """Rows with left padding; greedy and beam search."""
    model, reference = prompt_jax.load_model(fixtures / name / "base"), np.load(fixtures / name / "reference.npz")
    batch, real = padded_batch(reference)
    logits = np.asarray(prompt_jax.forward(model.params, model.config, batch))
    assert_close(logits[real], reference["logits"][real])
    for decoding, kind in ((Decoding(), "greedy"), (Decoding(beams=3), "beams")):
        tokens = prompt_jax.generate(model.params, model.config, batch, max_new_tokens=10, decoding=decoding)
        np.testing.assert_array_equal(tokens, reference[kind])


# Sliding windows and two kinds of layers; merged matrices.
QUICK = ("gemma3_text", "phi3")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODEL_TYPES])
def test_rounded_logits_are_near_transformers(fixtures, name):
    """bfloat16 rounds activations; int8 and int4 also matrices."""
    reference = np.load(fixtures / name / "reference.npz")
    batch, real = padded_batch(reference)
    expected = reference["logits"][real]
    for dtype, tolerance in (("bfloat16", 0.05), ("int8", 0.105), ("int4", 0.8)):
        rounded = prompt_jax.load_model(fixtures / name / "base", dtype)
        logits = prompt_jax.forward(rounded.params, rounded.config, batch)
        assert rounded.params["embedding"].dtype == "bfloat16" and logits.dtype == "float32"
        difference = np.asarray(logits)[real] - expected
        assert np.sqrt(np.square(difference).mean() / np.square(expected).mean()) < tolerance


def test_a_text_before_a_text_is_its_prefix_and_its_virtual_tokens(model):
    """Keys after rotation and norms, at positions 0 to P - 1; sliding windows and padding included."""
    text = random_text(model, 2, 14)
    expected = np.asarray(prompt_jax.forward(model.params, model.config, whole(text)))
    kept = family(model.config).activations(model.params, model.config, whole(text[:, :8]))["decoder_self"]
    padded = {"inputs": np.pad(text[:, 8:], ((0, 0), (3, 1))), "inputs_mask": np.pad(text[:, 8:], ((0, 0), (3, 1))) > 0}
    for row in range(2):
        one = {key: value[row : row + 1] for key, value in padded.items()}
        prefix = Prompt(decoder_self=Prefix(*(leaf[:, row] for leaf in kept)))
        tokens = Prompt(VirtualTokens(np.asarray(embedding_table(model.params, model.config))[text[row, :8]]))
        for prompt in (prefix, tokens):
            assert_close(prompt_jax.forward(model.params, model.config, one, prompt)[0, 3:-1], expected[row, 8:])
        both = tokens.replace(decoder_self=Prefix(*(leaf[:, :3] for leaf in jax.tree.leaves(prefix))))
        both = both.replace(encoder_tokens=VirtualTokens(tokens.encoder_tokens.embeddings[3:]))
        assert_close(prompt_jax.forward(model.params, model.config, one, both)[0, 3:-1], expected[row, 8:])


def test_the_cache_continues_the_forward_pass(model):
    """Greedy tokens after a prefix or virtual tokens are those of the plain loop. They leave sliding windows."""
    text = random_text(model, 2, 6)
    for prompt in (random_prefix(model, 3), random_tokens(model, 3)):
        tokens = np.asarray(
            prompt_jax.generate(
                model.params, model.config, whole(text), prompt, max_new_tokens=8, decoding=Decoding(min_new_tokens=8)
            )
        )
        read = np.concatenate([text, tokens[:, :-1]], axis=1)
        logits = np.array(prompt_jax.forward(model.params, model.config, whole(read), prompt))[:, -8:]
        logits[..., model.config.eos_id] = -np.inf
        np.testing.assert_array_equal(logits.argmax(axis=-1), tokens)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("llama", random_tokens),
        *(pytest.param(name, random_tokens, marks=pytest.mark.slow) for name in ("smollm3", "gemma3_text")),
        *(pytest.param(name, random_prefix, marks=pytest.mark.slow) for name in ("llama", "smollm3", "gemma3_text")),
    ],
)
def test_mixed_prompts_are_each_alone(fixtures, name, make):
    model = prompt_jax.load_model(str(fixtures / name / "base"))
    prompts = [make(model, 3), make(model, 5, seed=1), make(model, 4, seed=2, mask=np.array([True, False, True, True]))]
    assert_rows_are_each_alone(model, prompts, 3)


def test_an_infix_of_real_tokens_is_these_tokens(model):
    text = random_text(model, 1, 12)
    source = whole(text[:, :5]) | {"decoder_inputs": text[:, 8:]}
    kept = family(model.config).activations(model.params, model.config, whole(text[:, :8]))["decoder_self"]
    infix = Prompt(decoder_self=Prefix(*(leaf[:, 0, 5:] for leaf in kept), placement="after"))
    expected = np.asarray(prompt_jax.forward(model.params, model.config, whole(text)))[:, 8:]
    assert_close(prompt_jax.forward(model.params, model.config, source, infix), expected)


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_a_saved_model_is_the_same(fixtures, name, tmp_path):
    """Also under the same fingerprint: config.json is written as it was read."""
    model = prompt_jax.load_model(str(fixtures / name / "base"))
    save_model(tmp_path / "model", model)
    again = prompt_jax.load_model(str(tmp_path / "model"))
    assert again.fingerprint == model.fingerprint and again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


@pytest.mark.parametrize(
    "method",
    [AdapterTuning(width=2), AdapterTuning(kind="lin", width=2), LastLayersTuning(layers=2), FullTuning()],
    ids=("houlsby", "lin", "last layers", "full"),
)
def test_changes_of_the_base(fixtures, method):
    """They start as the base, and every trained leaf has a gradient. Last layers keep their windows and rotations."""
    model = prompt_jax.load_model(str(fixtures / "gemma3_text" / "base"))
    text = whole(random_text(model, 2, 12))
    trainable = method.initialize(jax.random.key(0), model)

    def logits(trainable):
        params, _ = params_and_prompt(model.params, method.apply(trainable))
        return family(model.config).forward(params, model.config, text)

    expected = prompt_jax.forward(model.params, model.config, text)
    assert_close(logits(trainable), expected, tolerance=1e-2 if isinstance(method, AdapterTuning) else 1e-5)
    gradient = jax.jit(jax.grad(lambda trainable: (logits(trainable) ** 2).mean()))(trainable)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_a_row_without_tokens_changes_no_other_row(model):
    batch = whole(random_text(model, 3, 6)) | {"decoder_inputs": random_text(model, 3, 4, seed=1)}
    empty = batch | {"inputs_mask": batch["inputs_mask"] & np.array([[True], [False], [True]])}
    expected, logits = (np.asarray(prompt_jax.forward(model.params, model.config, each)) for each in (batch, empty))
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[::2], expected[::2], rtol=1e-5, atol=1e-5)
    alone = prompt_jax.forward(model.params, model.config, whole(batch["decoder_inputs"][1:2]))
    assert_close(logits[1], np.asarray(alone)[0])


def test_remat_and_dropout(fixtures):
    """Rematerialization draws the same masks again; without a key there is no dropout."""
    model = prompt_jax.load_model(str(fixtures / "gemma3_text" / "base"))
    text, prompt = whole(random_text(model, 2, 9)), random_tokens(model, 3)
    config = dataclasses.replace(model.config, dropout_rate=0.3)
    plain = prompt_jax.forward(model.params, model.config, text, prompt)
    np.testing.assert_array_equal(prompt_jax.forward(model.params, config, text, prompt), plain)
    dropped = prompt_jax.forward(model.params, config, text, prompt, key=jax.random.key(0))
    assert np.abs(dropped - plain).max() > 0.01
    again = dataclasses.replace(config, remat="full")
    assert_close(prompt_jax.forward(model.params, again, text, prompt, key=jax.random.key(0)), dropped)


def test_a_prompt_is_computed_once_for_the_batch(fixtures):
    """Ten times the rows take no more work for the virtual tokens than for their keys and values. No key or value is
    repeated for the rows, or for the query heads of its group."""
    model, slots = prompt_jax.load_model(str(fixtures / "gemma3_text" / "base")), 40

    def flops(rows: int, prompt: Prompt) -> float:
        compute = jax.jit(family(model.config).forward, static_argnums=1)
        text = whole(random_text(model, rows, 8))
        return compute.lower(model.params, model.config, text, prompt).compile().cost_analysis()["flops"]

    tokens, prefix = random_tokens(model, slots), random_prefix(model, slots)
    own = flops(2, tokens) - flops(2, prefix)
    assert own > 0 and flops(20, tokens) - flops(20, prefix) == pytest.approx(own, rel=0.05)
    jaxpr = jax.make_jaxpr(family(model.config).forward, static_argnums=1)(
        model.params, model.config, whole(random_text(model, 7, 8)), prefix
    )
    written, heads, width = str(jaxpr).replace(" ", ""), model.config.num_heads, model.config.d_kv
    for repeated in (f"[7,{slots},{model.config.kv_heads},{width}]", f"{slots},{heads},{width}]"):
        assert repeated not in written


def masked(tokens: Prompt, *unused: int) -> Prompt:
    """Return a soft prompt of which these slots are unused."""
    virtual = tokens.encoder_tokens
    return Prompt(encoder_tokens=virtual.replace(mask=~np.isin(np.arange(virtual.slots), unused)))


@pytest.mark.parametrize("kind", ["tokens", "unused slots", "prefix and tokens", "infix", "stack"])
@pytest.mark.parametrize("name", [pytest.param("llama", marks=pytest.mark.slow), "gemma3_text"])
def test_one_loop_over_the_layers_equals_one_for_each_part(fixtures, name, kind):
    """`forward` reads prompt, source and target in one loop; `as_prefix`, `encode` and `decode` need three."""
    model = prompt_jax.load_model(str(fixtures / name / "base"))
    config, group = dataclasses.replace(model.config, dropout_rate=0.1), family(model.config)
    infix = random_prefix(model, 3)
    prompt = {
        "tokens": random_tokens(model, 7),
        "unused slots": masked(random_tokens(model, 7), 0, 3, 6),
        "prefix and tokens": infix.replace(encoder_tokens=random_tokens(model, 7).encoder_tokens),
        "infix": Prompt(decoder_self=infix.decoder_self.replace(placement="after")),
        "stack": prompt_jax.stack_prompts([random_tokens(model, 7), masked(random_tokens(model, 7, seed=5), 2)]),
    }[kind]
    text = whole(random_text(model, 3, 9)) | {"decoder_inputs": random_text(model, 3, 6, seed=1)}
    text["inputs_mask"][1, :4] = False
    if kind == "stack":
        text["prompt_ids"] = np.array([1, -1, 0])
    keys = jax.random.split(jax.random.key(0))

    def together(prompt):
        return group.forward(model.params, config, text, prompt, key=jax.random.key(0))

    def apart(prompt):
        encoded = group.encode(model.params, config, text, prompt, key=keys[0])
        return group.decode(model.params, config, encoded, text, prompt, key=keys[1])

    def converted(prompt):
        return group.forward(model.params, config, text, group.as_prefix(model.params, config, prompt))

    assert_close(together(prompt), apart(prompt))
    plain = group.forward(model.params, config, text, prompt)
    assert_close(converted(prompt), plain)
    weights = np.random.default_rng(0).normal(size=plain.shape)
    floats = [leaf for leaf in jax.tree.leaves(prompt) if np.issubdtype(leaf.dtype, np.floating)]

    def gradients(compute):
        def loss(floats):
            rest = iter(floats)
            own = jax.tree.map(lambda leaf: next(rest) if np.issubdtype(leaf.dtype, np.floating) else leaf, prompt)
            return (compute(own) * weights).sum()

        return jax.grad(loss)(floats)

    for one, other in zip(gradients(together), gradients(apart), strict=True):
        assert_close(one, other)


def test_values_in_unused_slots_do_not_matter(model):
    tokens = masked(random_tokens(model, 5), 0, 2)
    text = whole(random_text(model, 2, 6)) | {"decoder_inputs": random_text(model, 2, 4, seed=1)}
    embeddings = np.array(tokens.encoder_tokens.embeddings)
    embeddings[[0, 2]] = np.nan
    garbage = Prompt(encoder_tokens=tokens.encoder_tokens.replace(embeddings=embeddings))
    expected, actual = (prompt_jax.forward(model.params, model.config, text, each) for each in (tokens, garbage))
    np.testing.assert_array_equal(actual, expected)


def test_initial_tokens_are_scaled_embeddings(tiny_folders):
    """Gemma multiplies embeddings by the root of the model width. Virtual tokens do not pass through the table."""
    model = prompt_jax.load_model(str(tiny_folders["gemma3_text"]))
    method = prompt_jax.PromptTuning(length=2, init="text", init_text="a good film")
    tokens = method.initialize(jax.random.key(0), model)["encoder_tokens"]
    ids = model.tokenizer.encode(" a good film")[:2]
    np.testing.assert_allclose(tokens, np.asarray(model.params["embedding"])[ids] * 4, rtol=1e-6)


# --------------------------------------------------------------------------------------------------------------
# Sliding windows and longrope


def test_a_prefix_leaves_the_sliding_window_unless_it_is_always_visible(fixtures):
    """Mistral's window has 5 tokens in each of 3 layers. From token 13 on, nothing reaches back to the prefix."""
    model = prompt_jax.load_model(str(fixtures / "mistral" / "base"))
    text, start = random_text(model, 1, 20), 3 * (5 - 1)
    prefixes = [random_prefix(model, 4, seed) for seed in (0, 1)]
    first, second = (np.asarray(prompt_jax.forward(model.params, model.config, whole(text), each)) for each in prefixes)
    assert np.abs(first - second)[0, start - 1].max() > 1e-4
    np.testing.assert_array_equal(first[0, start:], second[0, start:])

    visible = [Prompt(decoder_self=each.decoder_self.replace(always_visible=True)) for each in prefixes]
    first, second = (np.asarray(prompt_jax.forward(model.params, model.config, whole(text), each)) for each in visible)
    assert np.abs(first - second)[0].max(axis=-1).min() > 1e-3
    tokens = prompt_jax.generate(model.params, model.config, whole(text[:, :15]), visible[0], max_new_tokens=1)
    assert tokens[0, 0] == first[0, 14].argmax()


def test_an_always_visible_prefix_is_stored(fixtures, tmp_path):
    model = prompt_jax.load_model(str(fixtures / "gemma3_text" / "base"))
    prompt = random_prefix(model, 4, always_visible=True)
    prompt_jax.save_prompt(tmp_path / "p.npz", prompt)
    ((read, _),) = read_prompts(tmp_path / "p.npz")
    assert read.decoder_self.always_visible
    with pytest.raises(PromptStackError, match="differ in always_visible"):
        prompt_jax.stack_prompts([prompt, random_prefix(model, 4)])
    with pytest.raises(PromptFormatError, match="in PEFT, a prefix leaves sliding windows, and this one is always"):
        write_peft(tmp_path / "peft", [(prompt, PromptMetadata())], model, ensemble=False)
    both = prompt.replace(encoder_tokens=random_tokens(model, 2).encoder_tokens)
    with pytest.raises(PromptPartError, match="with a prefix, but not with one that is always visible"):
        prompt_jax.forward(model.params, model.config, whole(random_text(model, 1, 4)), both)


def test_longrope_depends_on_the_longest_row(fixtures):
    """Texts of more than 40 tokens, prompt included, have the other factors, in all rows of a call."""
    model = prompt_jax.load_model(str(fixtures / "phi3" / "base"))
    long = dataclasses.replace(model.config, ropes=(dataclasses.replace(model.config.ropes[0], long=True),))
    text, prompt = random_text(model, 1, 38), random_tokens(model, 3)

    def logits(config, length, prompt):
        return np.asarray(family(config).forward(model.params, config, whole(text[:, :length]), prompt))

    for length, config in ((37, model.config), (38, long)):
        actual = prompt_jax.forward(model.params, model.config, whole(text[:, :length]), prompt)
        assert_close(actual, logits(config, length, prompt))
    assert np.abs(logits(long, 38, prompt) - logits(model.config, 38, prompt)).max() > 0.01


@pytest.mark.parametrize("make", (random_tokens, random_prefix))
def test_a_prompt_keeps_the_factors_of_longrope_that_it_was_trained_with(fixtures, make, tmp_path):
    model = prompt_jax.load_model(str(fixtures / "phi3" / "base"))
    long = dataclasses.replace(model.config, ropes=(dataclasses.replace(model.config.ropes[0], long=True),))
    text = whole(random_text(model, 1, 6))
    prompts = {}
    for flag in (True, False, None):
        prompt_jax.save_prompt(tmp_path / f"{flag}.npz", make(model, 3, long_rope=flag))
        prompts[flag] = prompt_jax.load_prompt(tmp_path / f"{flag}.npz")
    outputs = {flag: prompt_jax.forward(model.params, model.config, text, prompt) for flag, prompt in prompts.items()}
    for flag, config in ((True, long), (False, model.config), (None, model.config)):
        assert_close(outputs[flag], family(config).forward(model.params, config, text, make(model, 3)))
    assert np.abs(outputs[True] - outputs[False]).max() > 0.01
    with pytest.raises(ContextError, match=r"have 41 tokens, so the .* other factors \(longrope\) than those"):
        prompt_jax.forward(model.params, model.config, whole(random_text(model, 1, 38)), prompts[False])
    with pytest.raises(PromptStackError, match="prompt 0 and prompt 1 differ in long_rope"):
        prompt_jax.stack_prompts([prompts[True], prompts[False]])
    stacked = prompt_jax.stack_prompts([prompts[True]] * 2)
    batch = text | {"prompt_ids": np.array([1], np.int32)}
    assert_close(prompt_jax.forward(model.params, model.config, batch, stacked), outputs[True])
    with pytest.warns(UserWarning, match="trained with the factors of longrope for long texts. With PEFT, short texts"):
        write_peft(tmp_path / "peft", [(prompts[True], PromptMetadata())], model, ensemble=False)


def test_virtual_tokens_become_a_prefix_with_their_rotary_positions(tiny_folders, tmp_path):
    model = prompt_jax.load_model(str(tiny_folders["phi3"]))
    base = PromptMetadata(base=ModelId(model.name, None, model.fingerprint))
    prompt_jax.save_prompt(tmp_path / "p.npz", random_tokens(model, 3, long_rope=True), base)
    arguments = "export", tmp_path / "p.npz", tmp_path / "prefix.npz", "--as", "prefix", "--model", model.name
    assert main([str(word) for word in arguments]) == 0
    text = whole(random_text(model, 1, 6))
    prompts = [read_prompts(tmp_path / name)[0][0] for name in ("p.npz", "prefix.npz")]
    tokens, prefix = (prompt_jax.forward(model.params, model.config, text, prompt) for prompt in prompts)
    assert prompts[1].decoder_self.long_rope
    assert_close(prefix, tokens)


# --------------------------------------------------------------------------------------------------------------
# Checkpoints


def changed(fixtures, folder, name, **changes):
    """Return a folder with a fixture's weights and another config.json. None removes a value."""
    config = json.loads((fixtures / name / "base" / "config.json").read_text()) | changes
    folder.mkdir()
    shutil.copy(fixtures / name / "base" / "model.safetensors", folder)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("name", ("llama", "gemma2", "gemma3_text"))
def test_a_null_dropout_is_none(fixtures, tmp_path, name):
    """Transformers reads such files."""
    model = prompt_jax.load_model(changed(fixtures, tmp_path / "m", name, attention_dropout=None))
    assert model.config == prompt_jax.load_model(str(fixtures / name / "base")).config
    assert model.config.dropout_rate == 0.0


def test_old_and_new_names_of_rotary_parameters(fixtures, tmp_path):
    """Also Gemma 3 as the language model of a model with images, whose other tensors are ignored."""
    expected = {name: prompt_jax.load_model(str(fixtures / name / "base")) for name in ("llama", "gemma3_text")}
    raw = json.loads((fixtures / "llama" / "base" / "config.json").read_text())
    new = raw.pop("rope_scaling") | {"rope_theta": raw.pop("rope_theta")}
    folder = changed(fixtures, tmp_path / "llama", "llama", rope_parameters=new)
    (tmp_path / "llama" / "config.json").write_text(json.dumps(raw | {"rope_parameters": new}))
    assert prompt_jax.load_model(folder).config == expected["llama"].config

    phi = json.loads((fixtures / "phi3" / "base" / "config.json").read_text())
    factors = {name: phi["rope_parameters"][name] for name in ("short_factor", "long_factor")}
    old = {"rope_theta": 100.0, "partial_rotary_factor": 0.75, "rope_scaling": {"type": "su", **factors}}
    folder = changed(fixtures, tmp_path / "phi3", "phi3", rope_parameters=None, **old)
    assert prompt_jax.load_model(folder).config == prompt_jax.load_model(str(fixtures / "phi3" / "base")).config

    base, folder = fixtures / "gemma3_text" / "base", tmp_path / "gemma3"
    text = json.loads((base / "config.json").read_text())
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": text.pop("rope_theta")}
    del text["rope_scaling"]
    sliding = {"rope_type": "default", "rope_theta": text.pop("rope_local_base_freq")}
    text["rope_parameters"] = {"full_attention": full, "sliding_attention": sliding}
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": text, "eos_token_id": [1, 5], "pad_token_id": 0})
    )
    for prefix in ("language_model.model.", "model.language_model."):
        tensors = {f"{prefix}{name[6:]}": leaf for name, leaf in load_file(base / "model.safetensors").items()}
        tensors["vision_tower.vision_model.embeddings.weight"] = np.zeros((2, 2), np.float32)
        save_file(tensors, folder / "model.safetensors")
        model = prompt_jax.load_model(str(folder))
        assert model.fingerprint == expected["gemma3_text"].fingerprint
        assert model.config.generation.end_ids == (1, 5)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"model_type": "qwen3_moe"}, "'qwen3_moe', a mixture of experts; supported are t5,"),
        ("llama", {"model_type": "gemma3n"}, "'gemma3n', which has embeddings in each layer"),
        ("llama", {"model_type": "qwen3_next"}, "'qwen3_next', which has linear attention"),
        ("llama", {"hidden_act": "relu"}, "hidden_act is 'relu'; supported: 'silu', 'gelu_pytorch_tanh', 'gelu'"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic NTK, which is not supported"),
        ("llama", {"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only phi3 supports it"),
        ("llama", {"attention_bias": False}, "surplus"),
        ("qwen2", {"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "layer_types is"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True; supported: False"),
        ("gemma2", {"query_pre_attn_scalar": -2}, "query_pre_attn_scalar is -2; expected a positive number"),
        (
            "smollm3",
            {"no_rope_layers": [1, 0], "layer_types": ["full_attention"] * 4},
            "no_rope_layers has 2 entries; expected one for each of 4 layers",
        ),
    ],
)
def test_unsupported_models_are_refused_by_name(fixtures, tmp_path, name, changes, message):
    with pytest.raises(CheckpointError, match=message):
        prompt_jax.load_model(changed(fixtures, tmp_path / "model", name, **changes))
