"""Figures of chapter 2: batch norm."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Rectangle

from normbook.plots import INK, color


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
        ("conv 3×3\nno bias", "0.92"),
        ("batch\nnorm", color("BN")),
        ("ReLU", "0.92"),
        ("conv 3×3\nno bias", "0.92"),
        ("batch\nnorm", color("BN")),
        ("+", None),
        ("ReLU", "0.92"),
    ]
    arrow = {"arrowstyle": "-|>", "color": INK, "lw": 1, "shrinkA": 0, "shrinkB": 0}
    width, gap, left = 1.25, 0.45, 0.6
    ax.text(left - 0.35, 0, "x", ha="center", va="center", fontsize=11)
    start = left - 0.15
    fork = start + 0.12
    for text, fill in boxes:
        size = width if fill else 0.45
        ax.annotate("", (start + gap, 0), (start, 0), arrowprops=arrow)
        x = start + gap
        if fill:
            ax.add_patch(
                Rectangle((x, -0.42), size, 0.84, facecolor=fill, edgecolor=INK, lw=1)
            )
        else:
            ax.add_patch(Circle((x + size / 2, 0), size / 2, fill=False, ec=INK, lw=1))
            ax.plot([fork, fork, x + size / 2], [0, 1, 1], color=INK, lw=1)
            ax.annotate(
                "", (x + size / 2, size / 2), (x + size / 2, 1), arrowprops=arrow
            )
            ax.text(
                (fork + x) / 2, 1.08, "x as it is", ha="center", va="bottom", size=9
            )
        ink = "white" if fill == color("BN") else INK
        ax.text(x + size / 2, 0, text, ha="center", va="center", size=9, color=ink)
        start = x + size
    ax.annotate("", (start + gap, 0), (start, 0), arrowprops=arrow)
    ax.text(start + gap + 0.15, 0, "y", ha="center", va="center", fontsize=11)
    ax.set(xlim=(0, start + gap + 0.3), ylim=(-0.6, 1.45))
    ax.set_aspect("equal")
    ax.axis("off")
    return ax


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
