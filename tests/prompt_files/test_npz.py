"""Archives of prompts: what NumPy reads, and damaged or hostile files."""

import copy
import io
import json
import warnings
import zipfile

import jax
import numpy as np
import pytest

import prompt_jax
from deltas import FAMILIES, METHODS, logits, trained
from prompt_jax import PromptFormatError, PromptMetadata, load_prompt, save_ensemble, save_prompt
from prompt_jax.checkpoints.load import Model
from prompt_jax.models.delta import flat
from prompt_jax.prompt_files.io import ModelId, read_prompt, read_prompts
from stored_prompts import GOOD, METADATA, archive, header, prompt_of, text


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, fixtures) -> Model:
    return prompt_jax.load_model(str(fixtures / request.param / "base"))


def test_numpy_alone_reads_an_ensemble(tmp_path):
    prompts = [prompt_of(np.ones((2, 3))), prompt_of(np.zeros((3, 3)), mask=np.array([True, False, True]))]
    save_ensemble(tmp_path / "e.npz", prompts, [PromptMetadata(settings={"train.seed": i}) for i in range(2)])
    with np.load(tmp_path / "e.npz", allow_pickle=False) as file:
        names = ["encoder_tokens", "encoder_tokens/mask", "metadata"]
        assert sorted(file) == [f"0/{names[0]}", f"0/{names[2]}", *(f"1/{name}" for name in names)]
        assert json.loads(str(file["1/metadata"]))["settings"] == {"train.seed": 1}


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


@pytest.mark.parametrize("name", METHODS)
def test_files_are_exact_both_ways(model, tmp_path, name):
    prompts = [trained(model, name, seed=seed) for seed in range(2)]
    metadata = PromptMetadata(ModelId(model.name, None, model.fingerprint), METHODS[name].name)
    save_prompt(tmp_path / "p.npz", prompts[0], metadata)
    read = load_prompt(tmp_path / "p.npz", model)
    assert flat(read.leaves).keys() == flat(prompts[0].leaves).keys()
    jax.tree.map(np.testing.assert_array_equal, read.leaves, prompts[0].leaves)
    np.testing.assert_array_equal(logits(model, read), logits(model, prompts[0]))
    save_ensemble(tmp_path / "e.npz", prompts, [metadata] * 2)
    for (member, _), prompt in zip(read_prompts(tmp_path / "e.npz"), prompts, strict=True):
        jax.tree.map(np.testing.assert_array_equal, member.leaves, prompt.leaves)
    for message, write in (
        ("use npz", lambda: save_prompt(tmp_path / "p.npy", prompts[0], metadata)),
        (
            "are not exported to PEFT",
            lambda: save_prompt(tmp_path / "p", prompts[0], metadata, format="peft", model=model),
        ),
    ):
        with pytest.raises(PromptFormatError, match=message):
            write()
