"""Tokenizers against Transformers' AutoTokenizer and, for T5, seqio's vocabulary."""

import base64
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece.sentencepiece_model_pb2 import ModelProto

import bytepairs
import prompt_jax
import sentencepieces
from fuzzing import FUZZ
from prompt_jax.checkpoints.tokenizer import load_tokenizer
from prompt_jax.control_tokens import CLOSE, OPEN
from prompt_jax.errors import CheckpointError
from sentencepieces import SENTENCES

TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            [
                *("a", "good", " film", "positive", ", ", "  two  spaces\tand\nlines ", "▁a▁good", " "),
                *("ﬁlm ½ Ⅷ \u0301e\u0301 \u200b\u00ad", "日本語 العربية 🎬", "Hmmm!!!!!", "isn't", "\u2028", "\r\n"),
            ]
        ),
        max_size=6,
    ).map("".join),
)
# Each kind: model_type, eos_id, pad_id, whether it is causal, and the control tokens.
KINDS = {
    "t5": ("t5", 1, 0, False, ("</s>", "<pad>", "<extra_id_0>", "<extra_id_99>")),
    "t5, tokenizer.json": ("t5", 1, 0, False, ("</s>", "<pad>", "<extra_id_0>", "<extra_id_99>")),
    "t5 with its own sentinels": ("mt5", 1, 0, False, ("</s>", "<pad>")),  # which are words to Transformers
    "t5 with byte pairs": ("t5", 2, 0, False, ("<s>", "</s>", "<mask>")),  # as CodeT5
    "t5 of bytes": ("t5", 1, 0, False, ("<extra_id_0>", "<extra_id_124>")),  # ByT5
    "gpt2": ("gpt2", 0, 0, True, ("<|endoftext|>",)),
    "gpt2, vocab.json": ("gpt2", 0, 0, True, ("<|endoftext|>",)),
    "gpt2 with added tokens": ("gpt2", 0, 0, True, ("<|endoftext|>", "<|user|>", "<|assistant|>")),
    "gpt2 with SentencePiece": ("gpt2", 1, 0, True, ("</s>", "<pad>")),  # as Japanese GPT-2
    "llama2": ("llama", 1, 2, True, ("<s>", "</s>", "<unk>")),
    "llama3": ("llama", 1, 1, True, ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")),
    "qwen2": ("qwen2", 0, 0, True, ("<|endoftext|>", "<|im_start|>", "<|im_end|>")),
    "gemma": ("gemma3_text", 1, 2, True, ("<bos>", "<eos>", "<pad>", "<start_of_turn>")),
    "bart": ("bart", 2, 1, False, ("<s>", "</s>", "<mask>")),
    "bart with added tokens": ("bart", 2, 1, False, ("<s>", "</s>", "<mask>", "<|user|>")),
}
ROWS = 1000


def unigram_json(model: ModelProto) -> dict:
    """Return the output of Hugging Face's converter for a SentencePiece model like T5's."""
    vocab = [[entry.piece, entry.score] for entry in model.pieces]
    vocab += [[f"<extra_id_{index}>", 0.0] for index in reversed(range(100))]
    charsmap = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": False},
    }


