"""Write self-contained HTML pages from the templates in `templates/`.

Texts come from data, models and untrusted files, so Jinja escapes all of them. Only this package's plots are inserted
as markup.
"""

import functools
import importlib.resources
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from prompt_jax.storage.files import atomic_write


def write_page(
    path: Path, template: str, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any
) -> None:
    """Write a page atomically. The same values give the same bytes.

    Args:
      path: the path of the page.
      template: the name of the page's template.
      filters: Jinja filters for this template.
      values: the variables of the template.
    """
    environment = _environment()
    environment.filters |= filters or {}
    page = environment.get_template(template).render(values)
    data = page.encode("utf-8", errors="replace")  # JSON may contain half a surrogate pair
    atomic_write(path, lambda file: file.write(data))


@functools.cache
def _environment() -> jinja2.Environment:
    """Return the environment of all pages, which keeps compiled templates."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"norm": _norm, "effect": _effect}
    return environment


def _source(name: str) -> str:
    return importlib.resources.files("prompt_jax.report").joinpath("templates", name).read_text(encoding="utf-8")


def _norm(value: float) -> str:
    return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def _effect(value: float) -> str:
    """Return a difference of losses in nats."""
    return f"{value:+.4f}".replace("-", "−")
