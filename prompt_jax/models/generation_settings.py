"""What a checkpoint says about decoding."""

import dataclasses
from typing import Literal

EarlyStopping = Literal["false", "true", "never"]


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """A checkpoint's settings of generation. `Decoding` overrides those that it has a value for.

    Attributes:
      end_ids: ids that end an answer; empty for the configuration's `eos_id` alone.
      forced_first: the first token of every answer, as `<s>` of bart-large; an encoder-decoder's.
      forced_last: the tokens that an answer must end with when it reaches its greatest length.
      banned: tokens that are never generated.
      banned_first: tokens that are not generated first (after `forced_first`, if there is one).
      no_repeat_ngram: number of tokens of a sequence that is not repeated; 0 is off.
      encoder_no_repeat_ngram: number of tokens of a sequence that is not copied from the input; 0 is off.
      repetition_penalty: divides the positive and multiplies the negative scores of tokens that the text already has.
      min_length: minimum length in tokens, with those that generation starts from.
      min_new_tokens: minimum number of generated tokens.
      max_length, max_new_tokens: the same for the maximum; None where the checkpoint does not say.
      renormalize: whether scores are made log-probabilities again after all other rules.
      beams, length_penalty, early_stopping: of beam search, as in `Decoding`.
      not_applied: "name=value" of settings that change the next token and are not supported.
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
