"""SuperGLUE over TFDS, in the formats of T5 and prompt tuning (Lester et al. 2021) without the task's name in front.

A benchmark is an entry of the table: its template, which has T5's keys in T5's order, its labels in TFDS's order of
classes, and its metrics. The length of inputs is the paper's, 512 tokens. The benchmark's own score is
`prompt_jax.metrics.benchmark_average` of BENCHMARK's tasks.

- MultiRC: an example is one answer to a question, right or not; the metrics are F1 over all of them and the share of
  questions whose answers are all judged rightly.
- ReCoRD: training has an example for each right answer, the other splits one for each query with all of them.
- WSC: the model names what a pronoun stands for, T5's simple version. Training has the examples whose candidate is
  right; the metric of the other splits is whether naming the candidate, or not, is right.
- `axb` and `axg` are the diagnostic sets, for prompts of RTE.
- `super_glue_NAME_v102_sentinel` is the same with targets that begin with `<extra_id_0>`, as those do that a model has
  seen which was trained on span corruption alone (the paper's ablation, section 3.2).
- `dpr_v001_simple`: definite pronouns (Rahman and Ng 2012) in the form of WSC, which the paper's multitask baseline is
  trained on as well. Its validation split is what TFDS calls test.
- `super_glue_v102`, and `super_glue_with_dpr_v102` with these: mixtures of all tasks, at rates of their numbers of
  training examples, as T5's multitask has them.
"""

import seqio
import tensorflow as tf

from prompt_jax import add_task
from prompt_jax.task_format import UNLABELED, TaskFormat

BENCHMARK = ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")

ENTAILMENT = ("entailment", "not_entailment")

FORMATS = {
    "boolq": TaskFormat("passage: {passage} question: {question}", ("False", "True")),
    "cb": TaskFormat(
        "hypothesis: {hypothesis} premise: {premise}",
        ("entailment", "contradiction", "neutral"),
        metrics=("mean_class_f1", "accuracy"),
    ),
    "copa": TaskFormat(
        "choice1: {choice1} choice2: {choice2} premise: {premise} question: {question}", ("choice1", "choice2")
    ),
    "multirc": TaskFormat(
        "question: {question} answer: {answer} paragraph: {paragraph}",
        ("False", "True"),
        metrics=("f1", "group_exact_match"),
    ),
    "record": TaskFormat(
        "query: {query} entities: {entities} passage: {passage}",
        metrics=("squad_f1", "exact_match"),
        target_length=32,
    ),
    "rte": TaskFormat("hypothesis: {hypothesis} premise: {premise}", ENTAILMENT),
    "wic": TaskFormat("sentence1: {sentence1} sentence2: {sentence2} word: {word}", ("False", "True")),
    "wsc": TaskFormat("{text}", metrics=("referent_accuracy",), target_length=32),
    "axb": TaskFormat("hypothesis: {sentence2} premise: {sentence1}", ENTAILMENT, metrics=("matthews", "accuracy")),
    "axg": TaskFormat("hypothesis: {hypothesis} premise: {premise}", ENTAILMENT),
}


class RightInTraining(seqio.TfdsDataSource):
    """WSC without the training examples whose candidate is not what the pronoun stands for."""

    def get_dataset(self, split=None, *args, **options):
        dataset = super().get_dataset(split, *args, **options)
        return dataset.filter(lambda row: row["label"] == 1) if split == "train" else dataset


