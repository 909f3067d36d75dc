"""Pages from templates: escaping, filters, and atomic writing."""

import jinja2
import pytest
from markupsafe import Markup

from prompt_jax.report import pages
from prompt_jax.report.pages import write_page

MAKE_ENVIRONMENT = pages._environment.__wrapped__  # which keeps no templates


def page_of(tmp_path, monkeypatch, template, **values) -> str:
    monkeypatch.setattr(pages, "_source", lambda name: template)
    monkeypatch.setattr(pages, "_environment", MAKE_ENVIRONMENT)
    write_page(tmp_path / "page.html", "any", **values)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_texts_are_escaped_and_plots_are_not(tmp_path, monkeypatch):
    text = page_of(tmp_path, monkeypatch, "{{ text }}{{ plot }}", text="<b>", plot=Markup("<svg></svg>"))
    assert text == "&lt;b&gt;<svg></svg>"
    assert page_of(tmp_path, monkeypatch, "{{ text }}", text="\ud800") == "?"


def test_numbers(tmp_path, monkeypatch):
    template = "{{ 2.345 | norm }} {{ 12345.6 | norm }} {{ -0.5 | effect }} {{ 0.25 | effect }} {{ 3 | twice }}"
    text = page_of(tmp_path, monkeypatch, template, filters={"twice": lambda value: 2 * value})
    assert text == "2.35 12,346 −0.5000 +0.2500 6"


def test_a_page_that_fails_is_not_written(tmp_path, monkeypatch):
    page_of(tmp_path, monkeypatch, "before")
    with pytest.raises(jinja2.UndefinedError):
        page_of(tmp_path, monkeypatch, "{{ missing }}")
    assert (tmp_path / "page.html").read_text() == "before"
