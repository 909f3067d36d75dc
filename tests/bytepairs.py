"""Small byte-level BPE tokenizers, trained on a few sentences."""

from collections.abc import Iterable


def train(sentences: Iterable[str], entries: int, special: list[str]) -> str:
    """Return the content of a tokenizer.json. Special tokens get the first ids; a line break (Ċ) is one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries, special_tokens=special, initial_alphabet=["Ċ"], show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return tokenizer.to_str()
