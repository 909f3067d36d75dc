"""PEFT's adapters: PEFT's files give PEFT's logits here, our files equal PEFT's, and files are not trusted.

`test_peft_interop` loads our adapters in PEFT.
"""

import dataclasses
import json
import re
import shutil
import warnings
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import buckets
import prompt_jax
from adapters import PREFIXES, PROMPTS, assert_close, forward_batch, peft_prompt, random_prefix, random_tokens
from fuzzing import FUZZ
from peft_adapters import (
    FAMILIES,
    METADATA,
    assert_same,
    bart_of,
    changed,
    config_of,
    gpt2_of,
    t5_of,
    tensor,
    tied,
    written,
)
from prompt_jax import Prompt, PromptFormatError, PromptMetadata, load_prompt, save_ensemble, save_prompt
from prompt_jax.checkpoints.load import Model
from prompt_jax.cli import main
from prompt_jax.config.data import DataConfig
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment, check
from prompt_jax.methods.prefix import PrefixTuning
from prompt_jax.models import bart, gpt2
from prompt_jax.models.prompt import PromptStackError, stack_prompts, unstack_prompts
from prompt_jax.prompt_files import peft
from prompt_jax.prompt_files.io import ModelId, read_prompt, read_prompts
from prompt_jax.prompt_files.peft import CARD, VERIFIED
from prompt_jax.prompt_files.peft_tensors import CONFIG, TENSORS
from prompt_jax.storage import paths
from prompt_jax.storage.paths import parse_path

KEY = jax.random.key(0)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, fixtures) -> Model:
    return prompt_jax.load_model(str(fixtures / request.param / "base"))


@pytest.fixture
def adapters(model) -> Path:
    """Return the adapters that PEFT wrote for the model."""
    return Path(model.name).parent


# --------------------------------------------------------------------------------------------------------------
# Adapters that PEFT wrote


def adapters_of(family: str) -> tuple[str, ...]:
    return PROMPTS + PREFIXES + (() if family == "gpt2" else ("prompt_one_submodule",))


@pytest.mark.parametrize(("model", "name"), [(f, n) for f in FAMILIES for n in adapters_of(f)], indirect=["model"])
def test_logits_equal_pefts(model, adapters, name):
    """GPT-2's logits at virtual tokens are left out."""
    with pytest.warns(UserWarning, match="does not say which base"):
        prompt = load_prompt(adapters / name, model)
    reference = np.load(adapters / "reference.npz")
    batch = forward_batch(reference)
    logits = np.asarray(prompt_jax.forward(model.params, model.config, batch, prompt))
    expected = reference[f"{name}/logits"][:, -logits.shape[1] :]
    real = batch["inputs_mask"] if "decoder_inputs" not in batch else ...
    assert_close(logits[real], expected[real])


@pytest.mark.parametrize(("model", "name"), [(f, n) for f in FAMILIES for n in adapters_of(f)], indirect=["model"])
def test_rewritten_adapters_equal_pefts(model, adapters, name, tmp_path):
    """Compare the rows that PEFT uses, and the configuration except for training."""
    source, again = adapters / name, tmp_path / "again"
    prompt, metadata = read_prompt(source)
    save_prompt(again, prompt, metadata, format="peft", model=model)
    assert {path.name for path in again.iterdir()} == {CONFIG, TENSORS, CARD}
    assert_same(load_prompt(again), prompt)

    theirs, ours = config_of(source), config_of(again)
    flat, whole = (load_file(folder / TENSORS)["prompt_embeddings"] for folder in (again, source))
    assert ours["base_model_name_or_path"] == model.name
    if name in PREFIXES:
        told = {"encoder_hidden_size", "prefix_projection"}
        if model.config.start_id == 0 or isinstance(model.config, bart.BartConfig):
            # PEFT gives two layers of a decoder the first two of its four slots.
            assert not flat.reshape(4, 4, -1)[:, 2:].any()
            flat, whole = (array.reshape(4, 4, -1)[:, :2] for array in (flat, whole))
    else:
        told = {"num_transformer_submodules"}
        whole = whole[: ours["num_virtual_tokens"]]
    assert flat.dtype == np.float32 and flat.tobytes() == whole.tobytes()
    if name == "p_tuning":
        assert ours["peft_type"] == "PROMPT_TUNING"
        assert ours.keys() == config_of(adapters / "prompt").keys()
    else:
        assert list(ours) == list(theirs) == sorted(ours)
        differ = {key for key in ours if ours[key] != theirs[key]}
        assert differ <= told | {"base_model_name_or_path"}
    if whole.size == load_file(source / TENSORS)["prompt_embeddings"].size:
        assert (again / TENSORS).read_bytes() == (source / TENSORS).read_bytes()


