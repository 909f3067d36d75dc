"""Command line options from dataclasses, with tyro: their order, their help texts, and words in any order.

A verb is a dataclass. Its docstring and those below its fields are the help. `shown` in the class names the most used
options: `--help` lists them, in this order, and `--help-all` lists all. Without `shown`, `--help` lists all.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import (
    MISSING_NONPROP,
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from prompt_jax.cli.common import print_escaped
from prompt_jax.methods import METHODS, Method
from prompt_jax.storage.paths import parse_path

INLINE = tyro.conf.arg(name="")  # annotates a field whose own fields become options without a prefix

_OPTION = re.compile(r"--?[A-Za-z]")


def parse_words(kind: Any, default: Any, words: Sequence[str], verb: str) -> Any:
    """Parse a verb's words to an instance of its class. Exits with a message for wrong ones and after `--help`.

    Args:
      kind: the class.
      default: an instance with the default values, or None.
      words: the arguments, in any order. Those after `--` are no options.
      verb: its name.
    """
    options = words[: words.index("--")] if "--" in words else words
    if {"-h", "--help", "--help-all"} & set(options):
        _print_help(kind, default, verb, everything="--help-all" in options)
    parse = functools.partial(tyro.cli, kind, default=default, prog=f"prompt-jax {verb}", registry=_registry())
    if (listed := _list_of_words(kind)) is None:
        return parse(args=words)
    args, rest = parse(args=options, return_unknown_args=True)
    if any(_OPTION.match(word) for word in rest):
        return parse(args=options)  # exits with a message
    name, is_path = listed
    rest += words[len(options) + 1 :]
    return dataclasses.replace(args, **{name: (*getattr(args, name), *map(parse_path if is_path else str, rest))})


def _list_of_words(kind: Any) -> tuple[str, bool] | None:
    """Return the name of the field that takes all words that are no options, and whether these are paths."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if tyro.conf.Positional in getattr(hint, "__metadata__", ()) and typing.get_origin(_bare(hint)) is tuple:
            return name, typing.get_args(_bare(hint))[0] is Path
    return None


# --------------------------------------------------------------------------------------------------------------
# Help


def _print_help(kind: Any, default: Any, verb: str, *, everything: bool) -> None:
    """Print a verb's help and exit."""
    width = min(shutil.get_terminal_size().columns, 100)
    for paragraph in inspect.cleandoc(kind.__doc__).split("\n\n"):
        print_escaped(textwrap.fill(_one_line(paragraph), width) + "\n")
    print_escaped("Examples:" if len(kind.examples) > 1 else "Example:")
    print_escaped("\n".join(f"  {example}" for example in kind.examples) + "\n")
    shown = getattr(kind, "shown", "").split()
    registry = _registry(shown, hide=bool(shown) and not everything)
    try:
        tyro.cli(kind, default=default, description="", args=["--help"], prog=f"prompt-jax {verb}", registry=registry)
    except SystemExit:
        if shown and not everything:
            print_escaped(f"\nThese are the most used options. To list all: prompt-jax {verb} --help-all")
        raise


def _one_line(text: str) -> str:
    return " ".join(text.split())


@functools.cache
def field_texts(cls: type) -> dict[str, str]:
    """Return the docstrings below the fields of a dataclass and of its bases, each in one line."""
    texts = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):  # a class without source, such as one defined in a configuration file
            continue
        definition: Any = ast.parse(source).body[0]
        for field, text in itertools.pairwise(definition.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(value))):
                    texts[name] = _one_line(value)
    return texts


# --------------------------------------------------------------------------------------------------------------
# Rules for tyro


