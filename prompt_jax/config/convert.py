"""JSON objects to dataclasses: configurations, metadata, summaries, and other libraries' configurations."""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from prompt_jax.errors import UserError
from prompt_jax.storage.paths import parse_path

T = TypeVar("T")


class ConversionError(UserError, ValueError):
    """A value that does not fit its field. The message names the field, the value, and what would be right."""


def from_dict(
    cls: type[T], values: Any, name: str = "", *, unknown: Literal["error", "ignore"] = "error", nan: bool = False
) -> T:
    """Build a dataclass, and the dataclasses in it, from a JSON object.

    Lists become tuples and texts become paths where the fields ask for them. An integer is also a float; a bool is
    neither.

    Args:
      cls: the dataclass.
      values: the result of `json.loads`.
      name: the prefix of field names in messages, such as `prompt`.
      unknown: the treatment of fields that the dataclass does not have.
      nan: read null as NaN where a float is expected, as `prompt_jax.storage.json_text` writes it.

    Raises:
      ConversionError: the value is not a JSON object, a field is missing or unknown, or a value has another type.
    """
    import msgspec

    prepared = _prepared(cls, values, name, unknown, nan)
    try:
        return msgspec.convert(prepared, cls, dec_hook=_decode)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, UserError):  # the dataclass refused the values
            raise error.__cause__ from None
        raise ConversionError(_message(cls, prepared, name, str(error))) from None


def _decode(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return parse_path(value)
    raise ValueError("Expected a path")


def _prepared(hint: Any, value: Any, at: str, unknown: str, nan: bool) -> Any:
    """Return the value with NaN for null, after a check for unknown fields and lone surrogates. msgspec does none."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value is None:
        return math.nan if nan and hint is float else None
    takes_text = {str, Path, Any} & set(arguments if _is_union(kind) else [hint])
    if isinstance(value, str) and not takes_text and not _is_unicode(value):
        raise ConversionError(f"{at or 'the file'} must be {_described(hint)}, not {_shown(value)}")
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConversionError(f"{at or 'the file'} must be a JSON object, not {_shown(value)}")
        all_hints, prefix = typing.get_type_hints(hint), f"{at}." if at else ""
        hints = {field.name: all_hints[field.name] for field in dataclasses.fields(hint)}
        if unknown == "error" and (extra := sorted(map(str, set(value) - set(hints)))):
            raise ConversionError(f"unknown field {prefix}{extra[0]}; the fields are {', '.join(hints)}")
        return {
            name: _prepared(hints[name], part, prefix + name, unknown, nan)
            for name, part in value.items()
            if name in hints
        }
    if kind in (dict, Mapping) and isinstance(value, Mapping):
        return {
            _prepared(arguments[0], name, f"a name in {at}", unknown, nan): _prepared(
                arguments[1], part, f"{at}.{name}", unknown, nan
            )
            for name, part in value.items()
        }
    if kind in (tuple, list) and isinstance(value, list | tuple):
        parts = arguments if len(arguments) == len(value) and Ellipsis not in arguments else arguments[:1] * len(value)
        pairs = enumerate(zip(parts, value, strict=True))
        return [_prepared(part, item, f"{at}[{i}]", unknown, nan) for i, (part, item) in pairs]
    options = [option for option in arguments if option is not type(None)] if _is_union(kind) else []
    return _prepared(options[0], value, at, unknown, nan) if len(options) == 1 else value


def _is_unicode(text: str) -> bool:
    """Return whether a text can be encoded. JSON can hold lone surrogates, which msgspec cannot compare with others."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_union(kind: Any) -> bool:
    return kind in (typing.Union, types.UnionType)


def _message(cls: type, values: Any, at: str, problem: str) -> str:
    """Return a message that names the field and the problem.

    msgspec's text ends with the field's path, such as "- at `$.ensemble.init[0]`".
    """
    path = (re.findall(r"`\$\.?([^`]*)`$", problem) or [""])[0]
    names = [path] if path else []
    missing = re.search(r"missing required field `([^`]+)`", problem)
    if missing:
        return f"{'.'.join(filter(None, [at, *names, missing[1]]))} is missing"
    path = re.sub(r"\[\.\.\.\].*|(\[\d+\])+$", "", path)  # show a whole dict, or list of simple values
    names, hint, value = [path] if path else [], cls, values
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        hint = _without_none(hint)
        if name and (not dataclasses.is_dataclass(hint) or name not in value):
            break
        hint = typing.get_type_hints(hint)[name] if name else typing.get_args(hint)[0]
        value = value[name or int(index)]
    return f"{'.'.join(filter(None, [at, *names])) or 'the file'} must be {_described(hint)}, not {_shown(value)}"


def _without_none(hint: Any) -> Any:
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    return options[0] if len(options) == 1 and type(None) in typing.get_args(hint) else hint


def _described(hint: Any) -> str:
    if (some := _without_none(hint)) != hint and typing.get_origin(some) is Literal:
        return f"{_described(some)} or null"
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else _PREFIX.sub("", str(hint))


_PREFIX = re.compile(r"\b(?:typing|pathlib|collections|prompt_jax)\.(?:\w+\.)*")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
