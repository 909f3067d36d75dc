"""Answer a stream of inputs with one prompt, with an ensemble's vote, or with the prompt that each input names."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from prompt_jax.checkpoints.load import Model
from prompt_jax.config.decoding import Decoding
from prompt_jax.data.files import render_row
from prompt_jax.ensembles.members import LoadedPrompt, read_members
from prompt_jax.ensembles.vote import comparison, mean_probability, vote_answers
from prompt_jax.errors import UserError
from prompt_jax.inference.answers import generate_answers, label_ids, score_labels, tokenize
from prompt_jax.inference.batching import Rows, stack_with_ids
from prompt_jax.inference.decoding import FROM_CHECKPOINT
from prompt_jax.inference.evaluation import merged_model
from prompt_jax.models.delta import Delta
from prompt_jax.models.prompt import NO_PROMPT, Prompt, stack_prompts
from prompt_jax.storage.paths import parse_path
from prompt_jax.task_format import TaskFormat


class Line(NamedTuple):
    """An input of a stream."""

    prompt: str | None  # the name of its prompt; None for the base alone, and if all lines have the same prompt
    input: str  # the filled-in template, with control tokens marked


class Answer(NamedTuple):
    """The answer to a line."""

    prediction: str
    label_scores: dict[str, float] | None  # log-probabilities in nats; None if not requested or without labels


class Voting:
    """Answers lines with the vote of all prompts (see `vote`), or with a single prompt's answer.

    Attributes:
      cut: the number of inputs truncated so far.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Prompt | Delta],
        task_format: TaskFormat,
        decoding: Decoding = FROM_CHECKPOINT,
    ):
        """Raise PromptStackError if the prompts cannot be stacked."""
        self._model, self._members, self._format = model, len(prompts), task_format
        self._decoding, self._count = decoding, 0
        added: Sequence[Any] = prompts
        if len(prompts) == 1:
            self._model, added = merged_model(model, prompts[0])
        stacked, self._ids = stack_with_ids(added)
        self._prompt = jax.device_put(stacked)
        self.cut = 0

    def __call__(self, lines: Sequence[Line], batch_size: int, *, rank: bool) -> list[Answer]:
        """Return the answers to lines. It is fastest with as many lines as a batch has rows.

        Args:
          lines: the inputs.
          batch_size: rows per batch. A row is an input with one member's prompt.
          rank: also score the task's labels; with several members by `mean_probability`.
        """
        inputs, cut = tokenize(
            self._model, [line.input for line in lines], self._format.input_length, self._format.template
        )
        self.cut += cut
        count, labels = len(inputs), self._format.labels
        ids = None if self._ids is None else np.repeat(self._ids, count)
        rows = Rows(self._model, self._prompt, inputs * self._members, ids, batch_size=batch_size)
        numbers = np.tile(np.arange(self._count, self._count + count), self._members)
        self._count += count
        ranked = [labels if rank else ()] * len(rows)
        length = self._format.target_length
        answers = generate_answers(rows, length, self._decoding, labels=ranked, row_numbers=numbers)
        texts = [answers.texts[member * count :][:count] for member in range(self._members)]
        log_probabilities = answers.log_probabilities.reshape(self._members, count)
        speakers = vote_answers(texts, log_probabilities, comparison(labels))
        predictions = [texts[member][i] for i, member in enumerate(speakers)]
        if not (rank and labels):
            return [Answer(prediction, None) for prediction in predictions]
        scores = np.array(answers.label_scores).reshape(self._members, count, len(labels))
        label_scores = scores[0] if self._members == 1 else mean_probability(scores)
        return [Answer(text, _by_label(labels, row)) for text, row in zip(predictions, label_scores, strict=True)]


def read_named(words: Sequence[str]) -> dict[str, LoadedPrompt]:
    """Return the prompts of files by name.

    Args:
      words: `NAME=FILE`, or `FILE` to use the file's name without extension. A member of an ensemble's file is named
        NAME/NUMBER, such as `sentiment/0`.

    Raises:
      UserError: two files have one name, or a template has a column `prompt`.
      PromptFormatError: as `read_prompts`.
    """
    files: dict[str, Path] = {}
    for word in words:
        name, _, file = word.partition("=")
        whole = not (name and file) or parse_path(word).exists()  # a path may contain the sign, such as a run's
        name, path = (Path(word).stem, parse_path(word)) if whole else (name, parse_path(file))
        if name in files:
            raise UserError(
                f"{files[name]} and {path} would both be named {name!r}; give one of them another name: OTHER={path}"
            )
        files[name] = path
    named = {
        name if member.number is None else f"{name}/{member.number}": member
        for name, path in files.items()
        for member in read_members([path])
    }
    for member in named.values():
        if "prompt" in _format(member).columns:
            raise UserError(f"{member}: its template has a column 'prompt', which is the field that names the prompt")
    return named