# --------------------------------------------------------------------------------------------------------------
# Round trips


@st.composite
def prompts(draw) -> tuple[Model, Prompt]:
    """Prompts that PEFT can hold, with any number of layers; some have unused slots."""
    layers, seed, length = draw(st.integers(1, 5)), draw(st.integers(0, 9)), draw(st.integers(1, 4))
    model = draw(st.sampled_from([t5_of, gpt2_of, bart_of]))(layers)
    mask = draw(st.none() | st.lists(st.booleans(), min_size=length, max_size=length).filter(any).map(np.array))
    if draw(st.booleans()):
        return model, random_tokens(model, length, seed, mask=mask)
    whole = random_prefix(model, length, seed, ("decoder_self",), mask=mask)
    return model, whole if isinstance(model.config, gpt2.GPT2Config) else tied(whole)


def used(prompt: Prompt) -> Prompt:
    """Remove unused slots."""
    (only,) = unstack_prompts(stack_prompts([prompt]))
    return only


@FUZZ
@given(prompts())
def test_adapters_are_exact_both_ways(tmp_path_factory, both):
    """An independent reader (`adapters.peft_prompt`) reads the same prompts."""
    model, prompt = both
    folder = tmp_path_factory.mktemp("adapter") / "a"
    save_prompt(folder, prompt, format="peft", model=model)
    assert_same(load_prompt(folder), used(prompt))
    assert_same(peft_prompt(folder), used(prompt))
    config = config_of(folder)
    assert (config["base_model_name_or_path"], config["revision"]) == (model.name, model.revision)


def test_the_base_need_not_be_of_one_depth_nor_width():
    """The decoder and the encoder have different depths, and the heads do not add up to the model's width. PEFT would
    guess wrong, so the file states both."""
    for layers in (3, 4):
        model = t5_of(layers, d_model=8)
        made = peft._adapter("x", tied(random_prefix(model, 2, sites=("decoder_self",))), METADATA, model)
        config = json.loads(made[CONFIG])
        assert (config["num_layers"], config["num_attention_heads"], config["token_dim"]) == (layers, 3, 12)
        made = peft._adapter("x", random_tokens(model, 2), METADATA, model)
        config = json.loads(made[CONFIG])
        assert (config["num_layers"], config["num_attention_heads"], config["token_dim"]) == (2, 3, 8)


def test_export_and_card_state_the_versions_that_the_interop_tests_install(tiny, tiny_folder, tmp_path, capsys):
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    (pins,) = re.findall(r"^INTEROP := \$\(TORCH\) transformers==(\S+) peft==(\S+)$", makefile, re.MULTILINE)
    assert pins == (VERIFIED["Transformers"], VERIFIED["PEFT"])
    stated = f"Verified with PEFT {pins[1]} and Transformers {pins[0]}. "
    metadata = PromptMetadata(base=ModelId(tiny.name, tiny.revision, tiny.fingerprint))
    save_ensemble(tmp_path / "e.npz", [random_tokens(tiny, 3)] * 2, [metadata] * 2)
    for more, card in ((("--member", "1"), "a/README.md"), ((), "b/member_1/README.md")):
        folder = tmp_path / card[0]
        argv = ("export", str(tmp_path / "e.npz"), str(folder), "--format", "peft", "--model", str(tiny_folder), *more)
        assert main(argv) == 0
        assert capsys.readouterr().out.startswith(f"wrote {folder}\n{stated}")
        assert stated in (tmp_path / card).read_text()
    assert main(["export", str(tmp_path / "e.npz"), str(tmp_path / "c.npz")]) == 0
    assert "PEFT" not in capsys.readouterr().out


