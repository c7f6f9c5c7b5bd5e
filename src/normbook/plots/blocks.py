"""Block diagrams: a chain of boxes from left to right, with sums and bypasses."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Circle, Rectangle

from normbook.plots import INK, color

WIDTH, GAP = 1.25, 0.45
# A bypass leaves the chain at FORK and comes back in the next SUM.
FORK, SUM = "fork", "+"


def chain(ax: Axes, steps: Sequence[str], kinds: dict[str, str], bypass: str) -> Axes:
    """Draw boxes from x to y, in their order.

    Args:
        steps: the text of each box, `FORK` or `SUM`.
        kinds: which texts are a norm, and its key: their boxes have its colour.
        bypass: what stands over the first bypass.
    """
    arrow = {"arrowstyle": "-|>", "color": INK, "lw": 1, "shrinkA": 0, "shrinkB": 0}
    ax.text(0.25, 0, "x", ha="center", va="center", fontsize=11)
    start = fork = 0.45
    for text in steps:
        if text == FORK:
            fork = start + 0.12
            continue
        size = 0.45 if text == SUM else WIDTH
        ax.annotate("", (start + GAP, 0), (start, 0), arrowprops=arrow)
        x = start + GAP
        middle = x + size / 2
        if text == SUM:
            ax.add_patch(Circle((middle, 0), size / 2, fill=False, ec=INK, lw=1))
            ax.plot([fork, fork, middle], [0, 1, 1], color=INK, lw=1)
            ax.annotate("", (middle, size / 2), (middle, 1), arrowprops=arrow)
            ax.text((fork + x) / 2, 1.08, bypass, ha="center", va="bottom", size=9)
            bypass = ""
        else:
            fill = color(kinds[text]) if text in kinds else "0.92"
            ax.add_patch(
                Rectangle((x, -0.42), size, 0.84, facecolor=fill, edgecolor=INK, lw=1)
            )
        ink = "white" if text in kinds else INK
        ax.text(middle, 0, text, ha="center", va="center", size=9, color=ink)
        start = x + size
    ax.annotate("", (start + GAP, 0), (start, 0), arrowprops=arrow)
    ax.text(start + GAP + 0.15, 0, "y", ha="center", va="center", fontsize=11)
    ax.set(xlim=(0, start + GAP + 0.3), ylim=(-0.6, 1.45))
    ax.set_aspect("equal")
    ax.axis("off")
    return ax
