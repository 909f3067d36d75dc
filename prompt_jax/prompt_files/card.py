"""Parts of model cards, for adapters and for repositories (`prompt_jax.prompt_files.hub_card`).

What a prompt says of itself may be a stranger's: it stands in a card as literals, in YAML, in code, or in a block that
is indented, where nothing is interpreted.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_jax.prompt_files.metadata import PromptMetadata


def quoted(value: Any) -> str:
    """A value in JSON, without any character that is not to be seen; a text is one of YAML and Python as well."""
    return "".join(c if c.isprintable() else _escaped(c) for c in json.dumps(value, ensure_ascii=False))


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def header(base: str | None, *, adapter: bool, causal: bool, tags: Sequence[str]) -> list[str]:
    """The lines that the Hub reads (https://huggingface.co/docs/hub/model-cards#model-card-metadata)."""
    lines = [f"base_model: {quoted(base)}"] if base else []
    lines += ["library_name: peft"] if adapter else []
    lines += ["pipeline_tag: text-generation"] if causal else []
    tags = [f"base_model:adapter:{base}", *tags] if base else tags
    return ["---", *lines, *(["tags:"] if tags else []), *(f"- {quoted(tag)}" for tag in tags), "---"]


def block(said: Mapping[str, Any]) -> list[str]:
    """What is said, but for what says nothing, a line each; indented, and so text as it stands."""
    return [f"    {name}: {quoted(value)}" for name, value in said.items() if value or value == 0]


def facts(metadata: PromptMetadata) -> dict[str, Any]:
    """What is known of a prompt, but for its base."""
    said: dict[str, Any] = {"task": metadata.task, "step": metadata.step}
    if metadata.format is not None:
        said |= {"template": metadata.format.template, "labels": list(metadata.format.labels)}
    return said | {"scores": dict(metadata.scores)}
