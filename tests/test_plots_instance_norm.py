"""The figures of chapter 4 draw what they were given."""

import matplotlib

matplotlib.use("agg")

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from normbook import plots
from normbook.plots import instance_norm


def test_a_gallery_shows_every_picture_at_its_place(ax):
    pictures = np.random.default_rng(0).random((2, 3, 3, 25, 25))
    instance_norm.gallery(ax, pictures, ("a", "b"), ("one", "two", "three"))
    sheet = ax.images[0].get_array()
    assert sheet.shape == (25 + 1 + 25, 3 * 25 + 2, 4)
    for row, column in np.ndindex(2, 3):
        part = sheet[26 * row :, 26 * column :][:25, :25]
        assert np.allclose(
            part[..., :3],
            pictures[row, column].transpose(1, 2, 0),
            atol=0.5 / 63 + 1e-6,
        )
        assert (part[..., 3] == 1).all()
    assert (sheet[25, :, 3] == 0).all()
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["one", "two", "three"]
    assert ax.get_yticks().tolist() == [12.5, 38.5]


def test_a_gallery_refuses_too_few_names(ax):
    with pytest.raises(ValueError, match="number of"):
        instance_norm.gallery(ax, np.zeros((2, 1, 3, 4, 4)), rows=("only one",))


def test_shades_are_white_at_0_and_differ_by_sign():
    colours = instance_norm.shades(np.array([[-2.0, 0.0, 2.0]]), 2.0)
    low, none, high = colours[:, 0].T
    assert none.min() > 0.95
    assert np.ptp([low, high]) > 0.1
    far = instance_norm.shades(np.array([[9.0]]), 2.0)
    assert np.array_equal(far, instance_norm.shades(np.array([[2.0]]), 2.0))


def test_a_set_is_one_map_and_a_gamma_has_a_column_of_them(ax):
    instance_norm.directions(ax, (4, 5), row=2, column=1)
    maps = [p for p in ax.patches if p.get_facecolor()[:3] == to_rgb(plots.color("IN"))]
    assert len(ax.patches) == 4 * 5 + 1
    assert [patch.get_xy() for patch in maps] == [(1.06, 2.06)]
    column = ax.patches[-1]
    assert (column.get_xy(), column.get_width(), column.get_height()) == ((1, 0), 1, 4)


def test_the_ellipse_has_the_means_and_deviations_of_red_and_blue(ax):
    picture = np.random.default_rng(1).random((3, 10, 10)) * [[[1.0]], [[9.0]], [[3.0]]]
    instance_norm.cloud(ax, picture, "black", "it", every=1)
    dots, ellipse = (line.get_xydata() for line in ax.lines)
    assert dots.shape == (100, 2)
    assert np.allclose(dots.mean(0), [picture[0].mean(), picture[2].mean()])
    middle, half = (ellipse.max(0) + ellipse.min(0)) / 2, np.ptp(ellipse, axis=0) / 2
    assert np.allclose(middle, dots.mean(0), atol=0.01)
    assert np.allclose(half, dots.std(0), rtol=0.01)


def test_what_moves_is_filled_at_its_row_and_column(ax):
    table = np.array([[True, False], [True, True]])
    instance_norm.moves(ax, table, "BN", "who")
    ink = to_rgb(plots.color("BN"))
    filled = {p.get_xy() for p in ax.patches if p.get_facecolor() == (*ink, 1.0)}
    assert filled == {(0, 0), (0, 1), (1, 1)}