def read_lines(
    rows: Iterable[tuple[str, Mapping[str, Any]]], named: Mapping[str, LoadedPrompt], marked: Callable[[str], str]
) -> Iterator[Line]:
    """Return the lines of a mixed stream.

    Args:
      rows: the origin of each input, and the input: an object with the field `prompt`, the name of a prompt or null for
        the base alone, and the columns of that prompt's template (`text` for the base alone).
      named: the prompts.
      marked: `Tokenizer.marked` of the model.

    Raises:
      UserError: a row has no prompt or an unknown one.
      DataError: a row lacks a column of its prompt's template.
    """
    formats = {name: _format(member).marked(marked) for name, member in [(None, None), *named.items()]}
    for where, row in rows:
        if "prompt" not in row:
            raise UserError(f"{where}: no field 'prompt'; expected the name of a prompt, or null. {_known('', named)}")
        name = row["prompt"]
        if name is not None and (not isinstance(name, str) or name not in named):
            raise UserError(f"{where}: there is no prompt {name!r:.80}. {_known(str(name), named)}")
        yield Line(name, render_row(row, formats[name], where))


def _format(member: LoadedPrompt | None) -> TaskFormat:
    """Return the format of a prompt's task; a single column `text` for the base and if the prompt has no format."""
    return (member.metadata.format if member else None) or TaskFormat("{text}")


def _known(name: str, named: Mapping[str, LoadedPrompt]) -> str:
    """Suggest the names most similar to `name`, or list some names if none is similar."""
    if near := difflib.get_close_matches(name, list(named), n=3, cutoff=0.4):
        return f"Did you mean {' or '.join(map(repr, near))}?"
    more = f" and {len(named) - 10} more" if len(named) > 10 else ""
    return f"There are {', '.join(map(repr, list(named)[:10]))}{more}"


class Mixed:
    """Answers each line with the prompt that it names, in batches that mix prompts.

    Attributes:
      cut: the number of inputs truncated so far.
    """

    def __init__(self, model: Model, named: Mapping[str, LoadedPrompt], decoding: Decoding = FROM_CHECKPOINT):
        """Raise PromptStackError, which names the files, if the prompts cannot be stacked."""
        members = list(named.values())
        self._model, self._decoding, self._count = model, decoding, 0
        self._prompt = jax.device_put(
            stack_prompts([member.prompt for member in members], [str(member) for member in members])
        )
        self._ids: dict[str | None, int] = {None: NO_PROMPT} | {name: number for number, name in enumerate(named)}
        self._formats = {name: _format(member) for name, member in [(None, None), *named.items()]}
        # The compiled shapes do not depend on which prompts a batch mixes.
        self._longest = max(task_format.target_length for task_format in self._formats.values())
        labels = {label for task_format in self._formats.values() for label in task_format.labels}
        self._longest_label = max((len(label_ids(model, label)) for label in labels), default=None)
        self.cut = 0

    def __call__(self, lines: Sequence[Line], batch_size: int, *, rank: bool) -> list[Answer]:
        """Return the answer of each line's prompt, with the labels of that prompt's task. Arguments as for `Voting`."""
        formats = [self._formats[line.prompt] for line in lines]
        inputs = []
        for line, task_format in zip(lines, formats, strict=True):
            (ids,), cut = tokenize(self._model, [line.input], task_format.input_length, task_format.template)
            inputs.append(ids)
            self.cut += cut
        prompt_ids = np.array([self._ids[line.prompt] for line in lines])
        rows = Rows(self._model, self._prompt, inputs, prompt_ids, batch_size=batch_size)
        lengths = [task_format.target_length for task_format in formats]
        numbers = np.arange(self._count, self._count + len(lines))
        self._count += len(lines)
        answers = generate_answers(rows, self._longest, self._decoding, lengths=lengths, row_numbers=numbers)
        labels = [task_format.labels if rank else () for task_format in formats]
        # Separate programs: which rows have labels differs between batches.
        scores = score_labels(rows, labels, longest=self._longest_label)
        return [
            Answer(text, None if row is None else _by_label(names, row))
            for text, names, row in zip(answers.texts, labels, scores, strict=True)
        ]


def _by_label(labels: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    return dict(zip(labels, scores.astype(np.float64).round(5).tolist(), strict=True))
