"""Your own text, for T5's pretraining and for its LM adaptation (Lester et al. 2021, section 2.2).

- `span_corruption` is T5's pretraining objective. Sentinels `<extra_id_0>`, `<extra_id_1>`... replace 15 % of the
  tokens, in spans of 3 on average. The target contains the replaced spans. Text is concatenated across documents.
- `prefix_lm` is the objective of LM adaptation: a text is split at a random position into input and target. No example
  crosses the end of a document.

Text is read into memory from the files `train*` and `validation*` in `$PROMPT_JAX_DATA/text`: `.txt` with blank lines
between documents, or `.jsonl` with the field `text`, also as `.gz`.

`data.input_length` and `data.target_length` are the lengths of examples. For span corruption the default is T5's 512
and 114, the length of the longest target. For `prefix_lm` it is 512 each: a text of 512 tokens is split, so the two
should be equal. Each text is corrupted or split once, with the seed `data.subset_seed`. The metric is the
log-likelihood of the targets. Nothing is generated.
"""

from collections.abc import Iterator

import numpy as np

from prompt_jax.checkpoints.tokenizer import Tokenizer
from prompt_jax.control_tokens import remove_marks
from prompt_jax.data import denoising
from prompt_jax.data.files import data_folder, read_documents
from prompt_jax.data.registry import add_token_task
from prompt_jax.errors import DataError
from prompt_jax.task_format import LOG_LIKELIHOOD, TaskFormat

SPLITS = ("train", "validation")


def documents(split: str) -> Iterator[str]:
    """Yield the documents of a split's files, in alphabetical order of the files."""
    folder = data_folder("text")
    paths = sorted(folder.glob(f"{split}*"))
    if not paths:
        raise DataError(f"{folder}: no file {split}*; expected .txt or .jsonl files, also as .gz")
    for path in paths:
        yield from read_documents(path)


def pieces(split: str, tokenizer: Tokenizer, size: int, across: bool) -> Iterator[np.ndarray]:
    """Yield the token ids of a split's documents in pieces of `size`. With `across`, pieces continue into the next one.

    The last piece of a document, or of all documents, may be shorter. A piece of a single token is dropped, since it
    has nothing to predict.
    """
    remainder = np.zeros(0, np.int32)
    for text in documents(split):
        ids = np.concatenate([remainder, np.array(tokenizer.encode(remove_marks(text)), np.int32)])
        whole = len(ids) // size * size
        yield from ids[:whole].reshape(-1, size)
        remainder = ids[whole:]
        if not across:
            yield from [remainder] if len(remainder) > 1 else []
            remainder = remainder[:0]
    yield from [remainder] if len(remainder) > 1 else []


def span_corruption(
    split: str, tokenizer: Tokenizer, input_length: int, target_length: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield corrupted documents as input and target, in pieces whose inputs have the maximum length."""
    try:
        size = denoising.max_text_length(input_length)
    except ValueError as error:
        raise DataError(f"span_corruption: {error}; expected a larger input_length") from error
    spans, needed = denoising.noise_counts(size)[1], denoising.corrupted_lengths(size)[1]
    if needed > target_length:
        raise DataError(
            f"span_corruption: inputs of {input_length} tokens need targets of up to {needed}, and target_length is "
            f"{target_length}; expected target_length {needed}, or a smaller input_length"
        )
    sentinel, last = tokenizer.vocab_size - 1, tokenizer.vocab_size - spans
    if tokenizer.decode([last]) != f"<extra_id_{spans - 1}>":
        raise DataError(
            f"span_corruption: inputs of {input_length} tokens need {spans} sentinels, but token {last} of the model "
            f"is {tokenizer.decode([last])!r}; expected a smaller input_length, or a model with T5's sentinels"
        )
    random = np.random.default_rng(seed)
    for ids in pieces(split, tokenizer, size, across=True):
        yield denoising.corrupt(ids, denoising.span_mask(len(ids), random), sentinel)


def prefix_lm(
    split: str, tokenizer: Tokenizer, input_length: int, target_length: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield documents split into input and target, in pieces as long as inputs and targets may be."""
    size = min(input_length, target_length)
    if size < 2:
        raise DataError(f"prefix_lm: input_length and target_length must be at least 2, not {size}")
    random = np.random.default_rng(seed)
    for ids in pieces(split, tokenizer, size, across=False):
        yield denoising.split_prefix(ids, random)


for _objective, _longest in ((span_corruption, 114), (prefix_lm, 512)):
    _format = TaskFormat("{inputs}", metrics=(LOG_LIKELIHOOD,), input_length=512, target_length=_longest)
    add_token_task(_objective.__name__, _objective, SPLITS, _format)
