"""Figures of chapter 7: what moves, how fast, and how near to a copy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator

from normbook.methods import METHODS
from normbook.plots import ACCENT, EDGE, GREY, INK, color, shares_statistics

# Who is measured: the mark, the colour and the name of each.
RIVALS = {
    "plain": ("x", GREY, "step by step"),
    "torch": ("o", GREY, "torch.nn"),
    "compiled": ("s", INK, "torch.compile"),
    "Liger": ("^", INK, "Liger"),
    "QuACK": ("v", INK, "QuACK"),
    "ours": ("D", ACCENT, "ours"),
}


def size(number: float) -> str:
    """A number of bytes in its natural unit: 4 kB, 16 MB."""
    power = min(int(np.log2(max(number, 1)) // 10), 3)
    return f"{number / 1024**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"


def bars(ax: Axes, values: Mapping[str, float], chosen: str = "") -> Axes:
    """Draw one bar a name, with its number at its end, from top to bottom."""
    inks = [ACCENT if name == chosen else GREY for name in values]
    ax.barh(list(values), list(values.values()), color=inks, height=0.6)
    for place, value in enumerate(values.values()):
        ax.annotate(
            f"{value:.2g}" if value < 10 else f"{value:.0f}", (value, place), (4, 0),
            textcoords="offset points", va="center",
        )  # fmt: skip
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0, labelsize=10)
    return ax


def against_bytes(
    ax: Axes, sizes: Sequence[float], values: Any, caches: Mapping[str, int]
) -> Axes:
    """Draw values over numbers of bytes, with a line where each cache is full."""
    ax.plot(sizes, values, "o-", color=ACCENT)
    ax.set_xscale("log", base=2)
    shown = list(sizes)[:: max(1, round(len(sizes) / 6))]
    ax.set_xticks(shown, [size(n) for n in shown])
    ax.minorticks_off()
    ax.set_ylim(0, None)
    for name, full in caches.items():
        if min(sizes) <= full <= max(sizes):
            ax.axvline(full, color="0.6", lw=0.9, ls=":")
            ax.annotate(
                name, (full, 1), (3, -2), xycoords=("data", "axes fraction"),
                textcoords="offset points", va="top", color=GREY,
            )  # fmt: skip
    return ax


def roofline(ax: Axes, counts: Any, times: Any, mark: float) -> Axes:
    """Draw the time of a value over the arithmetic done on it, and where a layer is.

    The two dashed lines are the two prices: of the way to memory and back, which does
    not depend on the arithmetic, and of the arithmetic alone.
    """
    counts, times = np.asarray(counts, float), np.asarray(times, float)
    each = (times[-1] - times[-2]) / (counts[-1] - counts[-2])
    ax.plot(counts, np.full_like(times, times[0]), color=GREY, lw=1, ls="--")
    ax.plot(counts, each * counts, color=GREY, lw=1, ls="--")
    ax.plot(counts, times, "o-", color=ACCENT)
    ax.axvline(mark, color=color("LN"), lw=1.2, ls=":")
    ax.annotate(
        "layer norm", (mark, 1), (4, -2), xycoords=("data", "axes fraction"),
        textcoords="offset points", va="top", color=color("LN"),
    )  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_ylim(times.min() / 3, times.max() * 2)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_xticks(counts, [f"{n:g}" for n in counts])
    ax.minorticks_off()
    return ax


def steps(ax: Axes, rows: Sequence[Mapping[str, Any]]) -> Axes:
    """Draw what every step moves (outline) and takes (filled), in copies of x."""
    places = np.arange(len(rows))
    takes = [row["takes"] for row in rows]
    moves = [row["moves"] for row in rows]
    ax.barh(places, takes, color=ACCENT, alpha=0.45, height=0.62, label="takes")
    ax.barh(places, moves, fc="none", ec=INK, lw=1.3, height=0.62, label="moves")
    ax.set_yticks(places, [row["step"] for row in rows])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.legend(loc="center right")
    return ax


def lines(ax: Axes, x: Any, curves: Mapping[str, Any], chosen: str) -> Axes:
    """Draw several curves on logarithmic axes, each with its name at its end.

    Names whose curves end close together are moved apart.
    """
    styles, ends = iter(("--", ":", "-.")), sorted(v[-1] for v in curves.values())
    for name, values in curves.items():
        others = [end / values[-1] for end in ends if end != values[-1]]
        lift = 6 * (any(0.03 < o < 1 for o in others) - any(1 < o < 30 for o in others))
        ink, style = (ACCENT, "-") if name == chosen else (GREY, next(styles))
        ax.plot(x, values, color=ink, ls=style, marker="o", ms=3)
        ax.annotate(
            name, (x[-1], values[-1]), (6, lift), textcoords="offset points",
            va="center", color=ink, annotation_clip=False,
        )  # fmt: skip
    ax.set(xscale="log", yscale="log")
    return ax


def strip(ax: Axes, method: str, shape: tuple[int, int, int], groups: int = 2) -> Axes:
    """Draw x of shape (N, C, H·W) as it lies in memory, one cell a value.

    The cells that share the first one's statistics have the colour of the method.
    """
    sets = METHODS[method].sets_in_picture(shape, groups)
    member = shares_statistics(sets, shape, (0, 0, 0)).ravel()
    for place, inside in enumerate(member):
        ax.add_patch(
            Rectangle(
                (place, 0), 1, 1, ec=EDGE, lw=0.4,
                fc=color(method) if inside else "none",
            )
        )  # fmt: skip
    ax.set(xlim=(-0.5, len(member) + 0.5), ylim=(-0.05, 1.05), xticks=[], yticks=[])
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def runs(member: Any) -> int:
    """In how many unbroken runs of memory the marked values lie."""
    member = np.asarray(member, int).ravel()
    return int((np.diff(member, prepend=0) == 1).sum())


def shares(ax: Axes, rows: Mapping[str, Mapping[str, float]]) -> Axes:
    """Draw, a line a case, each rival's speed as a share of a copy's, in percent."""
    end = max(100, ax.get_xlim()[1])  # of a panel beside this one, if x is shared
    for who, (mark, ink, label) in RIVALS.items():
        found = [
            (place, row[who]) for place, row in enumerate(rows.values()) if who in row
        ]
        if found:
            places, parts = zip(*found, strict=True)
            end = max(end, 105 * max(parts))
            ax.plot(
                100 * np.array(parts), places, mark, color=ink, ms=6, mew=1.4,
                mfc="none" if who == "torch" else ink, label=label,
            )  # fmt: skip
    for place in range(len(rows)):
        ax.axhline(place, color="0.8", lw=0.6, zorder=0)
    ax.axvline(100, color=INK, lw=1, ls=":")
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlim=(0, end), ylim=(len(rows) - 0.4, -0.6))
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    return ax
