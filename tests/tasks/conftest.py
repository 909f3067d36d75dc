"""A small SentencePiece model for the tests of the tasks."""

import io

import pytest

from prompt_jax.models.tokenizer import Tokenizer

SENTENCES = [
    "passage: the cat sat on the mat. question: is the cat on the mat",
    "hypothesis: a dog barks loudly premise: an animal makes noise",
    "False True entailment contradiction neutral not_entailment negative positive",
    "What a good film, it was great fun! It's a bad product; I want 3 of my 25 dollars back.",
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_writer=model,
        vocab_size=120,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return Tokenizer(model.getvalue(), extra_ids=3)
