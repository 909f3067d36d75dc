"""Words and n-grams, by hand."""

from prompt_jax.metrics.ngrams import ngrams, words


def test_words_are_lowercase_and_symbols_stand_alone():
    """mteval-v13a keeps a period or comma inside a number and splits them from words."""
    assert words("The Mill, 3.5 stars (cheap).") == ["the", "mill", ",", "3.5", "stars", "(", "cheap", ")", "."]


def test_ngrams_of_each_order_are_counted():
    counts = ngrams(["a", "b", "a", "b"], 2)
    assert counts == {("a",): 2, ("b",): 2, ("a", "b"): 2, ("b", "a"): 1}
    assert ngrams(["a"], 3) == {("a",): 1} and not ngrams([], 2)
