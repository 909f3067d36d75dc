"""GLUE from TFDS, in the format of T5 and prompt tuning (Lester et al. 2021), without the task's name in inputs.

`glue_NAME_v002` has version 1.0.0 of TFDS's data, as in the paper. `glue_NAME_v200` has version 2.0.0. Each entry of
FORMATS is a task, as in super_glue.py.

- MNLI: the validation and test splits are the matched ones. `mnli_mismatched` has the others. `ax` is GLUE's diagnostic
  set, whose answers are not published.
- STS-B: the answer is a number, rounded to the nearest 0.2.
- `mrpc_from_qqp` and `qqp_from_mrpc` test zero-shot transfer between MRPC and QQP, whose labels have different names.
  `mrpc_from_qqp` has MRPC's pairs with QQP's labels (`duplicate` for `equivalent`), `qqp_from_mrpc` the reverse. Their
  split `test` is the validation split, whose answers are known.
"""

import dataclasses

from prompt_jax import add_task, tfds_source
from prompt_jax.task_format import UNLABELED, TaskFormat

VERSIONS = {"v002": "1.0.0", "v200": "2.0.0"}

SENTENCE = "sentence: {sentence}"
SENTENCES = "sentence1: {sentence1} sentence2: {sentence2}"
MNLI = TaskFormat("hypothesis: {hypothesis} premise: {premise}", ("entailment", "neutral", "contradiction"))
MRPC = TaskFormat(SENTENCES, ("not_equivalent", "equivalent"), metrics=("f1", "accuracy"))
QQP = TaskFormat(
    "question1: {question1} question2: {question2}", ("not_duplicate", "duplicate"), metrics=("f1", "accuracy")
)

FORMATS = {
    "cola": TaskFormat(SENTENCE, ("unacceptable", "acceptable"), metrics=("matthews",)),
    "sst2": TaskFormat(SENTENCE, ("negative", "positive")),
    "mrpc": MRPC,
    "qqp": QQP,
    "stsb": TaskFormat(SENTENCES, metrics=("pearson", "spearman")),
    "mnli": MNLI,
    "mnli_matched": MNLI,
    "mnli_mismatched": MNLI,
    "qnli": TaskFormat("question: {question} sentence: {sentence}", ("entailment", "not_entailment")),
    "rte": TaskFormat(SENTENCES, ("entailment", "not_entailment")),
    "wnli": TaskFormat(SENTENCES, ("not_entailment", "entailment")),
    "ax": dataclasses.replace(MNLI, metrics=("matthews",)),
    "mrpc_from_qqp": dataclasses.replace(MRPC, labels=QQP.labels),
    "qqp_from_mrpc": dataclasses.replace(QQP, labels=MRPC.labels),
}

# TFDS's split for each split. Tasks that are not listed have train, validation and test.
SPLITS = {
    "mnli": {"train": "train", "validation": "validation_matched", "test": "test_matched"},
    "mnli_matched": ("validation", "test"),
    "mnli_mismatched": ("validation", "test"),
    "ax": ("test",),
    "mrpc_from_qqp": {"validation": "validation", "test": "validation"},
    "qqp_from_mrpc": {"validation": "validation", "test": "validation"},
}


def round_similarity(dataset):
    """Replace STS-B's similarities, from 0 to 5 or -1 if unknown, by text such as `3.8`."""
    import tensorflow as tf

    def row(columns):
        text = tf.strings.as_string(tf.round(columns["label"] * 5) / 5, precision=1)
        return columns | {"label": tf.where(columns["label"] < 0, UNLABELED, text)}

    return dataset.map(row)


for _version, _tfds in VERSIONS.items():
    for _name, _format in FORMATS.items():
        _data = _name.partition("_from_")[0]
        add_task(
            f"glue_{_name}_{_version}",
            tfds_source(f"glue/{_data}:{_tfds}", splits=SPLITS.get(_name, ("train", "validation", "test"))),
            _format,
            preprocessors=[round_similarity] if _name == "stsb" else [],
            short_name=_name,
        )
