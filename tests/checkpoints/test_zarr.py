"""Arrays in zarr's format: damage, links, and sizes that are compared before memory is allocated."""

import json
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

import t5x_checkpoints
from prompt_jax.checkpoints.zarr import open_zarr
from prompt_jax.errors import CheckpointError
from prompt_jax.prompt_files.io import PromptFormatError, load_prompt
from t5x_checkpoints import ZARR, rewrite


def change(folder: Path, **values) -> None:
    file = folder / ZARR / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def bomb(folder: Path) -> None:
    packing = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join([packing.compress(bytes(1 << 20)) for _ in range(512)])
    (folder / ZARR / "0.0").write_bytes(packed + packing.flush())


DAMAGE = {
    "no chunk": (lambda f: (f / ZARR / "1.0").unlink(), "1.0 is missing, or not a regular file"),
    "another chunk": (lambda f: (f / ZARR / "1.0").rename(f / ZARR / "1.1"), "1.0 is missing"),
    "no metadata": (lambda f: (f / ZARR / ".zarray").unlink(), "has no .zarray"),
    "no JSON": (lambda f: (f / ZARR / ".zarray").write_text("{"), "is not JSON"),
    "a list": (lambda f: (f / ZARR / ".zarray").write_text("[]"), "is not a JSON object"),
    "long": (lambda f: (f / ZARR / ".zarray").write_text(" " * 70_000 + "{}"), "at most 65536 bytes"),
    "deep": (lambda f: (f / ZARR / ".zarray").write_text("[" * 60_000), "is not JSON"),
    "shape": (lambda f: change(f, shape=[6, -4]), "shape is not a list of"),
    "a text as shape": (lambda f: change(f, shape="6"), "shape is not a list of"),
    "true as shape": (lambda f: change(f, shape=[True, 4]), "shape is not a list of"),
    "chunks": (lambda f: change(f, chunks=[7, 4]), r"chunks of \[7, 4\] do not fit an array \[6, 4\]"),
    "huge": (lambda f: change(f, shape=[1 << 40, 1 << 20]), "chunks are missing"),
    "huge chunks": (lambda f: change(f, shape=[1 << 40, 4], chunks=[1 << 39, 4]), "is 17592186044416 bytes"),
    "dtype": (lambda f: change(f, dtype="|O"), "dtype '|O'"),
    "integers": (lambda f: change(f, dtype="<i4"), "weights are <f2"),
    "compressor": (lambda f: change(f, compressor={"id": "blosc"}), "T5X uses gzip"),
    "filters": (lambda f: change(f, filters=[{"id": "delta"}]), "filters is"),
    "order": (lambda f: change(f, order="F"), "order is 'F'"),
    "format": (lambda f: change(f, zarr_format=3), "zarr_format is 3"),
    "no gzip": (rewrite(f"{ZARR}/0.0", lambda b: b"nothing"), "is not a complete gzip file"),
    "cut": (rewrite(f"{ZARR}/0.0", lambda b: b[:-9]), "does not decompress to the 48 bytes"),
    "surplus": (rewrite(f"{ZARR}/0.0", lambda b: b + b"1"), "does not decompress to the 48 bytes"),
    "bomb": (bomb, "does not decompress to the 48 bytes"),
    "uncompressed": (lambda f: change(f, compressor=None), r"\[3, 4\] of float32 is 48"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_errors_name_the_problem(checkpoint, case):
    damage, message = DAMAGE[case]
    damage(checkpoint)
    tracemalloc.start()
    with pytest.raises(PromptFormatError, match=message):
        load_prompt(checkpoint)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 26


@pytest.mark.parametrize("name", ("checkpoint", ZARR, f"{ZARR}/.zarray", f"{ZARR}/0.0"))
def test_links_are_not_followed(checkpoint, tmp_path, name):
    target = tmp_path / "elsewhere"
    (checkpoint / name).rename(target)
    (checkpoint / name).symlink_to(target)
    with pytest.raises(PromptFormatError, match=r"link|not a regular file|chunks are missing|adapter_config"):
        load_prompt(checkpoint)


def test_chunks_are_put_together(tmp_path):
    """Chunks of three rows; the last one is filled up."""
    array = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    t5x_checkpoints.write(tmp_path / "c", {"a/b": array}, chunks=3)
    stored = open_zarr(tmp_path / "c" / "target.a.b")
    assert stored.shape == (7, 4) and sorted(path.name for path in (tmp_path / "c" / "target.a.b").iterdir()) == [
        ".zarray",
        "0.0",
        "1.0",
        "2.0",
    ]
    np.testing.assert_array_equal(stored.read(), array)
    t5x_checkpoints.write(tmp_path / "d", {"a": np.where(array == array[2, 1], np.inf, array)})
    with pytest.raises(CheckpointError, match="target.a has 1 values that are not finite"):
        open_zarr(tmp_path / "d" / "target.a").read()
