"""`report.html`: what a run did, from the files in its folder, in one page that loads nothing from anywhere.

The same files give the same bytes. Texts come from data and from models, so that all of them are escaped by Jinja;
the only markup put in as it is are the plots made here.
"""

import dataclasses
import importlib.resources
import io
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from prompt_jax import config as configuration
from prompt_jax.config import ConfigError, Experiment
from prompt_jax.errors import UserError
from prompt_jax.inspection import Inspection
from prompt_jax.training.logs import read_log

_SAMPLES = 12  # right and wrong answers shown, of each
_MAX_LABELS = 20  # beyond which a confusion table is no help
_TEXT_LIMIT = 600  # characters of an input shown


class ReportError(UserError, ValueError):
    """A run's folder that no report can be made of; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """A run's `summary.json`. Values of metrics are fractions.

    Attributes:
      name: of the run.
      model: the base's `name`, `revision`, `fingerprint` and number of `parameters`.
      trained_parameters: how many were trained beside them.
      steps: optimizer steps that were run.
      best: `metric`, `score` and `step` of the best evaluation on the validation split.
      seconds: wall-clock time of the training.
      examples: by split.
      truncated: by split, the number of `inputs` and `targets` that were cut.
      validation: metrics of the best prompt.
      test: metrics of the base alone (`before`) and with the best prompt (`after`); None without a test split.
      versions: of packages.
    """

    name: str
    model: dict[str, Any]
    trained_parameters: int
    steps: int
    best: dict[str, Any]
    seconds: float
    examples: dict[str, int]
    truncated: dict[str, dict[str, int]]
    validation: dict[str, float]
    test: dict[str, dict[str, float]] | None
    versions: dict[str, str]


def write_report(folder: Path, inspection: Inspection | None) -> Path:
    """Writes `report.html` into a run's folder.

    Args:
      folder: of the run, with `config.json`, `summary.json`, and, if they are there, `metrics.jsonl` (curves) and
        `predictions.jsonl` (confusion table, sample answers).
      inspection: of the best prompt; None leaves its section out.

    Returns:
      The path of the page.

    Raises:
      ReportError: a file that is missing or cannot be read.
    """
    experiment, summary = _read_config(folder / "config.json"), _read_summary(folder / "summary.json")
    predictions = _read_predictions(folder / "predictions.jsonl")
    labels = _labels(experiment, predictions)
    page = _template().render(
        summary=summary,
        experiment=experiment,
        task=experiment.data.task or str(experiment.data.train),
        share=summary.trained_parameters / (summary.trained_parameters + summary.model["parameters"]),
        headline=_headline(summary),
        curves=_curves(read_log(folder), summary),
        labels=labels,
        confusion=_confusion(predictions, labels),
        samples=_samples(predictions),
        answers=len(predictions),
        inspection=inspection,
        norm_plot=None if inspection is None else _norm_plot(inspection),
        cut={split: counts for split, counts in summary.truncated.items() if any(counts.values())},
        config=configuration.to_json(experiment),
    )
    path = folder / "report.html"
    path.write_bytes(page.encode("utf-8", errors="replace"))  # JSON may hold halves of surrogate pairs
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": _percent,
        "duration": _duration,
        "norm": lambda norm: f"{norm:,.2f}" if norm < 1000 else f"{norm:,.0f}",
        "metric": _metric_name,
        "shorten": _shorten,
        "exp": math.exp,
    }
    source = importlib.resources.files("prompt_jax").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source)


# --------------------------------------------------------------------------------------------------------------
# The run's files


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ReportError(f"{path} is missing; a run that has come to its end has one") from error
    except UnicodeDecodeError as error:
        raise ReportError(f"{path}: not UTF-8: {error}") from error


def _read_config(path: Path) -> Experiment:
    try:
        return configuration.from_json(_read_text(path))
    except ConfigError as error:
        raise ReportError(f"{path}: {error}") from error


def _read_summary(path: Path) -> Summary:
    try:
        values = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ReportError(f"{path}: no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ReportError(f"{path}: a JSON {type(values).__name__}, not an object")
    fields = [field.name for field in dataclasses.fields(Summary)]
    if missing := [name for name in fields if name not in values]:
        raise ReportError(f"{path}: there is no {', '.join(missing)} in it")
    return Summary(**{name: values[name] for name in fields})


def _read_predictions(path: Path) -> list[dict[str, Any]]:
    """One row a test example; empty if there is no file."""
    lines = _read_text(path).split("\n") if path.exists() else []  # splitlines would break texts at U+2028
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            rows.append({name: row[name] for name in ("input", "target", "before", "prediction", "label_scores")})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ReportError(f"{path}:{number}: not a prediction: {type(error).__name__}: {error}") from error
    return rows


def _labels(experiment: Experiment, predictions: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The task's labels; empty if any text is an answer."""
    if predictions and predictions[0]["label_scores"]:
        return tuple(predictions[0]["label_scores"])
    return experiment.data.labels