def test_an_ensemble_is_a_folder_of_adapters(model, adapters, tmp_path):
    members = [read_prompt(adapters / f"ensemble_{number}") for number in range(3)]
    both = list(zip(*members, strict=True))
    save_ensemble(tmp_path / "e", *both, format="peft", model=model)
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["member_0", "member_1", "member_2"]
    for (again, metadata), (prompt, _) in zip(read_prompts(tmp_path / "e"), members, strict=True):
        assert_same(again, prompt)
        assert metadata.method == "soft_prompt"
    assert load_prompt(tmp_path / "e").stacked == 3
    assert_same(load_prompt(tmp_path / "e" / "member_1"), members[1][0])
    with pytest.raises(PromptFormatError, match="is an ensemble of 3 prompts"):
        read_prompt(tmp_path / "e")

    (tmp_path / "e" / "member_1").rename(tmp_path / "e" / "member_3")
    with pytest.raises(PromptFormatError, match="there are 3 members and no member_1"):
        load_prompt(tmp_path / "e")
    (tmp_path / "e" / "member_3").rename(tmp_path / "e" / "member_1")
    shutil.rmtree(tmp_path / "e" / "member_1")
    shutil.copytree(adapters / "prefix", tmp_path / "e" / "member_1")
    with pytest.raises(PromptFormatError, match="e, member 0 has encoder_tokens, and .*e, member 1 has decoder_self"):
        load_prompt(tmp_path / "e")


# --------------------------------------------------------------------------------------------------------------
# Prompts that PEFT cannot hold


@pytest.mark.parametrize("make", (t5_of, bart_of))
def test_a_prefix_of_each_layer_is_of_odd_depths(make, tmp_path):
    for layers in (1, 2, 3, 4):
        model = make(layers)
        prompt = random_prefix(model, 2, sites=("decoder_self",))
        if layers % 2:
            save_prompt(tmp_path / str(layers), prompt, format="peft", model=model)
            assert_same(load_prompt(tmp_path / str(layers)), prompt)
            continue
        for wrong in (
            prompt,
            Prompt(decoder_self=tied(prompt).decoder_self.replace(values=prompt.decoder_self.values)),
        ):
            with pytest.raises(
                PromptFormatError, match=rf"layers i and i \+ {layers // 2} .*Train with prompt.tie_lay"
            ):
                save_prompt(tmp_path / str(layers), wrong, format="peft", model=model)
        assert not (tmp_path / str(layers)).exists()


def test_prompts_that_peft_cannot_hold_are_refused(tmp_path):
    """The error gives a reason and a remedy. Nothing is written, also for ensembles."""
    t5_model, gpt2_model, bart_model = t5_of(3), gpt2_of(2), bart_of(3)
    good = random_tokens(gpt2_model, 2)
    for model, prompt, message in (
        (t5_model, random_prefix(t5_model, 2), "no prefix of encoder_self and decoder_cross, .*prompt.sites"),
        (bart_model, random_prefix(bart_model, 2, sites=("decoder_cross",)), "no prefix of decoder_cross"),
        (
            gpt2_model,
            dataclasses.replace(good, decoder_self=random_prefix(gpt2_model, 2).decoder_self),
            "virtual tokens or a prefix",
        ),
        (gpt2_model, random_tokens(gpt2_model, 2, placement="after"), "prompt.placement 'before'"),
        (gpt2_model, random_prefix(gpt2_model, 2, placement="after"), "prompt.placement 'before'"),
        (
            bart_model,
            random_prefix(bart_model, 2, sites=("decoder_self",), shift_positions=False),
            "prompt.shift_positions true",
        ),
        (gpt2_model, random_tokens(t5_model, 2), "width 8; google/some-base has 12"),
        (gpt2_model, random_prefix(gpt2_of(3), 2), r"layers, heads and width \(3, 3, 4\)"),
        (gpt2_model, Prompt(), "the prompt is empty"),
        (None, good, "give the model"),
    ):
        with pytest.raises(PromptFormatError, match=message):
            save_prompt(tmp_path / "a", prompt, format="peft", model=model)
    two = [random_prefix(t5_model, 2, sites=("decoder_self",)), random_prefix(t5_model, 2)]
    with pytest.raises(PromptStackError):
        save_ensemble(tmp_path / "a", two, [METADATA] * 2, format="peft", model=t5_model)
    even = t5_of(2)
    two = [tied(random_prefix(even, 2, sites=("decoder_self",))), random_prefix(even, 2, sites=("decoder_self",))]
    with pytest.raises(PromptFormatError, match="member_1: in PEFT, layers"):
        save_ensemble(tmp_path / "a", two, [METADATA] * 2, format="peft", model=even)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    model = gpt2_of(2)
    (tmp_path / "a").mkdir()
    (tmp_path / "file").write_text("mine")
    save_prompt(tmp_path / "a", random_tokens(model, 2), format="peft", model=model)
    for name in ("a", "file"):
        with pytest.raises(PromptFormatError, match="needs a new or empty folder"):
            save_prompt(tmp_path / name, random_tokens(model, 2, seed=1), format="peft", model=model)
    assert_same(load_prompt(tmp_path / "a"), random_tokens(model, 2))
    assert (tmp_path / "file").read_text() == "mine"


