"""A checkpoint's settings for generation."""

import dataclasses
from typing import Literal

EarlyStopping = Literal["false", "true", "never"]


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """Settings from a checkpoint's generation_config.json. Values set in `Decoding` override them.

    Attributes:
      end_ids: ids that end an answer; if empty, only the config's `eos_id` does.
      forced_first: the first token of every answer of an encoder-decoder, such as `<s>` for bart-large.
      forced_last: the tokens that end an answer at the maximum length.
      banned: tokens that are never generated.
      banned_first: tokens that are not generated first (after `forced_first`, if set).
      no_repeat_ngram: no n-gram of this many tokens is repeated; 0 is off.
      encoder_no_repeat_ngram: no n-gram of this many tokens is copied from the input; 0 is off.
      repetition_penalty: for tokens already in the text, divides positive and multiplies negative scores.
      min_length: minimum length in tokens, including the tokens that generation starts from.
      min_new_tokens: minimum number of generated tokens.
      max_length, max_new_tokens: the maxima; None if the checkpoint does not set them.
      renormalize: whether scores are normalized to log-probabilities after all other rules.
      beams, length_penalty, early_stopping: beam search, as in `Decoding`.
      not_applied: "name=value" of unsupported settings that would change the generated tokens.
    """

    end_ids: tuple[int, ...] = ()
    forced_first: int | None = None
    forced_last: tuple[int, ...] = ()
    banned: tuple[int, ...] = ()
    banned_first: tuple[int, ...] = ()
    no_repeat_ngram: int = 0
    encoder_no_repeat_ngram: int = 0
    repetition_penalty: float = 1.0
    min_length: int = 0
    min_new_tokens: int = 0
    max_length: int | None = None
    max_new_tokens: int | None = None
    renormalize: bool = False
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = "false"
    not_applied: tuple[str, ...] = ()
