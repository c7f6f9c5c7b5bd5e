"""Figures of chapter 4: instance norm."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from normbook.plots import ACCENT, EDGE, GREY, color


def gallery(
    ax: Axes, pictures: Any, rows: Sequence[str] = (), columns: Sequence[str] = ()
) -> Axes:
    """Draw pictures (rows, columns, 3, H, W), 0 black and 1 white, as one sheet.

    In 64 steps from black to white, which the eye cannot tell and which halve the file.
    """
    steps = np.round(63 * np.asarray(pictures, float).clip(0, 1)) / 63
    sheet, (down, across) = _sheet(steps)
    ax.imshow(sheet, interpolation="none")
    ax.set_yticks(down if rows else [], rows, rotation=90, va="center")
    ax.set_xticks(across if columns else [], columns)
    ax.tick_params(length=0, labelsize=9.5, labeltop=True, labelbottom=False)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def _sheet(pictures: np.ndarray) -> tuple[np.ndarray, tuple[list[float], list[float]]]:
    """One picture with clear gaps, and the middles of its rows and columns."""
    rows, columns, _, height, width = pictures.shape
    gap = max(1, round(0.04 * width))
    high, wide = height + gap, width + gap
    sheet = np.zeros((rows * high - gap, columns * wide - gap, 4), np.float32)
    for row, column in np.ndindex(rows, columns):
        part = sheet[row * high : row * high + height, column * wide :][:, :width]
        part[..., :3] = np.moveaxis(pictures[row, column], 0, -1)
        part[..., 3] = 1
    return sheet, (
        [row * high + height / 2 for row in range(rows)],
        [column * wide + width / 2 for column in range(columns)],
    )


def shades(values: Any, top: float) -> np.ndarray:
    """Maps (..., H, W) as pictures (..., 3, H, W): 0 white, −top orange, top violet."""
    values = np.asarray(values, float)
    inks = matplotlib.colormaps["PuOr"](0.5 + 0.5 * (values / top).clip(-1, 1))
    return np.moveaxis(inks[..., :3], -1, -3)


def directions(ax: Axes, shape: tuple[int, int], row: int, column: int) -> Axes:
    """Draw images × channels, a map each: one set of instance norm, one γ's maps."""
    images, channels = shape
    grid = np.linspace(0.06, 0.94, 5)
    for n, c in np.ndindex(images, channels):
        inside = (n, c) == (row, column)
        face = color("IN") if inside else "none"
        ax.add_patch(
            Rectangle((c + 0.06, n + 0.06), 0.88, 0.88, fc=face, ec=GREY, lw=0.8)
        )
        ink = "white" if inside else "#B5B5B5"
        for at in grid[1:-1]:
            ax.plot([c + at, c + at], [n + 0.06, n + 0.94], color=ink, lw=0.5)
            ax.plot([c + 0.06, c + 0.94], [n + at, n + at], color=ink, lw=0.5)
    ax.add_patch(
        Rectangle((column, 0), 1, images, fc="none", ec=ACCENT, lw=2, zorder=3)
    )
    for text, at, shift, ink in (
        ("S: one map,\nm = H·W", (channels, row + 0.5), (8, 0), color("IN")),
        ("dγ, dβ of one channel", (column + 0.5, 0), (0, 7), ACCENT),
    ):
        ax.annotate(
            text, at, shift, textcoords="offset points", color=ink,
            va="center" if shift[0] else "bottom", ha="left" if shift[0] else "center",
            annotation_clip=False,
        )  # fmt: skip
    ax.set(xlim=(-0.04, channels + 0.04), ylim=(images + 0.04, -0.04), aspect="equal")
    ax.set(xticks=[], yticks=[], xlabel="channels, C", ylabel="images, N")
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.grid(visible=False)
    return ax


def cloud(
    ax: Axes, picture: Any, ink: str, name: str, every: int = 29, **style: Any
) -> Axes:
    """Draw some pixels of a picture (3, H, W) by their red and blue, and their ellipse.

    The ellipse's half axes are the two deviations, its middle the two means.
    """
    pixels = np.asarray(picture, float)[[0, 2]].reshape(2, -1)
    ax.plot(*pixels[:, ::every], ".", color=ink, ms=4, alpha=0.5, mew=0)
    turn = np.linspace(0, 2 * np.pi, 100)
    circle = np.array([np.cos(turn), np.sin(turn)])
    mean, deviation = pixels.mean(1)[:, None], pixels.std(1)[:, None]
    ax.plot(*(mean + deviation * circle), color=ink, lw=2, label=name, **style)
    ax.set(xlabel="red", ylabel="blue", aspect="equal")
    return ax


def moves(ax: Axes, table: Any, kind: str, title: str) -> Axes:
    """Draw a table of what moves what, in the colour of a method where it is true."""
    table = np.asarray(table, bool)
    size = len(table)
    for row, column in np.argwhere(table):
        ax.add_patch(Rectangle((column, row), 1, 1, fc=color(kind), ec="white", lw=0.6))
    ax.add_patch(Rectangle((0, 0), size, size, fc="none", ec=EDGE, lw=0.8))
    ax.set(xlim=(-0.1, size + 0.1), ylim=(size + 0.1, -0.1), aspect="equal")
    ax.set(xticks=[], yticks=[], xlabel="input", ylabel="output", title=title)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax
