"""Figures of chapter 9 show the numbers that they are given."""

import numpy as np

from normbook.plots import machines as draw


def test_slopes_end_at_the_outputs(ax):
    draw.slopes(ax, [1.0, 3.0, 7.0, 13.0], [-1.0, 1.0, -1.0, 1.0])
    lines = [line.get_ydata() for line in ax.lines]
    assert [end for _, end in lines] == [-1, 1, -1, 1]
    assert np.isclose(np.mean([start for start, _ in lines]), 0)
    assert [text.get_text() for text in ax.texts] == ["1", "3", "7", "13"]


def test_merged_bars_are_as_long_as_m2(ax):
    four = np.array([1.0, 3.0, 7.0, 13.0])
    draw.merged(ax, {"2 + 2": np.split(four, 2), "1 + 3": np.split(four, [1])})
    bars = [bar.get_width() for bar in ax.patches]
    assert np.allclose(bars, [2, 18, 64, 0, 50 + 2 / 3, 33 + 1 / 3])


def test_differences_stand_above_their_image(ax):
    values = np.arange(6.0).reshape(3, 2)
    draw.differences(ax, values, first=1)
    first, second = ax.lines
    assert list(first.get_xdata()) == [0, 0]
    assert list(second.get_xdata()) == [1, 1, 2, 2]
    assert list(second.get_ydata()) == [2, 3, 4, 5]


def test_kilobytes_and_costs(ax):
    draw.kilobytes(ax, {"a": 2.8, "b": 244.0})
    assert [text.get_text() for text in ax.texts] == ["2.8", "244"]
    seconds = {"layer": 0.001, "synchronized": 0.004, "exchanges": 0.002}
    ax.clear()
    draw.costs(ax, [{"channels": n, "seconds": seconds} for n in (64, 256)])
    assert [list(line.get_ydata()) for line in ax.lines] == [[1, 1], [4, 4], [2, 2]]
