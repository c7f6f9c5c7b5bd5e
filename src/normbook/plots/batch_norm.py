"""Figures of chapter 2: batch norm."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from normbook.plots import INK, color
from normbook.plots.blocks import PLAIN, residual


def error_map(ax: Axes, errors: Any, title: str, top: float) -> Axes:
    """Draw a small map of errors with its numbers, dark where they are large."""
    ax.pcolormesh(errors, cmap="Blues", vmin=0, vmax=top, edgecolor="white", lw=2)
    for (row, column), value in np.ndenumerate(errors):
        ink = "white" if value > 0.6 * top else INK
        text = f"{value:.1f}" if value > 1e-6 else "0"
        ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", c=ink, size=9)
    ax.invert_yaxis()
    ax.set_aspect("equal")
    ax.set_title(title)
    ax.axis("off")
    return ax


def residual_block(ax: Axes) -> Axes:
    """Draw a residual block from left to right, batch norm in its colour.

    Two convolutions without bias, each followed by batch norm; the sum with x stands
    before the last ReLU. Source: He et al. 2016, figure 2, with batch norm as there.
    """
    boxes = [
        ("conv 3×3\nno bias", PLAIN),
        ("batch\nnorm", color("BN")),
        ("ReLU", PLAIN),
        ("conv 3×3\nno bias", PLAIN),
        ("batch\nnorm", color("BN")),
        ("+", None),
        ("ReLU", PLAIN),
    ]
    return residual(ax, boxes)


def channel_histograms(ax: Axes, values: Any, title: str, tint: str) -> Axes:
    """Draw an outlined histogram for each channel of values, (N, C, H, W)."""
    rows = np.moveaxis(np.asarray(values), 1, 0)
    rows = rows.reshape(len(rows), -1)
    low, high = np.quantile(rows, [0.002, 0.998])
    bins = np.linspace(low, high, 40)
    for row in rows:
        share = np.histogram(row, bins)[0] / row.size
        ax.stairs(share, bins, color=tint, fill=True, alpha=0.15)
        ax.stairs(share, bins, color=tint, lw=1)
    ax.set(xlabel=title, yticks=())
    return ax


def running_against_true(ax: Axes, running: Sequence[Any], true: Sequence[Any]) -> Axes:
    """Draw a dot a channel: what a layer remembers over what is true of all data.

    Each sequence has one (C,) a layer; a diagonal shows where they are equal.
    """
    for layer, (remembered, whole) in enumerate(zip(running, true, strict=True), 1):
        shade = 0.35 + 0.65 * layer / len(running)
        ax.plot(whole, remembered, "o", ms=3.5, color=color("BN"), alpha=shade)
    ends = np.array(ax.get_xlim())
    ax.plot(ends, ends, color="0.6", lw=0.8, ls=":", zorder=0)
    ax.set(xlabel="mean over all training images", ylabel="running mean")
    return ax


def learned(ax: Axes, scales: Sequence[Any], shifts: Sequence[Any]) -> Axes:
    """Draw a dot a channel: its β over its γ, with a cross where both began."""
    for layer, (gamma, beta) in enumerate(zip(scales, shifts, strict=True), 1):
        shade = 0.35 + 0.65 * layer / len(scales)
        gamma, beta = (np.asarray(value.detach().cpu()) for value in (gamma, beta))
        ax.plot(gamma, beta, "o", ms=3.5, color=color("BN"), alpha=shade)
    ax.plot([1], [0], "+", ms=10, color=INK)
    ax.set(xlabel="learned γ", ylabel="learned β")
    return ax
