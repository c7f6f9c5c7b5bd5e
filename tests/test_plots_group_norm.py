"""The figures of chapter 5 draw what they were given."""

import matplotlib

matplotlib.use("agg")

import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.patches import Rectangle

from normbook import plots
from normbook.plots import group_norm


def test_a_block_shows_group_norm_in_its_colour_before_each_activation(ax):
    assert group_norm.residual_block(ax) is ax
    boxes = sorted(
        (patch for patch in ax.patches if isinstance(patch, Rectangle)),
        key=Rectangle.get_x,
    )
    pink = to_rgba(plots.color("GN"))
    assert [box.get_facecolor() == pink for box in boxes] == [1, 0, 0, 1, 0, 0]
    words = [text.get_text() for text in ax.texts if text.get_position()[1] == 0]
    named = [word for word in words if word not in ("", "x", "y", "+")]
    assert named == ["group\nnorm", "SiLU", "conv 3×3"] * 2


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_the_block_colours_as_many_channels_as_a_group_has(ax, groups):
    """Of 2 × 6 × 2 cells one sample's C/G channels: square to H·W, to N and to C."""
    plots.sets(ax, "GN", (2, 6, 2), groups=groups)
    filled = sum(
        len(faces.get_paths()) for faces in ax.collections if len(faces.get_facecolor())
    )
    assert filled == 6 // groups + 2 * (6 // groups) + 2


def test_a_cell_is_filled_where_an_input_moves_an_output(ax):
    moves = np.eye(4)
    moves[0, 3] = 1e-9
    group_norm.influence(ax, moves, 2, "GN", "who")
    mesh = ax.collections[0]
    filled = ~np.ma.getmaskarray(mesh.get_array()).reshape(4, 4)
    assert np.array_equal(filled, moves > 0)
    assert tuple(mesh.get_cmap()(0)[:3]) == to_rgb(plots.color("GN"))
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [
        "sample 1",
        "sample 2",
    ]
    edges = {line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) < 2}
    assert edges == {0, 2, 4}


def test_a_photograph_keeps_its_colours(ax):
    image = np.array([-2.2, 0.0, 5.0])[:, None, None] * np.ones((3, 2, 2))
    group_norm.photograph(ax, image, "three")
    shown = ax.images[0].get_array()
    assert np.allclose(shown[0, 0], [0, 0.5, 1])
    assert shown.shape == (2, 2, 3)


def test_sizes_stand_from_large_to_small_with_their_range(ax):
    group_norm.sizes(ax, {2: [30, 50], 32: [5, 7], 8: [9, 9]}, "BN")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["32", "8", "2"]
    line, _, (bars,) = ax.containers[0]
    assert line.get_ydata().tolist() == [6, 9, 40]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [[5, 7], [9, 9], [30, 50]]
    assert line.get_color() == plots.color("BN")


def test_a_level_is_the_mean_and_its_band_the_range(ax):
    group_norm.level(ax, [2.0, 3.0, 7.0], "GN", "group norm", ls=":")
    assert ax.lines[0].get_ydata() == [4, 4]
    band = ax.patches[0].get_bbox()
    assert (band.y0, band.y1) == (2, 7)
    assert ax.texts[0].get_text() == "group norm"
    assert ax.texts[0].get_color() == plots.color("GN")


@pytest.mark.parametrize(("lift", "side"), [(2, "bottom"), (-2, "top"), (0, "center")])
def test_a_level_s_name_stands_off_its_line(ax, lift, side):
    group_norm.level(ax, [2.0, 3.0], "GN", "group norm", lift=lift)
    assert ax.texts[0].get_va() == side


def test_values_stand_over_their_map_and_the_first_net_is_open(ax):
    nets = {
        "A": {"positions": [16, 4], "effective": [[20, 22], [3, 5]]},
        "B": {"positions": [16, 4, 1], "effective": [[21, 21], [4, 4], [1, 1]]},
    }
    group_norm.values(ax, nets)
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    drawn = [(round(line.get_xdata().mean()), *line.get_ydata()) for line in dots]
    assert drawn == [(0, 20, 22), (1, 3, 5), (0, 21, 21), (1, 4, 4), (2, 1, 1)]
    fills = [line.get_markerfacecolor() for line in dots]
    assert fills == ["none"] * 2 + [plots.color("BN")] * 3
    bars = [line.get_ydata()[0] for line in ax.lines if line.get_marker() != "o"]
    assert bars == [16, 4, 1]
    assert ax.get_legend_handles_labels()[1] == ["A", "B"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["4×4", "2×2", "1×1"]
