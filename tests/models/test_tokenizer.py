"""Tokenizers against seqio's vocabulary, whose ids they must have, and conversion from Hugging Face's format."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from prompt_jax.models.checkpoint_files import CheckpointError
from prompt_jax.models.tokenizer import Tokenizer, from_tokenizer_json, load_tokenizer

STRANGE = (
    "",
    " ",
    "<extra_id_0>",
    "a good <extra_id_0> with a <extra_id_99> heart",
    "film<extra_id_1>",
    "</s> <pad> <unk>",
    "a good film</s>",
    "  two  spaces\tand\nlines ",
    "ﬁlm ½ Ⅷ \u0301e\u0301 \u200b\u00ad",
    "日本語 العربية 🎬",
    "▁a▁good",
)
TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from([*STRANGE, "a", "good", " film", "positive", ", "]), max_size=6).map("".join),
)


@pytest.fixture(scope="module", params=["trained", "demo"])
def both(request, tiny_folder):
    """A tokenizer, and seqio's vocabulary of the same model with T5's extra ids."""
    seqio = pytest.importorskip("seqio")
    folder = tiny_folder if request.param == "trained" else request.getfixturevalue("demo_model_folder")
    return load_tokenizer(folder), seqio.SentencePieceVocabulary(str(folder / "spiece.model"), extra_ids=100)


def test_properties_are_seqios(both):
    ours, seqio_s = both
    assert ours.vocab_size == seqio_s.tokenizer.GetPieceSize()
    assert (ours.pad_id, ours.eos_id, ours.unk_id) == (seqio_s.pad_id, seqio_s.eos_id, seqio_s.unk_id) == (0, 1, 2)
    assert [ours.piece(index) for index in range(ours.vocab_size)] == [
        seqio_s.tokenizer.IdToPiece(index) for index in range(ours.vocab_size)
    ]
    assert ours.extra_ids == seqio_s.extra_ids == 100
    assert ours.piece(ours.vocab_size - 1) == "▁<extra_id_0>"


def with_examples(test):
    for text in STRANGE:
        test = example(text)(test)
    return test


@settings(max_examples=150)
@with_examples
@given(TEXTS)
def test_ids_are_seqios(both, text):
    ours, seqio_s = both
    ids = ours.encode(text)
    assert ids == seqio_s.encode(text)
    assert ours.decode(ids) == seqio_s.decode(ids)


@settings(max_examples=150)
@given(st.data())
def test_decoding_is_seqios(both, data):
    """Of any ids, with end tokens, padding and ids that have no piece."""
    ours, seqio_s = both
    most = ours.vocab_size + 30
    ids = data.draw(st.lists(st.one_of(st.integers(0, 4), st.integers(0, most), st.integers(most - 140, most))))
    assert ours.decode(ids) == seqio_s.decode(ids)


def test_decode_ends_and_drops_padding(tiny_folder):
    tokenizer = load_tokenizer(tiny_folder)
    ids = tokenizer.encode("a good film")
    assert tokenizer.decode([0, *ids, 0, 1, *ids]) == "a good film"
    assert tokenizer.decode([]) == tokenizer.decode([1]) == ""
    assert tokenizer.piece(tokenizer.vocab_size + 5) == f"<unused_{tokenizer.vocab_size + 5}>"


# --------------------------------------------------------------------------------------------------------------
# Folders


def test_no_tokenizer(tmp_path):
    assert load_tokenizer(tmp_path) is None


def test_a_model_of_another_name(tiny_folder, tmp_path):
    content = (tiny_folder / "spiece.model").read_bytes()
    (tmp_path / "sentencepiece.bpe.model").write_bytes(content)
    assert load_tokenizer(tmp_path).model_proto == content
    (tmp_path / "other.model").write_bytes(content)
    with pytest.raises(CheckpointError, match="several SentencePiece models .other.model, sentencepiece.bpe.model."):
        load_tokenizer(tmp_path)
    (tmp_path / "spiece.model").write_bytes(content)
    assert load_tokenizer(tmp_path) == Tokenizer(content)


def test_a_model_with_its_own_extra_ids(tiny_folder, tmp_path):
    """As mT5's: none are added."""
    model = ModelProto.FromString((tiny_folder / "spiece.model").read_bytes())
    for index in (1, 0):
        model.pieces.add(piece=f"▁<extra_id_{index}>", score=0.0, type=ModelProto.SentencePiece.USER_DEFINED)
    (tmp_path / "spiece.model").write_bytes(model.SerializeToString())
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.extra_ids, tokenizer.vocab_size) == (0, len(model.pieces))
    assert tokenizer.encode("<extra_id_0>") == [len(model.pieces) - 1]


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x0a\x05\x0a\x01a"])
def test_no_sentencepiece_model(tmp_path, content):
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(CheckpointError, match="spiece.model (is no SentencePiece model|has no pad)"):
        load_tokenizer(tmp_path)


