"""Options of decoding."""

import dataclasses
from typing import Annotated, Literal

from prompt_jax.config.constraints import NOT_NEGATIVE, POSITIVE, PROBABILITY, check_fields
from prompt_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How answers are generated: the most probable token at each step, beam search, or sampling.

    Settings left at None come from the checkpoint's generation_config.json, except its sampling, which is not used
    because evaluation must be repeatable.

    Raises ConfigError for values that do not go together.
    """

    beams: Annotated[int, POSITIVE] | None = None
    """Hypotheses kept for each input: 1 takes the most probable token at each step, more is beam search."""
    length_penalty: float | None = None
    """Beam search ranks hypotheses by log-probability / tokens ** this: 0 ranks by log-probability alone; higher values
    favor long answers."""
    early_stopping: Literal["false", "true", "never"] | None = None
    """When beam search ends, as in Transformers: once no hypothesis, at its present length, could get among the
    finished ones (false); once as many have finished as there are beams (true); or once none could at any length
    (never)."""
    temperature: Annotated[float, NOT_NEGATIVE] = 0.0
    """Above 0, tokens are drawn at random, with probabilities raised to the power of 1 / temperature."""
    top_k: Annotated[int, POSITIVE] | None = None
    """Draw from this many of the most probable tokens."""
    top_p: Annotated[float, PROBABILITY] = 1.0
    """Draw from the fewest of the most probable tokens that have at least this probability together."""
    min_new_tokens: Annotated[int, NOT_NEGATIVE] | None = None
    """Minimum number of tokens of an answer, without its end token."""
    no_repeat_ngram: Annotated[int, NOT_NEGATIVE] | None = None
    """No sequence of this many tokens is repeated in an answer; 0 allows all."""
    repetition_penalty: Annotated[float, POSITIVE] | None = None
    """Divides positive scores, and multiplies negative ones, of tokens that the text already has; 1 changes nothing."""
    banned_tokens: tuple[int, ...] = ()
    """Ids of tokens that are never generated, beside those that the checkpoint bans."""
    seed: int = 0
    """Of sampling. In Python `generate` takes a key instead."""

    def __post_init__(self) -> None:
        check_fields(self, "decoding")
        if self.early_stopping not in (None, "false", "true", "never"):
            raise ConfigError(f"decoding.early_stopping is 'false', 'true' or 'never', not {self.early_stopping!r}")
        if self.beams is not None and self.beams > 1 and self.temperature > 0:
            raise ConfigError(
                f"decoding.temperature is {self.temperature} and decoding.beams is {self.beams}: answers are either "
                "drawn at random, with 1 beam, or searched for, at temperature 0"
            )
        if self.temperature == 0 and (self.top_k is not None or self.top_p < 1):
            raise ConfigError("decoding.top_k and decoding.top_p are of sampling; set decoding.temperature as well")
        if self.beams == 1 and (self.length_penalty not in (None, 1) or self.early_stopping not in (None, "false")):
            raise ConfigError(
                "decoding.length_penalty and decoding.early_stopping need beam search: set decoding.beams above 1"
            )
