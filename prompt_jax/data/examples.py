"""Tokenized examples, and the scores of answers to them."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_jax.checkpoints.tokenizer import Tokenizer
from prompt_jax.control_tokens import remove_marks
from prompt_jax.errors import DataError
from prompt_jax.metrics import MetricFn, Target, log_likelihood, metric_fns
from prompt_jax.task_format import SENTINEL, UNLABELED, TaskFormat


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """One split of a task, tokenized, in the order of its source.

    Every row can be read at any time. So the training order is a function of the seed alone, a position in it is two
    numbers, and tf.data's threads play no role. The split that is trained on is in a temporary file
    (`prompt_jax.data.stored_rows`), and a process reads the rows of its devices. Other splits are in memory, because
    every process scores them.

    Attributes:
      name: the task's name.
      split: the split's name.
      inputs: an int32 array [S_i] for each example, end token included.
      targets: an int32 array [T_i] for each example, end token included.
      input_texts: the inputs before tokenization and truncation. Control tokens of the template are marked
        (`prompt_jax.control_tokens`).
      target_texts: the targets before tokenization; UNLABELED if the answer is unknown.
      truncated: the numbers of truncated examples, under "inputs" and "targets".
      format: the task's format; None for a plain seqio task, which tokenizes its text.
      metric_fns: the task's metrics, functions of (targets, predictions), or `metrics.log_likelihood`.
      postprocess: seqio's postprocess_fn(text, example=..., is_target=...), or None.
      rows: the output of the task's pipeline for each example; only kept for `postprocess`, and not in training.
      references: for a task whose metrics compare with references, all target texts of each input. The first of them
        is in `target_texts` and `targets`. Empty for other tasks and for the split "train".
      notes: the notes that metrics need in addition to the answers (`task_format.NOTE_METRICS`); may be empty.
      continues_input: whether an answer continues the input's line without a start token, as in few-shot prompts of a
        causal model. Targets then have no end token.
    """

    name: str
    split: str
    inputs: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]
    input_texts: Sequence[str]
    target_texts: Sequence[str]
    truncated: dict[str, int]
    format: TaskFormat | None
    metric_fns: tuple[MetricFn, ...]
    postprocess: Callable[..., Any] | None = None
    rows: tuple[dict[str, Any], ...] = ()
    references: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    continues_input: bool = False

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def unlabeled(self) -> int:
        """The number of examples without an answer. They can be predicted, but neither trained on nor scored."""
        return self.target_texts.count(UNLABELED) if self.format else 0

    @property
    def needs_answers(self) -> bool:
        """Whether answers are generated. False only if the targets' log-likelihood is the single metric."""
        return not self.metric_fns or any(function is not log_likelihood for function in self.metric_fns)

    @property
    def needs_log_likelihood(self) -> bool:
        """Whether the targets' log-likelihood is one of the metrics."""
        return log_likelihood in self.metric_fns

    @property
    def has_sentinel(self) -> bool:
        """Whether targets begin with SENTINEL. Answers are then compared without it."""
        return any(text.startswith(SENTINEL) for text in self.target_texts)

    @property
    def expected(self) -> Sequence[Target]:
        """The texts that metrics compare answers with: each example's references, or its target if it has none."""
        return self.references or self.target_texts

    def take(self, rows: Sequence[int] | np.ndarray) -> "Examples":
        """Return the examples with these indices, in this order. Indices may repeat, as in a bootstrap sample.

        `truncated` still counts the whole split.
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
        """Return the task's metrics by name in their order and, for a task with labels, `invalid`.

        Args:
          predictions: the answer to each example; empty if `needs_answers` is false.
          log_probabilities: [N] those of the targets, in nats. Without them, `log_likelihood` is left out.

        Raises:
          ValueError: there are more or fewer predictions than examples, or examples have no label.
        """
        if len(predictions) != len(self) * self.needs_answers:
            raise ValueError(f"{self.name}, {self.split}: {len(predictions)} predictions for {len(self)} examples")
        if self.unlabeled:
            raise DataError(
                f"{self.name}, {self.split}: {self.unlabeled} of {len(self)} examples have no label, or no answer; "
                "they can be predicted, but not scored"
            )
        targets = self._postprocessed(self.expected, is_target=True)
        answers = self._postprocessed(predictions, is_target=False) if self.needs_answers else []
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
    """Return the numbers among a metric's results. seqio's metrics may also return text and histograms to log."""
    numbers = {name: getattr(value, "value", value) for name, value in values.items()}
    return {name: float(value) for name, value in numbers.items() if isinstance(value, (int, float, np.number))}


def input_ids(tokenizer: Tokenizer, text: str, length: int, ending: str = "") -> tuple[np.ndarray, bool]:
    """Return the ids of an input text, int32 [T] with T at most `length`, and whether it was truncated.

    An encoder's input loses its end, as in T5. A causal model continues its input, so the template's text after the
    last column (`ending`), such as `Sentiment:`, is kept, and what precedes it is truncated.

    Raises:
      DataError: the ending alone has too many tokens.
    """
    ids = tokenizer.input_ids(text)
    if len(ids) <= length:
        return np.array(ids, np.int32), False
    if not (tokenizer.causal and ending and text.endswith(ending)):
        return truncate(ids, length, tokenizer.eos_id), True
    # A token may span the end of the column. Then the tokens differ from there.
    begin = len(os.path.commonprefix([ids, tokenizer.input_ids(text.removesuffix(ending))]))
    kept = ids[begin:]
    if len(kept) >= length:
        raise DataError(
            f"the template ends in {remove_marks(ending)!r}, which has {len(kept)} tokens, and an input has at most "
            f"{length}; expected more (data.input_length), or a shorter template"
        )
    return np.array([*ids[: length - len(kept)], *kept], np.int32), True


def truncate(ids: Sequence[int] | np.ndarray, length: int, eos_id: int) -> np.ndarray:
    """Return at most `length` ids, int32. A final end token is kept."""
    kept = np.array(ids[:length], np.int32)
    if len(ids) > length and ids[-1] == eos_id:
        kept[-1] = eos_id
    return kept
