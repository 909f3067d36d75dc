"""Tokenized examples in memory, and how answers to them are scored."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_jax.data.files import DataError
from prompt_jax.metrics import MetricFn, Target, log_likelihood, metric_fns
from prompt_jax.task_format import SENTINEL, UNLABELED, TaskFormat


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """One split of a task, tokenized, in the order of its source.

    All of it is in host memory. Sets for tuning prompts are small, and this way the order of training is a function
    of the seed alone, a position in it is two numbers, and nothing depends on tf.data's threads.

    Attributes:
      name: the task's name.
      split: the split's name.
      inputs: an int32 array [S_i] for each example, the end token included.
      targets: an int32 array [T_i] for each example, the end token included.
      input_texts: the inputs before tokenization, whole where `inputs` is truncated; control tokens of the template are
        marked (`prompt_jax.control_tokens`).
      target_texts: the targets before tokenization; UNLABELED where the answer is not known.
      truncated: how many examples were cut to the length asked for, under "inputs" and "targets".
      format: the task's format; None for a seqio task that has none, or makes its tokens itself.
      metric_fns: the task's metrics, functions of (targets, predictions), or `metrics.log_likelihood`.
      postprocess: seqio's postprocess_fn(text, example=..., is_target=...), or None.
      rows: what the task's pipeline gave for each example; only kept for `postprocess`.
      references: for a task whose metrics compare with references, all target texts of each input, of which
        `target_texts` and `targets` have the first; empty for other tasks, and for training, where each is an example.
      notes: what metrics are told of each example beside its answer (`task_format.NOTE_METRICS`); may be empty.
      continued: whether an answer is the rest of the input's line, without a start token before it and an end token
        after: how a causal model is asked in words. Targets have no end token then.
    """

    name: str
    split: str
    inputs: list[np.ndarray]
    targets: list[np.ndarray]
    input_texts: list[str]
    target_texts: list[str]
    truncated: dict[str, int]
    format: TaskFormat | None
    metric_fns: tuple[MetricFn, ...]
    postprocess: Callable[..., Any] | None = None
    rows: tuple[dict[str, Any], ...] = ()
    references: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    continued: bool = False

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def unlabeled(self) -> int:
        """How many examples have no answer: to be predicted, not to train on or to score."""
        return self.target_texts.count(UNLABELED) if self.format else 0

    @property
    def answered(self) -> bool:
        """Whether answers are generated: all but for a task whose only metric is the targets' log-likelihood."""
        return not self.metric_fns or any(function is not log_likelihood for function in self.metric_fns)

    @property
    def measured(self) -> bool:
        """Whether one of the metrics is the targets' log-likelihood."""
        return log_likelihood in self.metric_fns

    @property
    def sentinel(self) -> bool:
        """Whether targets begin with SENTINEL. Answers are then compared without it."""
        return any(text.startswith(SENTINEL) for text in self.target_texts)

    @property
    def expected(self) -> Sequence[Target]:
        """What metrics compare with: each example's references where there are, or else its target's text."""
        return self.references or self.target_texts

    def take(self, rows: Sequence[int] | np.ndarray) -> "Examples":
        """The examples of these numbers, in this order; a number may come again, as in a bootstrap's resample.

        `truncated` stays that of the whole split.
        """

        def of(values: Sequence[Any]) -> list[Any]:
            return [values[row] for row in rows]

        notes = tuple(of(self.notes)) if self.notes else ()
        return dataclasses.replace(
            self,
            inputs=of(self.inputs),
            targets=of(self.targets),
            input_texts=of(self.input_texts),
            target_texts=of(self.target_texts),
            rows=tuple(of(self.rows)) if self.rows else (),
            references=tuple(of(self.references)) if self.references else (),
            notes=notes,
            metric_fns=tuple(metric_fns(self.format, notes)) if self.format and notes else self.metric_fns,
        )

    def score(self, predictions: Sequence[str], log_probabilities: np.ndarray | None = None) -> dict[str, float]:
        """The task's metrics by name, its first one first, and for a task with labels `invalid` beside them.

        Args:
          predictions: the answer for each example, in their order; none where no metric is of answers.
          log_probabilities: [N] of the targets, in nats; without them `log_likelihood` is left out.

        Raises:
          ValueError: another number of predictions than of examples, or examples without a label.
        """
        if len(predictions) != len(self) * self.answered:
            raise ValueError(f"{self.name}, {self.split}: {len(predictions)} predictions for {len(self)} examples")
        if self.unlabeled:
            raise DataError(
                f"{self.name}, {self.split}: {self.unlabeled} of {len(self)} examples have no label, or no answer; "
                "they can be predicted, but not scored"
            )
        targets = self._postprocessed(self.expected, is_target=True)
        answers = self._postprocessed(predictions, is_target=False) if self.answered else []
        scores: dict[str, float] = {}
        for function in self.metric_fns:
            if function is not log_likelihood:
                scores |= _floats(function(targets, answers))
            elif log_probabilities is not None:
                scores |= log_likelihood(self.targets, log_probabilities)
        return scores

    def _postprocessed(self, texts: Sequence[Target], is_target: bool) -> list[Any]:
        if self.postprocess is None:
            return list(texts)
        pairs = zip(texts, self.rows, strict=True)
        return [self.postprocess(text, example=row, is_target=is_target) for text, row in pairs]


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among a metric's results; seqio's metrics may also return texts and histograms to be logged."""
    numbers = {name: getattr(value, "value", value) for name, value in values.items()}
    return {name: float(value) for name, value in numbers.items() if isinstance(value, (int, float, np.number))}


def cut(ids: Sequence[int] | np.ndarray, length: int, eos_id: int) -> np.ndarray:
    """The ids, int32, at most so many; what is longer is cut before its end token, if it has one."""
    kept = np.array(ids[:length], np.int32)
    if len(ids) > length and ids[-1] == eos_id:
        kept[-1] = eos_id
    return kept
