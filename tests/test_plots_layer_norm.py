"""The figures of chapter 3 draw what they were given."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba

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


@pytest.mark.parametrize(
    ("place", "norms"), [("pre", [0, 2]), ("post", [1, 3])], ids=["pre", "post"]
)
def test_a_block_has_its_norms_before_or_after_each_branch(ax, place, norms):
    assert layer_norm.transformer_block(ax, place) is ax
    boxes = [patch for patch in ax.patches if isinstance(patch, plt.Rectangle)]
    boxes.sort(key=plt.Rectangle.get_x)
    orange = to_rgba(plots.color("LN"))
    assert [i for i, box in enumerate(boxes) if box.get_facecolor() == orange] == norms
    # Each bypass leaves before what it goes around, and comes back in its sum.
    sums = sorted(p.center[0] for p in ax.patches if isinstance(p, plt.Circle))
    forks = [line.get_xdata()[0] for line in ax.lines]
    assert [line.get_xdata()[-1] for line in ax.lines] == sums
    around = [
        [i for i, box in enumerate(boxes) if start < box.get_x() < end]
        for start, end in zip(forks, sums, strict=True)
    ]
    assert around == ([[0, 1], [2, 3]] if place == "pre" else [[0], [2]])


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


def test_a_dot_marks_what_comes_from_the_future_and_nothing_else(ax):
    moves = np.eye(3)
    moves[0, 2] = 1e-9
    moves[2, 0] = 1.0
    layer_norm.influence(ax, moves, "who")
    dots = ax.lines[0].get_xydata()
    assert dots.tolist() == [[2.5, 0.5]]
    assert ax.collections[0].get_array().sum() == 5
