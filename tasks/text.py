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
import seqio
import tensorflow as tf

from prompt_jax import text_source
from prompt_jax.data import denoising
from prompt_jax.data.files import data_folder, read_documents
from prompt_jax.errors import DataError
from prompt_jax.task_format import LOG_LIKELIHOOD, TaskFormat

SPLITS = ("train", "validation")


def documents(split: str) -> Iterator[tuple[str]]:
    """Yield the documents of a split's files, in alphabetical order of the files."""
    folder = data_folder("text")
    paths = sorted(folder.glob(f"{split}*"))
    if not paths:
        raise DataError(f"{folder}: no file {split}*; expected .txt or .jsonl files, also as .gz")
    for path in paths:
        yield from ((text,) for text in read_documents(path))


def pieces(dataset: tf.data.Dataset, vocabulary: seqio.Vocabulary, size: int, across: bool) -> tf.data.Dataset:
    """Cut documents into pieces of `size` token ids. With `across`, pieces continue into the next document.

    The last piece of a document, or of all documents, may be shorter. A piece of a single token is dropped, since it
    has nothing to predict.
    """

    def rows() -> Iterator[dict[str, np.ndarray]]:
        remainder = np.zeros(0, np.int32)
        for row in dataset.as_numpy_iterator():
            ids = np.concatenate([remainder, np.array(vocabulary.encode(row["text"].decode("utf-8")), np.int32)])
            whole = len(ids) // size * size
            yield from ({"ids": piece} for piece in ids[:whole].reshape(-1, size))
            remainder = ids[whole:]
            if not across:
                yield from [{"ids": remainder}] if len(remainder) > 1 else []
                remainder = remainder[:0]
        yield from [{"ids": remainder}] if len(remainder) > 1 else []

    return tf.data.Dataset.from_generator(rows, output_signature={"ids": tf.TensorSpec([None], tf.int32)})


def map_random(dataset: tf.data.Dataset, pair) -> tf.data.Dataset:
    """Return `inputs` and `targets` from `pair(ids, random)`, with a random generator for each piece."""

    @seqio.map_over_dataset(num_seeds=1)
    def row(columns, seed):
        def parts(ids: np.ndarray, seed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return pair(ids, np.random.Generator(np.random.Philox(np.random.SeedSequence(seed.view(np.uint32)))))

        inputs, targets = tf.numpy_function(parts, [columns["ids"], seed], (tf.int32, tf.int32), stateful=False)
        return {"inputs": tf.ensure_shape(inputs, [None]), "targets": tf.ensure_shape(targets, [None])}

    return row(dataset)


def span_corruption(dataset: tf.data.Dataset, output_features, sequence_length) -> tf.data.Dataset:
    """Corrupt the documents of `dataset` in pieces whose inputs have the maximum length."""
    vocabulary = output_features["inputs"].vocabulary
    longest, given = sequence_length["inputs"], sequence_length["targets"]
    try:
        size = denoising.max_text_length(longest)
    except ValueError as error:
        raise DataError(f"span_corruption: {error}; expected a larger input_length") from error
    spans, needed = denoising.noise_counts(size)[1], denoising.corrupted_lengths(size)[1]
    if needed > given:
        raise DataError(
            f"span_corruption: inputs of {longest} tokens need targets of up to {needed}, and target_length is "
            f"{given}; expected target_length {needed}, or a smaller input_length"
        )
    sentinel, last = vocabulary.vocab_size - 1, vocabulary.vocab_size - spans
    if vocabulary.decode([last]) != f"<extra_id_{spans - 1}>":
        raise DataError(
            f"span_corruption: inputs of {longest} tokens need {spans} sentinels, but token {last} of the model is "
            f"{vocabulary.decode([last])!r}; expected a smaller input_length, or a model with T5's sentinels"
        )

    def pair(ids, random):
        return denoising.corrupt(ids, denoising.span_mask(len(ids), random), sentinel)

    return map_random(pieces(dataset, vocabulary, size, across=True), pair)


def prefix_lm(dataset: tf.data.Dataset, output_features, sequence_length) -> tf.data.Dataset:
    """Split the documents of `dataset`, in pieces as long as inputs and targets may be, into input and target."""
    size = min(sequence_length.values())
    if size < 2:
        raise DataError(f"prefix_lm: input_length and target_length must be at least 2, not {size}")
    return map_random(pieces(dataset, output_features["inputs"].vocabulary, size, across=False), denoising.split_prefix)


for _objective, _longest in ((span_corruption, 114), (prefix_lm, 512)):
    _task = seqio.TaskRegistry.add(
        _objective.__name__,
        source=text_source(documents, SPLITS, ("text",)),
        preprocessors=[_objective, seqio.preprocessors.append_eos],
        output_features=dict.fromkeys(
            ("inputs", "targets"), seqio.Feature(seqio.PassThroughVocabulary(size=0), add_eos=True)
        ),
    )
    _task.task_format = TaskFormat("{inputs}", metrics=(LOG_LIKELIHOOD,), input_length=512, target_length=_longest)