# --------------------------------------------------------------------------------------------------------------
# What is shown of them


@dataclasses.dataclass(frozen=True)
class Headline:
    """One score as a number to be read from afar; `before` is None where only the tuned model was scored."""

    name: str
    before: str | None
    after: str
    note: str


def _headline(summary: Summary) -> list[Headline]:
    """The metric that chose the prompt, the same over ranked labels and the share of invalid answers, if known."""
    metric, step = summary.best["metric"], summary.best["step"]
    validated = Headline(
        f"Validation {_metric_name(metric)}", None, _percent(summary.best["score"]), f"at step {step:,}, the best"
    )
    if summary.test is None:
        return [validated]
    before, after = summary.test["before"], summary.test["after"]
    return [
        Headline(f"Test {_metric_name(name)}", _percent(before.get(name)), _percent(after[name]), note)
        for name, note in (
            (metric, "of generated answers"),
            (f"rank/{metric}", "the most probable label as the answer"),
            ("invalid", "of generated answers"),
        )
        if name in after
    ] + [validated]


def _confusion(predictions: Sequence[dict[str, Any]], labels: tuple[str, ...]) -> list[tuple[str, list[int]]]:
    """For each expected label, how often each label, and in the last place anything else, was answered."""
    if not predictions or not 0 < len(labels) <= _MAX_LABELS:
        return []
    pairs = Counter((row["target"], row["prediction"]) for row in predictions)
    table = []
    for target in labels:
        counts = [pairs[target, answer] for answer in labels]
        total = sum(count for (expected, _), count in pairs.items() if expected == target)
        table.append((target, [*counts, total - sum(counts)]))
    return table


def _samples(predictions: Sequence[dict[str, Any]]) -> list[tuple[str, int, list[dict[str, Any]]]]:
    """Wrong and right answers: title, how many there are, and some of them from all over the split."""
    wrong = [row for row in predictions if row["prediction"] != row["target"]]
    right = [row for row in predictions if row["prediction"] == row["target"]]
    return [
        (title, len(rows), [rows[i] for i in _spread(len(rows), _SAMPLES)])
        for title, rows in (("Wrong", wrong), ("Right", right))
        if rows
    ]


def _spread(size: int, count: int) -> list[int]:
    """At most `count` different indices below `size`, evenly spaced."""
    return [i * size // count for i in range(count)] if size > count else list(range(size))


_METRICS = {"exact_match": "exact match", "f1": "F1", "mean_class_f1": "mean class F1", "invalid": "invalid answers"}


def _metric_name(name: str) -> str:
    ranked = name.startswith("rank/")
    bare = name.removeprefix("rank/")
    return _METRICS.get(bare, bare) + (" by ranking" if ranked else "")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (seconds, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "under 1 s"


def _shorten(text: str | None) -> str:
    if not text:
        return "–" if text is None else "(empty)"
    return text if len(text) <= _TEXT_LIMIT else f"{text[:_TEXT_LIMIT]}…"


# --------------------------------------------------------------------------------------------------------------
# Plots

# Matplotlib wants colours, and the page has two schemes of them: each of these stands for a CSS variable.
_INK, _MUTED, _GRID, _ACCENT, _SECOND = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _GRID: "--grid", _ACCENT: "--accent", _SECOND: "--second"}
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",  # text that can be selected, in the page's font
    "svg.hashsalt": "prompt_jax",  # the ids of clip paths, random otherwise
    "font.size": 10.5,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.color": _MUTED,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
}


