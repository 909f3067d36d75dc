"""The model's tokenizer as a seqio task's vocabulary."""

import pytest

import prompt_jax
import sentencepieces
from prompt_jax.data.vocabulary import check_t5_format
from prompt_jax.errors import DataError
from reviews import load, plain_task


def test_a_task_with_the_models_vocabulary_is_accepted(tokenizer):
    import seqio

    path = sentencepieces.model_file(tokenizer)
    examples = load(plain_task(seqio.SentencePieceVocabulary(str(path), extra_ids=4)), tokenizer)
    assert examples.inputs[0].tolist() == [*tokenizer.encode("this film"), 1]
    with pytest.raises(DataError, match=r"inputs of the task 't_plain' have a vocabulary that is not the model's"):
        load(plain_task(seqio.SentencePieceVocabulary(str(path), extra_ids=5)), tokenizer)
    with pytest.raises(DataError, match="ByteVocabulary"):
        load(plain_task(seqio.ByteVocabulary()), tokenizer)


def test_a_model_of_another_format_is_refused(tokenizer, tiny_folders):
    """T5 ends a text with the end token; GPT-2 does not."""
    check_t5_format("t", tokenizer)
    with pytest.raises(DataError, match="'t' makes its own tokens in T5's format, which this model does not use"):
        check_t5_format("t", prompt_jax.load_model(str(tiny_folders["gpt2"])).tokenizer)
