"""PEFT's adapters: PEFT's files give PEFT's logits here, our files equal PEFT's, and files are not trusted.

`test_peft_interop` loads our adapters in PEFT.
"""

import dataclasses
import json
import os
import re
import shutil
import tracemalloc
import warnings
from pathlib import Path

import fsspec
import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import buckets
import prompt_jax
from adapters import PREFIXES, PROMPTS, assert_close, forward_batch, peft_prompt, random_prefix, random_tokens
from fuzzing import FUZZ
from prompt_jax import Prompt, PromptFormatError, PromptMetadata, load_prompt, save_ensemble, save_prompt
from prompt_jax.checkpoints.load import Model
from prompt_jax.cli import main
from prompt_jax.config.data import DataConfig
from prompt_jax.errors import ConfigError
from prompt_jax.experiment import Experiment, check
from prompt_jax.methods.prefix import PrefixTuning
from prompt_jax.models import bart, gpt2, t5
from prompt_jax.models.prompt import PromptStackError, stack_prompts, unstack_prompts
from prompt_jax.prompt_files import peft
from prompt_jax.prompt_files.io import ModelId, read_prompt, read_prompts
from prompt_jax.prompt_files.peft import CARD, VERIFIED
from prompt_jax.prompt_files.peft_tensors import CONFIG, PICKLE, TENSORS
from prompt_jax.storage import paths
from prompt_jax.storage.paths import parse_path
from prompt_jax.task_format import TaskFormat

FAMILIES = ("t5_v11", "gpt2", "bart")
KEY = jax.random.key(0)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, fixtures) -> Model:
    return prompt_jax.load_model(str(fixtures / request.param / "base"))


@pytest.fixture
def adapters(model) -> Path:
    """Return the adapters that PEFT wrote for the model."""
    return Path(model.name).parent


def of_shapes(config) -> Model:
    """Return a model without weights, except an embedding table of the right width."""
    return Model("google/some-base", "ab" * 20, {"embedding": np.zeros((1, config.d_model))}, config, None, "sha256:00")


def t5_of(layers: int, d_model: int = 8) -> Model:
    return of_shapes(
        t5.T5Config(vocab_size=8, d_model=d_model, d_kv=4, d_ff=8, num_heads=3, encoder_layers=2, decoder_layers=layers)
    )


def gpt2_of(layers: int) -> Model:
    return of_shapes(gpt2.GPT2Config(vocab_size=8, positions=8, d_model=12, d_ff=8, num_heads=3, layers=layers))


def bart_of(layers: int) -> Model:
    return of_shapes(bart.BartConfig(8, 8, 12, 2, 2, 8, layers, 3, 8))


def tied(prompt: Prompt) -> Prompt:
    """Copy the prefix of the first half of the layers to the second half, if the number of layers is even."""
    part = prompt.decoder_self
    half = len(part.keys) // 2
    if len(part.keys) % 2:
        return prompt
    keys, values = (np.concatenate([array[:half]] * 2) for array in (part.keys, part.values))
    return Prompt(decoder_self=part.replace(keys=keys, values=values))


def config_of(folder: Path) -> dict:
    return json.loads((folder / CONFIG).read_text())


def assert_same(actual: Prompt, expected: Prompt) -> None:
    assert actual.parts.keys() == expected.parts.keys()
    for mine, other in zip(actual.parts.values(), expected.parts.values(), strict=True):
        assert (mine.placement, mine.mask) == (other.placement, None)
        for name in mine.arrays:
            assert np.asarray(getattr(mine, name)).tobytes() == np.asarray(getattr(other, name)).tobytes()


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


def test_the_methods_are_distinguished(fixtures):
    result = {name: read_prompt(fixtures / "bart" / name)[1] for name in ("prompt", "p_tuning", "prefix_projection")}
    assert [metadata.method for metadata in result.values()] == ["soft_prompt", "p_tuning", "prefix"]
    assert all(metadata.base is None for metadata in result.values()), "only a fingerprint says what a base is"


def changed(folder: Path, to: Path, *, without: tuple[str, ...] = (), **values) -> Path:
    """Return a copy of an adapter with another configuration."""
    shutil.copytree(folder, to)
    config = {name: value for name, value in config_of(to).items() if name not in without} | values
    (to / CONFIG).write_text(json.dumps(config))
    return to