def _curves(log: Sequence[dict[str, Any]], summary: Summary) -> list[Markup]:
    """Loss and validation score by step, as far as they were logged."""
    plots = []
    steps, losses = _series(log, "train/loss")
    with matplotlib.rc_context(_RC):  # of the process, and put back: the SVG writer reads it and has no arguments
        if len(steps):
            figure, axes = _axes("Training loss", "step", "loss per token, nats")
            smooth = _smooth(losses)
            axes.plot(steps, losses, color=_ACCENT, alpha=0.35, linewidth=1, label="logged")
            axes.plot(steps, smooth, color=_ACCENT, linewidth=2, label="smoothed")
            axes.legend()
            plots.append(_svg(figure, "loss", "Training loss by step"))
        metric, best = summary.best["metric"], summary.best
        steps, scores = _series(log, f"validation/{metric}")
        if len(steps):
            name = _metric_name(metric)
            figure, axes = _axes(f"Validation {name}", "step", name)
            axes.plot(steps, scores, color=_SECOND, linewidth=2, marker="o", markersize=3.5)
            axes.plot(best["step"], best["score"], color=_SECOND, marker="o", markersize=9, fillstyle="none")
            axes.axvline(best["step"], color=_MUTED, linewidth=1, linestyle=":")
            axes.set_title(f"best {best['score']:.1%} at step {best['step']:,}", loc="right", fontsize=10.5)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
            plots.append(_svg(figure, "score", f"Validation {name} by step"))
    return plots


def _norm_plot(inspection: Inspection) -> Markup:
    """Norms of the virtual tokens by number, over the range of the vocabulary's."""
    norms, vocabulary = [token.norm for token in inspection.tokens], inspection.vocabulary
    with matplotlib.rc_context(_RC):
        figure, axes = _axes("Norms of the virtual tokens", "virtual token", "Euclidean norm", wide=True)
        axes.axhspan(vocabulary.low, vocabulary.high, color=_MUTED, alpha=0.2, linewidth=0, label="90% of vocabulary")
        axes.axhline(vocabulary.mean, color=_MUTED, linewidth=1, linestyle="--", label="vocabulary's mean")
        axes.plot(range(len(norms)), norms, color=_ACCENT, linestyle="none", marker="o", markersize=4, label="prompt")
        shown = [*norms, vocabulary.low, vocabulary.high]
        if min(shown) > 0 and max(shown) > 30 * min(shown):
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        figure.legend(loc="outside lower center", ncols=3)
        return _svg(figure, "norms", "Norm of each virtual token beside the vocabulary's norms")


def _axes(title: str, x: str, y: str, *, wide: bool = False) -> tuple[Figure, Axes]:
    """A figure of its own, not of pyplot's; narrow ones are readable on a telephone."""
    figure = Figure(figsize=(9.8, 2.9) if wide else (4.8, 3.1), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(12 if wide else 6, integer=True, steps=[1, 2, 5, 10]))
    return figure, axes


def _series(log: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one logged quantity."""
    pairs = [(line["step"], line[name]) for line in log if name in line and math.isfinite(line[name])]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps), np.array(values)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Means over about a tenth of the values around each, fewer at the ends."""
    half = len(values) // 20
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _svg(figure: Figure, name: str, label: str) -> Markup:
    """The figure as an element of the page: with its colours, its own ids, and nothing for other programs in it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"(<svg)[^>]*(viewBox=\"[^\"]*\")[^>]*>", r"\1 \2>", text[text.index("<svg") :])
    for prefix in (' id="', "url(#", 'href="#'):  # several plots share the page
        text = text.replace(prefix, f"{prefix}{name}-")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return Markup(text.replace("<svg", f'<svg class="{name}" role="img" aria-label="{label}"', 1))
