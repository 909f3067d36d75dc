import dataclasses
import re

import matplotlib
import numpy as np
import pytest

from prompt_jax.inspection.projection import Projection
from prompt_jax.report import plots
from prompt_jax.report.plots import (
    Curve,
    agreement_map,
    effect_plot,
    layer_plot,
    loss_plot,
    projection_plot,
    score_plot,
    similarity_map,
)


def _curves(count: int, ends: dict[int, str] | None = None, points: int = 50) -> list[Curve]:
    steps = np.arange(1, points + 1)
    return [
        Curve(i, steps, 0.5 + steps / (100.0 + i), (points, 0.9), (ends or {}).get(i, "finished")) for i in range(count)
    ]


def test_up_to_eight_members_have_different_colors():
    few, many = loss_plot(_curves(8)), loss_plot(_curves(9))
    assert all(f"var(--m{i})" in few for i in range(8)) and "var(--accent)" not in few
    assert "var(--m0)" not in many and "var(--accent)" in many and "var(--ink)" in many  # lines and mean


def test_colors_are_css_variables():
    every = [loss_plot(_curves(1)), score_plot(_curves(20, {3: "diverged", 4: "stopped early"}), "accuracy")]
    assert not any(color in plot for plot in every for color in plots._VARIABLES)


def test_diverged_members_are_marked_and_do_not_set_the_scale():
    curves = _curves(3, {2: "diverged"})
    curves[2] = dataclasses.replace(curves[2], values=np.append(curves[2].values[:-1], 1e9))
    assert "var(--bad)" in loss_plot(curves) and "var(--bad)" not in loss_plot(_curves(3))
    _, axes = plots._axes("", "", "")
    plots._draw_members(axes, curves)
    assert 1 < axes.get_ylim()[1] < 1.1
    cross = next(line for line in axes.lines if line.get_marker() == "x")
    assert cross.get_xydata().tolist() == [[50, axes.get_ylim()[1]]]  # at the edge


@pytest.mark.parametrize("count", [1, 2, 9])
def test_members_without_values(count):
    """Beside other members, and as the only ones that did not diverge."""
    nothing = np.array([], int), np.array([], float)
    curves = [*_curves(count), *(Curve(count + i, *nothing) for i in range(2))]
    assert loss_plot(curves).startswith("<svg")
    diverged = [Curve(c.member, c.steps, c.values, None, "diverged") for c in curves[:count]]
    assert score_plot([*diverged, *curves[count:]], "accuracy").startswith("<svg")


def test_matplotlib_settings_are_restored():
    before = dict(matplotlib.rcParams)
    loss_plot(_curves(2))
    assert dict(matplotlib.rcParams) == before


def test_names_are_escaped():
    """Names are neither markup nor formulas, which Matplotlib would refuse."""
    plot = score_plot(_curves(2), '$\\nonsense$ "><script>')
    assert "<script" not in plot and "&lt;script&gt;" in plot and "$\\nonsense$" in plot


def test_many_points_are_thinned():
    short, long = loss_plot(_curves(20)), loss_plot(_curves(20, points=20_000))
    assert len(long) < 6 * len(short)
    assert plots._thinned(3).tolist() == [0, 1, 2] and plots._thinned(0).tolist() == []
    kept = plots._thinned(1001)
    assert len(kept) == 200 and kept[0] == 0 and kept[-1] == 1000


def test_mean_and_range_by_hand():
    """At each step over the curves with a value."""
    curves = [Curve(0, np.array([1, 2, 3]), np.array([1.0, 2, 3])), Curve(1, np.array([1, 3]), np.array([3.0, 7]))]
    steps, mean, low, high = plots._mean_and_range(curves)
    assert steps.tolist() == [1, 2, 3] and mean.tolist() == [2, 2, 5]
    assert low.tolist() == [1, 2, 3] and high.tolist() == [3, 2, 7]


def test_smoothing_by_hand():
    values = np.arange(40.0)
    smooth = plots._smooth(values)  # two values on each side
    assert smooth[20] == 20 and smooth[0] == 1 and smooth[39] == 38
    assert plots._smooth(values[:3]).tolist() == [0, 1, 2]


def test_agreement_by_hand():
    plot = agreement_map(np.array([[1, 0.95], [0.95, 1]]), [3, 5])
    assert "<title>3, 5: 95.0</title>" in plot and plot.count('class="value">95.0<') == 2
    assert plot.count('fill-opacity="0.50"') == 2  # halfway from 90 % to 100 %; the scale has 0.5
    assert ">90.0</text>" in plot and ">100.0</text>" in plot


