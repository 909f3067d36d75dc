"""SuperGLUE from TFDS, in the format of T5 and prompt tuning (Lester et al. 2021), without the task's name in inputs.

Each entry of FORMATS is a task: its template (T5's keys in T5's order), its labels (TFDS's order of classes) and its
metrics. Inputs have up to 512 tokens, as in the paper. SuperGLUE's score is `prompt_jax.metrics.benchmark_average` of
the tasks in BENCHMARK.

- MultiRC: an example is one candidate answer to a question, correct or not. The metrics are F1 over all of them, and
  the share of questions whose candidates are all classified correctly.
- ReCoRD: training has one example for each correct answer. The other splits have one for each query, with all answers.
- WSC: the model names the referent of a pronoun (T5's simple version). Training has the examples whose candidate is
  correct. In other splits, the model is correct if it names the candidate exactly when the candidate is the referent.
- `axb` and `axg` are the diagnostic sets, for prompts trained on RTE.
- `super_glue_NAME_v102_sentinel` has targets that begin with `<extra_id_0>`, like those of span corruption (the paper's
  ablation for models pretrained on span corruption alone, section 3.2).
- `dpr_v001_simple`: definite pronouns (Rahman and Ng 2012) in WSC's format, part of the paper's multitask baseline. Its
  validation split is TFDS's test split.
- `super_glue_v102` and, with definite pronouns, `super_glue_with_dpr_v102` are mixtures of all tasks. As in T5's
  multitask training, rates equal the numbers of training examples.
"""

from prompt_jax import add_mixture, add_task, tfds_source
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


def by_question(dataset):
    """Strip HTML from MultiRC's rows, and add the column `group`, which identifies the question."""
    import tensorflow as tf

    def plain(text):
        return tf.strings.regex_replace(tf.strings.regex_replace(text, "<br>", " "), "</?b>", "")

    def row(columns):
        texts = {name: plain(columns[name]) for name in ("question", "answer", "paragraph")}
        return texts | {"group": join_ids(columns["idx"], "paragraph", "question"), "label": columns["label"]}

    return dataset.map(row)


def one_row_per_answer(dataset):
    """Repeat each of ReCoRD's rows for each of its answers. A row without answers is unlabeled."""
    import tensorflow as tf

    def rows(columns):
        # A line @highlight precedes each sentence of a summary, and some sentences have no period.
        passage = tf.strings.regex_replace(columns["passage"], r"([.?!\"'])\n@highlight\n", r"\1 ")
        texts = {
            "query": columns["query"],
            "entities": tf.strings.reduce_join(columns["entities"], separator=", "),
            "passage": tf.strings.regex_replace(passage, r"\n@highlight\n", ". "),
            "group": join_ids(columns["idx"], "passage", "query"),
        }
        answers = columns["answers"]
        answers = tf.cond(tf.size(answers) > 0, lambda: answers, lambda: tf.constant([UNLABELED]))
        return {name: tf.fill(tf.shape(answers), text) for name, text in texts.items()} | {"label": answers}

    return dataset.map(rows).unbatch()


def join_ids(idx, *names):
    """Return some of an example's numbers as one text."""
    import tensorflow as tf

    return tf.strings.join([tf.strings.as_string(idx[name]) for name in names], "-")


def with_candidate(dataset):
    """Put asterisks around the pronoun of WSC's rows, and make the candidate the answer."""
    import tensorflow as tf

    def row(columns):
        text = mark(columns["text"], columns["span2_text"], columns["span2_index"])
        known = columns["label"] >= 0
        return {
            "text": text,
            "label": tf.where(known, columns["span1_text"], UNLABELED),
            "is_referent": tf.where(columns["label"] == 1, "True", "False"),
        }

    return dataset.map(row)


def mark(text, pronoun, index):
    """Put asterisks around the pronoun: the first word at or after this index that equals it.

    T5 corrects two examples by hand, with the same result: one whose index is too low by one, and one whose pronoun is
    followed by a symbol, which then is separated from the asterisk.
    """
    import tensorflow as tf

    words = tf.strings.split(text, " ")
    matches = tf.strings.regex_replace(words[index:], r"[^\p{L}\p{N}]+$", "") == pronoun
    with tf.control_dependencies([tf.debugging.assert_equal(tf.reduce_any(matches), True, ["no pronoun in", text])]):
        place = index + tf.argmax(tf.cast(matches, tf.int32), output_type=tf.int32)
    symbol = tf.strings.substr(words[place], tf.strings.length(pronoun), 100)
    marked = tf.strings.join(["*", pronoun, "*", tf.where(symbol == "", "", " "), symbol])
    return tf.strings.reduce_join(tf.concat([words[:place], [marked], words[place + 1 :]], 0), separator=" ")


def definite_pronoun(dataset):
    """Convert rows of definite pronouns to WSC's format, with asterisks around the first occurrence of the pronoun."""
    import tensorflow as tf

    def row(columns):
        pattern = tf.strings.join([" (", columns["pronoun"], r")( |\.|,)"])
        text = tf.strings.regex_replace(columns["sentence"], pattern, r" *\1*\2", replace_global=False)
        return {"text": text, "label": columns["candidates"][columns["label"]]}

    return dataset.map(row)


SPLITS = {"axb": ("test",), "axg": ("test",)}  # other tasks have train, validation and test

# The preprocessors that run before the template, and the column with the note for metrics.
CHANGES = {
    "multirc": ([by_question], "group"),
    "record": ([one_row_per_answer], "group"),
    "wsc": ([with_candidate], "is_referent"),
}

for _name, _format in FORMATS.items():
    _changes, _note = CHANGES.get(_name, ([], None))
    _data = "wsc.fixed" if _name == "wsc" else _name
    # Training examples of WSC whose candidate is not the referent are dropped.
    _filters = {"train": lambda row: row["label"] == 1} if _name == "wsc" else {}
    for _sentinel in ("", "_sentinel"):
        add_task(
            f"super_glue_{_name}_v102{_sentinel}",
            tfds_source(f"super_glue/{_data}:1.0.2", SPLITS.get(_name, ("train", "validation", "test")), _filters),
            _format,
            note=_note,
            sentinel=bool(_sentinel),
            preprocessors=_changes,
            short_name=_name,
        )

add_task(
    "dpr_v001_simple",
    tfds_source("definite_pronoun_resolution:1.1.0", splits={"train": "train", "validation": "test"}),
    TaskFormat("{text}", target_length=32),
    preprocessors=[definite_pronoun],
)

# Numbers of training examples: for ReCoRD correct answers, for WSC examples whose candidate is correct.
SIZES = (9427, 250, 400, 27243, 138854, 2490, 5428, 259)
_RATES = {f"super_glue_{_name}_v102": _size for _name, _size in zip(BENCHMARK, SIZES, strict=True)}
add_mixture("super_glue_v102", _RATES)
add_mixture("super_glue_with_dpr_v102", _RATES | {"dpr_v001_simple": 1322})
