"""Prompt files: exact round trips, files that NumPy reads, and damaged or hostile files."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import prompt_jax
from fuzzing import FUZZ
from prompt_jax import Prompt, PromptFormatError, PromptMetadata, load_prompt, save_ensemble, save_prompt
from prompt_jax.models.prompt import PromptStackError, unstack_prompts
from prompt_jax.prompt_files.io import ModelId, check_base, read_prompt, read_prompts
from stored_prompts import GOOD, METADATA, embeddings_of, prompt_of

finite = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@FUZZ
@given(finite, st.sampled_from(["before", "after"]))
def test_npz_is_exact_both_ways(tmp_path, values, placement):
    path = tmp_path / "p.npz"
    save_prompt(path, prompt_of(values, placement=placement), METADATA)
    prompt, metadata = read_prompt(path)
    assert embeddings_of(prompt).tobytes() == values.tobytes() and prompt.encoder_tokens.placement == placement
    assert metadata == dataclasses.replace(METADATA, placement=placement)


@FUZZ
@given(finite, st.sampled_from(["p.npy", "encoder.prompt.prompt.prompt"]))
def test_npy_is_t5xs(tmp_path, values, name):
    """`numpy.save` and `numpy.load` write and read the same, whatever the file's name."""
    path = tmp_path / name
    save_prompt(path, prompt_of(values), format="npy")
    assert np.load(path, allow_pickle=False).tobytes() == values.tobytes()
    with path.open("wb") as file:
        np.save(file, values)
    assert embeddings_of(load_prompt(path)).tobytes() == values.tobytes()


settings_values = (
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(-1e30, 1e30) | st.text(max_size=5)
)


