"""The plots of a report: SVG elements in the page's colors and font."""

import dataclasses
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from prompt_jax.inspection.neighbors import Inspection
from prompt_jax.inspection.projection import Projection

COLORS = 8  # with more members, all curves have one color
_NUMBERED = 12  # with more members the cells of a heat map have no numbers
_POINTS = 200  # per curve, so that pages with many members and steps stay small
_CELLS = 4096  # with more cells a heat map has one element per shade, not per cell
_SHADES = 20
SMOOTHED = 20  # the fewest values of a loss that are smoothed


@dataclasses.dataclass(frozen=True)
class Curve:
    """One member's values by step, possibly empty.

    Attributes:
      member: the number of the member, which selects its color.
      steps: the steps, ascending.
      values: the values at those steps, all finite.
      best: the step and value to mark, or None.
      end: how the training of the member ended.
    """

    member: int
    steps: np.ndarray
    values: np.ndarray
    best: tuple[int, float] | None = None
    end: Literal["training", "finished", "stopped early", "diverged"] = "finished"


# The page has two color schemes. Matplotlib gets these placeholders, which `_svg` replaces by CSS variables.
_INK, _MUTED, _GRID, _ACCENT, _SECOND, _BAD = (f"#0{i}0{i}0{i}" for i in range(1, 7))
_MEMBERS = [f"#0{i}0{i}ff" for i in range(COLORS)]
_VARIABLES = {
    _INK: "--ink",
    _MUTED: "--muted",
    _GRID: "--grid",
    _ACCENT: "--accent",
    _SECOND: "--second",
    _BAD: "--bad",
    **{color: f"--m{i}" for i, color in enumerate(_MEMBERS)},
}
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",  # selectable text in the page's font
    "svg.hashsalt": "prompt_jax",  # makes the ids of clip paths deterministic
    "text.parse_math": False,  # names of metrics are from files
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


def loss_plot(curves: Sequence[Curve], validation: Curve | None = None) -> Markup:
    """Plot the training loss of all members by step. At least one curve is not empty.

    Curves of SMOOTHED values or more are smoothed. `validation` is the validation loss of a single member.
    """
    smooth = [dataclasses.replace(curve, values=_smooth(curve.values)) for curve in curves]
    with matplotlib.rc_context(_RC):  # the SVG writer takes no arguments
        figure, axes = _axes("Training loss", "step", "loss per token, nats")
        if len(curves) == 1:
            (curve,) = curves
            smoothed = len(curve.values) >= SMOOTHED
            if smoothed:
                axes.plot(curve.steps, curve.values, color=_ACCENT, alpha=0.35, linewidth=1)
            label = "training, smoothed" if smoothed else "training"
            axes.plot(curve.steps, smooth[0].values, color=_ACCENT, linewidth=2, label=label)
            if validation is not None and len(validation.steps):
                style: dict[str, Any] = {"color": _SECOND, "linewidth": 2, "marker": "o", "markersize": 3.5}
                axes.plot(validation.steps, validation.values, **style, label="validation")
                axes.set_title("Loss", loc="left", fontsize=11, fontweight="bold")
            if smoothed or len(axes.lines) > 1:
                axes.legend()
            _mark_end(axes, smooth[0], _ACCENT)
        else:
            _draw_members(axes, smooth)
        return _svg(figure, "loss", "Training loss by step")


def member_plot(curves: Sequence[Curve], title: str, unit: str, name: str) -> Markup:
    """Plot a quantity of all members by step. At least one curve is not empty. `name` is unique in the page."""
    with matplotlib.rc_context(_RC):
        figure, axes = _axes(title, "step", unit)
        if len(curves) == 1:
            axes.plot(curves[0].steps, curves[0].values, color=_ACCENT, linewidth=2)
        else:
            _draw_members(axes, curves)
        return _svg(figure, name, f"{title} by step")


