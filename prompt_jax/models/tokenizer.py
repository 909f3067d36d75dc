"""SentencePiece tokenizers with the ids that seqio gives, without seqio and TensorFlow.

T5's models hold 32,000 pieces; `<extra_id_99>` ... `<extra_id_0>` come after them and are added when a model is loaded,
as `seqio.SentencePieceVocabulary(path, extra_ids=100)` does. mT5's models hold theirs already.
"""

import base64
import dataclasses
import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, SupportsInt

from prompt_jax.models.checkpoint_files import CheckpointError

EXTRA_IDS = 100  # of every T5
TOKENIZER_FILES = ("spiece.model", "tokenizer.json")  # in the order in which they are looked for


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. `model_proto` is a serialised SentencePiece ModelProto to which `extra_ids` are added."""

    model_proto: bytes = dataclasses.field(repr=False)
    extra_ids: int = EXTRA_IDS

    @functools.cached_property
    def _processor(self) -> Any:
        from sentencepiece import SentencePieceProcessor
        from sentencepiece.sentencepiece_model_pb2 import ModelProto

        model = ModelProto.FromString(self.model_proto)
        for index in reversed(range(self.extra_ids)):
            kind = ModelProto.SentencePiece.USER_DEFINED
            model.pieces.add(piece=f"▁<extra_id_{index}>", score=0.0, type=kind)
        return SentencePieceProcessor(model_proto=model.SerializeToString())

    def encode(self, text: str) -> list[int]:
        """The text's ids, without an end token."""
        return self._processor.EncodeAsIds(text)

    def input_ids(self, text: str) -> list[int]:
        """A source's ids, as the model is to read them."""
        return self.target_ids(text)

    def target_ids(self, text: str) -> list[int]:
        """A target's ids, as the model is to write them, the end token included."""
        return [*self.encode(text), self.eos_id]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """The text of ids up to the first end token; padding gives nothing, ids beyond the pieces are unknown."""
        pieces, unknown = self.vocab_size, self.unk_id
        known = [index if index < pieces else unknown for index in map(int, ids)]
        if self.eos_id in known:
            known = known[: known.index(self.eos_id)]
        return self._processor.DecodeIds(known)

    def piece(self, index: int) -> str:
        """The piece with that id. Embedding tables are padded beyond the pieces: `<unused_32105>`."""
        return self._processor.IdToPiece(int(index)) if index < self.vocab_size else f"<unused_{index}>"

    @property
    def vocab_size(self) -> int:
        """The number of pieces, extra ids included; the model's embedding table may have more rows."""
        return self._processor.GetPieceSize()

    @property
    def pad_id(self) -> int:
        return self._processor.pad_id()

    @property
    def eos_id(self) -> int:
        return self._processor.eos_id()

    @property
    def unk_id(self) -> int:
        return self._processor.unk_id()


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a model folder: `spiece.model` (or the only `*.model`), else `tokenizer.json`.

    Returns:
      None if the folder has neither.

    Raises:
      CheckpointError: there is one that cannot be used.
    """
    models = [folder / TOKENIZER_FILES[0]]
    if not models[0].is_file():
        models = sorted(folder.glob("*.model"))
    if len(models) > 1:
        names = ", ".join(path.name for path in models)
        raise CheckpointError(f"{folder} has several SentencePiece models ({names}); name the right one spiece.model")
    if models:
        return _from_sentencepiece(models[0].read_bytes(), models[0])
    if (folder / TOKENIZER_FILES[1]).is_file():
        return from_tokenizer_json(folder / TOKENIZER_FILES[1])
    return None


def _from_sentencepiece(model_proto: bytes, source: Path) -> Tokenizer:
    """A tokenizer of a ModelProto, which is checked."""
    from google.protobuf.message import DecodeError
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    try:
        pieces = ModelProto.FromString(model_proto).pieces
        own_extra_ids = any(entry.piece.removeprefix("▁") == "<extra_id_0>" for entry in pieces)
        tokenizer = Tokenizer(model_proto, 0 if own_extra_ids else EXTRA_IDS)
        special = {"pad": tokenizer.pad_id, "end": tokenizer.eos_id, "unknown": tokenizer.unk_id}
    except (DecodeError, RuntimeError) as error:
        raise CheckpointError(f"{source} is no SentencePiece model: {error}") from error
    if absent := [name for name, index in special.items() if index < 0]:
        raise CheckpointError(f"{source} has no {' and no '.join(absent)} token; T5's models have all three")
    return tokenizer


def from_tokenizer_json(file: Path) -> Tokenizer:
    """Hugging Face's `tokenizer.json` of a Unigram model as the SentencePiece model that it was made from.

    Its pieces, scores and normaliser map are what a ModelProto is made of. The ids are SentencePiece's and seqio's;
    Hugging Face's tokenizer itself differs on literal special tokens, on white space and on combining characters.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        model = content["model"]
        kind = model.get("type")
        if kind != "Unigram" or model.get("byte_fallback"):
            found = f"of type {kind}" + (" with byte fallback" if model.get("byte_fallback") else "")
            raise CheckpointError(
                f"{file} is {found}; only Unigram tokenizers can be converted. Put the model's spiece.model beside it."
            )
        return _from_unigram(model["vocab"], model["unk_id"], _normalizer_map(content), file)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file} is no Hugging Face tokenizer of a Unigram model: {error!r}") from error


def _normalizer_map(content: dict[str, Any]) -> bytes:
    """The precompiled map of characters, SentencePiece's own."""
    normalizer = content["normalizer"]
    for step in normalizer.get("normalizers", [normalizer]):
        if step["type"] == "Precompiled":
            return base64.b64decode(step["precompiled_charsmap"], validate=True)
    raise ValueError("it has no Precompiled normalizer")


def _from_unigram(vocab: list[Any], unk_id: Any, normalizer_map: bytes, file: Path) -> Tokenizer:
    """A tokenizer of (piece, score) pairs, as they come from a JSON file."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec

    extra = [piece for piece, _ in vocab if re.fullmatch(r"▁?<extra_id_\d+>", piece)]
    expected = [f"<extra_id_{index}>" for index in reversed(range(len(extra)))]
    pieces = vocab[: len(vocab) - len(extra)]
    if [piece.removeprefix("▁") for piece, _ in vocab[len(pieces) :]] != expected:
        raise CheckpointError(f"{file}: the extra ids are not its last pieces, in descending order")

    kinds = ModelProto.SentencePiece
    special = {"<pad>": kinds.CONTROL, "</s>": kinds.CONTROL, "<s>": kinds.CONTROL}
    model = ModelProto()
    for index, (piece, score) in enumerate(pieces):
        kind = kinds.UNKNOWN if index == unk_id else special.get(piece, kinds.NORMAL)
        model.pieces.add(piece=piece, score=score, type=kind)
    ids = {piece: index for index, (piece, _) in enumerate(pieces)}

    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = TrainerSpec.UNIGRAM
    trainer.vocab_size = len(pieces)
    trainer.pad_id, trainer.eos_id, trainer.bos_id = (ids.get(name, -1) for name in ("<pad>", "</s>", "<s>"))
    trainer.unk_id, trainer.pad_piece, trainer.unk_piece = unk_id, "<pad>", pieces[unk_id][0]
    normalizer.name = "nmt_nfkc"
    normalizer.precompiled_charsmap = normalizer_map
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = normalizer.escape_whitespaces = True
    return dataclasses.replace(_from_sentencepiece(model.SerializeToString(), file), extra_ids=len(extra))
