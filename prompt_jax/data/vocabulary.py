"""The model's tokenizer as the vocabulary of a seqio task."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from prompt_jax.checkpoints.tokenizer import Tokenizer
from prompt_jax.control_tokens import mark, remove_marks
from prompt_jax.data.seqio_import import import_seqio
from prompt_jax.data.text_tasks import FEATURES
from prompt_jax.errors import DataError


def bind_vocabulary(task: Any, tokenizer: Tokenizer) -> Any:
    """Return the task with the model's vocabulary.

    Raises:
      DataError: the task's vocabulary is neither a placeholder nor the model's, or the model is not a T5.
    """
    seqio = import_seqio()
    features = task.output_features
    if not all(feature in features for feature in FEATURES):
        raise DataError(f"the task {task.name!r} has the features {', '.join(features)}; expected inputs and targets")
    for feature in FEATURES:
        vocabulary = features[feature].vocabulary
        if not isinstance(vocabulary, seqio.PassThroughVocabulary) and not _same_vocabulary(vocabulary, tokenizer):
            raise DataError(
                f"the {feature} of the task {task.name!r} have a vocabulary that is not the model's: {vocabulary}; "
                f"expected the model's, or seqio.PassThroughVocabulary, which is replaced by it"
            )
    check_t5_format(task.name, tokenizer)
    model_vocabulary = _vocabulary(tokenizer)
    bound = {name: dataclasses.replace(features[name], vocabulary=model_vocabulary) for name in FEATURES}
    return task.replace(output_features=bound)


def check_t5_format(task: str, tokenizer: Tokenizer) -> None:
    """Raise DataError if the model reads inputs in another format than T5's."""
    if list(tokenizer.input_ids("")) != [tokenizer.eos_id]:
        raise DataError(
            f"the task {task!r} makes its own tokens in T5's format, which this model does not use; expected a "
            "T5, or a task that leaves tokenization to the model (prompt_jax.add_task)"
        )


def _vocabulary(tokenizer: Tokenizer) -> Any:
    """Return the model's tokenizer as a seqio.Vocabulary.

    So every task has the ids of the model's tokenizer, of any kind. Between equally likely pieces ("Hmmm",
    "Nooooo"), seqio.SentencePieceVocabulary may choose differently. As in seqio, T5's sentinels are tokens in any text.
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
            return list(tokenizer.encode(re.sub(r"<extra_id_\d+>", lambda match: mark(match[0]), remove_marks(s))))

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


def _same_vocabulary(vocabulary: Any, tokenizer: Tokenizer) -> bool:
    """Return whether a vocabulary has the tokenizer's pieces and scores; their files may differ."""
    seqio = import_seqio()
    if not isinstance(vocabulary, seqio.SentencePieceVocabulary) or tokenizer.unigram is None:
        return False
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(vocabulary.sp_model)
    # seqio prefixes sentinels with SentencePiece's space symbol.
    pieces = [re.sub(r"^▁(?=<extra_id_\d+>$)", "", entry.piece) for entry in proto.pieces]
    if pieces != [piece for piece, _ in tokenizer.unigram]:
        return False
    return np.allclose([entry.score for entry in proto.pieces], [score for _, score in tokenizer.unigram], atol=1e-5)