def write_byte_pairs(folder: Path, special: list[str], in_parts: bool = False) -> None:
    definition = bytepairs.train(SENTENCES, 150, special)
    if not in_parts:
        (folder / "tokenizer.json").write_text(definition)
        return
    model = json.loads(definition)["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))


def make(folder: Path, kind: str) -> None:
    """Return a model folder's tokenizer, made as its authors made it."""
    from transformers import AutoTokenizer

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": KINDS[kind][0]}))
    pieces = sentencepieces.train(SENTENCES, 80)
    match kind:
        case "t5":
            (folder / "spiece.model").write_bytes(pieces)
        case "t5, tokenizer.json":
            (folder / "tokenizer.json").write_text(json.dumps(unigram_json(ModelProto.FromString(pieces))))
        case "t5 with its own sentinels":
            model = ModelProto.FromString(pieces)
            for index in (1, 0):
                model.pieces.add(piece=f"<extra_id_{index}>", score=0.0, type=ModelProto.SentencePiece.USER_DEFINED)
            (folder / "spiece.model").write_bytes(model.SerializeToString())
            (folder / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 0}))
        case "t5 with byte pairs":
            write_byte_pairs(folder, ["<pad>", "<s>", "</s>", "<unk>", "<mask>"], in_parts=True)
            (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
        case "t5 of bytes":
            (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
        case "llama2" | "llama3" | "qwen2" | "gemma":
            control = KINDS[kind][4]
            unknown = ["<unk>"] if kind == "gemma" else []
            definition = bytepairs.train_like(kind, SENTENCES, 60, [*control, *unknown])
            (folder / "tokenizer.json").write_text(definition)
            classes = {"llama2": "LlamaTokenizer", "qwen2": "Qwen2Tokenizer", "gemma": "GemmaTokenizer"}
            settings = {"tokenizer_class": classes.get(kind, "PreTrainedTokenizerFast"), "eos_token": control[1]}
            names = {"llama2": ("<s>", None), "llama3": (control[0], None), "gemma": ("<bos>", "<pad>")}
            settings |= dict(zip(("bos_token", "pad_token"), names.get(kind, (None, control[0])), strict=True))
            (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        case "gpt2 with SentencePiece":
            (folder / "spiece.model").write_bytes(pieces)
            (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
        case _:
            special = ["<|endoftext|>"] if "gpt2" in kind else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
            write_byte_pairs(folder, special, in_parts="vocab.json" in kind)
    if "added" in kind:
        saved = AutoTokenizer.from_pretrained(str(folder))
        saved.add_tokens([token for token in KINDS[kind][4] if token.startswith("<|")], special_tokens=True)
        saved.add_tokens(["superfilm"])  # a word, and no control token
        saved.save_pretrained(str(folder))


def load(folder: Path, kind: str, **changes):
    from transformers import AutoConfig

    _, eos_id, pad_id, causal, _ = KINDS[kind]
    config = AutoConfig.from_pretrained(str(folder))
    options = {"eos_id": eos_id, "pad_id": pad_id, "rows": ROWS, "causal": causal, "leading_space": "gpt2" in kind}
    return load_tokenizer(folder, config, **options | changes)


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """This project's tokenizer of a folder, Transformers', and the folder."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer") / "model"
    make(folder, request.param)
    theirs = AutoTokenizer.from_pretrained(str(folder))
    return SimpleNamespace(
        ours=load(folder, request.param), theirs=theirs, folder=folder, control=KINDS[request.param][4]
    )


def plain(both, text: str) -> str:
    """Return the text without control tokens, and without the signs that mark them, which are dropped."""
    for token in (*both.theirs.all_special_tokens, OPEN, CLOSE):
        text = text.replace(token, "")
    return text


@pytest.mark.parametrize(
    ("kind", "leading_space", "separator"),
    [
        ("gpt2", True, "<|endoftext|>"),
        ("gpt2", False, "Ċ"),  # a line break
        ("gpt2 with SentencePiece", False, "</s>"),  # T5's normalization drops line breaks
        ("t5", False, None),
    ],
)
def test_the_token_between_source_and_target(tmp_path, kind, leading_space, separator):
    make(tmp_path / "model", kind)
    tokenizer = load(tmp_path / "model", kind, leading_space=leading_space)
    assert [tokenizer.piece(index) for index in tokenizer.separator] == ([] if separator is None else [separator])


@settings(max_examples=100)
@given(TEXTS)
@example("")
def test_ids_are_auto_tokenizers(both, text):
    text = plain(both, text)
    assert both.ours.encode(text) == both.theirs(text, add_special_tokens=False)["input_ids"]
    ids = both.theirs(text)["input_ids"]
    if not both.ours.leading_space:
        assert both.ours.input_ids(text) == ids
    if both.ours.causal and not both.ours.leading_space:
        assert both.ours.target_ids(text) == [*ids[len(both.ours.start) :], both.ours.eos_id]
    if not both.ours.causal:
        assert both.ours.target_ids(text) == (ids if ids[-1] == both.ours.eos_id else [*ids, both.ours.eos_id])


@settings(max_examples=100)
@given(st.data())
def test_control_tokens_are_tokens_in_a_template_and_text_in_data(both, data):
    parts = data.draw(st.lists(st.one_of(st.sampled_from(both.control), TEXTS), max_size=5))
    text = "".join(parts).replace(OPEN, "").replace(CLOSE, "")
    assert both.ours.encode(both.ours.marked(text)) == both.theirs(text, add_special_tokens=False)["input_ids"]
    ids = both.ours.encode(text)
    control = {both.theirs.convert_tokens_to_ids(token) for token in both.control}
    assert not control & set(ids)
    assert ids == both.ours.encode(f"{OPEN}{text}{CLOSE}" if text not in both.control else text), "marks of no token"


def test_a_control_token_is_one_id(both):
    for token in both.control:
        expected = [both.theirs.convert_tokens_to_ids(token)]
        assert [i for i in both.ours.encode(both.ours.marked(token)) if both.ours.piece(i) != "▁"] == expected
        assert expected[0] not in both.ours.encode(token)


@settings(max_examples=100)
@given(st.data())
def test_decoded_text_is_auto_tokenizers(both, data):
    """For any ids, up to the first end token, without padding and start tokens."""
    ours = both.ours
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=12))
    kept = ids[: ids.index(ours.eos_id)] if ours.eos_id in ids else ids
    expected = both.theirs.decode([i for i in kept if i not in (ours.pad_id, *ours.start)], skip_special_tokens=False)
    assert ours.decode(ids) == (expected.removeprefix(" ") if ours.causal else expected)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("t5", {"tokenizer_class": "T5Tokenizer", "additional_special_tokens": ["a", "f"], "extra_ids": 0}),
        ("t5", {"tokenizer_class": "T5Tokenizer", "pad_token": "l"}),
        ("gpt2", {"pad_token": "l", "eos_token": "<|endoftext|>"}),
        ("gpt2", {"additional_special_tokens": ["film"], "eos_token": "<|endoftext|>"}),
        ("gpt2 with added tokens", {"additional_special_tokens": ["l", "<|user|>"], "eos_token": "<|endoftext|>"}),
    ],
)
def test_control_tokens_that_are_words_too(tmp_path, kind, config):
    """In data they keep their ordinary ids; in a template they are one token even within a word."""
    from transformers import AutoTokenizer

    make(tmp_path / "model", kind)
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = load(tmp_path / "model", kind), AutoTokenizer.from_pretrained(str(tmp_path / "model"))
    for text in ("film with a bad plot", "full all, ll superfilm", "a"):
        ids = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.encode(ours.marked(text)) == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids).removeprefix(" ")


def test_a_bert_tokenizer(tmp_path):
    """As in Chinese GPT-2 and BART."""
    from transformers import AutoTokenizer

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bart"}))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "film", "##s", "[", "]", "mask"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    ours, theirs = load(tmp_path, "bart", eos_id=3, pad_id=0), AutoTokenizer.from_pretrained(str(tmp_path))
    assert ours.input_ids("a good films") == theirs("a good films")["input_ids"] == [2, 5, 6, 7, 8, 3]
    assert ours.encode("a [MASK]") == [5, 9, 11, 10] and ours.encode(ours.marked("a [MASK]")) == [5, 4]


def test_padding_that_is_a_word_is_decoded(tmp_path):
    make(tmp_path / "model", "gpt2")
    pad_id = load(tmp_path / "model", "gpt2").encode("l")[0]
    tokenizer = load(tmp_path / "model", "gpt2", pad_id=pad_id)
    assert tokenizer.decode(tokenizer.encode("all films")) == "all films"


def test_more_sentinels_than_rows(tmp_path):
    make(tmp_path / "model", "t5")
    for count in (10**8, -1, "9", None):
        (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"extra_ids": count}))
        with pytest.raises(CheckpointError, match=r"extra_ids is .*; expected a number from 0 to 1000"):
            load(tmp_path / "model", "t5")


def test_words_follow_a_space(both):
    """As in the middle of a line."""
    whole, words = both.ours.encode("a film"), both.ours.word_ids("film")
    assert whole[-len(words) :] == words or both.ours.decode(words).strip() == "film"
    assert "".join(map(both.ours.piece, words))[0] in "▁Ġ " or both.theirs.backend_tokenizer is None


def test_properties(both):
    ours = both.ours
    assert ours.vocab_size == max(both.theirs.get_vocab().values()) + 1
    assert [ours.piece(i) for i in range(ours.vocab_size)] == both.theirs.convert_ids_to_tokens(range(ours.vocab_size))
    assert ours.piece(ours.vocab_size + 5) == f"<unused_{ours.vocab_size + 5}>"
    assert ours.unk_id == both.theirs.unk_token_id
    assert ours.decode(ours.target_ids("a good film")) == "a good film"


def test_it_is_written_as_it_was_read(both, tmp_path):
    """`export --format model` writes the tokenizer by `save_pretrained`."""
    from transformers import AutoTokenizer

    shutil.copy(both.folder / "config.json", tmp_path)
    both.ours.transformers.save_pretrained(str(tmp_path))
    again = AutoTokenizer.from_pretrained(str(tmp_path))
    for text in ("a good film", "superfilm", "no fun " + " and ".join(both.control) + " it is"):
        assert again(text)["input_ids"] == both.theirs(text)["input_ids"]


def test_a_word_that_was_added_is_a_token_in_data(tmp_path):
    make(tmp_path / "model", "gpt2 with added tokens")
    tokenizer = load(tmp_path / "model", "gpt2 with added tokens")
    assert tokenizer.piece(tokenizer.encode("superfilm")[0]) == "superfilm"


# --------------------------------------------------------------------------------------------------------------
# T5


@pytest.mark.parametrize("kind", ["trained", "demo"])
def test_t5s_ids_are_seqios(kind, request, tiny_folder, tiny, tmp_path):
    """For ordinary text. Ties ("Hmmm"), control tokens and stray marks may differ; `AutoTokenizer` decides."""
    seqio = pytest.importorskip("seqio")
    if kind == "trained":
        ours, file = tiny.tokenizer, tiny_folder / "spiece.model"
    else:
        folder = request.getfixturevalue("demo_model_folder")
        from transformers import T5Config

        ours = load_tokenizer(folder, T5Config(), eos_id=1, pad_id=0, rows=32128)
        file = tmp_path / "t5.model"
        file.write_bytes(sentencepieces.of_unigram(ours.unigram[:32000], folder / "tokenizer.json"))
    vocabulary = seqio.SentencePieceVocabulary(str(file), extra_ids=100)
    assert (ours.pad_id, ours.eos_id, ours.unk_id) == (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id)
    assert ours.sentinels == 100
    for text in (*SENTENCES, "Tom's half-hearted ﬁlm,  with\ttwo\nlines (2021).", "It wasn't bad: 7/10!"):
        assert ours.encode(text) == vocabulary.encode(text)
        assert ours.decode(ours.encode(text)).replace("<unk>", " ⁇ ") == vocabulary.decode(vocabulary.encode(text))
    assert ours.encode(ours.marked("<extra_id_0>"))[-1] == vocabulary.encode("<extra_id_0>")[-1]


def test_decode_ends_and_drops_padding(tiny):
    tokenizer = tiny.tokenizer
    ids = tokenizer.encode("a good film")
    assert tokenizer.decode([0, *ids, 0, 1, *ids]) == "a good film"
    assert tokenizer.decode([]) == tokenizer.decode([1]) == ""


def test_several_end_tokens(tmp_path):
    make(tmp_path / "model", "gpt2")
    tokenizer = load(tmp_path / "model", "gpt2", end_ids=(0, 9))
    assert tokenizer.decode([4, 9, 5]) == tokenizer.decode([4, 0, 5]) == tokenizer.decode([4])


# --------------------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize("rows", (50, 150))
def test_an_id_beyond_the_embedding_table_is_an_error(tmp_path, rows):
    """For example after adding a token to a tokenizer, but not to its model."""
    make(tmp_path / "model", "gpt2 with added tokens")
    tokenizer = load(tmp_path / "model", "gpt2 with added tokens", rows=tokenizer_rows(tmp_path))
    token = tokenizer.transformers.convert_tokens_to_ids("superfilm")
    with pytest.raises(CheckpointError, match=f"'superfilm' with the id {token}, .* table has {token} rows"):
        tokenizer.encode("a superfilm")
    assert tokenizer.encode("a film")


def tokenizer_rows(tmp_path) -> int:
    whole = load(tmp_path / "model", "gpt2 with added tokens")
    return whole.transformers.convert_tokens_to_ids("superfilm")


def test_no_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert load(tmp_path, "t5") is None


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (
            "t5",
            {"tokenizer_class": "T5Tokenizer"},
            "spiece.model; expected one of them for a T5Tokenizer",
        ),
        ("gpt2", {}, "neither tokenizer.json nor merges.txt and vocab.json; expected one of them for a GPT2Tokenizer"),
    ],
)
def test_files_that_are_missing(tmp_path, kind, config, message):
    """Transformers then invents a vocabulary of a few tokens."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": KINDS[kind][0]}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, kind)


def test_remote_code_is_not_run(tmp_path):
    """Neither a tokenizer's nor a configuration's."""
    make(tmp_path / "model", "gpt2")
    (tmp_path / "model" / "evil.py").write_text("raise SystemExit('ran')")
    (tmp_path / "model" / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"})
    )
    tokenizer = load(tmp_path / "model", "gpt2")
    assert type(tokenizer.transformers).__module__.startswith("transformers")


BROKEN = {
    "tokenizer.json": ["", "[]", "{}", '{"model": null}', "[" * 100_000, '{"model": {"type": "BPE"}}', "\x00" * 64],
    "tokenizer_config.json": ["", "[]", "7", '{"tokenizer_class": {}}', "{" * 5000, '{"added_tokens_decoder": 3}'],
    "special_tokens_map.json": ["[", '{"eos_token": {"content": {}}}'],
    "spiece.model": ["", "not a model", "\x0a\x05\x0a\x01a"],
    "vocab.json": ["", "[]", '{"a": "b"}', '{"a": 99999999999999999999}'],
}


@pytest.mark.parametrize(("file", "content"), [(file, content) for file, own in BROKEN.items() for content in own])
def test_broken_files(tmp_path, file, content):
    kind = {"spiece.model": "t5", "vocab.json": "gpt2, vocab.json"}.get(file, "gpt2")
    make(tmp_path / "model", kind)
    (tmp_path / "model" / file).write_text(content)
    with pytest.raises(CheckpointError, match="(cannot be read|has no token|is empty|is not JSON)") as raised:
        load(tmp_path / "model", kind)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("file", ["spiece.model", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("what", ["device", "pipe", "folder", "nothing"])
def test_irregular_files_are_refused(tmp_path, file, what):
    """Reading a link to a device, or a pipe without a writer, would never end."""
    folder = tmp_path / "model"
    make(folder, "t5" if file == "spiece.model" else "gpt2")
    (folder / file).unlink(missing_ok=True)
    match what:
        case "device":
            (folder / file).symlink_to("/dev/zero")
        case "pipe":
            os.mkfifo(folder / file)
        case "folder":
            (folder / file).mkdir()
        case "nothing":
            (folder / file).symlink_to(folder / "absent")
    with pytest.raises(CheckpointError, match=f"{file} (is not a regular file|cannot be read: No such file)"):
        load(folder, "t5" if file == "spiece.model" else "gpt2")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healthy")
    for kind in ("t5", "bart with added tokens"):
        make(folder / kind, kind)
    return folder


@FUZZ
@given(
    st.sampled_from(["spiece.model", "tokenizer.json", "tokenizer_config.json"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=3),
    st.floats(0, 1),
)
def test_damaged_files_end_in_one_error(healthy, tmp_path_factory, file, flips, end):
    """Flipped bits and truncated files: they load, or raise CheckpointError."""
    kind = "t5" if file == "spiece.model" else "bart with added tokens"
    folder = tmp_path_factory.mktemp("damaged") / "model"
    shutil.copytree(healthy / kind, folder)
    content = bytearray((folder / file).read_bytes())
    for place, bits in flips:
        content[int(place * len(content))] ^= bits
    (folder / file).write_bytes(content[: max(1, int(end * len(content)))] if end < 0.3 else content)
    try:
        tokenizer = load(folder, kind)
    except CheckpointError as error:
        assert len(str(error)) < 1000
    else:
        try:
            tokenizer.decode(tokenizer.encode("a good film"))
        except CheckpointError as error:
            assert "rows" in str(error)
    finally:
        shutil.rmtree(folder)


BYTE_PAIRS = ("gpt2", "bart")


def test_gpt2s_source_and_target_are_one_text(tiny_folders):
    """The source has no end token, since the start token follows it; both begin with a space."""
    tokenizer = prompt_jax.load_model(str(tiny_folders["gpt2"])).tokenizer
    assert tokenizer.input_ids("a good film") == tokenizer.encode(" a good film")
    assert tokenizer.target_ids("a good film") == [*tokenizer.encode(" a good film"), tokenizer.eos_id]
    assert tokenizer.decode([*tokenizer.target_ids("a good film"), 7, 8]) == "a good film"
    assert tokenizer.encode(" good") != tokenizer.encode("good")


def test_barts_texts_have_a_start_and_an_end(tiny_folders):
    tokenizer = prompt_jax.load_model(str(tiny_folders["bart"])).tokenizer
    ids = [0, *tokenizer.encode("a good film"), 2]
    assert tokenizer.input_ids("a good film") == tokenizer.target_ids("a good film") == ids
    assert tokenizer.decode(ids) == "a good film"


@pytest.mark.parametrize("family", BYTE_PAIRS)
def test_special_tokens_in_a_text_are_text(tiny_folders, family):
    tokenizer = prompt_jax.load_model(str(tiny_folders[family])).tokenizer
    special = {tokenizer.eos_id, tokenizer.pad_id, *tokenizer.start}
    assert not special & set(tokenizer.encode("a <|endoftext|> b </s> c <s> <pad> [PAD]"))


@pytest.mark.parametrize("family", BYTE_PAIRS)
def test_tokenizers_of_two_files_are_the_same(tiny_folders, copied, family):
    """vocab.json and merges.txt instead of tokenizer.json."""
    definition = json.loads((tiny_folders[family] / "tokenizer.json").read_text())["model"]
    copy = copied(family, without=["tokenizer.json"])
    assert prompt_jax.load_model(str(copy)).tokenizer is None
    (copy / "vocab.json").write_text(json.dumps(definition["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in definition["merges"]]
    (copy / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    one, other = (prompt_jax.load_model(str(f)).tokenizer for f in (copy, tiny_folders[family]))
    for text in ("a good film", " great fun, good acting and a warm ending", "a"):
        assert one.encode(text) == other.encode(text)
        assert one.decode(one.target_ids(text.strip())) == text.strip()


def test_truncation_and_padding_saved_in_a_file_are_ignored(tiny_folders, copied):
    from tokenizers import Tokenizer

    copy = copied("gpt2")
    saved = Tokenizer.from_file(str(copy / "tokenizer.json"))
    saved.enable_truncation(4)
    saved.enable_padding(length=12)
    saved.save(str(copy / "tokenizer.json"))
    one, other = (prompt_jax.load_model(str(f)).tokenizer for f in (copy, tiny_folders["gpt2"]))
    for text in ("a", "great fun, good acting and a warm ending"):
        assert one.encode(text) == other.encode(text)


def test_an_invalid_tokenizer_is_an_error(copied):
    copy = copied("gpt2", without=["generation_config.json"], eos_token_id=250)
    with pytest.raises(CheckpointError, match="has no token 250, which the model's configuration names as the end"):
        prompt_jax.load_model(str(copy))
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* \(tokenizer.json\) cannot be read"):
        prompt_jax.load_model(str(copy))