def test_a_model_without_padding(tiny_folder, tmp_path):
    model = ModelProto.FromString((tiny_folder / "spiece.model").read_bytes())
    model.trainer_spec.pad_id = -1
    model.trainer_spec.pad_piece = "none"
    (tmp_path / "spiece.model").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="spiece.model has no pad token; T5's models have all three"):
        load_tokenizer(tmp_path)


# --------------------------------------------------------------------------------------------------------------
# Hugging Face's tokenizer.json


def tokenizer_json(model: ModelProto, extra_ids: int = 100) -> dict:
    """What Hugging Face's converter makes of a SentencePiece model of T5's kind, as far as it is read."""
    vocab = [[entry.piece, entry.score] for entry in model.pieces]
    vocab += [[f"<extra_id_{index}>", 0.0] for index in reversed(range(extra_ids))]
    charsmap = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
    return {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": charsmap}]},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": False},
    }


@pytest.fixture
def model(tiny_folder) -> ModelProto:
    return ModelProto.FromString((tiny_folder / "spiece.model").read_bytes())


def write(folder: Path, content: object) -> Path:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(content))
    return file


def test_tokenizer_json_gives_the_model_it_was_made_from(tmp_path, tiny_folder, model):
    original = load_tokenizer(tiny_folder)
    converted = from_tokenizer_json(write(tmp_path, tokenizer_json(model)))
    assert converted == load_tokenizer(tmp_path)
    assert (converted.vocab_size, converted.extra_ids) == (original.vocab_size, 100)
    for text in (*STRANGE, "a good film with a great heart"):
        assert converted.encode(text) == original.encode(text)
        assert converted.decode(original.encode(text)) == original.decode(original.encode(text))


def test_a_lone_normalizer(tmp_path, model):
    content = tokenizer_json(model)
    content["normalizer"] = content["normalizer"]["normalizers"][0]
    assert from_tokenizer_json(write(tmp_path, content)).encode("ﬁlm")


def test_extra_ids_must_come_last(tmp_path, model):
    content = tokenizer_json(model)
    content["model"]["vocab"].reverse()
    with pytest.raises(CheckpointError, match="the extra ids are not its last pieces, in descending order"):
        from_tokenizer_json(write(tmp_path, content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "BPE"}, "is of type BPE; only Unigram tokenizers can be converted"),
        ({"byte_fallback": True}, "is of type Unigram with byte fallback; .* Put the model's spiece.model beside it"),
        ({"unk_id": None}, "is no Hugging Face tokenizer"),
        ({"unk_id": 10**6}, "is no Hugging Face tokenizer"),
        ({"vocab": ["a"]}, "is no Hugging Face tokenizer"),
        ({"vocab": [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["<pad>", 0.0]]}, "tokenizer.json is no"),
    ],
)
def test_unusable_tokenizer_json(tmp_path, model, changes, message):
    content = tokenizer_json(model)
    content["model"] |= changes
    with pytest.raises(CheckpointError, match=message):
        from_tokenizer_json(write(tmp_path, content))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": null}'])
def test_broken_tokenizer_json(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="is no Hugging Face tokenizer of a Unigram model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}, {"type": "Precompiled", "precompiled_charsmap": "%"}])
def test_normalizers_that_are_not_sentencepieces(tmp_path, model, normalizer):
    content = tokenizer_json(model) | {"normalizer": normalizer}
    with pytest.raises(CheckpointError, match="is no Hugging Face tokenizer"):
        from_tokenizer_json(write(tmp_path, content))