def by_question(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """MultiRC's rows without HTML, and with the column `group` that tells which question each is of."""

    def plain(text):
        return tf.strings.regex_replace(tf.strings.regex_replace(text, "<br>", " "), "</?b>", "")

    def row(columns):
        texts = {name: plain(columns[name]) for name in ("question", "answer", "paragraph")}
        return texts | {"group": together(columns["idx"], "paragraph", "question"), "label": columns["label"]}

    return dataset.map(row)


def one_an_answer(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """ReCoRD's rows, each as many times as it has answers, or once without one."""

    def rows(columns):
        # The lines @highlight are a summary's sentences, some without a full stop.
        passage = tf.strings.regex_replace(columns["passage"], r"([.?!\"'])\n@highlight\n", r"\1 ")
        texts = {
            "query": columns["query"],
            "entities": tf.strings.reduce_join(columns["entities"], separator=", "),
            "passage": tf.strings.regex_replace(passage, r"\n@highlight\n", ". "),
            "group": together(columns["idx"], "passage", "query"),
        }
        answers = columns["answers"]
        answers = tf.cond(tf.size(answers) > 0, lambda: answers, lambda: tf.constant([UNLABELED]))
        return {name: tf.fill(tf.shape(answers), text) for name, text in texts.items()} | {"label": answers}

    return dataset.map(rows).unbatch()


def together(idx, *names):
    """Numbers of an example as one text."""
    return tf.strings.join([tf.strings.as_string(idx[name]) for name in names], "-")


def with_referent(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """WSC's rows with the pronoun between asterisks, and the candidate as the answer."""

    def row(columns):
        text = mark(columns["text"], columns["span2_text"], columns["span2_index"])
        known = columns["label"] >= 0
        return {
            "text": text,
            "label": tf.where(known, columns["span1_text"], UNLABELED),
            "right": tf.where(columns["label"] == 1, "True", "False"),
        }

    return dataset.map(row)


def mark(text, pronoun, index):
    """A text with asterisks around the pronoun, at the word of this number or the next that is the pronoun.

    As in T5, which has two examples by hand: one whose number is too low by one, and one whose pronoun is followed by
    a sign, which the asterisk then parts from it.
    """
    words = tf.strings.split(text, " ")
    found = tf.strings.regex_replace(words[index:], r"[^\p{L}\p{N}]+$", "") == pronoun
    with tf.control_dependencies([tf.debugging.assert_equal(tf.reduce_any(found), True, ["no pronoun in", text])]):
        place = index + tf.argmax(tf.cast(found, tf.int32), output_type=tf.int32)
    sign = tf.strings.substr(words[place], tf.strings.length(pronoun), 100)
    marked = tf.strings.join(["*", pronoun, "*", tf.where(sign == "", "", " "), sign])
    return tf.strings.reduce_join(tf.concat([words[:place], [marked], words[place + 1 :]], 0), separator=" ")


def definite_pronoun(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Rows of definite pronouns in the form of WSC's: of several such pronouns the first is meant."""

    def row(columns):
        pattern = tf.strings.join([" (", columns["pronoun"], r")( |\.|,)"])
        text = tf.strings.regex_replace(columns["sentence"], pattern, r" *\1*\2", replace_global=False)
        return {"text": text, "label": columns["candidates"][columns["label"]]}

    return dataset.map(row)


SPLITS = {"axb": ("test",), "axg": ("test",)}  # the others have three

# What comes before the template, and the column of what metrics are told of an example.
CHANGES = {
    "multirc": ([by_question], "group"),
    "record": ([one_an_answer], "group"),
    "wsc": ([with_referent], "right"),
}

for _name, _format in FORMATS.items():
    _changes, _note = CHANGES.get(_name, ([], None))
    _source = RightInTraining if _name == "wsc" else seqio.TfdsDataSource
    _data = "wsc.fixed" if _name == "wsc" else _name
    for _sentinel in ("", "_sentinel"):
        add_task(
            f"super_glue_{_name}_v102{_sentinel}",
            _source(f"super_glue/{_data}:1.0.2", splits=SPLITS.get(_name, ("train", "validation", "test"))),
            _format,
            note=_note,
            sentinel=bool(_sentinel),
            preprocessors=_changes,
            short_name=_name,
        )

add_task(
    "dpr_v001_simple",
    seqio.TfdsDataSource("definite_pronoun_resolution:1.1.0", splits={"train": "train", "validation": "test"}),
    TaskFormat("{text}", target_length=32),
    preprocessors=[definite_pronoun],
)

# Training examples of the benchmark's tasks: of ReCoRD right answers, of WSC those whose candidate is right.
SIZES = (9427, 250, 400, 27243, 138854, 2490, 5428, 259)
_RATES = [(f"super_glue_{_name}_v102", _size) for _name, _size in zip(BENCHMARK, SIZES, strict=True)]
seqio.MixtureRegistry.add("super_glue_v102", _RATES)
seqio.MixtureRegistry.add("super_glue_with_dpr_v102", [*_RATES, ("dpr_v001_simple", 1322)])