# --------------------------------------------------------------------------------------------------------------
# Tied layers


TIED = PrefixTuning(length=3, init="normal", sites=("decoder_self",), tie_layers=True)


@pytest.mark.parametrize("mlp_width", (None, 6))
@pytest.mark.parametrize("make", (t5_of, bart_of))
def test_tied_layers_can_be_exported(make, mlp_width, tmp_path):
    """Half of the layers are trained, with or without an MLP, and the file has all of them."""
    model, options = make(4), dataclasses.replace(TIED, mlp_width=mlp_width)
    trainable = options.initialize(KEY, model)
    (variables,) = trainable.values()
    if mlp_width is None:
        assert variables["keys"].shape == variables["values"].shape == (2, 3, 3, 4)
    prompt = options.apply(trainable)
    part = jax.device_get(prompt.decoder_self)
    assert part.keys.shape == (4, 3, 3, 4)
    for array in (part.keys, part.values):
        np.testing.assert_array_equal(array[:2], array[2:])
        assert (array[0] != array[1]).all()
    save_prompt(tmp_path / "a", prompt, format="peft", model=model)
    assert_same(load_prompt(tmp_path / "a"), prompt)


def test_tied_layers_have_the_gradients_of_both():
    """With separate dropout."""
    model = t5_of(4)
    trainable = TIED.initialize(KEY, model)
    scale = np.arange(1.0, 5.0, dtype=np.float32).reshape(4, 1, 1, 1)

    def loss(trainable):
        return (TIED.apply(trainable).decoder_self.keys * scale).sum()

    gradients = jax.grad(loss)(trainable)["decoder_self"]["keys"]
    np.testing.assert_array_equal(gradients[:, 0, 0, 0], [1 + 3, 2 + 4])
    options = dataclasses.replace(TIED, dropout=0.5)
    keys = np.asarray(options.apply(trainable, KEY).decoder_self.keys)
    assert ((keys[:2] == 0) != (keys[2:] == 0)).any()


def test_a_tied_prefix_from_a_file(fixtures, tmp_path):
    """Such as one of PEFT's."""
    model = prompt_jax.load_model(str(fixtures / "bart" / "base"))
    options = dataclasses.replace(TIED, length=4, init="file", init_file=fixtures / "bart" / "prefix")
    with pytest.warns(UserWarning, match="does not say which base"):
        trainable = options.initialize(KEY, model)
    assert trainable["decoder_self"]["keys"].shape == (1, 4, 4, 16)
    assert_same(jax.device_get(options.apply(trainable)), load_prompt(fixtures / "bart" / "prefix"))

    untied = random_prefix(model, 4, sites=("decoder_self",))
    save_prompt(tmp_path / "p.npz", untied, PromptMetadata(base=ModelId(model.name, None, model.fingerprint)))
    with pytest.raises(ConfigError, match=r"p.npz has a different prefix in each layer, but prompt.tie_layers"):
        dataclasses.replace(options, init_file=tmp_path / "p.npz").initialize(KEY, model)


