"""Loading models: equal to Hugging Face's, from every format and source, and errors."""

import json
import shutil
import socket
import sys
import types
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import constants, errors

import prompt_jax
from prompt_jax.checkpoints import config_files, load
from prompt_jax.errors import CheckpointError
from prompt_jax.models.t5 import parameters

FORMATS = ("model.safetensors", "flax_model.msgpack")
TORCH = "pytorch_model.bin"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def leaves(model: load.Model) -> dict[str, np.ndarray]:
    flat, _ = jax.tree_util.tree_flatten_with_path(model.params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in flat}


def assert_same_model(actual: load.Model, expected: load.Model) -> None:
    assert actual.config == expected.config
    assert actual.fingerprint == expected.fingerprint
    assert leaves(actual).keys() == leaves(expected).keys()
    for path, leaf in leaves(actual).items():
        np.testing.assert_array_equal(leaf, leaves(expected)[path], err_msg=path)


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
    with pytest.raises(ValueError, match="'float16' is not supported; choose one of float32, bfloat16, int8"):
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
# Ties and extras


@pytest.mark.parametrize(
    ("config", "output", "tied", "scaled"),
    [
        ({}, "absent", True, True),  # T5 1.0
        ({}, "copy", True, True),
        ({"tie_word_embeddings": False}, "own", False, False),  # T5 1.1
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, "own", False, False),  # by Transformers 5
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, "absent", True, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": True}, "absent", True, True),
        ({"model_type": "mt5", "tie_word_embeddings": False}, "own", False, False),
        ({"model_type": "mt5", "tie_word_embeddings": True}, "own", False, False),  # by Transformers 5
    ],
)
def test_ties(model_folder, deep_tensors, config, output, tied, scaled):
    tensors = dict(deep_tensors)
    if output == "absent":
        del tensors["lm_head.weight"]
    elif output == "copy":
        tensors["lm_head.weight"] = tensors["shared.weight"]
    model = load.load_model(model_folder(tensors, **({"tie_word_embeddings": None} | config)))
    assert (model.config.tied_output, model.config.scale_output) == (tied, scaled)
    assert ("lm_head" in model.params) is not tied


def test_missing_announced_output_weights_are_an_error(model_folder, deep_tensors):
    del deep_tensors["lm_head.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing:\n  lm_head.weight \[300, 20\]"):
        load.load_model(model_folder(deep_tensors, tie_word_embeddings=False))


def test_harmless_extras(model_folder, deep, deep_tensors):
    extras = {
        "encoder.embed_tokens.weight": deep_tensors["shared.weight"],
        "decoder.embed_tokens.weight": deep_tensors["shared.weight"],
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.zeros((16, 3), np.float32),
    }
    assert_same_model(load.load_model(model_folder(deep_tensors | extras)), load.load_model(deep))


def test_the_embedding_under_another_name(model_folder, deep, deep_tensors):
    deep_tensors["decoder.embed_tokens.weight"] = deep_tensors.pop("shared.weight")
    assert_same_model(load.load_model(model_folder(deep_tensors)), load.load_model(deep))


def test_another_embedding_is_no_harmless_extra(model_folder, deep_tensors):
    deep_tensors["encoder.embed_tokens.weight"] = deep_tensors["shared.weight"] + 1
    with pytest.raises(CheckpointError, match=r"1 surplus:\n  encoder.embed_tokens.weight \[300, 20\]"):
        load.load_model(model_folder(deep_tensors))


# --------------------------------------------------------------------------------------------------------------
# Configs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert'; supported are t5, mt5, gpt2, bart"),
        ({"model_type": None}, "model_type None; supported are t5, mt5"),
        (
            {"feed_forward_proj": "gated-silu"},
            "feed_forward_proj is 'gated-silu'; supported: 'relu', 'gated-relu',",
        ),
        ({"feed_forward_proj": "gelu"}, "feed_forward_proj is 'gelu'; supported: 'relu',"),
        ({"feed_forward_proj": ["relu"]}, "config.json cannot be used: "),
        ({"d_model": "20"}, "config.json cannot be used: .*'d_model'.*expected int, got str"),
        ({"d_model": 20.5}, "config.json cannot be used: .*'d_model'.*expected int, got float"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"dropout_rate": float("nan")}, "dropout_rate is nan"),
        ({"layer_norm_epsilon": float("inf")}, "layer_norm_epsilon is inf"),
        ({"eos_token_id": 99999}, "eos_token_id is 99999, and vocab_size is "),
        ({"pad_token_id": -1}, "pad_token_id is -1; expected a whole number of at least 0"),
    ],
)
def test_unusable_configs(model_folder, deep_tensors, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load.load_model(model_folder(deep_tensors, **changes))


def test_a_sparse_config_has_transformers_defaults():
    config = config_files.model_config({"model_type": "t5", "eos_token_id": [1]}, {}, source="here")
    assert (config.vocab_size, config.d_model, config.d_ff, config.num_heads) == (32128, 512, 2048, 8)
    assert (config.encoder_layers, config.decoder_layers, config.activation, config.gated) == (6, 6, "relu", False)
    assert (config.eos_id, config.start_id, config.relative_max_distance) == (1, 0, 128)
    other = config_files.model_config({"model_type": "mt5", "num_layers": 2}, {}, source="here")
    assert (other.vocab_size, other.encoder_layers, other.decoder_layers) == (250112, 2, 2)
    assert (other.activation, other.gated, other.scale_output) == ("gelu", True, False)


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
