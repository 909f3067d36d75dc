"""Prompt design: the base alone with a text template, zero-shot or with in-context examples. Nothing is trained.

The baseline for prompt tuning (Lester et al. 2021, section 1; Brown et al. 2020).
"""

import dataclasses
import functools
import itertools
import os
import re
import warnings
from typing import Any

import numpy as np

from prompt_jax.checkpoints.load import Model
from prompt_jax.data.examples import Examples
from prompt_jax.errors import UserError
from prompt_jax.task_format import UNLABELED, TaskFormat

DEFAULT_LENGTH = 512  # for models without a position limit; T5 was pretrained with it
LONGEST_DEFAULT = 2048  # so that a model with 100,000 positions does not read as many tokens of examples


class DesignError(UserError, ValueError):
    """The prompt design cannot be used."""


@dataclasses.dataclass(frozen=True)
class PromptDesign:
    """How inputs and in-context examples are written.

    Attributes:
      text: the template of an input. `{input}` is the task's input.
      shots: the number of in-context examples, from the training split; None means as many as fit.
      balanced: draw examples from the labels in turn, until a label has no more; otherwise draw at random. Has no
        effect on tasks without labels.
      demonstration: the template of an example. `{input}` is its input, written with `text`, and `{target}` its answer.
        For an encoder the default is `{input} {target}.`; the template must mark the end, because SentencePiece drops
        line breaks. For a causal model the default is `{input} {target}`, and a line break follows. The input is
        written like an example up to the answer, and the model continues it.
      length: the maximum number of tokens of an input with its examples. The default is the number of positions of
        the model minus the answer's, at most LONGEST_DEFAULT, or DEFAULT_LENGTH for a model without a limit.
    """

    text: str = "{input}"
    shots: int | None = 0
    balanced: bool = True
    demonstration: str | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        _check_fields("text", self.text, "input")
        if self.demonstration is not None:
            _check_fields("demonstration", self.demonstration, "input", "target")
        if self.shots is not None and self.shots < 0:
            raise DesignError(f"there cannot be {self.shots} examples before an input")


def few_shot_inputs(
    examples: Examples,
    design: PromptDesign,
    model: Model,
    training: Examples | None = None,
    seed: int = 0,
    *,
    target_length: int = TaskFormat.target_length,
) -> tuple[Examples, float]:
    """Return the examples with few-shot inputs, and the mean number of in-context examples per input.

    Every input gets the same in-context examples in the order drawn, except one with the input's text. If not all
    of them fit, an input gets the first ones that fit, with a warning. With `shots=None`, examples that do not fit are
    skipped and later ones may still be used. An input that is too long is truncated; the template's text is kept.

    Args:
      examples: the examples to be answered.
      design: how inputs are written.
      model: the base, for its tokenizer and special tokens.
      training: the examples to draw from; required unless `shots` is 0.
      seed: the seed of the draw.
      target_length: the maximum number of tokens of an answer.

    Raises:
      DesignError: `training` is missing or has too few examples, or the template has more tokens than allowed.
    """
    writer = _Writer(design, model, target_length)
    drawn = [] if design.shots == 0 else _draw(design, training, seed, limit=writer.length)
    if training is not None and training.format is not None and training.format.labels:
        drawn = [(text, writer.marked(label)) for text, label in drawn]
    inputs, counts, incomplete, truncated_inputs = [], [], 0, 0
    for text in examples.input_texts:
        candidates = [pair for pair in drawn if pair[0] != text]  # an equal text would give the answer away
        demonstrations: list[list[int]] = []
        room = writer.length - len(writer.input_ids(text, bool(candidates))[0])
        for pair in candidates:
            ids = writer.demonstration(*pair, bool(demonstrations))
            if len(ids) <= room:
                room -= len(ids)
                demonstrations.append(ids)
            elif design.shots is not None:
                break
        ids, is_truncated = writer.input_ids(text, bool(demonstrations))
        inputs.append(writer.concatenate(demonstrations, ids))
        counts.append(len(demonstrations))
        incomplete += len(demonstrations) < min(len(candidates), design.shots or 0)
        truncated_inputs += is_truncated
    if incomplete:
        warnings.warn(
            f"{incomplete} of {len(examples)} inputs have fewer than {design.shots} examples before them: there is "
            f"room for {writer.length} tokens (--shot-length)",
            stacklevel=2,
        )
    targets = writer.targets(examples) if writer.causal else examples.targets
    truncated = {**examples.truncated, "inputs": truncated_inputs}
    written = dataclasses.replace(
        examples, inputs=inputs, targets=targets, truncated=truncated, continues_input=writer.causal
    )
    return written, float(np.mean(counts))


