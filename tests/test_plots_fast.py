"""The figures of chapter 7 draw what they were given."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from normbook import plots
from normbook.plots import fast


def texts(ax):
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize(
    ("number", "text"),
    [(4096, "4 kB"), (3 * 2**19, "1.5 MB"), (2**31, "2 GB"), (12, "12 B")],
)
def test_a_size_in_its_unit(number, text):
    assert fast.size(number) == text


def test_bars_are_as_long_as_their_values_and_one_is_chosen(ax):
    fast.bars(ax, {"a copy": 1.0, "ours": 1.24, "steps": 12.3}, "ours")
    assert [bar.get_width() for bar in ax.patches] == [1.0, 1.24, 12.3]
    assert texts(ax) == ["1", "1.2", "12"]
    inks = [to_hex(bar.get_facecolor()).upper() for bar in ax.patches]
    assert [ink == plots.ACCENT for ink in inks] == [False, True, False]
    low, high = ax.get_ylim()
    assert low > high, "the first bar is on top"


def test_caches_outside_the_sizes_are_left_out(ax):
    fast.against_bytes(ax, [2**12, 2**16, 2**20], [1, 3, 2], {"L1": 2**15, "L2": 2**21})
    assert texts(ax) == ["L1"]
    assert ax.lines[0].get_ydata().tolist() == [1, 3, 2]
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["4 kB", "64 kB", "1 MB"]


def test_the_two_prices_of_the_roofline(ax):
    """Memory alone costs the first time; arithmetic the slope of the last two."""
    fast.roofline(ax, (1, 2, 4), (3.0, 3.0, 5.0), mark=1.5)
    memory, arithmetic, measured = (line.get_ydata().tolist() for line in ax.lines[:3])
    assert memory == [3, 3, 3]
    assert arithmetic == [1, 2, 4]
    assert measured == [3, 3, 5]


def test_a_step_shows_what_it_moves_and_what_it_takes(ax):
    rows = [
        {"step": "sub", "moves": 1.0, "takes": 1.5},
        {"step": "add"} | dict.fromkeys(("moves", "takes"), 0.5),
    ]
    fast.steps(ax, rows)
    assert [bar.get_width() for bar in ax.patches] == [1.5, 0.5, 1.0, 0.5]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["sub", "add"]


def test_names_of_curves_that_end_together_are_moved_apart(ax):
    fast.lines(ax, [1, 10], {"a": [1, 1e-8], "b": [1, 2e-8], "c": [1, 1.0]}, "a")
    lifts = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert lifts["a"] < lifts["c"] == 0 < lifts["b"]
    assert ax.lines[0].get_color() == plots.ACCENT != ax.lines[1].get_color()


@pytest.mark.parametrize(
    ("method", "coloured"),
    [
        ("LN", range(6)),
        ("GN", range(4)),
        ("IN", range(2)),
        ("BN", [0, 1, 6, 7]),
    ],
)
def test_a_strip_colours_the_set_of_the_first_value(ax, method, coloured):
    """(N, C, H·W) = (2, 3, 2) and three groups' neighbours: memory is the order."""
    shape = (2, 4, 2) if method == "GN" else (2, 3, 2)
    fast.strip(ax, method, shape)
    inside = [
        place
        for place, cell in enumerate(ax.patches)
        if to_hex(cell.get_facecolor()).upper() == plots.color(method)
        and cell.get_facecolor()[3]
    ]
    assert len(ax.patches) == np.prod(shape)
    assert inside == list(coloured)


@pytest.mark.parametrize(
    ("marked", "runs"), [([1, 1, 0], 1), ([1, 0, 1], 2), ([0, 0], 0), ([0, 1, 1], 1)]
)
def test_unbroken_runs_are_counted(marked, runs):
    assert fast.runs(marked) == runs


def test_a_share_is_a_mark_in_percent_on_its_line(ax):
    fast.shares(ax, {"LN": {"torch": 0.5, "ours": 0.9}, "BN": {"ours": 0.8}})
    names = ax.get_legend_handles_labels()[1]
    assert names == ["torch.nn", "ours"]
    points = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert points["torch.nn"] == [[50, 0]]
    assert points["ours"] == [[90, 0], [80, 1]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["LN", "BN"]


@pytest.mark.parametrize("shares", [(0.5, 1.2), (1.2, 0.5)])
def test_panels_that_share_their_axis_show_every_mark(shares):
    figure, axes = plt.subplots(2, 1, sharex=True)
    for ax, share in zip(axes, shares, strict=True):
        fast.shares(ax, {"BN": {"ours": share}})
    assert axes[0].get_xlim() == axes[1].get_xlim()
    assert axes[0].get_xlim()[0] == 0
    assert axes[0].get_xlim()[1] > 120
    plt.close(figure)