def test_tied_layers_where_they_have_no_sense():
    for model, message in (
        (t5_of(3), "the decoder of google/some-base has 3 layers, so PEFT gives each layer its own prefix"),
        (gpt2_of(4), "google/some-base is causal, so PEFT"),
    ):
        with pytest.raises(ConfigError, match=f"prompt.tie_layers: {message}"):
            TIED.initialize(KEY, model)
    task = DataConfig(task="sentiment")
    check(Experiment(data=task, prompt=TIED))
    for changes, message in (
        ({"sites": ()}, "prompt.tie_layers needs prompt.sites decoder_self, not all sites"),
        ({"sites": ("decoder_self", "decoder_cross")}, "not decoder_self and decoder_cross"),
        ({"init": "text", "init_text": "a"}, "so leave prompt.tie_layers out"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(Experiment(data=task, prompt=dataclasses.replace(TIED, **changes)))


def test_a_prefix_with_frozen_tokens_is_a_cartridge(fixtures, tmp_path):
    model = prompt_jax.load_model(str(fixtures / "gpt2" / "base"))
    prompt = random_prefix(model, 5)
    save_prompt(tmp_path / "c", prompt, PromptMetadata(frozen_tokens=2), format="peft", model=model)
    config = config_of(tmp_path / "c")
    assert (config["peft_type"], config["num_frozen_tokens"], config["num_virtual_tokens"]) == ("CARTRIDGE", 2, 5)
    (read, metadata), *_ = read_prompts(tmp_path / "c")
    assert_same(read, jax.device_get(prompt))
    assert metadata.frozen_tokens == 2 and metadata.method == "prefix"
    save_prompt(tmp_path / "c.npz", read, metadata)
    assert read_prompt(tmp_path / "c.npz")[1].frozen_tokens == 2


# --------------------------------------------------------------------------------------------------------------
# Damaged, hostile or other files


def test_members_are_no_links(adapter, tmp_path):
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "member_0").symlink_to(adapter)
    with pytest.raises(PromptFormatError, match="member_0 is a symbolic link"):
        load_prompt(tmp_path / "e")
    (tmp_path / "mine").symlink_to(adapter)  # the user may name a link
    load_prompt(tmp_path / "mine")


def test_other_folders(adapter, tmp_path):
    """PEFT writes a named adapter into a folder of that name."""
    (tmp_path / "several").mkdir()
    with pytest.raises(PromptFormatError, match="several is a folder without adapter_config.json"):
        load_prompt(tmp_path / "several")
    shutil.copytree(adapter, tmp_path / "several" / "sentiment")
    with pytest.raises(PromptFormatError, match="name a prompt file or an adapter; there are some in sentiment"):
        load_prompt(tmp_path / "several")
    shutil.copytree(adapter, tmp_path / "several", dirs_exist_ok=True)
    load_prompt(tmp_path / "several")


SOURCES = [(family, name) for family in FAMILIES for name in ("prompt", "p_tuning", "prefix")]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["F16", "I64"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)


def read_or_refused(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            prompt = load_prompt(folder)
        except PromptFormatError:
            return
    for leaf in jax.tree.leaves(prompt):
        assert np.isfinite(leaf).all() and leaf.dtype == np.float32


@FUZZ
@given(st.data())
def test_mutated_adapters_are_prompts_or_refused(fixtures, tmp_path, data):
    """Truncated files, and files with changed or inserted bytes, mostly in the header."""
    family, name = data.draw(st.sampled_from(SOURCES))
    shutil.copytree(fixtures / family / name, tmp_path / "a", dirs_exist_ok=True)
    for file in data.draw(st.sampled_from([(CONFIG,), (TENSORS,), (CONFIG, TENSORS)])):
        content = bytearray((tmp_path / "a" / file).read_bytes())
        if data.draw(st.integers(0, 3)) == 0:
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        for _ in range(data.draw(st.integers(0, 4))):
            at = data.draw(st.integers(0, min(len(content), 160)) | st.integers(0, len(content)))
            end = at + data.draw(st.integers(0, 2))
            content[at:end] = data.draw(st.binary(max_size=3) | st.sampled_from([b"9" * 30, b"[", b'"', b"-", b"\xc3"]))
        (tmp_path / "a" / file).write_bytes(content)
    read_or_refused(tmp_path / "a")


@FUZZ
@given(st.data())
def test_adapters_of_other_values_are_prompts_or_refused(fixtures, tmp_path, data):
    """Valid JSON with other content."""
    family, name = data.draw(st.sampled_from(SOURCES))
    shutil.copytree(fixtures / family / name, tmp_path / "a", dirs_exist_ok=True)
    config = config_of(tmp_path / "a")
    content = (tmp_path / "a" / TENSORS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    places = st.sampled_from(
        [(config, key) for key in config] + [(header["prompt_embeddings"], k) for k in tensor()["prompt_embeddings"]]
    )
    for _ in range(data.draw(st.integers(1, 3))):
        values, key = data.draw(places)
        values[key] = data.draw(json_values | st.sampled_from([1, 2, 4, 64, [4, 256], [10, 64], [0, 2560], "BF16"]))
    (tmp_path / "a" / CONFIG).write_text(json.dumps(config))
    (tmp_path / "a" / TENSORS).write_bytes(written(header, content[8 + length :]))
    read_or_refused(tmp_path / "a")


# --------------------------------------------------------------------------------------------------------------
# The command line, and a bucket


@pytest.fixture(scope="module")
def base_file(tmp_path_factory, fixtures) -> tuple[Path, Model]:
    """Return a prompt of BART as a file."""
    model = prompt_jax.load_model(str(fixtures / "bart" / "base"))
    path = tmp_path_factory.mktemp("base") / "p.npz"
    metadata = PromptMetadata(base=ModelId(model.name, None, model.fingerprint), scores={"accuracy": 1.0})
    save_prompt(path, random_tokens(model, 3), metadata)
    return path, model


def test_export_and_import(base_file, tmp_path, capsys):
    path, model = base_file
    assert main(["export", str(path), str(tmp_path / "a"), "--format", "peft", "--model", model.name]) == 0
    assert_same(load_prompt(tmp_path / "a"), load_prompt(path))
    assert config_of(tmp_path / "a")["base_model_name_or_path"] == model.name
    assert main(["import", str(tmp_path / "a"), str(tmp_path / "again.npz"), "--model", model.name]) == 0
    prompt, metadata = read_prompt(tmp_path / "again.npz")
    assert_same(prompt, load_prompt(path))
    assert metadata == PromptMetadata(base=ModelId(model.name, None, model.fingerprint), method="soft_prompt")
    assert main(["import", str(tmp_path / "a"), str(tmp_path / "plain.npz")]) == 0
    assert read_prompt(tmp_path / "plain.npz")[1].base is None
    assert "wrote" in capsys.readouterr().out

    for words, message in (
        (("import", tmp_path / "a", tmp_path / "x.npy"), "x.npy: DEST must end in .npz"),
        (("import", tmp_path / "a", tmp_path / "x.npz", "--revision", "main"), "--revision needs --model"),
        (("import", path, tmp_path / "x.npz", "--model", model.name), "already names its base"),
        (("export", tmp_path / "a", tmp_path / "b", "--format", "peft"), "name it with --model"),
        (("export", path, tmp_path / "a", "--format", "peft", "--model", model.name), "needs a new or empty folder"),
        (("export", tmp_path / "a", tmp_path / "b"), "or give a format"),
    ):
        assert main([str(word) for word in words]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_an_imported_prompt_has_the_sizes_of_its_base(base_file, fixtures, tmp_path, capsys):
    source = changed(fixtures / "bart" / "prefix", tmp_path / "a", num_attention_heads=2)
    assert main(["import", str(source), str(tmp_path / "x.npz"), "--model", base_file[1].name]) == 1
    assert "has layers, heads and width (2, 2, 32)" in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()


def test_an_ensemble_is_exported_and_imported(base_file, tmp_path):
    path, model = base_file
    metadata = [PromptMetadata(base=ModelId(model.name, None, model.fingerprint))] * 3
    own = [random_tokens(model, length, seed=length) for length in (2, 3, 1)]
    save_ensemble(tmp_path / "e.npz", own, metadata)
    words = ["--format", "peft", "--model", model.name]
    assert main(["export", str(tmp_path / "e.npz"), str(tmp_path / "e"), *words]) == 0
    assert main(["import", str(tmp_path / "e"), str(tmp_path / "again.npz"), "--model", model.name]) == 0
    for (again, said), prompt in zip(read_prompts(tmp_path / "again.npz"), own, strict=True):
        assert_same(again, prompt)
        assert said.base == metadata[0].base
    assert main(["export", str(tmp_path / "e.npz"), str(tmp_path / "one"), "--member", "2", *words]) == 0
    assert_same(load_prompt(tmp_path / "one"), own[2])


def test_adapters_on_a_bucket():
    model = gpt2_of(2)
    own = [random_tokens(model, 2, seed) for seed in range(2)]
    with buckets.serving() as storage, pytest.MonkeyPatch.context() as patch:
        for name, value in storage.settings.items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        paths._files.cache_clear()
        save_ensemble("gs://bucket/e", own, [METADATA] * 2, format="peft", model=model)
        assert sorted(storage.objects) == sorted(
            f"e/member_{number}/{name}" for number in range(2) for name in (CONFIG, TENSORS, CARD)
        )
        for (again, _), prompt in zip(read_prompts(parse_path("gs://bucket/e")), own, strict=True):
            assert_same(again, prompt)
        with pytest.raises(PromptFormatError, match="needs a new or empty folder"):
            save_prompt("gs://bucket/e", own[0], format="peft", model=model)
        with pytest.raises(FileNotFoundError):
            load_prompt("gs://bucket/nothing")
    paths._files.cache_clear()
