"""Damaged and hostile model folders: they load or raise CheckpointError, in bounded time and memory."""

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prompt_jax
from fuzzing import FUZZ
from prompt_jax.errors import CheckpointError, UserError

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


@pytest.fixture
def changed(tiny_folders, tmp_path_factory):
    """Copy a family's folder and replace the content of a file."""

    def make(family: str, file: str, content: bytes) -> Path:
        folder = tmp_path_factory.mktemp(family) / "model"
        shutil.copytree(tiny_folders[family], folder, copy_function=os.link)
        (folder / file).unlink()
        (folder / file).write_bytes(content)
        return folder

    return make


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 3000, "is not JSON: "),
        (b'{"model_type": {"a": 1}}', "has model_type {'a': 1}; supported are t5"),
        (b'{"model_type": ["t5"]}', r"has model_type \['t5'\]; supported are t5"),
        (b'{"model_type": "' + b"x" * 10**7 + b'"}', "has model_type 'xxx"),
        (b'{"model_type": "t5", "d_model": "' + b"x" * 10**7 + b'"}', "cannot be used: "),
        (b'{"model_type": "t5", "self": 1, "args": 2, "cls": 3}', "cannot be used: "),
        (b'{"model_type": "t5", "vocab_size": 256, "eos_token_id": 999}', "eos_token_id is 999, and vocab_size is 256"),
        (b'{"model_type": "t5", "vocab_size": 256, "pad_token_id": 999}', "pad_token_id is 999, and vocab_size is 256"),
    ],
    ids=range(8),
)
def test_configurations(changed, content, message):
    with pytest.raises(CheckpointError, match=message) as raised:
        prompt_jax.load_model(str(changed("t5", "config.json", content)))
    assert len(str(raised.value)) < 10_000


def test_a_billion_labels(changed, tiny_folders):
    """No supported model has labels; AutoConfig would create a name for each."""
    for family in FAMILIES:
        content = json.loads((tiny_folders[family] / "config.json").read_text()) | {"num_labels": 10**9}
        prompt_jax.load_model(str(changed(family, "config.json", json.dumps(content).encode())))


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
