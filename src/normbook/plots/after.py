"""Figures of chapter 8: what came after."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from normbook.plots import INK
from normbook.plots.blocks import FORK, SUM, chain

NORM = "RMS-\nNorm"


def place(ax: Axes, title: str, slots: Sequence[bool], bypass: str) -> Axes:
    """Draw one branch f, and norms in those of the three slots that are filled.

    The slots: before f, after f inside the sum, after the sum. `bypass` stands over
    the way around the branch.
    """
    before, after, last = ([NORM] if slot else [] for slot in slots)
    chain(ax, [FORK, *before, "f", *after, SUM, *last], {NORM: "RMSNorm"}, bypass)
    ax.set(xlim=(0, 8.6))
    ax.set_title(title, loc="left")
    return ax


def two_by_two(
    ax: Axes, values: Any, title: str, rows: Sequence[str], columns: Sequence[str]
) -> Axes:
    """Draw two by two positive numbers, the darker, the larger, on a log scale.

    A factor of a hundred and more between them goes from white to dark; smaller ones
    stay paler.
    """
    values = np.asarray(values, float)
    shade = np.log(values / values.min()) / max(np.log(values.max() / values.min()), 4)
    ax.pcolormesh(shade, cmap="Purples", vmin=-0.1, vmax=1.25, ec="white", lw=2)
    for (row, column), value in np.ndenumerate(values):
        text = f"{value:.2f}" if value < 5 else f"{float(f'{value:.2g}'):,.0f}"
        ink = "white" if shade[row, column] > 0.6 else INK
        ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink)
    ax.set(xticks=[0.5, 1.5], xticklabels=columns, ylim=(2, 0), title=title)
    ax.set(yticks=[0.5, 1.5], yticklabels=rows)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    return ax
