"""Prompt design: the base is asked as it is, in words, with examples of the task before the input or without any.

What prompt tuning is compared with (Lester et al. 2021, section 1; Brown et al. 2020). Nothing is trained.
"""

import dataclasses
import functools
import itertools
import re
import warnings
from typing import Any

import numpy as np

from prompt_jax.checkpoints.load import Model
from prompt_jax.data.examples import Examples
from prompt_jax.errors import UserError
from prompt_jax.task_format import UNLABELED, TaskFormat

DEFAULT_LENGTH = 512  # for models without a limit of their own: what T5 was pretrained with


class DesignError(UserError, ValueError):
    """A design that cannot be written; the message says what would be right."""


@dataclasses.dataclass(frozen=True)
class PromptDesign:
    """How the base is asked.

    Attributes:
      text: of an input, `{input}` being the task's.
      shots: how many examples of the training split stand before it; None is as many as there is room for.
      balanced: whether they are drawn from the labels in turn, each as long as it lasts, or as they come. Free text has
        no labels.
      demonstration: how an example is written, `{input}` being what `text` makes of its input and `{target}` its
        answer. For an encoder it has to say itself where it ends, since SentencePiece drops line breaks: None is
        `{input} {target}.`. For a causal model None is `{input} {target}`; a line break follows, and the input is
        written as an example is up to its answer, which goes on from there.
      length: the most tokens that all of it may have; None is what the model has positions for beside the answer, or
        DEFAULT_LENGTH where it has no limit.
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
    """Examples whose inputs are written by a design, and how many examples of the training split each has on average.

    The same ones stand before every input, the first drawn as the first, but for one of the same text. Where there is
    no room for all of them, an input has the first ones that fit, and a warning says so; `as many as there is room for`
    leaves out those that do not fit and goes on. An input that is itself too long loses its end, but no words of the
    design.

    Args:
      examples: to be answered.
      design: how.
      model: the base, whose tokenizer and special tokens are used.
      training: what examples are drawn from; needed for any.
      seed: of the draw.
      target_length: the most tokens of an answer.

    Raises:
      DesignError: examples are to be drawn, and there are fewer, or they have no answers; or the design is longer than
        it may be.
    """
    writer = _Writer(design, model, target_length)
    drawn = [] if design.shots == 0 else _drawn(design, training, seed, most=writer.length)
    if training is not None and training.format is not None and training.format.labels:
        drawn = [(text, writer.marked(label)) for text, label in drawn]
    inputs, counts, lacking, longer = [], [], 0, 0
    for text in examples.input_texts:
        shown = [pair for pair in drawn if pair[0] != text]  # which would give the answer away
        before: list[list[int]] = []
        room = writer.length - len(writer.asked(text, bool(shown))[0])
        for pair in shown:
            ids = writer.demonstration(*pair, bool(before))
            if len(ids) <= room:
                room -= len(ids)
                before.append(ids)
            elif design.shots is not None:
                break
        own, cut = writer.asked(text, bool(before))
        inputs.append(writer.together(before, own))
        counts.append(len(before))
        lacking += len(before) < min(len(shown), design.shots or 0)
        longer += cut
    if lacking:
        warnings.warn(
            f"{lacking} of {len(examples)} inputs have fewer than {design.shots} examples before them: there is room "
            f"for {writer.length} tokens (--shot-length)",
            stacklevel=2,
        )
    targets = [ids[:-1] for ids in examples.targets] if writer.causal else examples.targets
    truncated = {**examples.truncated, "inputs": longer}
    written = dataclasses.replace(
        examples, inputs=inputs, targets=targets, truncated=truncated, continues_input=writer.causal
    )
    return written, float(np.mean(counts))


class _Writer:
    """Tokens of inputs and of examples in the words of a design, as a model is to read them."""

    def __init__(self, design: PromptDesign, model: Model, target_length: int):
        assert model.tokenizer is not None
        self._tokenizer: Any = model.tokenizer
        self._start_id = model.config.start_id
        self.marked = self._tokenizer.marked
        self.causal: bool = self._tokenizer.causal
        self._first = len(self._tokenizer.start)  # tokens before all of it
        # SentencePiece begins every text with a space by itself, and a causal model's examples end in a line break.
        self._space = " " if self._first else ""
        self._encode = functools.cache(self._tokenizer.encode)
        self._read = self._encode if self.causal else functools.cache(self._tokenizer.input_ids)

        form = self.marked(design.demonstration or ("{input} {target}" if self.causal else "{input} {target}."))
        text = self.marked(design.text)
        self._asked = text
        self._shown = _filled(form, input=text, target="{target}")
        if self.causal:
            begun, _, end = form.partition("{target}")
            if "{input}" not in begun:
                raise DesignError(f"a causal model reads {{input}} before {{target}}; the demonstration is {form!r}")
            self._asked = _filled(begun, input=text).rstrip(" ")  # an answer's tokens begin with one
            self._shown = self._asked + " {target}" + end.removesuffix("\n") + "\n"

        positions = getattr(model.config, "positions", None)  # T5's are relative
        most = positions
        if positions is not None and self.causal:  # an answer's first token is had from the last one before it
            most = positions - target_length + 1
        self.length: int = design.length or most or DEFAULT_LENGTH
        if most is not None and self.length > most:
            raise DesignError(
                f"an input and its examples may have at most {most} tokens, not {self.length} (--shot-length): "
                f"{model.name} has {positions} positions, and an answer up to {target_length} tokens"
            )
        words = len(self._read(self._asked.replace("{input}", "")))
        if words >= self.length:
            raise DesignError(
                f"the words {self._asked!r} have {words} tokens without an input, and all of it may have {self.length} "
                "(--shot-length)"
            )

    def asked(self, text: str, follows: bool) -> tuple[list[int], bool]:
        """An input, after examples or as the first; and whether it was too long, and is cut."""
        before, after = (self._space * follows + self._asked).split("{input}")
        ids = self._read(before + text + after)
        if len(ids) <= self.length:
            return ids, False
        last = self._first + len(self._encode(before + text))  # where what follows the input begins
        return [*ids[: self.length - len(ids) + last], *ids[last:]], True

    def demonstration(self, text: str, target: str, follows: bool) -> list[int]:
        """An example, after others or as the first."""
        return self._encode(self._space * follows + _filled(self._shown, input=text, target=target))

    def together(self, examples: list[list[int]], own: list[int]) -> np.ndarray:
        """All that the model reads. A causal one needs a token before the last, from which its answer goes on."""
        ids = [*own[: self._first], *itertools.chain(*examples), *own[self._first :]]
        return np.array([self._start_id] * ((2 - len(ids)) * self.causal) + ids, np.int32)


def _drawn(design: PromptDesign, training: Examples | None, seed: int, most: int) -> list[tuple[str, str]]:
    """The examples that are shown, in their order; of as many as there is room for, `most`."""
    if training is None:
        raise DesignError("examples to be shown are drawn from a training split, and there is none")
    order = [int(row) for row in np.random.default_rng(seed).permutation(len(training))]
    order = [row for row in order if training.target_texts[row] != UNLABELED]
    wanted = design.shots or 1
    if len(order) < wanted:
        raise DesignError(f"{training.name} has {len(order)} examples to be shown, and {wanted} are wanted")
    labels = training.format.labels if training.format is not None else ()
    if design.balanced and labels:
        by_label = {label: [row for row in order if training.target_texts[row] == label] for label in labels}
        if absent := [repr(label) for label, rows in by_label.items() if not rows]:
            warnings.warn(f"{training.name} has no example of {', '.join(absent)} to be shown", stacklevel=3)
        turns = itertools.zip_longest(*by_label.values())
        order = [row for turn in turns for row in turn if row is not None]
    rows = order[: design.shots or most]  # an example has a token at the least
    return [(training.input_texts[row], training.target_texts[row]) for row in rows]


def _check_fields(name: str, text: str, *fields: str) -> None:
    if sorted(re.findall(r"\{(\w*)\}|[{}]", text)) != sorted(fields):
        wanted = " and ".join(f"{{{field}}}" for field in fields)
        raise DesignError(f"the {name} {text!r} should have {wanted}, each once, and no other braces")


def _filled(text: str, **fields: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: fields[match[1]], text)
