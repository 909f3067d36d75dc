"""A task's text format: input template, labels, metrics and lengths.

A prompt file contains the format of the task that the prompt was trained on. So the prompt can be used and evaluated
without the code that defines the task.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from prompt_jax.control_tokens import remove_marks
from prompt_jax.errors import UserError

_FIELD = re.compile(r"\{([^{}]*)\}")  # a column's name is any text without braces

# Names of metrics in configurations and prompt files; `prompt_jax.metrics` computes them.
ANSWER_METRICS = (
    *("accuracy", "f1", "mean_class_f1", "matthews", "exact_match", "pearson", "spearman"),
    *("group_exact_match", "referent_accuracy", "final_answer"),
)

# Metrics that need a note on each example in addition to its answer (`prompt_jax.add_task`).
NOTE_METRICS = ("group_exact_match", "referent_accuracy")

# Metrics that compare text with references. In splits other than train, the targets of an input become its references.
REFERENCE_METRICS = (
    *("bleu", "multi_bleu", "nist", "nist_perl", "meteor", "coco_meteor", "coco_rouge_l", "cider"),
    *("rouge_1", "rouge_2", "rouge_l", "chrf", "ter", "squad_f1"),
    *("webnlg_bleu", "webnlg_meteor", "webnlg_ter", "dart_bleu", "dart_meteor", "dart_ter"),
)

LOWER_IS_BETTER = ("ter", "webnlg_ter", "dart_ter")

# The log-likelihood of free-text targets. If it is the only metric, no answers are generated.
LOG_LIKELIHOOD = "log_likelihood"

METRIC_NAMES = (*ANSWER_METRICS, *REFERENCE_METRICS, LOG_LIKELIHOOD)

MAX_LENGTH = 1 << 16  # tokens

# Can be prepended to targets for models pretrained on span corruption alone (Lester et al. 2021, section 3.2).
SENTINEL = "<extra_id_0>"

# The template of a prompt for several tasks with `data.task_names`: the task's short name and the rendered input.
NAMED_INPUTS = "{task_name} {inputs}"

# The target of an example without a known answer (T5's convention; TFDS uses class -1).
UNLABELED = "<unk>"


def without_sentinel(text: str) -> str:
    """Return an answer without SENTINEL and spaces at its start."""
    return text.removeprefix(SENTINEL).lstrip()


class FormatError(UserError, ValueError):
    """An invalid task format; the message says which part is wrong and why."""


@dataclasses.dataclass(frozen=True)
class TaskFormat:
    """How the columns of an example become the model's input, and which answers are expected.

    Attributes:
      template: the input text with columns in braces, e.g. `"{text}"` or `"passage: {passage} question: {question}"`.
        `{{`, format specifications and attribute access are not supported, since a template may come from an untrusted
        file.
      labels: the possible answers in the order of their class indices; empty for free text.
      metrics: names from METRIC_NAMES. The first one decides which prompt is the best, so it cannot be in
        LOWER_IS_BETTER.
      input_length: the maximum length of an input in tokens, end token included. Longer inputs are truncated and
        counted. For a causal model, the template's text after the last column is kept.
      target_length: the maximum length of a target in tokens, end token included.
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
                f"{self.metrics[0]} is better when lower, but the best prompt has the highest first metric; put "
                "another metric first"
            )
        if self.labels and self.compared:
            raise FormatError(
                f"the metric {self.compared[0]} compares free text, but the task has the labels {list(self.labels)}; "
                f"metrics for tasks with labels are {', '.join(ANSWER_METRICS)}"
            )
        if "f1" in self.metrics and len(self.labels) != 2:
            raise FormatError(f"the metric f1 needs two labels, the second the positive one, not {list(self.labels)}")
        for metric in ("mean_class_f1", "matthews"):
            if metric in self.metrics and not self.labels:
                raise FormatError(f"the metric {metric} needs labels")
        for metric in ("pearson", "spearman", "referent_accuracy", LOG_LIKELIHOOD):
            if metric in self.metrics and self.labels:
                raise FormatError(f"the metric {metric} is for free text, not for the labels {list(self.labels)}")
        for name, length in (("input_length", self.input_length), ("target_length", self.target_length)):
            if not 1 <= length <= MAX_LENGTH:  # an untrusted file must not decide how much memory is used
                raise FormatError(f"{name} must be from 1 to {MAX_LENGTH}, not {length}")

    @property
    def compared(self) -> tuple[str, ...]:
        """The metrics that compare with references."""
        return tuple(metric for metric in self.metrics if metric in REFERENCE_METRICS)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the template, each once, in order of appearance."""
        return tuple(dict.fromkeys(_FIELD.findall(self.template)))

    @property
    def segments(self) -> tuple[str, ...]:
        """The template split at its columns: text at even indices, names of columns at odd ones."""
        return tuple(_FIELD.split(self.template))

    def render(self, row: Mapping[str, Any]) -> str:
        """Return the input text of an example.

        Raises:
          FormatError: the row lacks a column of the template. Names it and the row's columns.
        """
        for column in self.columns:
            if column not in row:
                raise FormatError(f"no column {column!r}; there are {', '.join(map(repr, row)) or 'none'}")
        return _FIELD.sub(lambda match: remove_marks(str(row[match[1]])), self.template)

    def marked(self, mark: Callable[[str], str]) -> "TaskFormat":
        """Return the format with the control tokens of its template marked (`prompt_jax.control_tokens`).

        Args:
          mark: the model's `Tokenizer.marked`.
        """
        parts = (f"{{{part}}}" if place % 2 else mark(part) for place, part in enumerate(self.segments))
        return dataclasses.replace(self, template="".join(parts))
