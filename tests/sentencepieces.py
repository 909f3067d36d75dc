"""Small SentencePiece models with T5's ids of pad, end and unknown tokens."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_jax.checkpoints.tokenizer import Tokenizer


# Training sentences of the tests' small tokenizers.
SENTENCES = (
    "a good film with a great heart",
    "a bad film, dull and long",
    "the plot is good and the cast is great",
    "the plot is bad and the jokes are old",
    "positive",
    "negative",
    "great fun, good acting and a warm ending",
    "no fun, bad acting and a cold ending",
)


def train(sentences: Sequence[str], vocab_size: int) -> bytes:
    """Train a model of at most `vocab_size` pieces and return its serialized ModelProto."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*sentences] * 8),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def tokenizer(folder: Path, sentences: Sequence[str], vocab_size: int, sentinels: int) -> "Tokenizer":
    """Return a T5 tokenizer with `sentinels` tokens `<extra_id_N>`. Its model file is `spiece.model` in the folder."""
    from prompt_jax.checkpoints.tokenizer import load_tokenizer, t5_configuration

    (folder / "spiece.model").write_bytes(train(sentences, vocab_size))
    (folder / "tokenizer_config.json").write_text(json.dumps({"extra_ids": sentinels}))
    loaded = load_tokenizer(folder, t5_configuration(), eos_id=1, pad_id=0, rows=1000)
    assert loaded is not None
    return loaded


def model_file(tokenizer: "Tokenizer") -> Path:
    """Return the SentencePiece model file of a tokenizer."""
    return Path(tokenizer.transformers.vocab_file)


def of_unigram(pieces: Sequence[tuple[str, float]], tokenizer_json: Path) -> bytes:
    """Rebuild the ModelProto of a T5 tokenizer.json from its pieces and the file's normalizer."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec

    kinds = ModelProto.SentencePiece
    special = {"<pad>": kinds.CONTROL, "</s>": kinds.CONTROL, "<unk>": kinds.UNKNOWN}
    model = ModelProto()
    for piece, score in pieces:
        model.pieces.add(piece=piece, score=score, type=special.get(piece, kinds.NORMAL))
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.vocab_size = TrainerSpec.UNIGRAM, len(pieces)
    trainer.pad_id, trainer.eos_id, trainer.unk_id, trainer.bos_id = 0, 1, 2, -1
    trainer.pad_piece = "<pad>"
    content = json.loads(tokenizer_json.read_text())["normalizer"]
    charsmap = next(
        step["precompiled_charsmap"] for step in content.get("normalizers", [content]) if step["type"] == "Precompiled"
    )
    normalizer.name, normalizer.precompiled_charsmap = "nmt_nfkc", base64.b64decode(charsmap)
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = normalizer.escape_whitespaces = True
    return model.SerializeToString()
