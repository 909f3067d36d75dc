"""How one example of a task becomes text: input template, label strings, metrics and lengths.

Plain data, with no tensor library behind it. A prompt file carries the format of the task that its prompt was
trained on, so that the prompt can be evaluated and used without the code that defined the task.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from prompt_jax.control_tokens import remove_marks
from prompt_jax.errors import UserError

_FIELD = re.compile(r"\{([^{}]*)\}")  # a column's name is any text without braces

# The names that a configuration or a prompt file may ask for; `prompt_jax.metrics` computes them.
ANSWER_METRICS = (
    *("accuracy", "f1", "mean_class_f1", "matthews", "exact_match", "pearson", "spearman"),
    *("group_exact_match", "referent_accuracy"),
)

# Metrics that need a note on each example beside its answer (`prompt_jax.add_task`).
NOTE_METRICS = ("group_exact_match", "referent_accuracy")

# Of texts against references, of which an input may have several: splits but train then have each input once.
REFERENCE_METRICS = (
    *("bleu", "multi_bleu", "nist", "nist_perl", "meteor", "coco_meteor", "coco_rouge_l", "cider"),
    *("rouge_1", "rouge_2", "rouge_l", "chrf", "ter", "squad_f1"),
    *("webnlg_bleu", "webnlg_meteor", "webnlg_ter", "dart_bleu", "dart_meteor", "dart_ter"),
)

LOWER_IS_BETTER = ("ter", "webnlg_ter", "dart_ter")

# Of free text, and of no answer: where it is the only metric, nothing is generated.
LOG_LIKELIHOOD = "log_likelihood"

METRIC_NAMES = (*ANSWER_METRICS, *REFERENCE_METRICS, LOG_LIKELIHOOD)

MAX_LENGTH = 1 << 16  # tokens

# What begins each target of a task for a model that was trained on span corruption alone (Lester et al. 2021, 3.2).
SENTINEL = "<extra_id_0>"

# The template of a prompt for several tasks that were asked with their names (`data.task_names`): the short name of an
# input's task, and what the task's own template makes.
NAMED_INPUTS = "{task_name} {inputs}"

# The target of an example whose label is not known (T5's convention; TFDS gives such examples the class -1).
UNLABELED = "<unk>"


def without_sentinel(text: str) -> str:
    """Return an answer without SENTINEL, if it begins with one, and without leading spaces."""
    return text.removeprefix(SENTINEL).lstrip()


class FormatError(UserError, ValueError):
    """A task format that cannot be used; the message says which part and why."""


@dataclasses.dataclass(frozen=True)
class TaskFormat:
    """How the raw columns of an example become the model's input, and what answers are expected.

    Attributes:
      template: the input text, with `{column}` where a column's value goes, e.g. `"{text}"` or
        `"passage: {passage} question: {question}"`. Nothing else in it is interpreted: `{{`, format
        specifications and attribute access are not supported, since a template may come from a stranger's file.
      labels: the possible answers in the order of their class numbers; empty where any text is an answer.
      metrics: names from METRIC_NAMES; the first result decides which prompt is the best one, so it cannot be one of
        LOWER_IS_BETTER.
      input_length: the longest input in tokens, end token included; what is longer is cut and counted.
      target_length: the longest target in tokens, end token included.
    """

    template: str
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    input_length: int = 512
    target_length: int = 16

    def __post_init__(self):
        rest = _FIELD.sub("", self.template)
        if "{" in rest or "}" in rest:
            raise FormatError(f"the template {self.template!r} has a brace that is not part of a {{column}}")
        if "" in self.columns:
            raise FormatError(f"the template {self.template!r} has {{}}; write the column's name between the braces")
        if not self.columns:
            raise FormatError(f"the template {self.template!r} names no column; write e.g. '{{text}}'")
        if len(set(self.labels)) != len(self.labels):
            raise FormatError(f"the labels {list(self.labels)} are not distinct")
        for metric in self.metrics:
            if metric not in METRIC_NAMES:
                raise FormatError(f"unknown metric {metric!r}; known are {', '.join(METRIC_NAMES)}")
        if not self.metrics:
            raise FormatError(f"at least one metric is needed: {', '.join(METRIC_NAMES)}")
        if self.metrics[0] in LOWER_IS_BETTER:
            raise FormatError(
                f"{self.metrics[0]} is better when lower, and the best prompt has the highest first metric: name "
                "another first"
            )
        if self.labels and self.compared:
            raise FormatError(
                f"the metric {self.compared[0]} compares texts, and the answers are the labels {list(self.labels)}; "
                f"with labels the metrics are {', '.join(ANSWER_METRICS)}"
            )
        if "f1" in self.metrics and len(self.labels) != 2:
            raise FormatError(f"the metric f1 needs two labels, the second the positive one, not {list(self.labels)}")
        for metric in ("mean_class_f1", "matthews"):
            if metric in self.metrics and not self.labels:
                raise FormatError(f"the metric {metric} needs labels")
        for metric in ("pearson", "spearman", "referent_accuracy", LOG_LIKELIHOOD):
            if metric in self.metrics and self.labels:
                raise FormatError(f"the metric {metric} is of free text, and there are the labels {list(self.labels)}")
        for name, length in (("input_length", self.input_length), ("target_length", self.target_length)):
            if not 1 <= length <= MAX_LENGTH:  # a stranger's file must not say how much memory is taken
                raise FormatError(f"{name} must be from 1 to {MAX_LENGTH}, not {length}")

    @property
    def compared(self) -> tuple[str, ...]:
        """Those of the metrics that compare with references."""
        return tuple(metric for metric in self.metrics if metric in REFERENCE_METRICS)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the template reads, each once, in the order of their appearance."""
        return tuple(dict.fromkeys(_FIELD.findall(self.template)))

    @property
    def segments(self) -> tuple[str, ...]:
        """The template cut at its columns: fixed text at the even places, columns' names at the odd ones."""
        return tuple(_FIELD.split(self.template))

    def render(self, row: Mapping[str, Any]) -> str:
        """The input text of an example.

        Raises:
          FormatError: a column of the template is missing from the row; the message names it and those that are there.
        """
        for column in self.columns:
            if column not in row:
                raise FormatError(f"no column {column!r}; there are {', '.join(map(repr, row)) or 'none'}")
        return _FIELD.sub(lambda match: remove_marks(str(row[match[1]])), self.template)

    def marked(self, mark: Callable[[str], str]) -> "TaskFormat":
        """The format with the control tokens of its template marked (`prompt_jax.control_tokens`).

        Args:
          mark: `Tokenizer.marked` of the model.
        """
        parts = (f"{{{part}}}" if place % 2 else mark(part) for place, part in enumerate(self.segments))
        return dataclasses.replace(self, template="".join(parts))
