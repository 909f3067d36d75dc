"""A small SentencePiece model for the tests of the tasks."""

import pytest

import sentencepieces
from prompt_jax.models.tokenizer import Tokenizer

SENTENCES = [
    "passage: the cat sat on the mat. question: is the cat on the mat",
    "hypothesis: a dog barks loudly premise: an animal makes noise",
    "False True entailment contradiction neutral not_entailment negative positive",
    "What a good film, it was great fun! It's a bad product; I want 3 of my 25 dollars back.",
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(sentencepieces.train(SENTENCES, 120), extra_ids=3)
