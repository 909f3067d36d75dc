"""Parts of model cards, for adapters and for repositories (`prompt_jax.prompt_files.hub_card`).

A prompt's metadata may come from a stranger. A card shows it only as literals in YAML or code, or in an indented block,
where Markdown interprets nothing.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_jax.prompt_files.metadata import PromptMetadata


def quote(value: Any) -> str:
    """Return a value as JSON with invisible characters escaped. A text is also a literal of YAML and Python."""
    return "".join(c if c.isprintable() else _escape(c) for c in json.dumps(value, ensure_ascii=False))


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def yaml_header(base: str | None, *, adapter: bool, causal: bool, tags: Sequence[str]) -> str:
    """Return the metadata that the Hub reads (https://huggingface.co/docs/hub/model-cards#model-card-metadata)."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=base,
        library_name="peft" if adapter else None,
        pipeline_tag="text-generation" if causal else None,
        tags=[f"base_model:adapter:{base}", *tags] if base else list(tags),
    )
    return f"---\n{data}\n---"


def indented_block(values: Mapping[str, Any]) -> list[str]:
    """Return a line for each value that is not empty, indented so that Markdown shows it as is."""
    return [f"    {name}: {quote(value)}" for name, value in values.items() if value or value == 0]


def facts(metadata: PromptMetadata) -> dict[str, Any]:
    """Return the facts about a prompt for a card, without its base."""
    values: dict[str, Any] = {"task": metadata.task, "step": metadata.step}
    if metadata.format is not None:
        values |= {"template": metadata.format.template, "labels": list(metadata.format.labels)}
    return values | {"scores": dict(metadata.scores)}
