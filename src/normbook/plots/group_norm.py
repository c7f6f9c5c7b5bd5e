"""Figures of chapter 5: group norm."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from normbook.plots import color
from normbook.plots.blocks import FORK, SUM, chain


def residual_block(ax: Axes) -> Axes:
    """Draw a residual block of a U-Net from left to right, group norm in its colour.

    Each convolution stands behind its norm and SiLU; the sum with x is last. Source: Ho
    et al. 2020, appendix B.
    """
    steps = [FORK, *("group\nnorm", "SiLU", "conv 3×3") * 2, SUM]
    return chain(ax, steps, {"group\nnorm": "GN"}, bypass="x as it is")


def influence(ax: Axes, moves: Any, samples: int, kind: str, title: str) -> Axes:
    """Draw which inputs (columns) move which outputs (rows): channels, by sample.

    A cell is filled where `moves` is not 0; lines part the samples.
    """
    moves = np.asarray(moves, float)
    size = len(moves)
    filled = np.ma.masked_equal(moves != 0, False)
    tint = ListedColormap([color(kind)])
    ax.pcolormesh(filled, cmap=tint, edgecolor="white", lw=1)
    for place in range(0, size + 1, size // samples):
        ax.plot([place, place], [0, size], color="0.5", lw=0.8)
        ax.plot([0, size], [place, place], color="0.5", lw=0.8)
    middles = np.arange(size // samples / 2, size, size // samples)
    names = [f"sample {number + 1}" for number in range(samples)]
    ax.set(aspect="equal", ylim=(size, 0), xlim=(0, size), title=title)
    ax.set_xticks(middles, names)
    ax.set_yticks(middles, names, rotation=90, va="center")
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def photograph(ax: Axes, image: Any, title: str = "") -> Axes:
    """Show a picture (C, H, W), its values from −2.2 to 2.2 deviations."""
    shown = np.clip(np.moveaxis(np.asarray(image), 0, -1) / 4.4 + 0.5, 0, 1)
    ax.imshow(shown, interpolation="none")  # stored pixel by pixel, so a small file
    ax.set_title(title)
    ax.axis("off")
    return ax


def sizes(ax: Axes, runs: Mapping[int, Any], kind: str, **style: Any) -> Axes:
    """Draw means over seeds with their range by batch size, the largest size first.

    runs: errors, one a seed, by size. Sizes are categories, named along the axis.
    """
    ordered = sorted(runs, reverse=True)
    errors, ink = np.array([runs[size] for size in ordered], float), color(kind)
    middle = errors.mean(1)
    reach = (middle - errors.min(1), errors.max(1) - middle)
    ax.errorbar(range(len(ordered)), middle, reach, color=ink, marker="o", **style)
    ax.set_xticks(range(len(ordered)), [str(size) for size in ordered])
    return ax


def level(
    ax: Axes, runs: Any, kind: str, text: str, lift: float = 0, **style: Any
) -> Axes:
    """Draw the mean and range of runs that have no batch size, across the axes.

    `text` stands at the right end, wholly above the line where `lift` is positive,
    wholly below it where `lift` is negative: two levels close together need both.
    """
    runs, ink = np.asarray(runs, float), color(kind)
    side = "bottom" if lift > 0 else "top" if lift < 0 else "center"
    ax.axhspan(runs.min(), runs.max(), color=ink, alpha=0.18, lw=0)
    ax.axhline(runs.mean(), color=ink, **style)
    ax.annotate(
        text, (1, runs.mean()), (4, lift), ("axes fraction", "data"), color=ink, size=9,
        textcoords="offset points", va=side, annotation_clip=False,
    )  # fmt: skip
    return ax


def values(ax: Axes, nets: Mapping[str, Any]) -> Axes:
    """Draw as how many values an image counts on every map, one dot a seed.

    nets: by name, `positions` and `effective` (layers × seeds) of each layer's map. The
    first net is drawn open; a dotted bar marks the positions of a map.
    """
    deepest = max((net["positions"] for net in nets.values()), key=len)
    shifts = np.linspace(-0.15, 0.15, len(nets))
    for shift, (name, net) in zip(shifts, nets.items(), strict=True):
        for layer, counts in enumerate(net["effective"]):
            spread = layer + shift + np.linspace(-0.08, 0.08, len(counts))
            fill = "none" if shift == shifts[0] else color("BN")
            ax.plot(spread, counts, "o", color=color("BN"), mfc=fill, ms=4)
        ax.lines[-1].set_label(name)
    for layer, positions in enumerate(deepest):
        ax.plot([layer - 0.4, layer + 0.4], [positions] * 2, ":", color="0.4")
    sides = [round(positions**0.5) for positions in deepest]
    ax.set_xticks(range(len(sides)), [f"{side}×{side}" for side in sides])
    ax.set(yscale="log", xlabel="map", ylabel="values an image counts as")
    ax.set_yticks(deepest, [str(positions) for positions in deepest])
    ax.minorticks_off()
    ax.grid(axis="x", visible=False)
    ax.legend()
    return ax
