"""A seqio task with the model's tokenizer in place of its placeholder for one."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from prompt_jax.control_tokens import mark, unmarked
from prompt_jax.data.files import DataError
from prompt_jax.data.tasks import FEATURES, import_seqio


@runtime_checkable  # for the tests, which check types as they run
class Tokenizer(Protocol):
    """What is needed of a model's tokenizer.

    Attributes:
      eos_id: the id of the end token, which `encode` does not add.
      pad_id: the id of padding.
      vocab_size: one more than the highest id of a token.
      rows: number of rows of the model's embedding table; every id is smaller.
      unigram: the pieces and scores of a SentencePiece Unigram model; None for another model.
    """

    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def unigram(self) -> list[tuple[str, float]] | None: ...
    def marked(self, template: str) -> str: ...
    def encode(self, text: str) -> Sequence[int]: ...
    def input_ids(self, text: str) -> Sequence[int]: ...
    def target_ids(self, text: str) -> Sequence[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


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
    if list(tokenizer.input_ids("")) != [tokenizer.eos_id]:
        raise DataError(
            f"the task {task.name!r} makes its tokens itself, as T5 has them, and this model has others around source "
            "and target; expected a T5, or a task that leaves the tokens to the model (prompt_jax.data.load.add_task)"
        )
    vocabulary = _vocabulary(tokenizer)
    bound = {name: dataclasses.replace(features[name], vocabulary=vocabulary) for name in FEATURES}
    return task.replace(output_features=bound)


def _vocabulary(tokenizer: Tokenizer) -> Any:
    """The model's tokenizer as a seqio.Vocabulary.

    All tasks have the ids of the model's tokenizer with it, and tokenizers need not be SentencePiece. Where pieces are
    equally likely ("Hmmm", "Nooooo"), seqio's own SentencePieceVocabulary may choose others. As in seqio, T5's
    sentinels are tokens in any text.
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
            return list(tokenizer.encode(re.sub(r"<extra_id_\d+>", lambda match: mark(match[0]), unmarked(s))))

        def _decode(self, ids: Sequence[int]) -> str:
            return tokenizer.decode(ids)

        def _encode_tf(self, s: Any) -> Any:
            def encode(text: bytes) -> np.ndarray:
                return np.array(self._encode(text.decode("utf-8")), np.int32)

            ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
            ids.set_shape([None])
            return ids

        def _decode_tf(self, ids: Any) -> Any:
            return tf.numpy_function(lambda i: tokenizer.decode(i.tolist()), [ids], tf.string, stateful=False)

    return ModelVocabulary()


def _same_vocabulary(own: Any, tokenizer: Tokenizer) -> bool:
    """Whether a task's vocabulary has the tokenizer's pieces with their scores, wherever it was read from."""
    seqio = import_seqio()
    if not isinstance(own, seqio.SentencePieceVocabulary) or tokenizer.unigram is None:
        return False
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(own.sp_model)
    # seqio writes a sentinel with SentencePiece's sign of a space before it.
    pieces = [re.sub(r"^▁(?=<extra_id_\d+>$)", "", entry.piece) for entry in proto.pieces]
    if pieces != [piece for piece, _ in tokenizer.unigram]:
        return False
    return np.allclose([entry.score for entry in proto.pieces], [score for _, score in tokenizer.unigram], atol=1e-5)
