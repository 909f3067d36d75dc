"""Options of decoding."""

import dataclasses
from typing import Annotated, Literal

from prompt_jax.config.constraints import NOT_NEGATIVE, POSITIVE, PROBABILITY, Constraint, check_fields
from prompt_jax.errors import ConfigError

_BEAMS = Constraint("at most 1024", lambda value: value <= 1024)


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How answers are generated: greedy decoding, beam search or sampling.

    Settings that are None come from the checkpoint's generation_config.json. Its sampling settings are ignored, because
    evaluation must be repeatable.

    Raises ConfigError for values that exclude each other.
    """

    beams: Annotated[int, POSITIVE, _BEAMS] | None = None
    """Number of beams: 1 is greedy decoding, more is beam search."""
    length_penalty: float | None = None
    """Beam search ranks hypotheses by log-probability / tokens ** length_penalty. Higher values favor long answers."""
    early_stopping: Literal["false", "true", "never"] | None = None
    """When beam search stops, as in Transformers: when no running beam could still be among the best at its current
    length (false) or at any length (never), or when as many hypotheses are finished as there are beams (true)."""
    temperature: Annotated[float, NOT_NEGATIVE] = 0.0
    """Sampling temperature. 0 does not sample."""
    top_k: Annotated[int, POSITIVE] | None = None
    """Sample from this many most probable tokens. None samples from all."""
    top_p: Annotated[float, PROBABILITY] = 1.0
    """Sample from the smallest set of most probable tokens whose total probability reaches this value."""
    min_new_tokens: Annotated[int, NOT_NEGATIVE] | None = None
    """Minimum number of tokens in an answer, without the end token."""
    no_repeat_ngram: Annotated[int, NOT_NEGATIVE] | None = None
    """Forbid repeating any n-gram of this many tokens in an answer; 0 allows all."""
    repetition_penalty: Annotated[float, POSITIVE] | None = None
    """For tokens already in the text, divide positive scores by this value and multiply negative ones. 1 is off."""
    banned_tokens: tuple[int, ...] = ()
    """Ids of tokens that are never generated, in addition to those the checkpoint bans."""
    seed: int = 0
    """Seed of sampling. In Python, pass a key to `generate` instead."""

    def __post_init__(self) -> None:
        check_fields(self, "decoding")
        if self.early_stopping not in (None, "false", "true", "never"):
            raise ConfigError(f"decoding.early_stopping is 'false', 'true' or 'never', not {self.early_stopping!r}")
        if self.beams is not None and self.beams > 1 and self.temperature > 0:
            raise ConfigError(
                f"decoding.temperature is {self.temperature} and decoding.beams is {self.beams}: sampling needs "
                "1 beam, and beam search needs temperature 0"
            )
        if self.temperature == 0 and (self.top_k is not None or self.top_p < 1):
            raise ConfigError("decoding.top_k and decoding.top_p need sampling: set decoding.temperature above 0")
        if self.beams == 1 and (self.length_penalty not in (None, 1) or self.early_stopping not in (None, "false")):
            raise ConfigError(
                "decoding.length_penalty and decoding.early_stopping need beam search: set decoding.beams above 1"
            )
