"""SuperGLUE over TFDS, in the formats of T5 and prompt tuning (Lester et al. 2021) without the task's name in front.

A benchmark is an entry of the table: its template, which has T5's keys in alphabetical order, its labels in TFDS's
order of classes, and its metrics. The length of inputs is the paper's, 512 tokens.
"""

import seqio

from prompt_jax.data import add_task
from prompt_jax.task_format import TaskFormat

FORMATS = {
    "boolq": TaskFormat("passage: {passage} question: {question}", ("False", "True")),
    "cb": TaskFormat(
        "hypothesis: {hypothesis} premise: {premise}",
        ("entailment", "contradiction", "neutral"),
        metrics=("mean_class_f1", "accuracy"),
    ),
    "rte": TaskFormat("hypothesis: {hypothesis} premise: {premise}", ("entailment", "not_entailment")),
}

for _name, _format in FORMATS.items():
    add_task(
        f"super_glue_{_name}_v102",
        seqio.TfdsDataSource(f"super_glue/{_name}:1.0.2", splits=("train", "validation", "test")),
        _format,
    )