def test_four_fields_are_enough(fixtures, tmp_path):
    """As in PEFT. Unknown fields come from later versions."""
    source = fixtures / "bart" / "prompt"
    kept = {"peft_type", "task_type", "num_virtual_tokens"}
    short = changed(source, tmp_path / "a", without=tuple(config_of(source).keys() - kept), new_field={"a": [1]})
    assert_same(load_prompt(short), load_prompt(source))
    nulls = changed(source, tmp_path / "b", token_dim=None, num_transformer_submodules=None)
    assert_same(load_prompt(nulls), load_prompt(source))


@pytest.mark.parametrize("dtype", (np.float64, np.float16, ml_dtypes.bfloat16))
def test_other_floats_are_read(fixtures, tmp_path, dtype):
    folder = tmp_path / "a"
    shutil.copytree(fixtures / "gpt2" / "prompt", folder)
    values = load_file(folder / TENSORS)["prompt_embeddings"].astype(dtype)
    save_file({"prompt_embeddings": values}, folder / TENSORS)
    embeddings = load_prompt(folder).encoder_tokens.embeddings
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings, values.astype(np.float32))


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


METADATA = PromptMetadata(
    base=ModelId("google/some-base", None, "sha256:00"),
    method="soft_prompt",
    task="sentiment",
    format=TaskFormat("review: {text}\n---", ("negative", "positive"), ("accuracy",), 128, 8),
    step=200,
    scores={"accuracy": 0.875},
)


def test_the_card_has_the_facts_that_users_need(tmp_path):
    """A stranger's name of a task stays text."""
    model = gpt2_of(2)
    save_prompt(tmp_path / "a", random_tokens(model, 3), METADATA, format="peft", model=model)
    card = (tmp_path / "a" / CARD).read_text()
    assert card.startswith(
        "---\nbase_model: google/some-base\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n"
        "- base_model:adapter:google/some-base\n---\n\n# "
    )
    assert '\n    template: "review: {text}\\n---"\n    labels: ["negative", "positive"]\n' in card
    assert card.endswith("\n### Framework versions\n\n- PEFT 0.21.2\n- Transformers 5.23.0\n")


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


# --------------------------------------------------------------------------------------------------------------
# Damaged, hostile or other files


