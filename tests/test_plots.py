"""Figures: what they draw is what the package computes."""

import io
import re

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from normbook import core, functional, plots
from normbook.methods import METHODS
from normbook.plots import batch_norm, curves, one_idea
from normbook.plots.svg_text import stable


def data(line):
    return np.stack(line.get_data(), axis=1)


SPECTRA = {"one": np.zeros(3), "two": np.ones(3)}
CURVES = {name: np.array([0.1, 0.6, 0.9]) for name in "abc"}


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: one_idea.plane_and_circle(ax, (1, 2, 6)),
        one_idea.circle_of_triples,
        one_idea.s_curve,
        lambda ax: one_idea.tangent(ax, (1, 2, 6), (-1, 1, 1)),
        lambda ax: plots.matrix(ax, np.eye(2), "I"),
        lambda ax: one_idea.eigenvalues(ax, SPECTRA),
        lambda ax: one_idea.output_deviation(ax, np.array([0.1, 1, 10]), CURVES),
        lambda ax: one_idea.variance_errors(ax, np.array([1, 10, 100]), CURVES),
        lambda ax: one_idea.squares(ax, [1, 2], [1.5, 1.5], "about 1.5"),
        lambda ax: plots.sets(ax, "GN"),
    ],
)
def test_a_figure_returns_its_axes_and_draws_the_same_file_twice(ax, draw):
    again = plt.figure().add_subplot()
    assert draw(ax) is ax
    assert ax.lines or ax.texts or ax.patches
    assert plots.svg(ax.figure) == plots.svg(draw(again).figure)
    plt.close(again.figure)


def noisy(shift):
    """Clipped lines, marks, dots, an area, a picture: all moved by so much rounding."""
    rng = np.random.default_rng(0)
    noise = 1 + shift * rng.uniform(-1, 1, size=(4, 30))
    x, y = rng.normal(size=(2, 30)) * noise[:2]
    figure, (left, right) = plt.subplots(1, 2)
    left.plot(x, y * noise[2], "o-")
    left.scatter(x, y, s=[4, 9] * 15)
    left.fill_between(np.sort(x), y, y + 1, alpha=0.3)
    left.set(xlim=(-1.5 * noise[3, 0], 1.5), ylim=(-2, 2), xlabel="x")
    right.imshow(np.arange(12).reshape(3, 4) / 11, interpolation="none")
    return figure


IDS = re.compile(r'(?:id="|href="#|url\(#)([^")]*)')
HASH = re.compile("[0-9a-f]{10}$")


def test_rounding_of_another_processor_changes_no_character_of_a_figure():
    exact, moved = noisy(0), noisy(1e-9)
    with plt.rc_context({"svg.hashsalt": "normbook"}):
        text = plots.svg(exact)
        assert text == plots.svg(moved)
        raw = io.StringIO(), io.StringIO()
        for figure, out in zip((exact, moved), raw, strict=True):
            figure.savefig(out, format="svg", metadata={"Date": None})
    assert raw[0].getvalue() != raw[1].getvalue()
    assert len(set(IDS.findall(text))) == len(set(IDS.findall(raw[0].getvalue())))
    plt.close("all")


def test_two_figures_share_no_id_that_is_counted():
    with plt.rc_context({"svg.hashsalt": "normbook"}):
        first, second = noisy(0), noisy(0)
        second.axes[0].set_xlabel("steps")
        counted = [
            {name for name in IDS.findall(plots.svg(figure)) if HASH.search(name)}
            for figure in (first, second)
        ]
    assert counted[0]
    assert not counted[0] & counted[1]
    plt.close("all")


def test_coordinates_keep_two_decimals_and_scales_all():
    text = '<path d="M 0.125001 -0.001 L 3.000000 20.5" style="stroke-width: 0.555"/>'
    assert stable(text) == '<path d="M 0.13 0 L 3 20.5" style="stroke-width: 0.555"/>'
    text = '<g transform="translate(1.23456 2) scale(0.015625)"/>'
    assert stable(text) == '<g transform="translate(1.23 2) scale(0.015625)"/>'


def test_the_dots_of_the_s_curve_stand_at_standardized_values(ax):
    one_idea.s_curve(ax)
    for t, height in data(ax.lines[1]):
        triple = core.standardize(np.array([1.0, 2.0, t]), (0,), 0.0)[0]
        assert height == pytest.approx(triple[2])


def test_dots_of_circle_and_s_curve_have_the_same_heights(ax):
    one_idea.circle_of_triples(ax)
    dots = [data(line)[0, 1] for line in ax.lines if line.get_marker() == "o"]
    curve = one_idea.s_curve(ax.figure.add_subplot())
    assert dots == pytest.approx(data(curve.lines[1])[:, 1].tolist())


