"""Generated answers and scored labels of rows with different prompts, against each row alone."""

import jax
import numpy as np
import pytest

from adapters import random_text, random_tokens, whole
from prompt_jax.config.decoding import Decoding
from prompt_jax.data.examples import Examples
from prompt_jax.inference.answers import generate_answers, score_labels, tokenize
from prompt_jax.inference.batching import Rows, batch_shapes
from prompt_jax.inference.decoding import generate_scored
from prompt_jax.inference.evaluation import EvaluationOptions, evaluate, evaluate_members
from prompt_jax.models.prompt import PromptStackError, stack_prompts

pytestmark = pytest.mark.usefixtures("one_length")

TEXTS = ("a good film", "a bad film, dull and long", "great fun", "the plot is bad and the jokes are old", "no fun")


@pytest.mark.slow
def test_rows_may_have_different_labels_and_lengths(tiny, prompts):
    inputs, stacked = tokenize(tiny, TEXTS, 32)[0], stack_prompts(prompts)
    ids = np.array([2, 0, -1, 1, 0])
    lengths = [1, 4, 2, 4, 4]
    shapes = batch_shapes(inputs, 1)  # alone, but padded to one length: there is less to compile
    given = generate_answers(Rows(tiny, stacked, inputs, ids, batch_size=2), 4, lengths=lengths)
    labels = [("good", "bad"), (), ("good", "bad"), ("a", "b", "c"), ()]
    scores = score_labels(Rows(tiny, stacked, inputs, ids, batch_size=4), labels)
    for row, number in enumerate(ids.tolist()):
        prompt = prompts[number] if number >= 0 else None
        rows = Rows(tiny, prompt, inputs[row : row + 1], batch_size=shapes)
        alone = generate_answers(rows, lengths[row])
        assert given.texts[row] == alone.texts[0]
        np.testing.assert_allclose(given.log_probabilities[row], alone.log_probabilities[0], rtol=1e-4)
        if labels[row]:
            np.testing.assert_allclose(scores[row], score_labels(rows, [labels[row]])[0], rtol=1e-4)
        else:
            assert scores[row] is None


def test_wrong_prompt_ids_are_refused(tiny, prompts):
    inputs, _ = tokenize(tiny, TEXTS, 32)
    with pytest.raises(PromptStackError, match="row 4 has the prompt id 3; there are 3 prompts"):
        ids = np.array([0, 1, 2, -1, 3])
        generate_answers(Rows(tiny, stack_prompts(prompts), inputs, ids), 2)
    with pytest.raises(PromptStackError, match="a number for each row"):
        generate_answers(Rows(tiny, stack_prompts(prompts), inputs, np.array([0])), 2)
    with pytest.raises(PromptStackError, match="need a stacked prompt"):
        generate_answers(Rows(tiny, prompts[0], inputs, np.zeros(5, int)), 2)


def test_evaluation_uses_the_decoding_options(tiny):
    """Samples depend neither on batches nor on other prompts."""
    inputs, texts = list(random_text(tiny, 4, 8)), [""] * 4
    prompts = [random_tokens(tiny, 3), random_tokens(tiny, 3, seed=1)]
    sampling = Decoding(temperature=1.0, top_p=0.9, seed=3)
    for decoding in (Decoding(beams=4, length_penalty=0.7), sampling):
        given = generate_answers(Rows(tiny, prompts[0], inputs, batch_size=2), 4, decoding)
        arguments = tiny.params, tiny.config, whole(np.stack(inputs)), prompts[0]
        expected = generate_scored(*arguments, max_new_tokens=4, decoding=decoding, key=jax.random.key(3))
        assert given.texts == [tiny.tokenizer.decode(row) for row in np.asarray(expected.tokens).tolist()]
        np.testing.assert_allclose(given.log_probabilities, expected.log_probability, rtol=1e-4)
    examples = Examples("task", "test", inputs, inputs, texts, texts, {}, None, ())
    options = EvaluationOptions(4, 2, sampling)
    mixed = evaluate_members(tiny, prompts, examples, options)
    assert mixed[0].predictions == given.texts != mixed[1].predictions
    assert mixed[1].predictions == evaluate(tiny, prompts[1], examples, options).predictions
