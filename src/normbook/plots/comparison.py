"""Figures and tables of chapter 6: all methods side by side."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

from normbook import functional
from normbook.methods import METHODS
from normbook.plots import ACCENT, EDGE, GREY, INK, color, name

Named = Mapping[str, int]
Row = tuple[str, str, Named, functional.Sets]


# ------------------------------------------------------------------ tables


def axis_names(axes: Named, sets: functional.Sets) -> tuple[list[str], ...]:
    """Return the names of S, of the axes that index statistics, and of γ's."""
    names = list(axes)
    view = names
    if len(sets.view) > len(names):
        view = [names[0], "G", "C/G", *names[2:]]
    over = [name for axis, name in enumerate(view) if axis in sets.axes]
    left = [name for axis, name in enumerate(view) if axis not in sets.axes]
    return over, left, [names[axis] for axis in sets.param]


def layouts(axes: Named, groups: int) -> list[Row]:
    """Every method on x with these named sizes, which begin with N and C.

    Returns method, layout, named sizes and sets. Layer norm comes over all of a sample,
    where it has positions, and over its channels alone, which then stand last; so does
    RMSNorm. A method that cannot take such an x is left out, as is instance norm where
    a sample has no positions.
    """
    last = {name: size for name, size in axes.items() if name != "C"}
    last["C"] = axes["C"]
    first_shape, last_shape = tuple(axes.values()), tuple(last.values())
    rows: list[Row] = []
    for key, method in METHODS.items():
        if method.axis == -1:
            whole = method.of_whole_samples and len(axes) > 2
            if whole:
                sample = functional.layer_sets(first_shape, tuple(range(1, len(axes))))
                rows.append((key, "whole sample", axes, sample))
            use, sets = "channels" * whole, method.sets_of(last_shape, groups)
            rows.append((key, use, last, sets))
            continue
        try:
            sets = method.sets_of(first_shape, groups)
        except functional.InputError:  # a sample has no positions
            continue
        rows.append((key, f"G = {groups}" * method.grouped, axes, sets))
    return rows


def axes_table(axes: Named, groups: int) -> str:
    """Return `layouts` as a Markdown table."""

    def cells(row: Row) -> Iterable[str]:
        method, use, named, sets = row
        over, _, param = axis_names(named, sets)
        yield name(method) + (f", {use}" if use else "")
        yield f"({', '.join(named)})"
        yield f"**{', '.join(over)}**"
        yield f"{sets.size:,}"
        yield f"{sets.number:,}"
        yield "·".join(param) + ("" if METHODS[method].centered else ", no β")

    head = ("layer", "x", "S", "m", "sets", "γ, β")
    return markdown(head, map(cells, layouts(axes, groups)))


