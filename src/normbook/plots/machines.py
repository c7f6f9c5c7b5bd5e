"""Figures of chapter 9: one batch in several processes, and what its exchange costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from normbook.plots import ACCENT, GREY, INK

# Of a process: the mark and the colour of its line and of the mark's inside.
PROCESSES = (("o", ACCENT, ACCENT), ("s", INK, "none"))


def slopes(ax: Axes, before: Sequence[float], after: Sequence[float]) -> Axes:
    """Draw a line from each number to its output; the first half is process 0's.

    Numbers before are drawn standardized, so that a line that is level is right.
    """
    x = (np.array(before) - np.mean(before)) / np.std(before)
    for place, (start, end) in enumerate(zip(x, after, strict=True)):
        marker, line, inside = PROCESSES[2 * place // len(x)]
        ax.plot([0, 1], [start, end], marker, ls="-", color=line, mfc=inside)
        ax.annotate(
            f"{before[place]:.0f}", (0, start), (-8, 0),
            textcoords="offset points", ha="right", va="center",
        )  # fmt: skip
    ax.set(xticks=[0, 1], xticklabels=["x", "y"], xlim=(-0.3, 1.15), yticks=[-1, 0, 1])
    ax.grid(visible=False)
    return ax


def merged(ax: Axes, splits: Mapping[str, Sequence[Any]]) -> Axes:
    """Draw m2 of each part and, hatched, what lies between them: a bar a split."""
    for place, parts in enumerate(splits.values()):
        within = [((part - part.mean()) ** 2).sum() for part in parts]
        whole = np.concatenate(parts)
        start = 0.0
        for (_, line, _), length in zip(PROCESSES, within, strict=True):
            ax.barh(place, length, 0.55, start, color=line)
            start += length
        all_ = ((whole - whole.mean()) ** 2).sum()
        ax.barh(
            place, all_ - start, 0.55, start, fc="none", ec=GREY, hatch="///", lw=0.8
        )
        ax.annotate(
            f"{all_ - start:.0f} between", ((all_ + start) / 2, place), ha="center",
            va="center", bbox={"fc": "white", "ec": "none", "pad": 1},
        )  # fmt: skip
    ax.set(yticks=range(len(splits)), yticklabels=list(splits), xlabel="m2")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    return ax


def differences(ax: Axes, values: Any, first: int) -> Axes:
    """Draw the numbers of each image, (images, numbers), above its place.

    The first so many images are process 0's, the others process 1's.
    """
    places = np.repeat(np.arange(len(values)), len(values[0])).reshape(values.shape)
    halves = slice(None, first), slice(first, None)
    for half, (marker, line, inside) in zip(halves, PROCESSES, strict=True):
        x, y = places[half].ravel(), values[half].ravel()
        ax.plot(x, y, marker, ms=3.5, color=line, mfc=inside, mew=0.8)
    ax.set(xlabel="image", xticks=range(0, len(values), 5))
    return ax


def kilobytes(ax: Axes, values: Mapping[str, float]) -> Axes:
    """Draw one bar a name on a logarithmic axis, with its number at its end."""
    ax.barh(list(values), list(values.values()), color=GREY, height=0.6)
    for place, value in enumerate(values.values()):
        ax.annotate(
            f"{value:.2g}" if value < 10 else f"{value:.0f}", (value, place), (4, 0),
            textcoords="offset points", va="center",
        )  # fmt: skip
    ax.set(xscale="log", xlabel="kB a step", xlim=(1, 3 * max(values.values())))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0, labelsize=10)
    return ax


def costs(ax: Axes, rows: Sequence[Mapping[str, Any]]) -> Axes:
    """Draw milliseconds of a step by channels: the layer alone, and all its exchanges.

    rows: of `labs.across_machines.costs`, for one number of processes.
    """
    channels = [row["channels"] for row in rows]
    for name, marker, ink in (
        ("layer", "o", GREY),
        ("synchronized", "D", ACCENT),
        ("exchanges", "x", INK),
    ):
        y = [1e3 * row["seconds"][name] for row in rows]
        ax.plot(channels, y, marker, ls="-", color=ink, label=name)
    ax.set(xscale="log", yscale="log", xlabel="channels")
    ax.set_xticks(channels, [str(n) for n in channels])
    ax.minorticks_off()
    return ax
