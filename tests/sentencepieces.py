"""Small SentencePiece models, with T5's ids of pad, end and unknown."""

import io
from collections.abc import Sequence


def train(sentences: Sequence[str], vocab_size: int) -> bytes:
    """The serialised ModelProto of a model trained on the sentences, of at most so many pieces."""
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