def score_plot(curves: Sequence[Curve], name: str, *, percent: bool = True) -> Markup:
    """Plot a validation score of all members by step, with each member's best marked.

    At least one curve is not empty. With `percent` the values are shares.
    """
    with matplotlib.rc_context(_RC):
        figure, axes = _axes(f"Validation {name}", "step", name)
        if len(curves) == 1:
            (curve,) = curves
            axes.plot(curve.steps, curve.values, color=_SECOND, linewidth=2, marker="o", markersize=3.5)
            if curve.best is not None:
                step, score = curve.best
                axes.plot(step, score, color=_SECOND, marker="o", markersize=9, fillstyle="none")
                axes.axvline(step, color=_MUTED, linewidth=1, linestyle=":")
                best = f"{score:.1%}" if percent else f"{score:.2f}"
                axes.set_title(f"best {best} at step {step:,}", loc="right", fontsize=10.5)
            _mark_end(axes, curve, _SECOND)
        else:
            _draw_members(axes, curves)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        return _svg(figure, "score", f"Validation {name} by step")


def norm_plot(inspection: Inspection, name: str = "norms") -> Markup:
    """Plot the norms of virtual tokens over the range of the vocabulary's norms. `name` is unique in the page."""
    norms, vocabulary = [token.norm for token in inspection.tokens], inspection.vocabulary
    with matplotlib.rc_context(_RC):
        figure, axes = _axes("Norms of the virtual tokens", "virtual token", "Euclidean norm", wide=True)
        axes.axhspan(vocabulary.low, vocabulary.high, color=_MUTED, alpha=0.2, linewidth=0, label="90% of vocabulary")
        axes.axhline(vocabulary.mean, color=_MUTED, linewidth=1, linestyle="--", label="vocabulary's mean")
        axes.plot(range(len(norms)), norms, color=_ACCENT, linestyle="none", marker="o", markersize=4, label="prompt")
        values = [*norms, vocabulary.low, vocabulary.high]
        if min(values) > 0 and max(values) > 30 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        figure.legend(loc="outside lower center", ncols=3)
        return _svg(figure, name, "Norm of each virtual token beside the vocabulary's norms")


def layer_plot(norms: Mapping[str, Mapping[str, np.ndarray]], name: str) -> Markup:
    """Plot the mean norms of a prefix's keys and values by layer, for each site. `name` is unique in the page."""
    with matplotlib.rc_context(_RC):
        figure, axes = _axes("Norms of the prefix", "layer", "mean norm per head", wide=True)
        for (site, kinds), color in zip(norms.items(), _MEMBERS, strict=False):
            for kind, style in (("keys", "-"), ("values", "--")):
                label = f"{site}, {kind}"
                axes.plot(kinds[kind], color=color, linestyle=style, marker="o", markersize=3.5, label=label)
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside lower center", ncols=len(norms))  # a column for each
        return _svg(figure, name, "Mean norm of keys and values in each layer")


def effect_plot(effects: np.ndarray, name: str) -> Markup:
    """Plot how much the loss increases without each slot. `name` is unique in the page."""
    with matplotlib.rc_context(_RC):
        figure, axes = _axes("Loss without each token", "token left out", "change of loss, nats per token", wide=True)
        colors = [_ACCENT if effect >= 0 else _SECOND for effect in effects]
        axes.bar(range(len(effects)), effects, color=colors, width=0.8)
        axes.axhline(0, color=_MUTED, linewidth=1)
        axes.margins(x=0.01)
        return _svg(figure, name, "Change of the loss when each token is left out")


def projection_plot(projection: Projection, numbers: Sequence[int]) -> Markup:
    """Plot virtual tokens over the vocabulary's embeddings. `numbers` select the prompts' colors."""
    first, second = projection.variance
    with matplotlib.rc_context(_RC):
        figure, axes = _axes(
            "Virtual tokens among the vocabulary",
            f"first principal component ({first:.1%} of the vocabulary's variance)",
            f"second ({second:.1%})",
            size=(7.2, 5.4),
        )
        axes.xaxis.set_major_locator(MaxNLocator(8))
        axes.grid(axis="x")
        shared = len(projection.prompts) > COLORS
        dots: dict[str, Any] = {"linestyle": "none", "marker": "."}
        axes.plot(*projection.vocabulary.T, **dots, color=_MUTED, markersize=2, alpha=0.6)
        for number, points in zip(numbers, projection.prompts, strict=True):
            color = _ACCENT if shared else _MEMBERS[number]
            axes.plot(*points.T, **dots, color=color, markersize=7, alpha=0.75)
        return _svg(figure, "projection", "Virtual tokens and vocabulary along two principal components")


