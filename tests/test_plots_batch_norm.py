"""Figures of chapter 2: what a reader sees is what they were given."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import to_rgba

from normbook import plots
from normbook.plots import batch_norm as draw

RNG = np.random.default_rng(0)


def test_a_block_shows_batch_norm_in_its_colour_after_each_convolution(ax):
    assert draw.residual_block(ax) is ax
    boxes = [patch for patch in ax.patches if isinstance(patch, plt.Rectangle)]
    blue = to_rgba(plots.color("BN"))
    order = [
        box.get_facecolor() == blue for box in sorted(boxes, key=plt.Rectangle.get_x)
    ]
    assert order == [False, True, False, False, True, False]


def test_each_channel_has_a_histogram_of_its_own(ax):
    values = RNG.normal(size=(50, 3, 4, 4)) + np.array([-9, 0, 9])[:, None, None]
    assert draw.channel_histograms(ax, values, "before", "#123456") is ax
    shares = [patch.get_data().values for patch in ax.patches[::2]]
    assert len(shares) == 3
    peaks = [share.argmax() for share in shares]
    assert peaks == sorted(peaks)
    assert all(0.9 < share.sum() <= 1 for share in shares)


def test_a_dot_is_a_channel(ax):
    running, true = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    draw.running_against_true(ax, [running], [true])
    assert ax.lines[0].get_xydata().tolist() == [[3, 1], [4, 2]]


def test_scales_and_shifts_are_drawn_from_parameters(ax):
    gamma, beta = (torch.nn.Parameter(torch.tensor(v)) for v in ([2.0], [-1.0]))
    draw.learned(ax, [gamma], [beta])
    assert ax.lines[0].get_xydata().tolist() == [[2, -1]]
    assert ax.lines[-1].get_xydata().tolist() == [[1, 0]]  # where they began
