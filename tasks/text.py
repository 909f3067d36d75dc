"""Text of one's own, for pretraining T5 and for its adaptation to language modeling (Lester et al. 2021, section 2.2).

`span_corruption` is what T5 is pretrained on: 15 % of the tokens are replaced, in spans of 3 on average, by sentinels
`<extra_id_0>`, `<extra_id_1>`..., and the target has them. `prefix_lm` cuts a text in two at random, of which the first
part is the input and the second the target; T5 is adapted with it.

Texts are read from the files `train*` and `validation*`, `.txt` with an empty line between documents or `.jsonl` with
the field `text`, also as `.gz`, in the folder `text` of the one that the environment variable PROMPT_JAX_DATA names.
All of them are in memory. `data.input_length` and `data.target_length` are the lengths of the examples, by default 512
and 114 for span corruption as in T5, whose target needs no more, and both 512 for `prefix_lm`, which cuts texts of so
many tokens and takes two equal lengths. Span corruption goes on over the ends of documents, `prefix_lm` does not. What
is replaced and where is cut is drawn once for each piece of text, by `data.subset_seed`. The metric is the targets'
log-likelihood; nothing is generated.
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
    """The documents of a split's files, in the order of the files' names."""
    folder = data_folder("text")
    paths = sorted(folder.glob(f"{split}*"))
    if not paths:
        raise DataError(f"{folder}: no file {split}*; expected .txt or .jsonl files, also as .gz")
    for path in paths:
        yield from ((text,) for text in read_documents(path))


def pieces(dataset: tf.data.Dataset, vocabulary: seqio.Vocabulary, size: int, across: bool) -> tf.data.Dataset:
    """Token ids of documents in pieces of `size`; the last one of a document, or `across` them of all, may be shorter.

    A last piece of a single token is left out, since there is nothing to predict from it.
    """

    def rows() -> Iterator[dict[str, np.ndarray]]:
        left = np.zeros(0, np.int32)
        for row in dataset.as_numpy_iterator():
            ids = np.concatenate([left, np.array(vocabulary.encode(row["text"].decode("utf-8")), np.int32)])
            whole = len(ids) // size * size
            yield from ({"ids": piece} for piece in ids[:whole].reshape(-1, size))
            left = ids[whole:]
            if not across:
                yield from [{"ids": left}] if len(left) > 1 else []
                left = left[:0]
        yield from [{"ids": left}] if len(left) > 1 else []

    return tf.data.Dataset.from_generator(rows, output_signature={"ids": tf.TensorSpec([None], tf.int32)})


def drawn(dataset: tf.data.Dataset, pair) -> tf.data.Dataset:
    """`inputs` and `targets` that `pair` makes of each piece's ids and a generator of random numbers."""

    @seqio.map_over_dataset(num_seeds=1)
    def row(columns, seed):
        def parts(ids: np.ndarray, seed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return pair(ids, np.random.Generator(np.random.Philox(np.random.SeedSequence(seed.view(np.uint32)))))

        inputs, targets = tf.numpy_function(parts, [columns["ids"], seed], (tf.int32, tf.int32), stateful=False)
        return {"inputs": tf.ensure_shape(inputs, [None]), "targets": tf.ensure_shape(targets, [None])}

    return row(dataset)


def span_corruption(dataset: tf.data.Dataset, output_features, sequence_length) -> tf.data.Dataset:
    """The documents of `dataset` with spans replaced, as long as inputs may be."""
    vocabulary = output_features["inputs"].vocabulary
    longest, given = sequence_length["inputs"], sequence_length["targets"]
    try:
        size = denoising.max_text_length(longest)
    except ValueError as error:
        raise DataError(f"span_corruption: {error}; expected a larger input_length") from error
    spans, needed = denoising.noise_counts(size)[1], denoising.corrupted_lengths(size)[1]
    if needed > given:
        raise DataError(
            f"span_corruption: to inputs of {longest} tokens belong targets of up to {needed}, and they may have "
            f"{given}; expected target_length {needed}, or a smaller input_length"
        )
    sentinel, last = vocabulary.vocab_size - 1, vocabulary.vocab_size - spans
    if vocabulary.decode([last]) != f"<extra_id_{spans - 1}>":
        raise DataError(
            f"span_corruption: inputs of {longest} tokens need {spans} sentinels, and token {last} of the model is "
            f"{vocabulary.decode([last])!r}; expected a smaller input_length, or a model with sentinels as T5 has them"
        )

    def pair(ids, random):
        return denoising.corrupt(ids, denoising.span_mask(len(ids), random), sentinel)

    return drawn(pieces(dataset, vocabulary, size, across=True), pair)


def prefix_lm(dataset: tf.data.Dataset, output_features, sequence_length) -> tf.data.Dataset:
    """The documents of `dataset` in pieces that are cut in two, each part as long as it may be."""
    size = min(sequence_length.values())
    if size < 2:
        raise DataError(f"prefix_lm: input_length and target_length are at least 2, not {size}")
    return drawn(pieces(dataset, output_features["inputs"].vocabulary, size, across=False), denoising.split_prefix)


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
