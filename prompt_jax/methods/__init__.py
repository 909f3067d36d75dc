"""Methods of tuning a frozen base model: one file each, and one line in METHODS.

To add a method:
  1. Write one file like soft_prompt.py: a subclass of `Method` (method.py) whose fields are its options, with
     `initialize` and `apply`. tests/toy_method.py is a minimal example.
  2. Add one line to `METHODS` below.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from prompt_jax.config.convert import ConversionError, from_dict
from prompt_jax.errors import ConfigError
from prompt_jax.methods.adapter import AdapterTuning
from prompt_jax.methods.full import FullTuning
from prompt_jax.methods.last_layers import LastLayersTuning
from prompt_jax.methods.method import Method
from prompt_jax.methods.multitask import MultitaskPromptTuning
from prompt_jax.methods.p_tuning import PTuning
from prompt_jax.methods.prefix import PrefixTuning
from prompt_jax.methods.soft_prompt import PromptTuning

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        PromptTuning,
        PrefixTuning,
        MultitaskPromptTuning,
        PTuning,
        AdapterTuning,
        LastLayersTuning,
        FullTuning,
    )
}


def find_method(name: Any) -> type[Method]:
    """Return the class of a method by its name. Raises ConfigError for an unknown name."""
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(f"prompt.method must be {', '.join(METHODS)}, not {name!r}")
    return METHODS[name]


def with_method(prompt: Method, name: str) -> Method:
    """Return a method with the options that `prompt` sets and the method also has, and defaults for the others."""
    method, options = find_method(name), {}
    for field in dataclasses.fields(prompt):
        if (value := getattr(prompt, field.name)) != field.default:
            with contextlib.suppress(ConversionError):  # the method lacks the option, or it has another type
                from_dict(method, {field.name: value})
                options[field.name] = value
    return method(**options)


def method_to_dict(method: Method) -> dict[str, Any]:
    """Return a method's name and options, as config.json holds them."""
    return {"method": method.name, **dataclasses.asdict(method)}


def method_from_dict(values: Any) -> Method:
    """Read the result of `method_to_dict`, or the `prompt` section of a configuration from an earlier version.

    Raises:
      ConversionError: an unknown option, or a value of another type.
      ConfigError: an unknown method, or an option that is no longer supported.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"prompt must be a JSON object, not {values!r}")
    options = dict(values)
    name = options.pop("method", PromptTuning.name)
    if _EARLIER & set(options):
        name, options = _from_earlier_version(name, options)
    return from_dict(find_method(name), options, "prompt")


# Earlier versions had one set of options for all methods. These are in it and no longer exist.
_EARLIER = {"init_rest", "per_task", "mlp_layers", "adapter", "adapter_width", "adapter_share"}
_SHARED = {"length", "sites", "placement", "init", "init_range", "init_vocab", "init_labels", "init_text", "init_file"}
_SHARED |= {"init_member", "tie_layers", "mlp_width", "task_length", "dropout", "shift_positions", "layers"}


def _from_earlier_version(name: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the name and the options of a method from the options of an earlier version."""
    for option, default in (("init_rest", "vocab"), ("mlp_layers", 1)):
        if (value := options.pop(option, default)) != default:
            raise ConfigError(f"prompt.{option} is {value!r}, which this version does not support")
    task_part = options.pop("per_task", None)
    if task_part is not None:
        name, options["task_part"] = MultitaskPromptTuning.name, task_part
    kind, width, share = (options.pop(f"adapter{part}", None) for part in ("", "_width", "_share"))
    if name == AdapterTuning.name:
        options |= {"kind": kind or "houlsby", "share": share, "width": None if width == 64 or share else width}
    fields = {field.name for field in dataclasses.fields(find_method(name))}
    return name, {option: value for option, value in options.items() if option in fields or option not in _SHARED}
