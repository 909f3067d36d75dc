"""`HuggingFace`: how Hugging Face's checkpoints store a family's config and tensors."""

import dataclasses
import reprlib
import typing
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from prompt_jax.errors import CheckpointError


class ConfigValues:
    """The values of a config.json. Each method checks the value it returns.

    Args:
      config: Transformers' config object of the model, which supplies defaults.
      source: the file's name in error messages.

    Raises (each method):
      CheckpointError: the value is invalid or not supported.
    """

    def __init__(self, config: Any, source: str):
        self.config, self.source = config, source

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value, or the default if it is missing or null."""
        value = getattr(self.config, name, None)
        return default if value is None else value

    def integer(self, name: str, minimum: int = 1, default: int | None = None) -> int:
        value = self.get(name, default)
        if isinstance(value, list) and value:  # with several end tokens, the first ends training targets
            value = value[0]
        if type(value) is not int or value < minimum:
            self.fail(f"{name} is {reprlib.repr(value)}; expected a whole number of at least {minimum}")
        return value

    def token_id(self, name: str, default: int | None = None) -> int:
        """Return the id of a special token, which must be below `vocab_size`."""
        value, vocab_size = self.integer(name, 0, default), self.integer("vocab_size")
        if value >= vocab_size:
            self.fail(f"{name} is {value}, and vocab_size is {vocab_size}")
        return value

    def fraction(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        if type(value) not in (int, float) or not 0 <= value < 1:
            self.fail(f"{name} is {reprlib.repr(value)}; expected a number in [0, 1)")
        return float(value)

    def number(self, name: str, *default: None) -> Any:
        """Return a positive number, or None if it is missing and that is the default."""
        value = self.get(name)
        if (type(value) not in (int, float) or not 0 < value < float("inf")) and (value, *default) != (None, None):
            self.fail(f"{name} is {reprlib.repr(value)}; expected a positive number")
        return value

    def choice(self, name: str, allowed: tuple[Any, ...]) -> Any:
        """Return a value that must be one of `allowed`; the first by default."""
        value = self.get(name, allowed[0])
        if not any(value is each or (type(value) is str and value == each) for each in allowed):
            self.fail(f"{name} is {reprlib.repr(value)}; supported: {', '.join(map(repr, allowed))}")
        return value

    def fail(self, problem: str) -> NoReturn:
        raise CheckpointError(f"{self.source}: {problem}")


@dataclasses.dataclass(frozen=True)
class HuggingFace:
    """A family's config.json and tensors in Hugging Face's checkpoints.

    Attributes:
      model_type: `model_type` in config.json.
      architecture: the name of Transformers' class.
      fields: maps field names of our config to names in config.json.
      also_read: further values of `model_type` that are read.
      unsupported: related values of `model_type` that are not read, and why.
      options: supported values of options in config.json; the first is Transformers' default.
      multiples: pairs (a, b) of names in config.json; the value of a must be a multiple of that of b.
      defaults: computes values for null fields.
      read: computes further fields of our config, from config.json and whether the output is tied.
      write: computes further values for config.json from our config.
      body: the attribute of Transformers' class that holds the model without its head.
      renamed: pairs of a regular expression for the start of a tensor's name, and its replacement.
      unused: regular expression for tensors that are ignored.
      copies: for a tensor, names of copies that a checkpoint may also contain.
      output: the names of the output weights and the embedding table, which are equal if the output is tied.
      optional: shapes of tensors that may be missing and are then zero.
    """

    model_type: str
    architecture: str
    fields: Mapping[str, str]
    also_read: tuple[str, ...] = ()
    unsupported: Mapping[str, str] = dataclasses.field(default_factory=dict)
    options: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    multiples: tuple[tuple[str, str], ...] = ()
    defaults: Callable[[ConfigValues], Mapping[str, Any]] = lambda values: {}
    read: Callable[[ConfigValues, bool], Mapping[str, Any]] = lambda values, tied: {}
    write: Callable[[Any], Mapping[str, Any]] = lambda config: {}
    body: str = ""
    renamed: tuple[tuple[str, str], ...] = ()
    unused: str | None = None
    copies: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    output: tuple[str, str] | None = None
    optional: Callable[[Any], Mapping[str, tuple[int, ...]]] = lambda config: {}

    def config(self, kind: type, values: ConfigValues, *, tied_output: bool, causal: bool) -> Any:
        """Return a model's config, an instance of the class `kind`.

        Raises:
          CheckpointError: a value is invalid or not supported.
        """
        for name, allowed in self.options.items():
            values.choice(name, allowed)
        for name, divisor in self.multiples:
            if values.integer(name) % values.integer(divisor):
                values.fail(f"{name} {values.get(name)} is no multiple of {divisor} {values.get(divisor)}")
        hints, defaults = typing.get_type_hints(kind), self.defaults(values)
        fields: dict[str, Any] = {}
        for ours, theirs in self.fields.items():
            if hints[ours] is int:
                fields[ours] = values.integer(theirs, default=defaults.get(theirs))
            elif hints[ours] is float:
                fields[ours] = values.fraction(theirs, defaults.get(theirs))
            else:
                fields[ours] = values.choice(theirs, self.options[theirs])
        end = values.token_id("eos_token_id")
        pad = end if causal else 0
        if not causal or values.get("pad_token_id", pad) != -1:  # the first Llamas' value for none
            pad = values.token_id("pad_token_id", pad)
        start = end if causal else values.token_id("decoder_start_token_id", pad)
        more = self.read(values, tied_output)
        return kind(**fields, pad_id=pad, eos_id=end, start_id=start, **more)

    def config_json(self, config: Any) -> dict[str, Any]:
        """Return the content of config.json."""
        return {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            **{theirs: getattr(config, ours) for ours, theirs in self.fields.items()},
            **self.write(config),
            "pad_token_id": config.pad_id,
            "eos_token_id": config.eos_id,
        }
