"""Words and n-grams of NIST and CIDEr."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence


def words(text: str) -> list[str]:
    """Return lowercase words and symbols, tokenized as in mteval-v13a."""
    return _tokenizer()(text.lower()).split()


def ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """Count the n-grams of 1 to `order` tokens."""
    return Counter(tuple(tokens[i : i + n]) for n in range(1, order + 1) for i in range(len(tokens) - n + 1))


@functools.cache
def _tokenizer() -> Callable[[str], str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()