@st.composite
def ensembles(draw) -> tuple[list[Prompt], list[PromptMetadata]]:
    """Members with the same width and placement, and any settings. Some have unused slots."""
    width, placement = draw(st.integers(1, 4)), draw(st.sampled_from(["before", "after"]))
    prompts, metadata = [], []
    for length in draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)):
        values = draw(
            hnp.arrays(np.float32, (length, width), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
        )
        mask = draw(st.none() | hnp.arrays(bool, length).filter(np.any))
        prompts.append(prompt_of(values, mask=mask, placement=placement))
        own = draw(st.dictionaries(st.text(max_size=5), settings_values | st.lists(settings_values, max_size=3)))
        metadata.append(dataclasses.replace(METADATA, placement=placement, settings=own))
    return prompts, metadata


@FUZZ
@given(ensembles())
def test_an_ensemble_is_exact_both_ways(tmp_path, ensemble):
    prompts, metadata = ensemble
    path = tmp_path / "e.npz"
    save_ensemble(path, prompts, metadata)
    members = read_prompts(path)
    assert [own for _, own in members] == metadata
    for (again, _), prompt in zip(members, prompts, strict=True):
        assert embeddings_of(again).tobytes() == embeddings_of(prompt).tobytes()
        np.testing.assert_array_equal(again.encoder_tokens.mask, prompt.encoder_tokens.mask)
        assert again.encoder_tokens.placement == prompt.encoder_tokens.placement
    stacked = load_prompt(path)
    assert stacked.encoder_tokens.embeddings.ndim == 3
    for again, prompt in zip(unstack_prompts(stacked), prompts, strict=True):
        mask = prompt.encoder_tokens.mask
        used = embeddings_of(prompt) if mask is None else embeddings_of(prompt)[mask]
        assert embeddings_of(again).tobytes() == used.tobytes()
    with pytest.raises(PromptFormatError, match=f"an ensemble of {len(prompts)} prompts.*--member.*read_prompts"):
        read_prompt(path)


def test_read_prompts_reads_a_single_one_too(tmp_path):
    save_prompt(tmp_path / "p.npz", prompt_of(GOOD), METADATA)
    ((prompt, metadata),) = read_prompts(tmp_path / "p.npz")
    assert embeddings_of(prompt).tobytes() == GOOD.tobytes() and metadata == METADATA
    with np.load(tmp_path / "p.npz", allow_pickle=False) as file:
        assert "settings" not in json.loads(str(file["metadata"])), "as files were before there were ensembles"


def test_an_ensemble_of_many_members(tmp_path):
    prompts = [prompt_of([[float(i)]]) for i in range(4096)]
    save_ensemble(tmp_path / "e.npz", prompts, [PromptMetadata()] * 4096)
    assert load_prompt(tmp_path / "e.npz").encoder_tokens.embeddings.ravel().tolist() == list(range(4096))
    with pytest.raises(PromptFormatError, match="from 1 to 4096 members, not 4097"):
        save_ensemble(tmp_path / "e.npz", [*prompts, prompts[0]], [PromptMetadata()] * 4097)


def test_invalid_ensembles_are_not_written(tmp_path):
    good, path = prompt_of(GOOD), tmp_path / "e.npz"
    for prompts, error, message in (
        ([], PromptFormatError, "from 1 to 4096 members, not 0"),
        ([good, prompt_of(GOOD, placement="after")], PromptStackError, "e.npz, member 0 .* before .* member 1 after"),
        ([good, prompt_of(np.ones((1, 4)))], PromptStackError, "e.npz, member 1 of width 4"),
        ([good, prompt_of([[1, 2, np.nan]])], PromptFormatError, "e.npz, member 1: .* 1 values that are not finite"),
        ([good, Prompt()], PromptStackError, "member 1: only single prompts that are not empty"),
        ([prompt_of(np.ones((2, 3, 4)))], PromptStackError, r"not encoder_tokens \(2, 3, 4\)"),
    ):
        with pytest.raises(error, match=message):
            save_ensemble(path, prompts, [METADATA] * len(prompts))
    with pytest.raises(ValueError, match="zip"):
        save_ensemble(path, [good, good], [METADATA])
    for wrong in ([[1]], np.nan):
        with pytest.raises(
            PromptFormatError, match="member 0: the setting 'a' is .*; expected a text, a finite number"
        ):
            save_ensemble(path, [good], [PromptMetadata(settings={"a": wrong})])
    with pytest.raises(PromptFormatError, match="an ensemble is a .npz"):
        save_ensemble(tmp_path / "e.npy", [good], [METADATA])
    with pytest.raises(PromptFormatError, match="save_ensemble writes several"):
        save_prompt(path, prompt_of(np.ones((2, 3, 4))))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", (np.float64, np.float16))
@pytest.mark.parametrize("order", "CF")
def test_other_floats_are_read(tmp_path, dtype, order):
    values = np.asarray([[1.5, -2.25], [0.125, 3.0], [4.0, 5.0]], dtype, order=order)
    np.save(tmp_path / "p.npy", values)
    np.testing.assert_array_equal(embeddings_of(load_prompt(tmp_path / "p.npy")), values)
    assert embeddings_of(load_prompt(tmp_path / "p.npy")).dtype == np.float32


SHARED = Path(__file__).parents[2] / ".." / "shared" / "fixtures" / "t5x"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published prompts of T5X are not here")
@pytest.mark.parametrize(
    ("name", "shape"), [("sst2", (100, 768)), ("mrpc", (100, 768)), ("rte", (100, 768)), ("prompt_5x256", (5, 256))]
)
def test_published_prompts_are_read_and_written_back(tmp_path, name, shape):
    prompt = load_prompt(SHARED / f"{name}.npy")
    assert embeddings_of(prompt).shape == shape
    save_prompt(tmp_path / "p.npz", prompt)
    save_prompt(tmp_path / "p.npy", load_prompt(tmp_path / "p.npz"))
    original = np.load(SHARED / f"{name}.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), original.astype(np.float32))
    if original.dtype == np.float32:
        assert (tmp_path / "p.npy").read_bytes() == (SHARED / f"{name}.npy").read_bytes()


def test_a_prompt_is_checked_against_its_base(tiny, tmp_path):
    own = ModelId(tiny.name, tiny.revision, tiny.fingerprint)
    prompt, path = prompt_of(np.ones((2, 64))), tmp_path / "p.npz"
    save_prompt(path, prompt, PromptMetadata(base=own))
    assert embeddings_of(load_prompt(path, tiny)).shape == (2, 64)

    save_prompt(path, prompt, PromptMetadata(base=dataclasses.replace(own, name="other", fingerprint="sha256:11")))
    with pytest.raises(PromptFormatError, match=r"trained on other \(sha256:11\), not on .*--allow-other-base"):
        load_prompt(path, tiny)
    load_prompt(path, tiny, allow_other_base=True)

    save_prompt(path, prompt)
    with pytest.warns(UserWarning, match="does not say which base"):
        load_prompt(path, tiny)

    save_prompt(path, prompt_of(np.ones((2, 63))), PromptMetadata(base=own))
    with pytest.raises(PromptFormatError, match="width 63; .* has 64"):
        load_prompt(path, tiny, allow_other_base=True)
    with pytest.raises(PromptFormatError, match="width 63"):
        check_base(path, prompt_of(np.ones((2, 63))), PromptMetadata(), tiny)


def test_all_members_are_checked_against_their_base(tiny, tmp_path):
    own, path = ModelId(tiny.name, tiny.revision, tiny.fingerprint), tmp_path / "e.npz"
    prompts = [prompt_of(np.ones((length, 64))) for length in (2, 1, 2)]
    save_ensemble(path, prompts, [PromptMetadata(base=own)] * 3)
    assert embeddings_of(load_prompt(path, tiny)).shape == (3, 2, 64)
    other = PromptMetadata(base=ModelId("other", None, "sha256:11"))
    save_ensemble(path, prompts, [PromptMetadata(base=own), PromptMetadata(base=own), other])
    with pytest.raises(PromptFormatError, match=r"e.npz, member 2 was trained on other \(sha256:11\)"):
        load_prompt(path, tiny)
    load_prompt(path, tiny, allow_other_base=True)
    save_ensemble(path, prompts, [PromptMetadata()] * 3)
    with pytest.warns(UserWarning, match="e.npz, member 0 does not say which base") as warned:
        load_prompt(path, tiny)
    assert len(warned) == 1
    save_ensemble(path, [prompt_of(np.ones((1, 63)))], [PromptMetadata(base=own)])
    with pytest.raises(PromptFormatError, match="width 63; .* has 64"):
        load_prompt(path, tiny)


@pytest.mark.parametrize(("name", "content"), [("p.npz", b""), ("p.npz", b"PK"), ("p.bin", b"\x80\x04pickle")])
def test_other_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptFormatError, match="neither a NumPy archive"):
        load_prompt(tmp_path / name)


@FUZZ
@given(st.data())
def test_mutated_files_are_prompts_or_refused(tmp_path, data):
    """Truncated files and files with changed bytes: they load, or raise PromptFormatError."""
    kind = data.draw(st.sampled_from(["npz", "npy", "ensemble"]))
    path, prompt = tmp_path / f"p.{kind}", prompt_of(np.arange(12).reshape(3, 4))
    if kind == "ensemble":
        path = tmp_path / "e.npz"
        save_ensemble(path, [prompt, prompt_of(np.ones((1, 4)))], [METADATA, PromptMetadata()])
    else:
        save_prompt(path, prompt, METADATA)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        prompt = load_prompt(path)
    except PromptFormatError:
        return
    assert np.isfinite(embeddings_of(prompt)).all()


def test_writes_are_atomic(tmp_path):
    path = tmp_path / "p.npz"
    save_prompt(path, prompt_of(GOOD), METADATA)
    before = path.read_bytes()
    for bad, message in (
        (prompt_of([[np.inf]]), "1 values that are not finite"),
        (Prompt(), "the prompt is empty"),
    ):
        with pytest.raises(PromptFormatError, match=message):
            save_prompt(path, bad)
    with pytest.raises(PromptFormatError, match=r"name it .npz or .npy"):
        save_prompt(tmp_path / "p.bin", prompt_of(GOOD))
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["p.npz"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        prompt_jax.load_prompt(tmp_path / "nowhere.npz")
