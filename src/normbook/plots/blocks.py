"""Block diagrams: what stands where in a network."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Circle, Rectangle

from normbook.plots import INK

PLAIN = "0.92"  # a box that is no norm
Box = tuple[str, str | None]


def residual(ax: Axes, boxes: Sequence[Box]) -> Axes:
    """Draw boxes from left to right, and the bypass of x to their sum.

    boxes: what is written in each and its colour; the sum, a circle, has None.
    """
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
        ink = INK if fill in (PLAIN, None) else "white"
        ax.text(x + size / 2, 0, text, ha="center", va="center", size=9, color=ink)
        start = x + size
    ax.annotate("", (start + gap, 0), (start, 0), arrowprops=arrow)
    ax.text(start + gap + 0.15, 0, "y", ha="center", va="center", fontsize=11)
    ax.set(xlim=(0, start + gap + 0.3), ylim=(-0.6, 1.45))
    ax.set_aspect("equal")
    ax.axis("off")
    return ax
