"""How a family's configuration and tensors are written in a checkpoint folder of Hugging Face's layout."""

import dataclasses
import reprlib
import typing
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from prompt_jax.errors import CheckpointError


class Values:
    """The values of a config.json, checked as they are taken.

    Args:
      config: Transformers' configuration of the model, which has the defaults.
      source: named in errors.
    """

    def __init__(self, config: Any, source: str):
        self.config, self.source = config, source

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value; the default if the configuration has none, or null."""
        value = getattr(self.config, name, None)
        return default if value is None else value

    def whole(self, name: str, least: int = 1, default: int | None = None) -> int:
        value = self.get(name, default)
        if isinstance(value, list) and value:  # of several end tokens, the first ends targets
            value = value[0]
        if type(value) is not int or value < least:
            self.fail(f"{name} is {reprlib.repr(value)}; a whole number from {least} on was expected")
        return value

    def token(self, name: str, default: int | None = None) -> int:
        """Return the id of a special token, which the vocabulary must have."""
        value, entries = self.whole(name, 0, default), self.whole("vocab_size")
        if value >= entries:
            self.fail(f"{name} is {value}, and vocab_size is {entries}")
        return value

    def fraction(self, name: str) -> float:
        value = self.get(name)
        if type(value) not in (int, float) or not 0 <= value < 1:
            self.fail(f"{name} is {reprlib.repr(value)}; a number from 0 to 1 was expected")
        return float(value)

    def one_of(self, name: str, allowed: tuple[Any, ...]) -> Any:
        """Return the value of an option of which only some values are supported; the first if the file has none."""
        value = self.get(name, allowed[0])
        if not any(value is each or (type(value) is str and value == each) for each in allowed):
            self.fail(f"{name} is {reprlib.repr(value)}; supported is {' and '.join(map(repr, allowed))}")
        return value

    def fail(self, problem: str) -> NoReturn:
        raise CheckpointError(f"{self.source}: {problem}")


@dataclasses.dataclass(frozen=True)
class HuggingFace:
    """A family's layout.

    Attributes:
      model_type: `model_type` in a config.json that is written; `also_read` has others that are read.
      architecture: Transformers' class.
      fields: the names in config.json of the configuration's fields.
      options: options of which only some values are supported; the first is Transformers' default.
      multiples: (a, b): the value a must be a multiple of the value b.
      defaults: values for null fields, given the others.
      read, write: what else of the configuration follows from config.json, and the other way round.
      prefix: that names of tensors have in files of a model with a language modeling head.
      unused: a pattern of tensors that no model needs.
      copies: for a tensor, the names that copies of it may have.
      output: the output weights and the embedding table, which are equal or the same tensor if the output is tied.
      optional: shapes of tensors that files may lack; they are zero then.
    """

    model_type: str
    architecture: str
    fields: Mapping[str, str]
    also_read: tuple[str, ...] = ()
    options: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    multiples: tuple[tuple[str, str], ...] = ()
    defaults: Callable[[Values], Mapping[str, int]] = lambda values: {}
    read: Callable[[Values, bool], Mapping[str, Any]] = lambda values, tied: {}
    write: Callable[[Any], Mapping[str, Any]] = lambda config: {}
    prefix: str = ""
    unused: str | None = None
    copies: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    output: tuple[str, str] | None = None
    optional: Callable[[Any], Mapping[str, tuple[int, ...]]] = lambda config: {}

    def config(self, kind: type, values: Values, *, tied_output: bool, causal: bool) -> Any:
        """Return a model's configuration, of the class `kind`.

        Raises:
          CheckpointError: a value that no model can have, or that is not supported.
        """
        for name, allowed in self.options.items():
            values.one_of(name, allowed)
        for whole, part in self.multiples:
            if values.whole(whole) % values.whole(part):
                values.fail(f"{whole} {values.get(whole)} is no multiple of {part} {values.get(part)}")
        hints, defaults = typing.get_type_hints(kind), self.defaults(values)
        fields: dict[str, Any] = {}
        for ours, theirs in self.fields.items():
            if hints[ours] is int:
                fields[ours] = values.whole(theirs, default=defaults.get(theirs))
            elif hints[ours] is float:
                fields[ours] = values.fraction(theirs)
            else:
                fields[ours] = values.one_of(theirs, self.options[theirs])
        end = values.token("eos_token_id")
        pad = values.token("pad_token_id", end if causal else 0)
        start = end if causal else values.token("decoder_start_token_id", pad)
        more = self.read(values, tied_output)
        return kind(**fields, pad_id=pad, eos_id=end, start_id=start, **more)

    def config_json(self, config: Any) -> dict[str, Any]:
        """Return the content of a config.json."""
        return {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            **{theirs: getattr(config, ours) for ours, theirs in self.fields.items()},
            **self.write(config),
            "pad_token_id": config.pad_id,
            "eos_token_id": config.eos_id,
        }
