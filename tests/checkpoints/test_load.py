"""Loading models: equal to Hugging Face's, from every format and source, and errors."""

import json
import os
import shutil
import socket
import sys
import tracemalloc
import types
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import constants, errors
from hypothesis import given
from hypothesis import strategies as st

import prompt_jax
from fuzzing import FUZZ
from loaded_models import assert_same_model, leaves
from prompt_jax.checkpoints import load
from prompt_jax.errors import CheckpointError, UserError
from prompt_jax.models.t5 import parameters

FORMATS = ("model.safetensors", "flax_model.msgpack")
TORCH = "pytorch_model.bin"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


# --------------------------------------------------------------------------------------------------------------
# Loaded models


@pytest.mark.parametrize("name", ["t5_v10", "t5_v11", "t5_deep"])
def test_logits_equal_hugging_faces(fixtures, name):
    model = prompt_jax.load_model(fixtures / name / "base")
    stored = np.load(fixtures / name / "reference.npz")
    inputs = {key: stored[f"inputs/forward/{key}"] for key in ("input_ids", "attention_mask", "decoder_input_ids")}
    batch = {
        "inputs": inputs["input_ids"],
        "inputs_mask": inputs["attention_mask"].astype(bool),
        "decoder_inputs": inputs["decoder_input_ids"],
    }
    logits = prompt_jax.forward(model.params, model.config, batch)
    expected = stored["base/logits"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_tree_is_the_tables(deep):
    model = load.load_model(deep)
    result = {path: leaf.shape for path, leaf in leaves(model).items()}
    assert result == {p.path: p.shape if p.layers is None else (p.layers, *p.shape) for p in parameters(model.config)}
    assert isinstance(model.params["decoder"]["layers"], tuple)
    assert (model.name, model.revision, model.tokenizer) == (str(deep), None, None)


@pytest.mark.parametrize("form", [*FORMATS, *(f"sharded {name}" for name in FORMATS)])
def test_every_format_gives_the_same_model(model_folder, deep, deep_tensors, form):
    assert_same_model(load.load_model(model_folder(deep_tensors, form)), load.load_model(deep))


@pytest.mark.interop
@pytest.mark.parametrize("form", [TORCH, f"sharded {TORCH}"])
def test_pytorch_files_give_the_same_model(model_folder, deep, deep_tensors, form):
    pytest.importorskip("torch")
    assert_same_model(load.load_model(model_folder(deep_tensors, form)), load.load_model(deep))


def test_pytorch_files_without_pytorch(model_folder, deep_tensors, monkeypatch):
    folder = model_folder(deep_tensors)
    (folder / "model.safetensors").rename(folder / TORCH)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install torch.*model\.safetensors or flax_model\.msgpack"):
        load.load_model(folder)


def test_safetensors_are_preferred(model_folder, deep_tensors):
    folder = model_folder(deep_tensors)
    for worse in ("flax_model.msgpack", TORCH):
        (folder / worse).write_bytes(b"not read")
    load.load_model(folder)


def test_dtypes(deep):
    full, half = load.load_model(deep), load.load_model(deep, dtype="bfloat16")
    assert half.fingerprint == full.fingerprint
    for path, leaf in leaves(full).items():
        assert (leaf.dtype, leaves(half)[path].dtype) == (jnp.float32, jnp.bfloat16)
        np.testing.assert_array_equal(leaves(half)[path], leaf.astype(jnp.bfloat16))
    with pytest.raises(
        ValueError, match="'float16' is not supported; choose one of float32, bfloat16, int8, fp8, int4"
    ):
        load.load_model(deep, dtype="float16")


def test_placement(deep):
    mesh = jax.make_mesh((1,), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    plain = load.load_model(deep)

    same = load.load_model(deep, sharding=everywhere)
    assert {leaf.sharding for leaf in jax.tree.leaves(same.params)} == {everywhere}
    assert_same_model(same, plain)

    chosen = load.load_model(deep, sharding=lambda row: split if row.path.endswith("mlp/up") else everywhere)
    assert chosen.params["decoder"]["layers"][0]["mlp"]["up"].sharding == split
    assert chosen.params["decoder"]["layers"][0]["mlp"]["down"].sharding == everywhere
    assert_same_model(chosen, plain)


def test_the_tokenizer_is_loaded(tiny_folder):
    tokenizer = load.load_model(tiny_folder).tokenizer
    assert tokenizer.decode(tokenizer.encode("a good film")) == "a good film"


# --------------------------------------------------------------------------------------------------------------
# Missing, damaged and hostile folders: they load or raise CheckpointError, in bounded time and memory


def test_files_that_are_missing_or_broken(model_folder, deep_tensors):
    folder = model_folder(deep_tensors)
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"no weights. Looked for: model.safetensors .*msgpack.*pytorch_model.bin"
    ):
        load.load_model(folder)
    (folder / "config.json").write_text('{"model_type": "t5"')
    with pytest.raises(CheckpointError, match="config.json is not JSON"):
        load.load_model(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="model_type None"):
        load.load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="has no config.json"):
        load.load_model(folder)


