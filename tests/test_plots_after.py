"""The figures of chapter 8 draw what they were given."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_rgba

from normbook import plots
from normbook.plots import after


@pytest.mark.parametrize(
    ("slots", "norms", "inside"),
    [
        ((True, False, False), [0], [0, 1]),
        ((False, False, True), [1], [0]),
        ((True, True, False), [0, 2], [0, 1, 2]),
        ((True, True, True), [0, 2, 3], [0, 1, 2]),
    ],
)
def test_a_branch_has_its_norms_in_the_slots_it_was_given(ax, slots, norms, inside):
    after.place(ax, "here", slots, "α x")
    boxes = [patch for patch in ax.patches if isinstance(patch, plt.Rectangle)]
    boxes.sort(key=plt.Rectangle.get_x)
    orange = to_rgba(plots.color("RMSNorm"))
    assert [i for i, box in enumerate(boxes) if box.get_facecolor() == orange] == norms
    start, *_, end = ax.lines[0].get_xdata()  # the bypass, from its fork to its sum
    assert [i for i, b in enumerate(boxes) if start < b.get_x() < end] == inside
    assert "α x" in [text.get_text() for text in ax.texts]


def test_the_larger_of_four_numbers_is_the_darker(ax):
    after.two_by_two(ax, [[1300, 3.451], [8.2, 17]], "size", "ab", "cd")
    shade = ax.collections[0].get_array()
    assert shade[0, 0] > shade[1, 1] > shade[1, 0] > shade[0, 1] == 0
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["1,300", "3.45", "8", "17"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["c", "d"]


def test_numbers_that_hardly_differ_stay_pale(ax):
    after.two_by_two(ax, [[3.5, 3.3], [3.2, 3.1]], "bits", "ab", "cd")
    assert ax.collections[0].get_array().max() < 0.1
