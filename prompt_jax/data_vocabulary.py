"""A seqio task with the model's tokenizer in place of its placeholder for one."""

import dataclasses
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from prompt_jax.data_files import DataError
from prompt_jax.data_tasks import FEATURES, import_seqio


@runtime_checkable  # for the tests, which check types as they run
class Tokenizer(Protocol):
    """What is needed of a model's tokenizer.

    Attributes:
      eos_id: the id of the end token, which `encode` does not add.
      pad_id: the id of padding.
      vocab_size: the number of ids, extra ids included.
    """

    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    def encode(self, text: str) -> Sequence[int]: ...
    def input_ids(self, text: str) -> Sequence[int]: ...
    def target_ids(self, text: str) -> Sequence[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


@runtime_checkable
class SentencePieces(Tokenizer, Protocol):
    """A tokenizer that seqio has a vocabulary for.

    Attributes:
      model_proto: the serialised SentencePiece ModelProto, without the extra ids.
      extra_ids: how many `<extra_id_N>` are added after its pieces.
    """

    @property
    def model_proto(self) -> bytes: ...
    @property
    def extra_ids(self) -> int: ...


def bind(task: Any, tokenizer: Tokenizer) -> Any:
    """The task with the model's vocabulary in place of its placeholder or its own equal one."""
    seqio = import_seqio()
    features = task.output_features
    if not all(feature in features for feature in FEATURES):
        raise DataError(f"the task {task.name!r} has the features {', '.join(features)}; expected inputs and targets")
    for feature in FEATURES:
        own = features[feature].vocabulary
        if not isinstance(own, seqio.PassThroughVocabulary) and not _same_vocabulary(own, tokenizer):
            raise DataError(
                f"the {feature} of the task {task.name!r} have a vocabulary that is not the model's: {own}; "
                f"expected the model's, or seqio.PassThroughVocabulary, which is replaced by it"
            )
    if not isinstance(tokenizer, SentencePieces):
        raise DataError(
            f"the task {task.name!r} makes its tokens itself, as T5 has them, and this model has others around source "
            "and target; expected a T5, or a task that leaves the tokens to the model (prompt_jax.data.add_task)"
        )
    vocabulary = _vocabulary(tokenizer)
    bound = {name: dataclasses.replace(features[name], vocabulary=vocabulary) for name in FEATURES}
    return task.replace(output_features=bound)


def _vocabulary(tokenizer: Tokenizer) -> Any:
    """The model's tokenizer as a seqio.Vocabulary.

    seqio's own SentencePieceVocabulary tokenises in TensorFlow, where equally likely pieces are chosen otherwise than
    by SentencePiece in Python ("Hmmm", "Nooooo": 10 of 2,578 tweets). With this one all tasks have the ids that the
    tokenizer gives, and tokenizers need not be SentencePiece.
    """
    seqio = import_seqio()
    import tensorflow as tf

    base: Any = seqio.Vocabulary

    class ModelVocabulary(base):
        bos_id = None
        eos_id = tokenizer.eos_id
        pad_id = tokenizer.pad_id
        unk_id = None
        _base_vocab_size = vocab_size = tokenizer.vocab_size

        def _encode(self, s: str) -> list[int]:
            return list(tokenizer.encode(s))

        def _decode(self, ids: Sequence[int]) -> str:
            return tokenizer.decode(ids)

        def _encode_tf(self, s: Any) -> Any:
            def encode(text: bytes) -> np.ndarray:
                return np.array(tokenizer.encode(text.decode("utf-8")), np.int32)

            ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
            ids.set_shape([None])
            return ids

        def _decode_tf(self, ids: Any) -> Any:
            return tf.numpy_function(lambda i: tokenizer.decode(i.tolist()), [ids], tf.string, stateful=False)

    return ModelVocabulary(extra_ids=getattr(tokenizer, "extra_ids", 0))


def _same_vocabulary(own: Any, tokenizer: Tokenizer) -> bool:
    """Whether a task's vocabulary has the tokenizer's pieces and rules, wherever it was read from."""
    seqio = import_seqio()
    if not isinstance(own, seqio.SentencePieceVocabulary) or not isinstance(tokenizer, SentencePieces):
        return False
    from sentencepiece import sentencepiece_model_pb2

    def identity(serialised: bytes) -> tuple[Any, ...]:
        proto = sentencepiece_model_pb2.ModelProto.FromString(serialised)
        rules = proto.normalizer_spec
        return (
            [(piece.piece, piece.score, piece.type) for piece in proto.pieces],
            proto.trainer_spec.model_type,
            (rules.precompiled_charsmap, rules.add_dummy_prefix, rules.remove_extra_whitespaces),
        )

    with tempfile.TemporaryDirectory() as directory:  # seqio adds the extra ids to a model that it reads from a file
        path = Path(directory, hashlib.sha256(tokenizer.model_proto).hexdigest())
        path.write_bytes(tokenizer.model_proto)
        model = seqio.SentencePieceVocabulary(str(path), extra_ids=tokenizer.extra_ids).sp_model
    return identity(own.sp_model) == identity(model)
