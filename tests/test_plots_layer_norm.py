"""The figures of chapter 3 draw what they were given."""

import matplotlib

matplotlib.use("agg")

import numpy as np
import pytest

from normbook import functional, plots
from normbook.plots import layer_norm


def cells_in_colour(ax):
    """How many faces of the block are filled."""
    return sum(
        len(faces.get_paths()) for faces in ax.collections if len(faces.get_facecolor())
    )


@pytest.mark.parametrize(("axes", "faces"), [((1,), 3 + 3 + 1), ((1, 2), 3 + 6 + 2)])
def test_the_block_colours_the_axes_it_was_given(ax, axes, faces):
    """Of 2 × 3 × 2 cells the set's faces: square to H·W, to N and to C."""
    plots.sets(ax, "LN", (2, 3, 2), axes=axes, positions="T")
    assert cells_in_colour(ax) == faces
    assert [text.get_text() for text in ax.texts] == ["N", "C", "T"]


def test_a_token_is_a_row_and_a_gamma_a_column(ax):
    layer_norm.directions(ax, (6, 5), row=3, column=1)
    row, column = (
        next(p for p in ax.patches if p.get_facecolor()[:3] == ink)
        for ink in map(matplotlib.colors.to_rgb, (plots.color("LN"), plots.ACCENT))
    )
    assert (row.get_xy(), row.get_width(), row.get_height()) == ((0, 3), 5, 1)
    assert (column.get_xy(), column.get_width(), column.get_height()) == ((1, 0), 1, 6)


def test_layer_norm_of_triples_lies_on_the_circle_that_is_drawn(ax):
    triples = np.random.default_rng(0).normal(size=(20, 3))
    normal = functional.layer_norm(triples, eps=0)
    layer_norm.plane(ax, normal, np.zeros(20), "on")
    dots = ax.collections[0].get_offsets()
    circle = ax.lines[0].get_xydata()
    assert np.allclose((dots**2).sum(1), 3)
    assert np.allclose((circle**2).sum(1), 3)


def test_one_line_a_seed_and_one_name(ax):
    layer_norm.seeds(ax, [0, 1], [[1, 2, 3], [4, 5, 6]], "LN", "three runs", ls=":")
    assert [line.get_ydata().tolist() for line in ax.lines] == [[1, 4], [2, 5], [3, 6]]
    assert {line.get_color() for line in ax.lines} == {plots.color("LN")}
    assert ax.get_legend_handles_labels()[1] == ["three runs"]


def test_a_dot_marks_what_comes_from_the_future_and_nothing_else(ax):
    moves = np.eye(3)
    moves[0, 2] = 1e-9
    moves[2, 0] = 1.0
    layer_norm.influence(ax, moves, "who")
    dots = ax.lines[0].get_xydata()
    assert dots.tolist() == [[2.5, 0.5]]
    assert ax.collections[0].get_array().sum() == 5