class _Writer:
    """Writes inputs and in-context examples with a design's templates, as token ids for a model."""

    def __init__(self, design: PromptDesign, model: Model, target_length: int):
        assert model.tokenizer is not None
        self._tokenizer: Any = model.tokenizer
        self._start_id = model.config.start_id
        self.marked = self._tokenizer.marked
        self.causal: bool = self._tokenizer.causal
        self._first = len(self._tokenizer.start)  # the number of special tokens at the start
        # SentencePiece adds a space before every text, and a causal model's examples end in a line break.
        self._space = " " if self._first and not self.causal else ""
        self._encode = functools.cache(self._tokenizer.encode)
        self._read = functools.cache(self._continued if self.causal else self._tokenizer.input_ids)

        form = self.marked(design.demonstration or ("{input} {target}" if self.causal else "{input} {target}."))
        text = self.marked(design.text)
        self._input = text
        self._example = _fill(form, input=text, target="{target}")
        if self.causal:
            begun, _, end = form.partition("{target}")
            if "{input}" not in begun:
                raise DesignError(f"a causal model reads {{input}} before {{target}}; the demonstration is {form!r}")
            self._input = _fill(begun, input=text).rstrip(" ")  # an answer's tokens begin with the space
            self._example = self._input + " {target}" + end.removesuffix("\n") + "\n"

        positions = getattr(model.config, "positions", None)  # None for T5, whose positions are relative
        limit = positions
        if positions is not None and self.causal:  # the last input token predicts the answer's first token
            limit = positions - target_length + 1
        self.length: int = design.length or min(limit or DEFAULT_LENGTH, LONGEST_DEFAULT)
        if limit is not None and self.length > limit:
            raise DesignError(
                f"an input and its examples may have at most {limit} tokens, not {self.length} (--shot-length): "
                f"{model.name} has {positions} positions, and an answer up to {target_length} tokens"
            )
        fixed = len(self._read(self._input.replace("{input}", "")))
        if fixed >= self.length:
            raise DesignError(
                f"the text {self._input!r} has {fixed} tokens without an input, but only {self.length} are allowed in "
                "total (--shot-length)"
            )

    def _continued(self, text: str) -> list[int]:
        """Return the ids of a text that a causal model continues: without a leading space, unlike a task's source."""
        return [*self._tokenizer.start, *self._encode(text)]

    def _read_after_line(self, text: str) -> list[int]:
        return [*self._tokenizer.start, *self._after_line(text)]

    def _after_line(self, text: str) -> list[int]:
        """Return the ids of a text after a line break, so that they are those of the whole prompt.

        Some tokenizers put a space before a text. If the text begins with a space or a line break, a tokenizer may read
        both as one token. Then the text's ids are those of the text alone, and differ from those of the whole prompt.
        """
        before, whole = self._encode("a\n"), self._encode(f"a\n{text}")
        return whole[len(before) :] if whole[: len(before)] == before else self._encode(text)

    def input_ids(self, text: str, follows: bool) -> tuple[list[int], bool]:
        """Return the ids of an input, and whether it was truncated. `follows` says that examples precede it."""
        before, after = (self._space * follows + self._input).split("{input}")
        read = self._read_after_line if self.causal and follows else self._read
        ids = read(before + text + after)
        if len(ids) <= self.length:
            return ids, False
        # The text after the input begins here. A token may span the end of the input.
        common = len(os.path.commonprefix([ids, read(before + text)]))
        end = min(common, self._first + len(self._encode(before + text)))
        return [*ids[: self.length - len(ids) + end], *ids[end:]], True

    def demonstration(self, text: str, target: str, follows: bool) -> list[int]:
        """Return the ids of an example. `follows` says that other examples precede it."""
        example = _fill(self._example, input=text, target=target)
        if self.causal and follows:
            return self._after_line(example)
        return self._encode(self._space * follows + example)

    def targets(self, examples: Examples) -> list[np.ndarray]:
        """Return the ids of the targets as continuations of a text, without end token."""
        if self._tokenizer.leading_space:
            return [ids[:-1] for ids in examples.targets]
        labels = set(examples.format.labels) if examples.format else set()
        texts = [self.marked(text) if text in labels else text for text in examples.target_texts]
        longest = max(map(len, examples.targets))
        return [np.array(self._tokenizer.word_ids(text)[:longest], np.int32) for text in texts]

    def concatenate(self, demonstrations: list[list[int]], ids: list[int]) -> np.ndarray:
        """Return examples and input as one row. A causal model needs at least two tokens: one before `start_ids`."""
        ids = [*ids[: self._first], *itertools.chain(*demonstrations), *ids[self._first :]]
        return np.array([self._start_id] * ((2 - len(ids)) * self.causal) + ids, np.int32)


def _draw(design: PromptDesign, training: Examples | None, seed: int, limit: int) -> list[tuple[str, str]]:
    """Return the in-context examples in order; at most `limit` of them if `shots` is None."""
    if training is None:
        raise DesignError("in-context examples are drawn from a training split, and there is none")
    order = [int(row) for row in np.random.default_rng(seed).permutation(len(training))]
    order = [row for row in order if training.target_texts[row] != UNLABELED]
    wanted = design.shots or 1
    if len(order) < wanted:
        raise DesignError(f"{training.name} has {len(order)} labeled examples; expected at least {wanted}")
    labels = training.format.labels if training.format is not None else ()
    if design.balanced and labels:
        by_label = {label: [row for row in order if training.target_texts[row] == label] for label in labels}
        if absent := [repr(label) for label, rows in by_label.items() if not rows]:
            warnings.warn(f"{training.name} has no example of {', '.join(absent)}", stacklevel=3)
        turns = itertools.zip_longest(*by_label.values())
        order = [row for turn in turns for row in turn if row is not None]
    rows = order[: design.shots or limit]  # an example has at least one token
    return [(training.input_texts[row], training.target_texts[row]) for row in rows]


def _check_fields(name: str, text: str, *fields: str) -> None:
    if sorted(re.findall(r"\{(\w*)\}|[{}]", text)) != sorted(fields):
        wanted = " and ".join(f"{{{field}}}" for field in fields)
        raise DesignError(f"the {name} {text!r} should have {wanted}, each once, and no other braces")


def _fill(text: str, **fields: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: fields[match[1]], text)