def test_similarity_by_hand():
    """The scale begins at zero, or at a tenth below all values. There is no -0.00."""
    plot = similarity_map(np.array([[1, -0.001], [-0.001, 1]]))
    assert plot.count('class="value">0.00<') == 2 and ">-0.10</text>" in plot
    assert ">0.00</text>" in similarity_map(np.array([[1, 0.3], [0.3, 1]]))


@pytest.mark.parametrize(("count", "numbered"), [(12, True), (13, False), (64, False)])
def test_large_heat_maps_have_no_numbers(count, numbered):
    plot = similarity_map(np.eye(count))
    assert plot.count("<rect") == count**2 + 5 and ('class="value"' in plot) is numbered
    assert ("plain" in plot) is not numbered


def test_only_shares_have_a_percent_sign():
    curves = [dataclasses.replace(curve, values=10 * curve.values, best=(50, 8.756)) for curve in _curves(1)]
    assert "best 8.76 at step 50" in score_plot(curves, "NIST", percent=False)
    assert "%" not in re.sub(r"<style.*?</style>", "", score_plot(curves, "NIST", percent=False))
    assert "best 875.6% at step 50" in score_plot(curves, "NIST")


def test_the_largest_heat_maps_have_one_path_per_shade():
    """Its area is that of the cells of the shade."""
    cosines = np.linspace(0, 1, 100)[:, None] * np.ones((1, 100))
    plot = similarity_map(cosines)
    assert plot.count("<rect") == 5 and plot.count("<path") == plots._SHADES + 1 and "<title>" not in plot
    areas = {
        float(opacity): sum(map(int, re.findall(r"h(\d+)v1", shape)))
        for opacity, shape in re.findall(r'<path fill-opacity="([^"]*)" d="([^"]*)"', plot)
    }
    levels, counts = np.unique(np.rint(cosines * plots._SHADES), return_counts=True)
    assert areas == {
        level / plots._SHADES: count for level, count in zip(levels.tolist(), counts.tolist(), strict=True)
    }
    assert len(plot) < 20_000
    assert plot.count("M0 0h100v1h-100z") == 1, "cells of one shade that follow each other are one"
    mixed = plots._merged(np.eye(3), 10, 5)
    assert mixed[0] == '<g transform="translate(10 10) scale(5)">'
    assert mixed[1].endswith('d="M1 0h2v1h-2zM0 1h1v1h-1zM2 1h1v1h-1zM0 2h2v1h-2z"/>')
    assert mixed[2].endswith('d="M0 0h1v1h-1zM1 1h1v1h-1zM2 2h1v1h-1z"/>')


def test_a_scale_may_end_below_one():
    plot = similarity_map(np.array([[0.2, 0.1], [0.1, 0.2]]), high=0.2)
    assert plot.count('fill-opacity="0.50"') == 2 and ">0.20</text>" in plot and ">1.00</text>" not in plot


def test_effects_are_bars_of_two_colors():
    plot = effect_plot(np.array([0.5, -0.25, 0.0]), "effects-0")
    assert plot.count("fill: var(--accent)") == 2 and plot.count("fill: var(--second)") == 1
    assert plot.startswith('<svg class="effects-0"') and 'id="effects-0-' in plot
    assert not re.search("#[0-9a-f]{6}", plot), "a color that is not the page's"


def test_prompts_have_their_colors_in_the_projection():
    points = np.random.default_rng(0).normal(size=(30, 2))
    projection = Projection(points, (points[:2], points[2:7]), (0.125, 0.0625), 30, 30)
    plot = projection_plot(projection, [0, 2])
    assert not re.search("#[0-9a-f]{6}", plot)
    assert "12.5% of the vocabulary's variance" in plot and "6.2%" in plot
    drawn = {name: len(re.findall(rf"<use [^>]*var\({name}\)", plot)) for name in ("--muted", "--m0", "--m1", "--m2")}
    assert drawn["--m0"] == 2 and drawn["--m2"] == 5 and drawn["--m1"] == 0 and drawn["--muted"] >= 30
    many = dataclasses.replace(projection, prompts=(points[:1],) * 9)
    assert "var(--accent)" in projection_plot(many, range(9)) and "var(--m0)" not in projection_plot(many, range(9))


def test_a_prefix_by_layer():
    norms = {
        site: {"keys": np.array([1.0, 2]), "values": np.array([3.0, 4])} for site in ("encoder_self", "decoder_self")
    }
    plot = layer_plot(norms, "layers-1")
    assert all(f"{site}, {kind}" in plot for site in norms for kind in ("keys", "values"))
    assert "var(--m0)" in plot and "var(--m1)" in plot and "var(--m2)" not in plot
    assert not re.search("#[0-9a-f]{6}", plot)