# --------------------------------------------------------------------------------------------------------------
# Names


@pytest.fixture
def hub_cache(tmp_path, monkeypatch, deep) -> Path:
    """Return the Hub's cache with one model, google/tiny, whose branch main is at COMMIT, without a network."""
    cache = tmp_path / "hub"
    model = cache / "models--google--tiny"
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(deep / file, model / "blobs" / file)
        (snapshot / file).symlink_to(Path("..", "..", "blobs", file))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_from_the_hubs_cache(hub_cache, deep, revision):
    model = load.load_model("google/tiny", revision=revision)
    assert (model.name, model.revision) == ("google/tiny", COMMIT)
    assert_same_model(model, load.load_model(deep))


def test_the_scheme_of_the_hub(hub_cache):
    plain = load.load_model("google/tiny")
    for name, revision in (
        ("hf://google/tiny", None),
        ("hf://google/tiny@main", "main"),
        (f"hf://google/tiny@{COMMIT}", None),
    ):
        model = load.load_model(name, revision=revision)
        assert (model.name, model.revision, model.fingerprint) == (plain.name, COMMIT, plain.fingerprint)
    with pytest.raises(CheckpointError, match="hf://google/tiny@main: the revision is 'v2' too"):
        load.load_model("hf://google/tiny@main", revision="v2")


def test_local_files_only_does_not_ask_the_hub(hub_cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("it looks for a host"))
    assert load.load_model("google/tiny", local_files_only=True).revision == COMMIT
    with pytest.raises(CheckpointError, match="its config.json is not in the cache"):
        load.load_model("google/other", local_files_only=True)


@pytest.mark.parametrize("name", ["google/other", "other"])
def test_offline_and_not_cached(hub_cache, name):
    with pytest.raises(
        CheckpointError, match=f"'{name}' is not a folder here.*config.json is not in the cache"
    ) as info:
        load.load_model(name)
    assert "or 'demo'" in str(info.value)


def test_a_revision_that_is_not_cached(hub_cache):
    with pytest.raises(CheckpointError, match="at revision 'v2': its config.json is not in the cache"):
        load.load_model("google/tiny", revision="v2")


def test_weights_that_are_not_cached(hub_cache):
    (hub_cache / "models--google--tiny" / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights. Looked for: model.safetensors"):
        load.load_model("google/tiny")


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "~/nothing", Path("nothing")])
def test_a_path_is_not_requested_from_the_hub(monkeypatch, name):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **kwargs: pytest.fail("it was asked"))
    with pytest.raises(CheckpointError, match="nothing.* is not a folder"):
        load.load_model(name)


def test_a_file_is_not_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights.npz").touch()
    with pytest.raises(CheckpointError, match="weights.npz is a file; give its folder"):
        load.load_model("weights.npz")


def test_no_valid_name():
    with pytest.raises(CheckpointError, match="is not a folder here.*no valid name on the hub"):
        load.load_model("one/two/three")


