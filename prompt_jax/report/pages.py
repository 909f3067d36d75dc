"""Pages that load nothing from anywhere, from the templates in `templates/`.

Texts come from data, from models and from strangers' files, so that all of them are escaped by Jinja; the only markup
put in as it is are the plots made here.
"""

import importlib.resources
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from prompt_jax.storage.files import atomic_write


def write_page(
    path: Path, template: str, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any
) -> None:
    """Writes a page, whole or not at all; the same values give the same bytes.

    Args:
      path: of the page.
      template: name of its template.
      filters: of that template alone.
      values: by their names in it.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"norm": _norm, "effect": _effect, **(filters or {})}
    page = environment.get_template(template).render(values)
    whole = page.encode("utf-8", errors="replace")  # JSON may hold halves of surrogate pairs
    atomic_write(path, lambda file: file.write(whole))


def _source(name: str) -> str:
    return importlib.resources.files("prompt_jax.report").joinpath("templates", name).read_text(encoding="utf-8")


def _norm(value: float) -> str:
    return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def _effect(value: float) -> str:
    """A difference of losses in nats."""
    return f"{value:+.4f}".replace("-", "−")