def _registry(shown: Sequence[str] = (), *, hide: bool = False) -> ConstructorRegistry:
    """Return rules for paths and dataclasses.

    Args:
      shown: the most used options, such as `train.steps`. They come first.
      hide: hide the others.
    """
    registry = ConstructorRegistry()
    registry.primitive_rule(_path_rule)
    sections: dict[type, str] = {}  # classes of nested options, and their prefix; filled from the outermost class on

    @registry.struct_rule
    def options(info: StructTypeInfo) -> StructConstructorSpec | None:
        cls: Any = info.type
        if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
            return None
        fields, inlined = _fields(cls, info.default)
        sections.update({type(field.default): f"{field.name}." for field in fields if _is_section(field)})
        prefix = sections.get(cls, "")
        order = [name.removeprefix(prefix) for name in shown if name.startswith(prefix)]
        first = [field for name in order for field in fields if field.name == name]
        positional = [field for field in fields if _is_positional(field)]
        rest = [field for field in fields if field not in (*positional, *first)]
        if hide:
            rest = [field if _is_section(field) else _hidden(field) for field in rest]
        return StructConstructorSpec(functools.partial(_build, cls, inlined), (*positional, *first, *rest))

    return registry


def _fields(cls: Any, default: Any) -> tuple[list[StructFieldSpec], dict[str, tuple[type, list[str]]]]:
    """Return the fields of a dataclass, and for each INLINE field its class and its fields' names."""
    fields: list[StructFieldSpec] = []
    inlined = {}
    if issubclass(cls, Method):
        text = "The method, which decides on the other options --prompt.*."
        named: Any = Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(METHODS)}}}")]
        fields.append(StructFieldSpec("method", named, cls.name, text))
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint, value = hints[field.name], getattr(default, field.name, _default(field))
        if INLINE in getattr(hint, "__metadata__", ()):
            part = _bare(hint)
            inner, _ = _fields(part, value)
            inlined[field.name] = part, [each.name for each in inner]
            fields += inner
        else:
            help_text: Any = functools.partial(_text, cls, field.name, value)
            fields.append(StructFieldSpec(field.name, _with_metavar(hint), value, help_text))
    return fields, inlined


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return MISSING_NONPROP if field.default is dataclasses.MISSING else field.default


def _text(cls: type, name: str, value: Any) -> str:
    """Return the help of a field: its text, or that of its options' class."""
    described = (value.__doc__ or "") if dataclasses.is_dataclass(value) else ""
    return field_texts(cls).get(name) or _one_line(described.split("\n\n")[0])


def _build(cls: Any, inlined: dict[str, tuple[Any, list[str]]], **values: Any) -> Any:
    for name, (part, names) in inlined.items():
        values[name] = part(**{each: values.pop(each) for each in names})
    if issubclass(cls, Method):
        del values["method"]  # `train.choose_method` has read it
    return cls(**values)


def _is_section(field: StructFieldSpec) -> bool:
    return dataclasses.is_dataclass(field.default)


def _is_positional(field: StructFieldSpec) -> bool:
    return tyro.conf.Positional in getattr(field.type, "__metadata__", ())


def _hidden(field: StructFieldSpec) -> StructFieldSpec:
    hint: Any = Annotated[(field.type, tyro.conf.Suppress)]
    return dataclasses.replace(field, type=hint)


def _bare(hint: Any) -> Any:
    return _bare(typing.get_args(hint)[0]) if typing.get_origin(hint) is Annotated else hint


def _with_metavar(hint: Any) -> Any:
    """Replace tyro's placeholders for optional values and lists, such as `{None}|{[STR [STR ...]]}`, by `STR ...`.

    The defaults None and () are not printed.
    """
    kind = typing.get_origin(_bare(hint))
    has_one = any(isinstance(each, type(INLINE)) for each in getattr(hint, "__metadata__", ()))
    if has_one or kind not in (tuple, typing.Union, types.UnionType):
        return hint
    return Annotated[hint, tyro.conf.arg(metavar=_metavar(hint), help_behavior_hint=_default_text)]


def _default_text(default: str) -> str:
    return "" if default in ("", "None") else f"(default: {default})"


def _metavar(hint: Any) -> str:
    hint = _bare(hint)
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return "|".join(_metavar(each) for each in arguments if each is not type(None))
    if kind is tuple:
        return " ".join("..." if each is Ellipsis else _metavar(each) for each in arguments)
    if kind is Literal:
        return f"{{{','.join(map(str, arguments))}}}"
    return hint.__name__.upper()


def _path_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Parse paths, including `gs://` paths, which pathlib would take for a folder `gs:`."""
    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: parse_path(words[0]),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda value: [str(value)],
    )