RESPONSE: Any = types.SimpleNamespace(headers={}, request=None)  # the response of another HTTP library


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.RepositoryNotFoundError("no", response=RESPONSE), "the hub has no such model, or it is private"),
        (errors.GatedRepoError("no", response=RESPONSE), "its owners grant access by request"),
        (errors.RevisionNotFoundError("no", response=RESPONSE), "the model exists, but not that revision"),
        (errors.RemoteEntryNotFoundError("no", response=RESPONSE), "its config.json is not on the hub"),
        (errors.LocalEntryNotFoundError("no"), "the hub could not be reached for config.json"),
        (errors.HfHubHTTPError("broken", response=RESPONSE), "downloading config.json failed: broken"),
        (errors.HTTPError("broken"), "downloading config.json failed: broken"),
        (OSError("disk full"), "downloading config.json failed: disk full"),
        (RuntimeError("Data processing error"), "downloading config.json failed: Data processing error"),  # hf_xet's
    ],
)
def test_reasons_of_failed_requests(monkeypatch, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(CheckpointError, match=message):
        load.load_model("google/tiny", revision="main")


@pytest.mark.parametrize("form", ["sharded flax_model.msgpack", "model.safetensors"])
def test_only_needed_files_are_downloaded(model_folder, deep_tensors, tmp_path, monkeypatch, tiny_folder, form):
    folder = model_folder(deep_tensors, form)
    shutil.copy(tiny_folder / "spiece.model", folder)
    for unneeded in ("README.md", TORCH, "tf_model.h5"):
        (folder / unneeded).write_text("not needed")
    snapshot = tmp_path / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    revisions = set()

    def download(name, file, revision, local_files_only):
        revisions.add(revision)
        if not (folder / file).is_file():
            raise errors.RemoteEntryNotFoundError("no", response=RESPONSE)
        return str(shutil.copy(folder / file, snapshot / file))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert load.load_model("google/tiny", revision="v1").revision == COMMIT
    assert revisions == {"v1", COMMIT}  # a branch that moves meanwhile cannot mix two models
    needed = (
        set(json.loads((folder / "flax_model.msgpack.index.json").read_text())["weight_map"].values())
        | {"flax_model.msgpack.index.json"}
        if form.startswith("sharded")
        else {form}
    )
    assert {path.name for path in snapshot.iterdir()} == needed | {"config.json", "spiece.model"}


FAMILIES = ("t5", "gpt2", "bart")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**9, 10**30, -1]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


def loads_or_says_why(folder: Path) -> None:
    try:
        prompt_jax.load_model(str(folder))
    except UserError as error:
        assert len(str(error)) < 10_000


@pytest.mark.parametrize(
    ("family", "field"),
    [("t5", "num_layers"), ("t5", "num_decoder_layers"), ("gpt2", "n_layer"), ("bart", "encoder_layers")],
)
def test_more_layers_than_tensors(changed, tiny_folders, family, field):
    """Building a billion names would take 4 GB and more than a minute."""
    config = json.loads((tiny_folders[family] / "config.json").read_text()) | {field: 10**9}
    folder = changed(family, "config.json", json.dumps(config).encode())
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"the config has 1000000000 layers, and the weights \d+ tensors"):
            prompt_jax.load_model(str(folder))
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "model.safetensors"])
def test_irregular_files_are_refused(changed, file):
    for make in (lambda path: path.symlink_to("/dev/zero"), os.mkfifo, Path.mkdir):
        folder = changed("t5", file, b"")
        (folder / file).unlink()
        make(folder / file)
        with pytest.raises(CheckpointError, match=f"({file} is not a regular file|has no weights)"):
            prompt_jax.load_model(str(folder))


def test_an_index_of_shards_that_is_nested(changed):
    folder = changed("t5", "model.safetensors", b"")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ' + "[" * 5000)
    with pytest.raises(CheckpointError, match="index.json is not JSON"):
        prompt_jax.load_model(str(folder))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../" * 10**6}}))
    with pytest.raises(CheckpointError, match="is not a plain file name") as raised:
        prompt_jax.load_model(str(folder))
    assert len(str(raised.value)) < 1000


@FUZZ
@given(st.sampled_from(FAMILIES), st.sampled_from(["config.json", "generation_config.json"]), st.data())
def test_values_of_any_kind(changed, tiny_folders, family, file, data):
    content = json.loads((tiny_folders[family] / file).read_text())
    names = st.sampled_from(sorted(content)) | st.sampled_from(
        [
            "eos_token_id",
            "tokenizer_class",
            "auto_map",
            "dtype",
            "id2label",
            "num_labels",
            "suppress_tokens",
            "architectures",
        ]
    )
    content |= data.draw(st.dictionaries(names, JSON, min_size=1, max_size=2))
    folder = changed(family, file, json.dumps(content).encode())
    loads_or_says_why(folder)
    shutil.rmtree(folder)


@FUZZ
@given(
    st.sampled_from(FAMILIES),
    st.sampled_from(["config.json", "generation_config.json", "model.safetensors"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=3),
    st.floats(0, 1),
)
def test_flipped_bits_and_files_that_end_too_early(changed, tiny_folders, family, file, flips, end):
    content = bytearray((tiny_folders[family] / file).read_bytes())
    for place, bits in flips:
        content[int(place * min(len(content), 4000))] ^= bits  # of the weights, the header
    folder = changed(family, file, bytes(content[: int(end * len(content))] if end < 0.3 else content))
    loads_or_says_why(folder)
    shutil.rmtree(folder)
