"""Prompt files: exact round trips, files that NumPy reads, and damaged or hostile files."""

import copy
import dataclasses
import io
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import prompt_jax
from fuzzing import FUZZ
from prompt_jax import Prompt, PromptFormatError, PromptMetadata, VirtualTokens, load_prompt, save_ensemble, save_prompt
from prompt_jax.models.prompt import PromptStackError, unstack_prompts
from prompt_jax.prompt_files.io import ModelId, check_base, read_prompt, read_prompts
from prompt_jax.task_format import TaskFormat

METADATA = PromptMetadata(
    base=ModelId("demo", None, "sha256:00"),
    method="soft_prompt",
    initialization="vocab",
    task="sentiment_movie",
    format=TaskFormat("{text}", ("negative", "positive"), ("accuracy",), 128, 8),
    step=200,
    scores={"accuracy": 0.875},
)


def prompt_of(embeddings, **fields) -> Prompt:
    return Prompt(VirtualTokens(np.asarray(embeddings, np.float32), **fields))


def embeddings_of(prompt: Prompt) -> np.ndarray:
    return np.asarray(prompt.encoder_tokens.embeddings)


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


def test_numpy_alone_reads_an_ensemble(tmp_path):
    prompts = [prompt_of(np.ones((2, 3))), prompt_of(np.zeros((3, 3)), mask=np.array([True, False, True]))]
    save_ensemble(tmp_path / "e.npz", prompts, [PromptMetadata(settings={"train.seed": i}) for i in range(2)])
    with np.load(tmp_path / "e.npz", allow_pickle=False) as file:
        names = ["encoder_tokens", "encoder_tokens/mask", "metadata"]
        assert sorted(file) == [f"0/{names[0]}", f"0/{names[2]}", *(f"1/{name}" for name in names)]
        assert json.loads(str(file["1/metadata"]))["settings"] == {"train.seed": 1}


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


def test_numpy_alone_reads_a_prompt(tmp_path):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_prompt(tmp_path / "p.npz", prompt_of(values, mask=np.array([False, True])), METADATA)
    with np.load(tmp_path / "p.npz", allow_pickle=False) as file:
        assert sorted(file) == ["encoder_tokens", "encoder_tokens/mask", "metadata"]
        assert file["encoder_tokens"].dtype == np.float32
        np.testing.assert_array_equal(file["encoder_tokens"], values)
        metadata = json.loads(str(file["metadata"]))
    assert metadata["format_version"] == 1 and metadata["base"]["fingerprint"] == "sha256:00"
    assert metadata["format"]["labels"] == ["negative", "positive"] and metadata["scores"] == {"accuracy": 0.875}
    again = load_prompt(tmp_path / "p.npz")
    np.testing.assert_array_equal(again.encoder_tokens.mask, [False, True])
    save_prompt(tmp_path / "p.npy", again)
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), values[1:], "unused slots are not exported")


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


def archive(path, **members) -> None:
    """Write a zip archive of the given bytes or arrays."""
    with zipfile.ZipFile(path, "w") as file:
        for name, value in members.items():
            if not isinstance(value, bytes):
                buffer = io.BytesIO()
                np.save(buffer, value, allow_pickle=value.dtype.hasobject)
                value = buffer.getvalue()
            file.writestr(f"{name}.npy", value)


GOOD = np.ones((2, 3), np.float32)


def header(shape, descr="<f4") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def text(**values) -> np.ndarray:
    return np.array(json.dumps({"format_version": 1, **values}))