# --------------------------------------------------------------------------------------------------------------
# Heat maps


def agreement_map(matrix_ee: np.ndarray, members: Sequence[int]) -> Markup:
    """Return a heat map of the shares of examples on which members give the same answer."""
    label = "Share of examples on which two members agree, in percent"
    return _heat_map(matrix_ee, members, 0.9, lambda value: f"{100 * value:.1f}", "agreement", label)


def similarity_map(
    matrix_ee: np.ndarray,
    label: str = "Cosine similarity of the members' prompts",
    *,
    high: float = 1.0,
    width: int = 480,
) -> Markup:
    """Return a heat map of the cosines of prompts, or of one prompt's tokens.

    Args:
      matrix_ee: the cosines.
      label: for screen readers.
      high: value with the strongest color.
      width: in pixels, approximately, with many prompts.
    """

    def text(value: float) -> str:
        return f"{round(value, 2) + 0.0:.2f}"  # no -0.00

    return _heat_map(matrix_ee, range(len(matrix_ee)), 0.0, text, "similarity", label, high, width)


def _heat_map(
    matrix_ee: np.ndarray,
    members: Sequence[int],
    low: float,
    text: Callable[[float], str],
    name: str,
    label: str,
    high: float = 1.0,
    width: int = 480,
) -> Markup:
    """Return a heat map from `low` (no color; lower if values are) to `high` (the strongest color)."""
    low = min(low, math.floor(10 * matrix_ee.min()) / 10)
    shades = np.clip((matrix_ee - low) / (high - low), 0, 1)
    size = min(56, max(9 if matrix_ee.size <= _CELLS else 3, width // len(members)))  # of a cell
    every = -(-20 // size)  # n-th member has its number at the edge
    width, edge = len(members) * size, 24
    single = matrix_ee.size <= _CELLS
    parts = [] if single else _merged(shades, edge, size)
    for row, member in enumerate(members):
        y = edge + row * size
        if row % every == 0:
            parts.append(f'<text x="{edge - 7}" y="{y + size / 2:g}" class="row">{member}</text>')
            parts.append(f'<text x="{y + size / 2:g}" y="{edge - 12}">{member}</text>')
        if not single:
            continue
        for column, value in enumerate(map(text, matrix_ee[row].tolist())):
            place = f'x="{edge + column * size}" y="{y}" width="{size}" height="{size}"'
            title = f"<title>{member}, {members[column]}: {value}</title>"
            parts.append(f'<rect {place} fill-opacity="{shades[row, column]:.2f}">{title}</rect>')
            if len(members) <= _NUMBERED:
                middle = f'x="{edge + (column + 0.5) * size:g}" y="{y + size / 2:g}"'
                parts.append(f'<text {middle} class="value">{value}</text>')
    parts += _scale(edge + 18, edge + width + 14, text(low), text(high))
    height, wide = edge + width + 30, max(edge + width + 8, 170)  # a number may extend beyond the cells
    shape = f'viewBox="0 0 {wide} {height}" style="width: {wide}px"'
    kind = f"{name} plain" if len(members) > _NUMBERED else name
    return Markup(f'<svg class="heat {kind}" role="img" aria-label="{escape(label)}" {shape}>{"".join(parts)}</svg>')


def _merged(shades: np.ndarray, edge: int, size: int) -> list[str]:
    """Return the cells as one path per shade, in which consecutive cells are one rectangle."""
    runs: dict[int, list[str]] = {}
    for row, levels in enumerate(np.rint(shades * _SHADES).astype(int)):
        ends = [*(np.flatnonzero(np.diff(levels)) + 1).tolist(), len(levels)]
        for start, end in zip([0, *ends], ends, strict=False):
            runs.setdefault(int(levels[start]), []).append(f"M{start} {row}h{end - start}v1h{start - end}z")
    place = f'transform="translate({edge} {edge}) scale({size})"'
    paths = [f'<path fill-opacity="{level / _SHADES:g}" d="{"".join(path)}"/>' for level, path in sorted(runs.items())]
    return [f"<g {place}>", *paths, "</g>"]


def _scale(x: int, y: int, low: str, high: str) -> list[str]:
    """Return a color scale of five shades."""
    steps = [
        f'<rect x="{x + 16 * i}" y="{y}" width="16" height="12" fill-opacity="{i / 4:g}"></rect>' for i in range(5)
    ]
    ends = ((x - 6, "row", low), (x + 86, "high", high))
    return [*steps, *(f'<text x="{at}" y="{y + 6}" class="{side}">{value}</text>' for at, side, value in ends)]


# --------------------------------------------------------------------------------------------------------------
# Several members in one plot


def _draw_members(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draw a line per member, and with many members their mean and range. These and the axis omit diverged members."""
    many = len(curves) > COLORS
    curves = [curve for curve in curves if len(curve.steps)]
    sound = [curve for curve in curves if curve.end != "diverged"] or curves
    if len(sound) < len(curves):
        values = np.concatenate([curve.values for curve in sound])
        margin = 0.05 * (np.ptp(values) or 1.0)
        axes.set_ylim(values.min() - margin, values.max() + margin)
    if many:
        steps, mean, low, high = _mean_and_range(sound)
        axes.fill_between(steps, low, high, color=_ACCENT, alpha=0.14, linewidth=0)
    for curve in curves:
        color = (_BAD if curve.end == "diverged" else _ACCENT) if many else _MEMBERS[curve.member]
        style: dict[str, Any] = {"linewidth": 0.7, "alpha": 0.45} if many else {"linewidth": 1.4}
        kept = _thinned(len(curve.steps))
        axes.plot(curve.steps[kept], curve.values[kept], color=color, **style)
        if curve.best is not None:
            size, fill = (3, "full") if many else (8, "none")
            axes.plot(*curve.best, color=color, marker="o", markersize=size, fillstyle=fill)
        _mark_end(axes, curve, color)
    if many:
        axes.plot(steps, mean, color=_INK, linewidth=2)


def _mark_end(axes: Axes, curve: Curve, color: str) -> None:
    """Draw a cross where a member diverged, or a bar where it stopped early."""
    if curve.end in ("training", "finished"):
        return
    marker, color = ("x", _BAD) if curve.end == "diverged" else ("|", color)
    low, high = sorted(axes.get_ylim())
    value = min(max(curve.values[-1], low), high)  # at the edge if it is outside
    axes.plot(curve.steps[-1], value, color=color, marker=marker, markersize=9, markeredgewidth=2, clip_on=False)


def _mean_and_range(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, and the mean, lowest and highest value of the curves at each."""
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    steps = steps[_thinned(len(steps))]
    values = np.full((len(curves), len(steps)), np.nan)
    for row, curve in zip(values, curves, strict=True):
        _, columns, places = np.intersect1d(steps, curve.steps, return_indices=True)
        row[columns] = curve.values[places]
    return steps, np.nanmean(values, axis=0), np.nanmin(values, axis=0), np.nanmax(values, axis=0)


def _thinned(size: int) -> np.ndarray:
    """Return at most _POINTS indices below `size`, evenly spaced, including the first and the last."""
    return np.unique(np.linspace(0, size - 1, min(size, _POINTS)).round().astype(int))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return the moving average over a tenth of the values, with shorter windows at the ends."""
    half = len(values) // SMOOTHED
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


# --------------------------------------------------------------------------------------------------------------
# Figures as elements


def _axes(
    title: str, x: str, y: str, *, wide: bool = False, size: tuple[float, float] | None = None
) -> tuple[Figure, Axes]:
    """Return a figure without pyplot. Narrow ones are readable on a phone. `size` is in inches."""
    figure = Figure(figsize=size or ((9.8, 2.9) if wide else (4.8, 3.1)), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(12 if wide else 6, integer=True, steps=[1, 2, 5, 10]))
    return figure, axes


def _svg(figure: Figure, name: str, label: str) -> Markup:
    """Return the figure as an element of the page, with the page's colors, unique ids, and no metadata."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"(<svg)[^>]*(viewBox=\"[^\"]*\")[^>]*>", r"\1 \2>", text[text.index("<svg") :])
    for prefix in (' id="', "url(#", 'href="#'):  # several plots share the page
        text = text.replace(prefix, f"{prefix}{name}-")
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return Markup(text.replace("<svg", f'<svg class="{name}" role="img" aria-label="{escape(label)}"', 1))
