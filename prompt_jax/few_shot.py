"""Prompt design: the base is asked as it is, in words, with examples of the task before the input or without any.

What prompt tuning is compared with (Lester et al. 2021, section 1; Brown et al. 2020). Nothing is trained.
"""

import dataclasses
from typing import Any

import numpy as np

from prompt_jax.errors import UserError
from prompt_jax.examples import Examples, cut
from prompt_jax.models.hub import Model
from prompt_jax.task_format import UNLABELLED


class DesignError(UserError, ValueError):
    """A design that cannot be written; the message says what would be right."""


@dataclasses.dataclass(frozen=True)
class Design:
    """How the base is asked.

    Attributes:
      text: of an input, `{input}` being the task's.
      shots: how many examples of the training split stand before it; None is as many as there is room for.
      balanced: whether they are drawn from the labels in turn, or as they come. Free text has no labels.
      demonstration: how an example is written for an encoder, `{input}` being what `text` makes of its input and
        `{target}` its answer. It has to say itself where it ends: SentencePiece drops line breaks. A causal model reads
        its examples as it reads an input and its answer: with the start token between them and the end token after.
      length: the most tokens that all of it may have.
    """

    text: str = "{input}"
    shots: int | None = 0
    balanced: bool = True
    demonstration: str = "{input} {target}."
    length: int = 512

    def __post_init__(self) -> None:
        for name, text, fields in (
            ("text", self.text, ("{input}",)),
            ("demonstration", self.demonstration, ("{input}", "{target}")),
        ):
            if any(text.count(field) != 1 for field in fields):
                raise DesignError(f"the {name} {text!r} should have {' and '.join(fields)}, each once")
        if self.shots is not None and self.shots < 0:
            raise DesignError(f"there cannot be {self.shots} examples before an input")


def designed(
    examples: Examples, design: Design, model: Model, training: Examples | None = None, seed: int = 0
) -> tuple[Examples, float]:
    """Examples whose inputs are written by a design, and how many examples of the training split each has on average.

    The same ones stand before every input, the first drawn as the first, but for one of the same text; where there is
    no room for all of them, an input has the first ones that fit.

    Args:
      examples: to be answered.
      design: how.
      model: the base, whose tokenizer and special tokens are used.
      training: what examples are drawn from; needed for any.
      seed: of the draw.

    Raises:
      DesignError: examples are to be drawn, and there are fewer, or they have no answers.
    """
    assert model.tokenizer is not None
    tokenizer: Any = model.tokenizer
    own = [
        np.array(tokenizer.input_ids(design.text.replace("{input}", text)), np.int32) for text in examples.input_texts
    ]
    shown = [] if design.shots == 0 else _drawn(design, model, training, seed)
    start = len(getattr(tokenizer, "start", ()))  # which stands before all of it
    inputs, counts = [], []
    for text, ids in zip(examples.input_texts, own, strict=True):
        before: list[np.ndarray] = []
        room = design.length - len(ids)
        for of, demonstration in shown:
            if of == text:  # which would give the answer away
                continue
            if len(demonstration) > room:
                break
            room -= len(demonstration)
            before.append(demonstration)
        counts.append(len(before))
        ids = cut(ids, design.length, tokenizer.eos_id)
        inputs.append(np.concatenate([ids[:start], *before, ids[start:]]))
    truncated = {**examples.truncated, "inputs": sum(len(ids) > design.length for ids in own)}
    return dataclasses.replace(examples, inputs=inputs, truncated=truncated), float(np.mean(counts))


def _drawn(design: Design, model: Model, training: Examples | None, seed: int) -> list[tuple[str, np.ndarray]]:
    """The examples that are shown, in their order: the text of the input, and the tokens of both."""
    if training is None:
        raise DesignError("examples to be shown are drawn from a training split, and there is none")
    order = [int(row) for row in np.random.default_rng(seed).permutation(len(training))]
    order = [row for row in order if training.target_texts[row] != UNLABELLED]
    labels = training.format.labels if training.format is not None else ()
    if design.balanced and labels:
        by_label = {label: [row for row in order if training.target_texts[row] == label] for label in labels}
        turns = zip(*(rows for rows in by_label.values() if rows), strict=False)
        order = [row for turn in turns for row in turn]
    if len(order) < (design.shots or 1):
        each = " of all labels in turn" if design.balanced and labels else ""
        raise DesignError(f"{training.name} has {len(order)} examples to be shown{each}, and {design.shots} are wanted")
    most = design.length if design.shots is None else design.shots  # an example has a token at the least
    rows = order[:most]
    pairs = [(training.input_texts[row], training.target_texts[row]) for row in rows]
    return [(text, _demonstration(design, model, text, target)) for text, target in pairs]


def _demonstration(design: Design, model: Model, text: str, target: str) -> np.ndarray:
    tokenizer: Any = model.tokenizer
    asked = design.text.replace("{input}", text)
    if getattr(tokenizer, "causal", False):
        return np.array([*tokenizer.input_ids(asked), model.config.start_id, *tokenizer.target_ids(target)], np.int32)
    whole = design.demonstration.replace("{target}", target).replace("{input}", asked)
    return np.array(tokenizer.encode(whole), np.int32)