def test_the_tangent_is_orthogonal_to_the_radius(ax):
    one_idea.tangent(ax, (1, 2, 6), (-1, 1, 1))
    radius, removed = data(ax.lines[1]), data(ax.lines[2])
    kept = removed[1] - radius[1]
    assert np.linalg.norm(kept) > 1
    assert kept @ (radius[1] - radius[0]) == pytest.approx(0, abs=1e-12)


def test_the_squares_have_the_area_in_the_title(ax):
    one_idea.squares(ax, [1, 2, 6], [3, 3, 3], "together")
    area = sum(p.get_width() * p.get_height() for p in ax.patches)
    assert ax.get_title(loc="left") == f"together: {area:g}" == "together: 14"


@pytest.mark.parametrize(
    ("method", "cells"), [("BN", 16), ("LN", 24), ("IN", 4), ("GN", 12), ("RMSNorm", 6)]
)
def test_a_set_has_as_many_cells_as_the_function_reduces(method, cells):
    shape = (4, 6, 4)
    sets = METHODS[method].sets_in_picture(shape, 2)
    members = plots.shares_statistics(sets, shape, (0, 0, 0))
    assert members.sum() == cells == sets.size


def test_an_unknown_method_is_refused(ax):
    with pytest.raises(ValueError, match="BN, LN, IN, GN, RMSNorm; got 'none'"):
        plots.sets(ax, "none")


def test_source_shows_the_code_as_it_stands(capsys):
    pytest.importorskip("IPython")
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("IPython.display.display", lambda given: shown.append(given.data))
        plots.source(core.center, functional.rms_norm)
    assert shown[0].startswith("```python\ndef center(")
    assert "def rms_norm(" in shown[0]
    assert shown[0].endswith("```")


def test_a_band_spans_the_seeds_around_their_mean(ax):
    runs = np.array([[1.0, 2, 6], [0, 0, 3]])  # points × seeds
    curves.band(ax, [10, 20], runs, "noisy BN")
    (line,) = ax.lines
    assert line.get_ydata().tolist() == [3, 1]
    assert line.get_color() == plots.color("BN")
    assert line.get_linestyle() == "--"
    (area,) = ax.collections
    corners = area.get_paths()[0].vertices
    assert corners.min(0).tolist() == [10, 0]
    assert corners.max(0).tolist() == [20, 6]


def test_a_label_stands_beside_its_point_in_the_colour_of_the_line(ax):
    curves.band(ax, [1, 2, 3], np.arange(6).reshape(3, 2), "LN")
    curves.label(ax, "here", lift=4, at=1)
    (text,) = ax.texts
    assert (text.xy, text.get_position()) == ((2, 2.5), (5, 4))
    assert text.get_color() == plots.color("LN")


def test_percentiles_shade_the_outer_two_around_the_middle(ax):
    curves.percentiles(ax, [0, 1], [[-1, 0, 2], [-3, 1, 5]], "red")
    assert ax.lines[0].get_ydata().tolist() == [0, 1]
    corners = ax.collections[0].get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (-3, 5)


def test_one_dot_a_seed_and_a_bar_at_the_mean(ax):
    curves.points(ax, 2, [1.0, 2, 6], "GN")
    dots, bar = ax.lines
    assert dots.get_ydata().tolist() == [1, 2, 6]
    assert abs(dots.get_xdata() - 2).max() < 0.5
    assert bar.get_ydata().tolist() == [3, 3]


def test_places_of_a_category_axis_have_their_names(ax):
    curves.categories(ax, {"a": 0, "b": 0})
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["a", "b"]


def test_an_error_map_writes_0_where_there_is_rounding_alone(ax):
    errors = np.array([[1e-12, 0.25], [2.0, 0.0]])
    batch_norm.error_map(ax, errors, "errors", top=2.0)
    assert [text.get_text() for text in ax.texts] == ["0", "0.2", "2.0", "0"]
    assert ax.texts[2].get_color() == "white"


@pytest.mark.parametrize("kind", ["BN, residual", "BN 32", "noisy BN", "BN\n2 images"])
def test_a_variant_has_the_colour_of_the_method_it_names(kind):
    assert plots.color(kind) == METHODS["BN"].color


def test_what_normalizes_nothing_is_grey():
    assert plots.color("none") == plots.color("DyT") == plots.GREY


@pytest.mark.parametrize("kind", ["other", "PowerNorm", "MIN", "BN2"])
def test_a_part_of_a_word_gives_no_colour(kind):
    with pytest.raises(ValueError, match=f"{kind}.*use one of BN, LN, IN, GN, RMSNorm"):
        plots.color(kind)