def written(header: dict | str | bytes, data: bytes = b"") -> bytes:
    """Return a safetensors file of this header."""
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(shape=(5, 64), dtype="F32", end=1280, start=0, name="prompt_embeddings") -> dict:
    return {name: {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


ZEROS = bytes(1280)
BROKEN_TENSORS = {
    "nothing": (b"", "truncated"),
    "short": (b"\x08\0\0\0", "truncated"),
    "endless header": (b"\xff" * 8 + b"{}", "a header of 18446744073709551615"),
    "large header": (written(b" " * (1 << 21)), "a header of 2097152"),
    "no json": (written("{"), "not JSON"),
    "no text": (written(b"\xff\xfe"), "not JSON"),
    "deep json": (written("[" * 100_000), "not JSON"),
    "list": (written("[]"), "a JSON list"),
    "empty": (written({}), "it has the tensors none"),
    "another": (written(tensor(name="base_model.lora_A"), ZEROS), "it has the tensors base_model.lora_A;"),
    "more": (written(tensor() | tensor(name="prefix_task_cols"), ZEROS), "prefix_task_cols, prompt_embeddings;"),
    "escaping": (written(tensor(name="../prompt_embeddings"), ZEROS), "it has the tensors ../prompt_embeddings;"),
    "twice": (
        written(json.dumps(tensor())[:-1] + "," + json.dumps(tensor(end=640))[1:], ZEROS),
        "'prompt_embeddings' comes twice",
    ),
    "fields twice": (
        written('{"prompt_embeddings": {"dtype": "F32", "dtype": "F16"}}', ZEROS),
        "'dtype' comes twice",
    ),
    "no fields": (written({"prompt_embeddings": [1]}), "prompt_embeddings is None"),
    "integers": (written(tensor(dtype="I32"), ZEROS), "is 'I32'; a prompt has floats"),
    "odd dtype": (written(tensor(dtype=["F32"]), ZEROS), r"is \['F32'\]; a prompt"),
    "huge": (written(tensor((1 << 40, 1 << 40), end=1 << 82)), r"is \[1099511627776, 1099511627776\]; .*\[5, 64\]"),
    "overflow": (written(tensor((1 << 62, 4), end=0)), r"makes it \[5, 64\]"),
    "negative": (written(tensor((-5, -64)), ZEROS), r"is \[-5, -64\]; .*makes it \[5, 64\]"),
    "fractions": (written(tensor((5.0, 64.0)), ZEROS), "makes it"),
    "vector": (written(tensor((320,)), ZEROS), "makes it"),
    "absent shape": (written({"prompt_embeddings": {"dtype": "F32"}}), "is None; adapter_config.json makes it"),
    "another length": (written(tensor((6, 64), end=1536), bytes(1536)), r"is \[6, 64\]; .*makes it \[5, 64\]"),
    "cut": (written(tensor(), ZEROS[:-1]), "has 1279 bytes of data"),
    "longer": (written(tensor(), ZEROS + b"x"), "has 1281 bytes of data"),
    "elsewhere": (written(tensor(start=4, end=1284), ZEROS + bytes(4)), r"at \[4, 1284\]"),
    "nan": (written(tensor(), np.full(320, np.nan, np.float32).tobytes()), "320 values that are not finite"),
    "overflows float32": (written(tensor(dtype="F64", end=2560), np.full(320, 1e300).tobytes()), "not finite"),
}


@pytest.fixture
def adapter(fixtures, tmp_path) -> Path:
    """Return a copy of GPT-2's soft prompt [5, 64]."""
    shutil.copytree(fixtures / "gpt2" / "prompt", tmp_path / "a")
    return tmp_path / "a"


@pytest.mark.parametrize("case", BROKEN_TENSORS)
def test_errors_of_a_tensor(adapter, case):
    content, message = BROKEN_TENSORS[case]
    (adapter / TENSORS).write_bytes(content)
    with pytest.raises(PromptFormatError, match=message) as caught:
        load_prompt(adapter)
    assert str(adapter / TENSORS) in str(caught.value)


DEEP = '{"peft_type": ' + "[" * 900 + "]" * 900 + "}"
BROKEN_CONFIGS = {
    "no json": ("{", "not JSON"),
    "no text": (b"\xff", "not JSON"),
    "large": (" " * (1 << 21), "2097152 bytes"),
    "deep": ("[" * 100_000, "not JSON"),
    "less deep": (DEEP, "peft_type must be"),
    "list": ("[1]", "a JSON list"),
    "twice": ('{"peft_type": "LORA", "peft_type": "PROMPT_TUNING"}', "'peft_type' comes twice"),
    "twice, of many": ("{" + "".join(f'"{i}": 0,' for i in range(60_000)) + '"59999": 1}', "'59999' comes twice"),
    "many digits": ('{"num_virtual_tokens": ' + "9" * 5000 + "}", "not JSON"),
    "lora": ({"peft_type": "LORA"}, "peft_type must be 'PROMPT_TUNING' or .*, not 'LORA'"),
    "multitask": ({"peft_type": "MULTITASK_PROMPT_TUNING"}, "'MULTITASK_PROMP"),
    "no kind": ({"peft_type": None}, "peft_type is missing"),
    "task": ({"task_type": "SEQ_CLS"}, "'CAUSAL_LM' or 'SEQ_2_SEQ_LM', not 'SEQ_CLS'"),
    "length": ({"num_virtual_tokens": None}, "num_virtual_tokens is 0 or missing. PEFT completes"),
    "length of text": ({"num_virtual_tokens": "5"}, "num_virtual_tokens must be int, not '5'"),
    "boolean": ({"num_virtual_tokens": True}, "num_virtual_tokens must be int, not True"),
    "zero": ({"num_virtual_tokens": 0}, "num_virtual_tokens is 0"),
    "absurd": ({"num_virtual_tokens": 10**400}, "num_virtual_tokens is 1000"),
    "other length": ({"num_virtual_tokens": 6}, r"is \[5, 64\]; adapter_config.json makes it \[6, 64\]"),
    "other width": ({"token_dim": 65}, r"makes it \[5, 65\]"),
    "modules": ({"modules_to_save": ["lm_head"]}, "the adapter changes the base"),
    "submodules": ({"num_transformer_submodules": 2}, "PROMPT_TUNING of CAUSAL_LM has 1"),
    "of another task": ({"task_type": "SEQ_2_SEQ_LM", "num_transformer_submodules": 3}, "has 1 or 2"),
    "no layers": ({"peft_type": "PREFIX_TUNING", "num_layers": None}, "num_layers is 0 or missing. PEFT completes"),
    "no heads": ({"peft_type": "PREFIX_TUNING", "num_attention_heads": None}, "num_attention_heads is 0 or missing"),
    "heads": ({"peft_type": "PREFIX_TUNING", "num_attention_heads": 5}, "a multiple of the 5 heads"),
    "prefix": ({"peft_type": "PREFIX_TUNING", "num_layers": 1 << 30}, r"makes it \[5, 137438953472\]"),
    "frozen": (
        {"peft_type": "CARTRIDGE", "num_layers": 2, "num_attention_heads": 4, "num_frozen_tokens": 6},
        "is 6; expected 0 to 5",
    ),
    "cartridge": (
        {"peft_type": "CARTRIDGE", "task_type": "SEQ_2_SEQ_LM", "num_layers": 2, "num_attention_heads": 4},
        "expected CAUSAL_LM",
    ),
    # PEFT 0.21.2 loads such a file, and its logits are wrong.
    "one submodule": (
        {"peft_type": "PREFIX_TUNING", "task_type": "SEQ_2_SEQ_LM", "num_transformer_submodules": 1},
        "PREFIX_TUNING of SEQ_2_SEQ_LM has 2",
    ),
}


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


@pytest.mark.parametrize("case", BROKEN_CONFIGS)
def test_errors_of_a_configuration(adapter, case):
    content, message = BROKEN_CONFIGS[case]
    if isinstance(content, dict):
        content = json.dumps(config_of(adapter) | content)
    (adapter / CONFIG).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PromptFormatError, match=message) as caught:
        load_prompt(adapter)
    assert str(adapter) in str(caught.value)


def test_no_pickle_is_read(adapter):
    """A stray pickle does no harm."""
    (adapter / PICKLE).write_bytes(b"\x80\x04.")
    load_prompt(adapter)
    (adapter / TENSORS).unlink()
    with pytest.raises(PromptFormatError, match=r"adapter_model.bin is a pickle, which can run code.*save it again"):
        load_prompt(adapter)
    (adapter / PICKLE).unlink()
    with pytest.raises(PromptFormatError, match="a: no adapter_model.safetensors"):
        load_prompt(adapter)


@pytest.mark.parametrize("name", (CONFIG, TENSORS))
def test_links_are_not_followed(adapter, tmp_path, name):
    """Devices and pipes, which may have no end, are not opened either."""
    (adapter / name).rename(tmp_path / "there")
    for target in (tmp_path / "there", tmp_path / "nowhere"):
        (adapter / name).symlink_to(target)
        with pytest.raises(PromptFormatError, match=rf"{name} is a symbolic link, .*cp -rL"):
            load_prompt(adapter)
        (adapter / name).unlink()
    os.mkfifo(adapter / name)
    with pytest.raises(PromptFormatError, match="not an ordinary file"):
        load_prompt(adapter)


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


def test_sizes_are_compared_before_memory_is_allocated(adapter, fixtures):
    """A small file that claims terabytes, and one with unexpected data."""
    (adapter / TENSORS).write_bytes(written(tensor((1 << 20, 1 << 20), end=1 << 42)))
    (adapter / CONFIG).write_text(
        json.dumps(config_of(adapter) | {"num_virtual_tokens": 1 << 20, "token_dim": 1 << 20})
    )
    other = adapter.parent / "b"
    shutil.copytree(fixtures / "gpt2" / "prompt", other)
    with (other / TENSORS).open("wb") as file:
        file.write(written(tensor((1 << 20, 64), end=1 << 28)))
        file.truncate(file.tell() + (1 << 28))  # sparse: takes no disk space
    tracemalloc.start()
    for folder in (adapter, other):
        with pytest.raises(PromptFormatError):
            load_prompt(folder)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


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
