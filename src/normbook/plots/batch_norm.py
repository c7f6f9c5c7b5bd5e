"""Figures of chapter 2: batch norm."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from normbook.plots import INK


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