BROKEN = {
    "nan": ({"encoder_tokens": np.full((2, 3), np.nan, np.float32)}, "6 values that are not finite"),
    "overflow": ({"encoder_tokens": np.full((2, 3), 1e300)}, "6 values that are not finite"),
    "objects": ({"encoder_tokens": np.array([[object()]])}, "object"),
    "integers": ({"encoder_tokens": np.ones((2, 3), int)}, r"int64 \[2, 3\]; a prompt has floats"),
    "vector": ({"encoder_tokens": np.ones(3)}, r"encoder_tokens is \[3\]; expected \[P, D\]"),
    "empty": ({"encoder_tokens": np.ones((0, 3))}, r"\[0, 3\]"),
    "absent": ({"metadata": text()}, "it has neither encoder_tokens, nor a prefix"),
    "foreign": ({"encoder_tokens": GOOD, "lora_A": GOOD}, "unexpected entry 'lora_A'"),
    "escaping": ({"../encoder_tokens": GOOD}, "unexpected entry"),
    "huge": ({"encoder_tokens": header((1 << 40, 1 << 20))}, "has 0 bytes of data"),
    "negative": ({"encoder_tokens": header((-1, -3)) + bytes(12)}, "claims"),
    "short": ({"encoder_tokens": header((2, 3)) + bytes(20)}, "20 bytes of data"),
    "long": ({"encoder_tokens": header((2, 3)) + bytes(28)}, "28 bytes of data"),
    "no array": ({"encoder_tokens": b"hello, this is no array"}, "damaged"),
    "mask": ({"encoder_tokens": GOOD, "encoder_tokens/mask": np.ones(3, bool)}, r"mask is bool \(3,\)"),
    "unused": (
        {"encoder_tokens": GOOD, "encoder_tokens/mask": np.zeros(2, bool)},
        "none of the prompt's 2 slots is used",
    ),
    "endless": (
        {"encoder_tokens": GOOD, "metadata": text(format={"template": "{a}", "target_length": 2_000_000_000})},
        "target_length must be from 1 to 65536",
    ),
    "large score": ({"encoder_tokens": GOOD, "metadata": text(scores={"a": 10**400})}, "scores must be"),
    "infinite score": (
        {"encoder_tokens": GOOD, "metadata": np.array('{"format_version": 1, "scores": {"a": 1e999}}')},
        "scores must be finite",
    ),
    "no text": ({"encoder_tokens": GOOD, "metadata": GOOD}, "metadata is float32"),
    "beyond Unicode": (
        {"encoder_tokens": GOOD, "metadata": np.frombuffer(b"\0\0\x11\0", "<U1").reshape(())},
        r"metadata has the character U\+110000",
    ),
    "far beyond Unicode, and big-endian": (
        {"encoder_tokens": GOOD, "metadata": np.frombuffer(b"\0\0\0{\xff\xff\xff\xff\0\0\0}", ">U3").reshape(())},
        r"metadata has the character U\+FFFFFFFF",
    ),
    "no json": ({"encoder_tokens": GOOD, "metadata": np.array("{")}, "metadata is not JSON"),
    "deep json": ({"encoder_tokens": GOOD, "metadata": np.array("[" * 100_000)}, "metadata is not JSON"),
    "list": ({"encoder_tokens": GOOD, "metadata": np.array("[]")}, "JSON list"),
    "version": ({"encoder_tokens": GOOD, "metadata": np.array('{"format_version": 9}')}, "version 9"),
    "unknown": (
        {"encoder_tokens": GOOD, "metadata": text(code="import os")},
        "unknown field code; the fields are base",
    ),
    "type": ({"encoder_tokens": GOOD, "metadata": text(step="3")}, r"metadata: step must be int \| None, not '3'"),
    "boolean": ({"encoder_tokens": GOOD, "metadata": text(step=True)}, r"metadata: step must be int \| None, not True"),
    "surrogate": (
        {"encoder_tokens": GOOD, "metadata": text(step="\ud800")},
        r"metadata: step must be int \| None, not '\\ud800'",
    ),
    "infinite": ({"encoder_tokens": GOOD, "metadata": np.array('{"scores": {"a": Infinity}}')}, "not a number"),
    "score": ({"encoder_tokens": GOOD, "metadata": text(scores={"a": "b"})}, "scores must be .*, not {'a': 'b'}"),
    "template": (
        {"encoder_tokens": GOOD, "metadata": text(format={"template": "{a.{b}}"})},
        "has a brace that is not part",
    ),
    "metric": (
        {"encoder_tokens": GOOD, "metadata": text(format={"template": "{a}", "metrics": ["os.system"]})},
        "unknown metric 'os.system'",
    ),
    "placement": (
        {"encoder_tokens": GOOD, "metadata": text(placement="inside")},
        "placement must be 'before' or 'after', not 'inside'",
    ),
    "settings": ({"encoder_tokens": GOOD, "metadata": text(settings=[1])}, r"settings must be .*, not \[1\]"),
    "object in settings": (
        {"encoder_tokens": GOOD, "metadata": text(settings={"a": {}})},
        "settings must be .*not {'a': {}}",
    ),
    "lists in lists": (
        {"encoder_tokens": GOOD, "metadata": text(settings={"a": [[1]]})},
        r"'a' is \[\[1\]\]; expected",
    ),
    "large setting": (
        {"encoder_tokens": GOOD, "metadata": text(settings={"a": [10**400]})},
        "expected a text, a finite number",
    ),
    "base": (
        {"encoder_tokens": GOOD, "metadata": text(base={"name": "x", "revision": None})},
        "base.fingerprint is missing",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_errors_name_the_problem(tmp_path, case):
    members, message = BROKEN[case]
    archive(tmp_path / "p.npz", **members)
    with pytest.raises(PromptFormatError, match=message) as caught:
        load_prompt(tmp_path / "p.npz")
    assert str(tmp_path / "p.npz") in str(caught.value)


# The same in a member of an ensemble, which the message names, and errors of ensembles.
MEMBER = {"0/encoder_tokens": GOOD, "0/metadata": text(), "1/encoder_tokens": GOOD}
BROKEN_ENSEMBLES = {
    **{
        case: ({**MEMBER, **{f"1/{name}": value for name, value in members.items()}}, f"p.npz, member 1.*{message}")
        for case, (members, message) in BROKEN.items()
        if case not in ("absent", "escaping")
    },
    "absent": ({**MEMBER, "2/metadata": text()}, "p.npz, member 2: it has neither encoder_tokens"),
    "a gap": ({**MEMBER, "3/encoder_tokens": GOOD}, "p.npz: there is no member 2, but a member 3"),
    "no first": ({"1/encoder_tokens": GOOD}, "p.npz: there is no member 0, but a member 1"),
    "zeros": ({**MEMBER, "02/encoder_tokens": GOOD}, "unexpected entry '02/encoder_tokens'"),
    "other digits": ({**MEMBER, "\u0662/encoder_tokens": GOOD}, "unexpected entry"),
    "signs": ({**MEMBER, "-1/encoder_tokens": GOOD}, "unexpected entry '-1/encoder_tokens'"),
    "both kinds": ({**MEMBER, "encoder_tokens": GOOD}, "unexpected entry 'encoder_tokens' among those of an ensemble"),
    "escaping": ({**MEMBER, "1/../encoder_tokens": GOOD}, r"member 1: unexpected entry '\.\./encoder_tokens'"),
    "a member too many": ({**MEMBER, "4096/encoder_tokens": GOOD}, "at most 4096 members"),
    "far too many": ({**MEMBER, f"{'9' * 5000}/encoder_tokens": GOOD}, "at most 4096 members"),
    "widths": ({**MEMBER, "1/encoder_tokens": np.ones((2, 4))}, "p.npz, member 0 has .* width 3 and .*p.npz, member 1"),
    "placements": (
        {**MEMBER, "1/metadata": text(placement="after")},
        "before the input and .*p.npz, member 1 after it",
    ),
    "lengths": (
        {f"{i}/encoder_tokens": np.ones((20_000 if i == 7 else 1, 1), np.float32) for i in range(120)},
        "p.npz, member 7 has encoder_tokens of 20000 slots, .* over 100 times the memory",
    ),
}


@pytest.mark.parametrize("case", BROKEN_ENSEMBLES)
def test_errors_of_an_ensemble(tmp_path, case):
    members, message = BROKEN_ENSEMBLES[case]
    archive(tmp_path / "p.npz", **members)
    for read in (load_prompt, read_prompts, read_prompt):
        with pytest.raises(PromptFormatError, match=message):
            read(tmp_path / "p.npz")


def test_duplicate_entries_are_an_error(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's, about the name
        with zipfile.ZipFile(tmp_path / "p.npz", "w") as file:
            for value in (header((2, 3)) + bytes(24), header((1, 3)) + bytes(12)):
                file.writestr("encoder_tokens.npy", value)
    with pytest.raises(PromptFormatError, match="at most once"):
        load_prompt(tmp_path / "p.npz")


def test_a_bomb_is_not_unpacked(tmp_path):
    for entry in ("encoder_tokens", "0/encoder_tokens"):
        with zipfile.ZipFile(tmp_path / "p.npz", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(f"{entry}.npy", header((1 << 12, 1 << 12)) + bytes(1 << 26))
        assert (tmp_path / "p.npz").stat().st_size < 100_000
        with pytest.raises(PromptFormatError, match="unpacks? to"):
            load_prompt(tmp_path / "p.npz")


@pytest.mark.parametrize("method", (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
def test_methods_that_unpack_without_a_limit_are_refused(tmp_path, method):
    save_prompt(tmp_path / "p.npz", prompt_of(GOOD), METADATA)
    with zipfile.ZipFile(tmp_path / "p.npz") as good, zipfile.ZipFile(tmp_path / "q.npz", "w", method) as bad:
        for name in good.namelist():
            bad.writestr(name, good.read(name))
    with pytest.raises(PromptFormatError, match="is compressed by the method"):
        load_prompt(tmp_path / "q.npz")


def test_entries_that_lie_over_each_other(tmp_path):
    """One array under many names: each is small, but not their sum (Fifield 2019)."""
    array = io.BytesIO()
    np.save(array, np.ones((64, 1024), np.float32))
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
        archive.writestr("0/encoder_tokens.npy", array.getvalue())
        first = archive.infolist()[0]
        for number in range(1, 200):
            other = copy.copy(first)
            other.filename = other.orig_filename = f"{number}/encoder_tokens.npy"
            archive.filelist.append(other)
            archive.NameToInfo[other.filename] = other
    with pytest.raises(PromptFormatError, match="its entries unpack to 52454400 bytes from"):
        load_prompt(tmp_path / "p.npz")


def test_duplicate_names_in_the_metadata_are_an_error(tmp_path):
    text = json.dumps({"format_version": 1, "step": 1})[:-1] + ', "step": 2}'
    np.savez(tmp_path / "p.npz", encoder_tokens=np.asarray(GOOD, np.float32), metadata=np.array(text))
    with pytest.raises(PromptFormatError, match="'step' comes twice"):
        load_prompt(tmp_path / "p.npz")


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
