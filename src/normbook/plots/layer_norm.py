"""Figures of chapter 3: layer norm."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from normbook.plots import ACCENT, EDGE, INK, color
from normbook.plots.blocks import FORK, SUM, chain

# Two directions that span the plane of triples that sum to zero.
PLANE = np.array([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]) / np.sqrt([[2.0], [6.0]])


def transformer_block(ax: Axes, place: str) -> Axes:
    """Draw a block of a transformer, its layer norms before or after the sums.

    `place` is pre or post. Source: Xiong et al. 2020, figure 1.
    """
    norm = "layer\nnorm"
    steps: list[str] = []
    for branch in ("attention", "two linear\nlayers"):
        around = [norm, branch, SUM] if place == "pre" else [branch, SUM, norm]
        steps += [FORK, *around]
    return chain(ax, steps, {norm: "LN"}, bypass="x as it is")


def directions(ax: Axes, shape: tuple[int, int], row: int, column: int) -> Axes:
    """Draw tokens × channels: one set of layer norm, and what one γ is summed over."""
    tokens, channels = shape
    for t in range(tokens):
        for c in range(channels):
            ax.add_patch(Rectangle((c, t), 1, 1, fc="none", ec=EDGE, lw=0.7, zorder=1))
    for corner, width, height, ink in (
        ((0, row), channels, 1, color("LN")),
        ((column, 0), 1, tokens, ACCENT),
    ):
        ax.add_patch(Rectangle(corner, width, height, fc=ink, ec=ink, alpha=0.35, lw=0))
        ax.add_patch(
            Rectangle(corner, width, height, fc="none", ec=ink, lw=2, zorder=3)
        )
    ax.annotate(
        "S: one token,\nm = C", (channels, row + 0.5), (8, 0), va="center",
        textcoords="offset points", color=color("LN"), annotation_clip=False,
    )  # fmt: skip
    ax.annotate(
        "dγ, dβ of one channel:\nall tokens", (column + 0.5, 0), (0, 6), ha="center",
        textcoords="offset points", color=ACCENT, annotation_clip=False,
    )  # fmt: skip
    ax.set(xlim=(-0.04, channels + 0.04), ylim=(tokens + 0.04, -0.04), aspect="equal")
    ax.set(xticks=[], yticks=[], xlabel="channels", ylabel="tokens, N·T of them")
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.grid(visible=False)
    return ax


def plane(ax: Axes, triples: Any, shades: Any, title: str) -> Axes:
    """Draw tokens of three channels, seen along (1, 1, 1), and the circle of radius √3.

    shades: a number from 0 to 1 a token, for its colour.
    """
    turn = np.linspace(0, 2 * np.pi, 200)
    ax.plot(3**0.5 * np.cos(turn), 3**0.5 * np.sin(turn), color="0.6", lw=0.8)
    across, up = PLANE @ np.asarray(triples, float).T
    ax.scatter(across, up, c=shades, cmap="copper", s=16, zorder=3)
    ax.set(aspect="equal", xticks=[], yticks=[], title=title)
    ax.grid(visible=False)
    return ax


def influence(ax: Axes, moves: Any, title: str) -> Axes:
    """Draw how far input position j (column) moves output position i (row).

    Cells above the diagonal are the future; a dot marks those that are not 0.
    """
    moves = np.asarray(moves, float)
    size = len(moves)
    ax.pcolormesh(
        moves > 0, cmap="Oranges", vmin=0, vmax=1.6, edgecolor="white", lw=1.5
    )
    future = np.argwhere(np.triu(moves, 1) > 0) + 0.5
    ax.plot(future[:, 1], future[:, 0], "o", color=INK, ms=3)
    ax.plot([0, size], [0, size], color="0.5", lw=0.8, ls=":")
    ax.set(aspect="equal", title=title, xlabel="input position")
    ax.set(xticks=[0.5, size - 0.5], xticklabels=["first", "last"])
    ax.set(yticks=[0.5, size - 0.5], yticklabels=["first", "last"], ylim=(size, 0))
    ax.grid(visible=False)
    return ax
