"""Files of tensors: exact values, reported damage, and PyTorch's."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_jax.checkpoints.files import open_torch
from prompt_jax.errors import CheckpointError
from weight_files import DTYPES, OPENERS, contents, encoded


@pytest.mark.parametrize("form", OPENERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read_as_stored(tmp_path, form, dtype):
    array = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(dtype)
    file = encoded(form, {"odd": array[0, 0, :1].copy(), "w": array}, tmp_path)  # the second begins anywhere
    actual = contents(form, file)
    assert actual["w"].dtype == dtype
    np.testing.assert_array_equal(actual["w"], array)


@pytest.mark.parametrize("form", OPENERS)
def test_other_dtypes_are_refused(tmp_path, form):
    file = encoded(form, {"w": np.arange(3, dtype=np.int8)}, tmp_path)
    with pytest.raises(
        CheckpointError, match="w has dtype (I8|int8); supported are float64, float32, float16, bfloat16"
    ):
        contents(form, file)


@pytest.mark.parametrize("form", OPENERS)
def test_an_empty_file(tmp_path, form):
    (tmp_path / "empty").touch()
    with pytest.raises(CheckpointError, match="empty is (empty|not a complete)"):
        contents(form, tmp_path / "empty")


@pytest.fixture(scope="module", params=OPENERS)
def whole(request, tmp_path_factory) -> tuple[str, bytes, Path]:
    """Return a small file of each format: its format, its bytes, and the path for a changed copy."""
    folder = tmp_path_factory.mktemp("fuzz")
    arrays = {"w": np.ones((2, 3), np.float32), "v": np.ones(2, np.float16)}
    return request.param, encoded(request.param, arrays, folder).read_bytes(), folder / "changed"


@settings(max_examples=50)
@given(st.data())
def test_truncated_files(whole, data):
    form, content, file = whole
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError, match=str(file)):
        contents(form, file)


@settings(max_examples=150)
@given(st.data())
def test_altered_files(whole, data):
    """Any change is detected, or the file still loads."""
    form, content, file = whole
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        changed[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    file.write_bytes(changed)
    try:
        contents(form, file)
    except CheckpointError as error:
        assert str(file) in str(error)


@pytest.mark.interop
class TestPyTorch:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("zipped", [True, False])  # PyTorch 1.6 and later, or before
    def test_every_dtype_is_read_as_stored(self, tmp_path, dtype, zipped):
        torch = pytest.importorskip("torch")
        array = np.random.default_rng(0).normal(size=(3, 5)).astype(dtype)
        tensor = torch.from_numpy(array.astype(np.float64)).to(getattr(torch, np.dtype(dtype).name))
        torch.save({"w": tensor, "t": tensor.T}, tmp_path / "f", _use_new_zipfile_serialization=zipped)
        with open_torch(tmp_path / "f") as tensors:
            assert tensors["w"].read().dtype == dtype
            np.testing.assert_array_equal(tensors["w"].read(), array)
            np.testing.assert_array_equal(tensors["t"].read(), array.T)

    def test_objects_are_not_loaded(self, tmp_path):
        torch = pytest.importorskip("torch")
        torch.save({"w": Path("anything")}, tmp_path / "f")
        with pytest.raises(CheckpointError, match="not a complete PyTorch file of tensors"), open_torch(tmp_path / "f"):
            pass

    @pytest.mark.parametrize(
        ("content", "message"),
        [(["w"], "holds a list, not a dict"), ({"w": 1}, "w is a int, not a tensor")],
    )
    def test_other_contents(self, tmp_path, content, message):
        torch = pytest.importorskip("torch")
        torch.save(content, tmp_path / "f")
        with pytest.raises(CheckpointError, match=message), open_torch(tmp_path / "f"):
            pass

    @settings(max_examples=30)
    @given(st.floats(0, 0.999))
    def test_truncated_files(self, tmp_path_factory, share):
        torch = pytest.importorskip("torch")
        file = tmp_path_factory.mktemp("torch") / "f"
        torch.save({"w": torch.ones(20, 30)}, file)
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
        with pytest.raises(CheckpointError, match="not a complete PyTorch file"), open_torch(file):
            pass
