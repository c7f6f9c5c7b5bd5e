"""The figures and tables of chapter 6 say what the package computes."""

import re
from collections import Counter
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import nbformat
import numpy as np
import pytest

from normbook import functional, plots
from normbook.plots import comparison

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "06_comparison.ipynb"
IMAGES = {"N": 4, "C": 6, "H": 5, "W": 3}


# ------------------------------------------------------------------ tables


@pytest.mark.parametrize(
    ("axes", "methods"),
    [
        ({"N": 4, "C": 6}, ["BN", "LN", "GN", "RMSNorm"]),
        ({"N": 4, "C": 6, "T": 5}, ["BN", "LN", "LN", "IN", "GN", "RMSNorm"]),
        (IMAGES, ["BN", "LN", "LN", "IN", "GN", "RMSNorm"]),
    ],
)
def test_every_layout_covers_x_and_puts_c_last_where_a_layer_takes_it(axes, methods):
    rows = comparison.layouts(axes, groups=2)
    assert [method for method, *_ in rows] == methods
    for method, use, named, sets in rows:
        assert sorted(named.items()) == sorted(axes.items())
        assert sets.size * sets.number == np.prod(list(axes.values()))
        over = comparison.axis_names(named, sets)[0]
        if method == "RMSNorm" or use == "channels":
            assert over == ["C"] == list(named)[-1:]


def test_the_table_of_axes_is_markdown_with_a_row_a_layer():
    lines = comparison.axes_table(IMAGES, groups=2).splitlines()
    assert lines[0] == "| layer | x | S | m | sets | γ, β |"
    assert lines[2] == "| batch norm | (N, C, H, W) | **N, H, W** | 60 | 6 | C |"
    assert "| group norm, G = 2 | (N, C, H, W) | **C/G, H, W** | 45 | 8 | C |" in lines
    assert len(lines) == 8


# ----------------------------------------------------------------- figures


def full(ax):
    return [patch for patch in ax.patches if patch.get_facecolor()[3] > 0]


def test_a_filled_cell_is_one_that_moved(ax):
    moved = np.zeros((2, 3, 2, 2), bool)
    moved[1, 2, 0, 1] = True
    comparison.touched(ax, moved, (1, 2, 0, 1), "A")
    assert len(ax.patches) == moved.size
    (cell,) = full(ax)
    dot = ax.lines[0].get_xydata()[0]
    assert np.allclose(dot, np.array(cell.get_xy()) + 0.5)


def test_a_full_cell_is_one_that_did_not_see_the_change(ax):
    saw = {"BN": [True, False], "GN\nG = 2": [False, False]}
    comparison.seen(ax, ["one", "two"], saw)
    inks = Counter(
        mpl.colors.to_hex(patch.get_facecolor()).upper() for patch in full(ax)
    )
    assert inks == {plots.color("BN"): 1, plots.color("GN"): 2}
    assert [text.get_text() for text in ax.texts] == list(saw)


def test_names_keep_their_order_and_their_distance():
    lows = [3.0, 0.0, 0.1, 0.2, 9.0]
    placed = np.array(comparison.spread(lows, gap=1.0))
    assert (np.argsort(placed) == np.argsort(lows)).all()
    assert np.diff(np.sort(placed)).min() > 0.98
    assert comparison.spread([0.0, 5.0], gap=1.0) == [0.0, 5.0]


def test_a_line_is_named_at_its_end_in_its_colour(ax):
    ends = {"BN": (1.0, 0.5), "LN": (1.0, 0.5)}
    comparison.name_lines(ax, ends, gap=12)
    assert {text.get_text(): text.get_color() for text in ax.texts} == {
        kind: plots.color(kind) for kind in ends
    }
    low, high = sorted(text.xyann[1] for text in ax.texts)
    assert high - low == pytest.approx(12, abs=0.1)
    assert all(text.xy == (1.0, 0.5) for text in ax.texts)


def test_bars_are_one_standard_deviation_each_way(ax):
    runs = [[1.0, 3.0, 5.0], [2.0, 2.0, 8.0]]
    comparison.deviations(ax, [0, 1], runs, "IN")
    assert ax.lines[0].get_ydata().tolist() == [3.0, 4.0]
    for bar, values in zip(ax.collections[0].get_segments(), runs, strict=True):
        assert np.ptp(bar[:, 1]) == pytest.approx(2 * np.std(values, ddof=1))


def test_the_guide_has_an_arrow_and_a_box_for_every_answer(ax):
    steps = [
        ("first?", "no", [("yes", "one", "LN"), ("maybe", "two", "GN")]),
        ("second?", "", [("maps", "three", "BN")]),
    ]
    comparison.guide(ax, steps)
    words = Counter(text.get_text() for text in ax.texts if text.get_text())
    assert words == Counter(
        ["first?", "second?", "no", "yes", "one", "maybe", "two", "maps", "three"]
    )
    assert len(ax.patches) == 5  # boxes
    inks = [mpl.colors.to_hex(box.get_edgecolor()).upper() for box in ax.patches]
    assert {plots.color(kind) for kind in ("LN", "GN", "BN")} < set(inks)
    assert sum(hasattr(text, "arrow_patch") for text in ax.texts) == 4


def test_two_errors_are_a_dot_and_a_diamond_in_the_colour_of_the_kind(ax):
    errors = {"BN": (9.0, 70.0), "GN + WS": (10.0, 11.0)}
    comparison.two_errors(ax, errors, ("here", "there"))
    for row, (kind, pair) in enumerate(errors.items()):
        line, dot, diamond = ax.lines[3 * row : 3 * row + 3]
        assert tuple(line.get_xdata()) == pair
        assert (dot.get_xdata()[0], diamond.get_xdata()[0]) == pair
        assert (dot.get_marker(), diamond.get_marker()) == ("o", "D")
        assert {each.get_color() for each in (line, dot)} == {plots.color(kind)}
    assert [text.xy for text in ax.texts] == [(9.0, 0), (70.0, 0)]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(errors)


def test_what_was_touched_is_what_the_opening_figure_shows():
    """The chapter compares layers with sets; here one layer is wrong on purpose."""
    shape, cell = (3, 4, 2, 2), (1, 1, 0, 0)
    x = np.random.default_rng(0).normal(size=shape)
    other = x.copy()
    other[cell] += 1
    moved = abs(functional.group_norm(other, 2) - functional.group_norm(x, 2)) > 1e-9
    for groups, same in ((2, True), (4, False)):
        sets = functional.group_sets(shape, groups)
        assert np.array_equal(moved, plots.shares_statistics(sets, shape, cell)) == same


# ------------------------------------------------------------------ counts


def test_the_guide_draws_nothing_that_the_questions_do_not_say():
    cells = {cell.id: cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells}
    names: dict = {}
    exec(cells["guide-figure"].source.split("figure, ax")[0], names)
    text = cells["title"].source
    questions = re.findall(r"^(\d)\. \*.*$", text, re.MULTILINE)
    bold = set(re.findall(r"\*\*(.+?)\*\*", text))
    assert [step[0][0] for step in names["steps"]] == questions
    outcomes = {
        outcome.replace("\n", " ").removeprefix("with ")
        for _, _, ways in names["steps"]
        for _, outcome, _ in ways
    }
    assert outcomes == bold
    rows = re.findall(r"^\| \*\*(.+?)\*\* \|", cells["outcomes"].source, re.MULTILINE)
    assert set(rows) == outcomes - {"their norm"}
