"""Curves, dots and labels that every chapter draws results with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from normbook.plots import color

DASHES = {"noisy BN": (0, (4, 1.5)), "BN, residual": (0, (1, 1))}


def label(ax: Axes, text: str, lift: float = 0, at: int = -1) -> Axes:
    """Write text beside a point of the line drawn last, its end unless told."""
    line = ax.lines[-1]
    x, y = np.asarray(line.get_xydata())[at]
    ax.annotate(
        text, (x, y), (5, lift), textcoords="offset points", va="center", fontsize=9,
        color=line.get_color(), annotation_clip=False,
    )  # fmt: skip
    return ax


def band(ax: Axes, x: Sequence[float], runs: Any, kind: str, **style: Any) -> Axes:
    """Draw the mean of runs (points × seeds) and the range over the seeds."""
    runs, ink = np.asarray(runs, float), color(kind)
    ax.fill_between(x, runs.min(1), runs.max(1), color=ink, alpha=0.18, lw=0)
    style = {"ls": DASHES.get(kind, "-")} | style
    ax.plot(x, runs.mean(1), color=ink, **style)
    return ax


def percentiles(ax: Axes, x: Any, levels: Any, tint: str) -> Axes:
    """Draw the 15th, 50th and 85th percentile, levels (points × 3), over x."""
    low, middle, high = np.asarray(levels, float).T
    ax.fill_between(x, low, high, color=tint, alpha=0.2, lw=0)
    ax.plot(x, middle, color=tint)
    return ax


def points(ax: Axes, place: float, runs: Any, kind: str, **style: Any) -> Axes:
    """Draw one dot a seed, and a bar at their mean, at a place of a category axis."""
    runs, ink = np.asarray(runs, float), color(kind)
    spread = place + np.linspace(-0.12, 0.12, len(runs))
    ax.plot(spread, runs, "o", color=ink, ms=4, alpha=0.75, **style)
    ax.plot([place - 0.25, place + 0.25], [runs.mean()] * 2, color=ink, lw=2.2)
    return ax


def categories(ax: Axes, groups: Mapping[str, Any]) -> Axes:
    """Name the places 0, 1, … of a category axis."""
    ax.set_xticks(range(len(groups)), list(groups))
    ax.grid(axis="x", visible=False)
    return ax
