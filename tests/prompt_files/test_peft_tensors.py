"""Tensors of adapters: damaged, hostile or missing files."""

import json
import os
import shutil
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from peft_adapters import config_of, tensor, written
from prompt_jax import PromptFormatError, load_prompt
from prompt_jax.prompt_files.peft_tensors import CONFIG, PICKLE, TENSORS

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


@pytest.mark.parametrize("case", BROKEN_TENSORS)
def test_errors_of_a_tensor(adapter, case):
    content, message = BROKEN_TENSORS[case]
    (adapter / TENSORS).write_bytes(content)
    with pytest.raises(PromptFormatError, match=message) as caught:
        load_prompt(adapter)
    assert str(adapter / TENSORS) in str(caught.value)


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


@pytest.mark.parametrize("dtype", (np.float64, np.float16, ml_dtypes.bfloat16))
def test_other_floats_are_read(fixtures, tmp_path, dtype):
    folder = tmp_path / "a"
    shutil.copytree(fixtures / "gpt2" / "prompt", folder)
    values = load_file(folder / TENSORS)["prompt_embeddings"].astype(dtype)
    save_file({"prompt_embeddings": values}, folder / TENSORS)
    embeddings = load_prompt(folder).encoder_tokens.embeddings
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings, values.astype(np.float32))