def markdown(head: Sequence[Any], rows: Iterable[Iterable[Any]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


# ----------------------------------------------------------------- figures


def touched(ax: Axes, moved: Any, cell: tuple[int, ...], title: str) -> Axes:
    """Draw which values of (N, C, H, W) moved: a row a sample, a block a channel.

    cell: index of the value that was changed; a dot marks it.
    """
    n, c, h, w = np.shape(moved)
    gap = 0.5
    for index in np.ndindex(n, c, h, w):
        corner = _corner(index, (h, w), gap)
        face = ACCENT if moved[index] else "none"
        ax.add_patch(Rectangle(corner, 1, 1, fc=face, ec=EDGE, lw=0.6, alpha=0.85))
    left, top = _corner(cell, (h, w), gap)
    ax.plot(left + 0.5, top + 0.5, "o", color=INK, ms=3.5)
    width, height = c * (w + gap) - gap, n * (h + gap) - gap
    ax.set(xlim=(-0.1, width + 0.1), ylim=(height + 0.1, -0.1), aspect="equal")
    ax.set_title(title, weight="bold")
    ax.axis("off")
    return ax


def _corner(
    index: tuple[int, ...], size: tuple[int, int], gap: float
) -> tuple[float, float]:
    n, c, y, x = index
    return c * (size[1] + gap) + x, n * (size[0] + gap) + y


def seen(ax: Axes, changes: Sequence[str], moved: Mapping[str, Sequence[bool]]) -> Axes:
    """Draw which change of x (row) each layer (column) sees; full cells do not see it.

    moved: for each layer, named by its method and maybe a second line, whether its
    output moved under each change.
    """
    for column, (kind, saw) in enumerate(moved.items()):
        ink = color(kind)
        for row, did in enumerate(saw):
            ax.add_patch(
                Rectangle(
                    (column + 0.06, row + 0.08), 0.88, 0.84, lw=0.8,
                    fc="none" if did else ink, ec=EDGE if did else ink,
                )
            )  # fmt: skip
        ax.text(column + 0.5, -0.15, kind, ha="center", va="bottom", fontsize=9)
    ax.set(xlim=(0, len(moved)), ylim=(len(changes), 0), xticks=[])
    ax.set_yticks(np.arange(len(changes)) + 0.5, changes)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def spread(lows: Sequence[float], gap: float) -> list[float]:
    """Heights near the given ones, in the same order, at least `gap` apart."""
    order = np.argsort(lows)
    heights = np.asarray(lows, float)[order]
    for _ in range(200):
        near = gap - np.diff(heights)
        push = np.where(near > 1e-9, near / 2, 0.0)
        heights[:-1] -= push
        heights[1:] += push
    placed = np.empty(len(lows))
    placed[order] = heights
    return placed.tolist()


def name_lines(ax: Axes, ends: Mapping[str, tuple[float, float]], gap: float) -> Axes:
    """Write each kind beside the end (x, y) of its line, in points `gap` apart."""
    figure: Any = ax.figure
    figure.draw_without_rendering()  # the layout decides where lines end on paper
    to_points = 72 / figure.dpi
    heights = [ax.transData.transform(end)[1] * to_points for end in ends.values()]
    for (kind, end), at, placed in zip(
        ends.items(), heights, spread(heights, gap), strict=True
    ):
        ax.annotate(
            kind, end, (6, placed - at), textcoords="offset points", va="center",
            fontsize=9, color=color(kind), annotation_clip=False,
        )  # fmt: skip
    return ax


def deviations(ax: Axes, x: Any, runs: Any, kind: str, **style: Any) -> Axes:
    """Draw the mean of runs (points × seeds), with a standard deviation each way."""
    runs = np.asarray(runs, float)
    look: dict[str, Any] = {
        "marker": "o",
        "ms": 4,
        "lw": 1.5,
        "elinewidth": 1.0,
    } | style
    ax.errorbar(x, runs.mean(1), runs.std(1, ddof=1), color=color(kind), **look)
    return ax


# A way out of a question: the answer, what to take, and the kind that colours it.
Way = tuple[str, str, str]


def guide(ax: Axes, steps: Sequence[tuple[str, str, Sequence[Way]]]) -> Axes:
    """Draw a decision guide: questions down the left, what to take on the right.

    steps: each a question, the answer that leads to the next one, and its ways out.
    """
    apart = 1.05
    tall = [apart * max(1, len(ways)) + 0.7 for _, _, ways in steps]
    middles = -np.cumsum(tall) + np.array(tall) / 2
    for place, (question, further, ways) in enumerate(steps):
        middle = middles[place]
        _box(ax, (0.0, middle), 4.4, 1.15, question, INK, weight="normal")
        for number, (answer, outcome, kind) in enumerate(ways):
            y = middle + apart * ((len(ways) - 1) / 2 - number)
            _arrow(ax, (4.4, middle), (6.9, y))
            lift = 0.06 if y >= middle else -0.06
            ax.text(
                6.8, y + lift, answer, ha="right", size=9,
                va="bottom" if y >= middle else "top",
            )  # fmt: skip
            _box(ax, (6.9, y), 3.9, 0.85, outcome, color(kind))
        if further:
            end = middles[place + 1] + 0.575
            _arrow(ax, (1.4, middle - 0.575), (1.4, end))
            ax.text(1.65, (middle - 0.575 + end) / 2, further, va="center", size=9)
    ax.set(xlim=(-0.1, 10.9), ylim=(-sum(tall) - 0.05, 0.05))
    ax.axis("off")
    return ax


def _box(
    ax: Axes,
    left: tuple[float, float],
    width: float,
    height: float,
    text: str,
    ink: str,
    weight: str = "bold",
) -> None:
    """A box whose left edge has its middle at a point."""
    x, y = left
    ax.add_patch(
        FancyBboxPatch(
            (x, y - height / 2), width, height, fc="none", ec=ink, lw=1.4,
            boxstyle="round,pad=0,rounding_size=0.14",
        )
    )  # fmt: skip
    ax.text(
        x + width / 2, y, text, ha="center", va="center", fontsize=9, color=INK,
        weight=weight,
    )  # fmt: skip


def _arrow(ax: Axes, tail: tuple[float, float], head: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "color": GREY, "shrinkA": 0, "shrinkB": 1}
    ax.annotate("", head, tail, arrowprops=style)


def two_errors(
    ax: Axes, errors: Mapping[str, tuple[float, float]], names: tuple[str, str]
) -> Axes:
    """Draw a row a kind with its test error in two conditions, in %.

    names: of the conditions, written beside the first row: a dot and a diamond.
    """
    for row, (kind, (first, second)) in enumerate(errors.items()):
        ink = color(kind)
        ax.plot([first, second], [row, row], color=ink, lw=1.2)
        ax.plot(first, row, "o", color=ink, ms=6)
        ax.plot(second, row, "D", color=ink, ms=5.5, mfc="none")
    for text, x in zip(names, next(iter(errors.values())), strict=True):
        ax.annotate(
            text, (x, 0), (0, 8), textcoords="offset points", ha="center", size=9
        )
    ax.set(xlim=(0, 100), ylim=(len(errors) - 0.5, -0.9), xlabel="test error, %")
    ax.set_yticks(range(len(errors)), list(errors))
    ax.tick_params(axis="y", length=0)
    return ax
