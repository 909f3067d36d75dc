"""Small BPE tokenizers, trained on a few sentences."""

import json
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


# How the tokenizers of these models split a text into words.
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")


def train_like(model: str, sentences: Iterable[str], entries: int, special: list[str]) -> str:
    """Return the content of a tokenizer.json like that of llama3, qwen2, llama2 or gemma.

    The last two are SentencePiece models: a space is "▁", and unknown characters are bytes. The first special token is
    put before each text, except by qwen2.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    sentence_pieces = model in ("llama2", "gemma")
    options = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True} if sentence_pieces else {}
    tokenizer = Tokenizer(models.BPE(**options, **({"ignore_merges": True} if model == "llama3" else {})))
    if sentence_pieces:
        spaces = normalizers.Replace(" ", "▁")
        prepended = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        tokenizer.normalizer = prepended if model == "llama2" else spaces
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if model == "llama2" else [])])
        special = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    else:
        words = pre_tokenizers.Split(Regex(_LLAMA3_WORDS if model == "llama3" else _QWEN_WORDS), "isolated")
        in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, in_bytes])
        tokenizer.normalizer = normalizers.NFC() if model == "qwen2" else None
        tokenizer.decoder = decoders.ByteLevel()
    alphabet = ["▁"] if sentence_pieces else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + len(alphabet) + entries,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    if model != "qwen2":
        first = special[0]
        tokenizer.post_processor = processors.TemplateProcessing(f"{first} $A", None, [(first, 0)])
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    return json.dumps(content)
