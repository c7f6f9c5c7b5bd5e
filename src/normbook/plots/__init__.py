"""Figures of the book: each function takes an Axes, draws on it and returns it.

Every method has one colour (Okabe and Ito's colour-blind safe set), that of its entry
in `normbook.methods`, the same in every figure and on every page. `import
normbook.plots` changes nothing; `use_style()` sets the look, and `show(figure)` puts a
figure on the page as an SVG that is the same file each time the cell runs.
"""

import inspect
import io
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from normbook import functional
from normbook.methods import METHODS, method_of
from normbook.plots.svg_text import stable

INK = "#262626"
GREY = "#6B6B6B"  # what has no method
EDGE = "#9A9A9A"  # of a cell outside the set
ACCENT = "#6A3D9A"  # what a figure is about, when it is about no method
STYLE = Path(__file__).with_name("book.mplstyle")
PLAIN_KINDS = ("none", "DyT")  # in grey: they normalize nothing


def color(kind: str) -> str:
    """The colour of a method by its key, and of a kind that has it as a word.

    "BN", "noisy BN" and "BN + WS 2" are batch norm's. Raises ValueError for a kind that
    names neither a method nor one of `PLAIN_KINDS`.
    """
    method = method_of(kind)
    if method is not None:
        return method.color
    if kind in PLAIN_KINDS:
        return GREY
    known = ", ".join([*METHODS, *PLAIN_KINDS])
    raise ValueError(
        f"no method has a word of {kind!r} as its key, so it has no colour; use one of "
        f"{known}, or a kind with one of them as a word of its own."
    )


def name(key: str) -> str:
    """What a method is called in text: "batch norm" for "BN"."""
    return "no normalization" if key == "none" else METHODS[key].name


def use_style() -> None:
    """Give every figure drawn from here on the look of the book."""
    plt.style.use(STYLE)
    colors = [method.color for method in METHODS.values()]
    plt.rcParams["axes.prop_cycle"] = plt.cycler("color", [*colors, GREY])


def svg(figure: Figure) -> str:
    """Return the figure as SVG text without a date: same drawing, same text."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return stable(text.getvalue())


def show(figure: Figure) -> None:
    """Display the figure below a notebook's cell as SVG, and close it."""
    from IPython.display import display  # only a notebook needs IPython

    display({"image/svg+xml": svg(figure)}, raw=True)
    plt.close(figure)


def shares_statistics(sets: Any, shape: tuple[int, ...], cell: tuple[int, ...]) -> Any:
    """Return which cells of an array share their statistics with one marked cell.

    Args:
        sets: what `functional.batch_sets` and its siblings return: the array is
            reshaped to `sets.view` and reduced over `sets.axes`.
        shape: shape of the array.
        cell: index of the marked cell.

    Returns:
        A boolean array of the given shape.
    """
    number = np.arange(np.prod(shape)).reshape(sets.view)
    first = number.min(axis=sets.axes, keepdims=True)  # one label for each set
    label = np.broadcast_to(first, sets.view).reshape(shape)
    return label == label[cell]


# Where one step along N, C and H·W leads on the paper, seen from above the corner.
_STEP = np.array([[-0.80, 0.42], [0.90, 0.34], [0.0, -0.94]])
_WHITE = (0.0, 0.22, 0.42)  # mixed into the faces square to N, C and H·W


def faces(shape: tuple[int, int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the faces of an N × C × (H·W) block that can be seen.

    Returns:
        For each axis, the faces square to it, at its index 0: the index of each
        face's cell, of shape (k, 3), and its four corners on the paper, (k, 4, 2).
    """
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    seen = []
    for axis in range(3):
        u, v = (a for a in range(3) if a != axis)
        cells = np.zeros((shape[u] * shape[v], 3), dtype=int)
        cells[:, [u, v]] = np.indices((shape[u], shape[v])).reshape(2, -1).T
        corners = np.zeros((len(cells), 4, 3))
        corners[:, :, [u, v]] = cells[:, None, [u, v]] + square
        seen.append((cells, corners @ _STEP))
    return seen


def sets(
    ax: Axes,
    method: str,
    shape: tuple[int, int, int] = (4, 6, 4),
    *,
    groups: int = 2,
    axes: tuple[int, ...] | None = None,
    cell: tuple[int, int, int] = (0, 0, 0),
    labels: bool = True,
    positions: str = "H, W",
) -> Axes:
    """Draw an N × C × (H·W) block and the set that one marked cell is standardized in.

    The cells in colour are computed from the axes that the function of that name
    reduces over. LN is layer norm over C, H and W, as in Wu and He's figure; RMSNorm
    takes the mean over C at each position, as layer norm does in a transformer.

    Args:
        method: a key of `METHODS`.
        shape: N, C and H·W.
        groups: number of groups of channels, for GN.
        axes: the axes of the block that layer norm reduces over, if others than these.
        cell: the marked cell, on a visible face: N, C or H·W index 0.
        labels: write N, C and `positions` along the edges.
        positions: what the third axis is called.

    Source: after figure 2 of Wu and He 2018, drawn anew.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    reduced = (
        functional.layer_sets(shape, axes)
        if axes
        else METHODS[method].sets_in_picture(shape, groups)
    )
    member = shares_statistics(reduced, shape, cell)
    ink = np.array(to_rgb(METHODS[method].color))
    for white, (cells, corners) in zip(_WHITE, faces(shape), strict=True):
        inside = member[tuple(cells.T)]
        for chosen, face, edge, width, order in (
            (~inside, "none", EDGE, 0.6, 1),
            (inside, ink + white * (1 - ink), INK, 0.8, 2),
        ):
            ax.add_collection(
                PolyCollection(
                    list(corners[chosen]),
                    facecolors=face,
                    edgecolors=edge,
                    linewidths=width,
                    joinstyle="round",
                    zorder=order,
                )
            )
    middle = np.array(cell) + 0.5
    middle[cell.index(0)] = 0
    ax.plot(*(middle @ _STEP), "o", color=INK, markersize=3.2, zorder=3)
    if labels:
        _edge_labels(ax, shape, positions)
    ax.set_aspect("equal")
    ax.autoscale_view()
    ax.axis("off")
    return ax


def _edge_labels(ax: Axes, shape: tuple[int, int, int], positions: str) -> None:
    n, c, third = (size * step for size, step in zip(shape, _STEP, strict=True))
    for text, at in (
        ("N", n / 2 + third + (-0.55, -0.45)),
        ("C", c / 2 + third + (0.55, -0.5)),
        (positions * (shape[2] > 1), c + third / 2 + (0.95, 0.0)),
    ):
        ax.text(at[0], at[1], text, ha="center", va="center", fontsize=9)


def matrix(ax: Axes, values: Any, title: str) -> Axes:
    """Draw a small matrix with its numbers, white at 0."""
    ax.pcolormesh(values, cmap="PuOr_r", vmin=-1.6, vmax=1.6, edgecolor="white", lw=2)
    for (row, column), value in np.ndenumerate(values):
        text = f"{round(value, 1) + 0.0:.1f}".replace("-", "−")
        ax.text(column + 0.5, row + 0.5, text, ha="center", va="center")
    ax.invert_yaxis()
    ax.set_aspect("equal")
    ax.set_title(title)
    ax.axis("off")
    return ax


def source(*functions: Any) -> None:
    """Display functions as they stand in the package, as highlighted code."""
    from IPython.display import Markdown, display  # only a notebook needs IPython

    text = "\n\n".join(inspect.getsource(function) for function in functions)
    display(Markdown(f"```python\n{text}```"))
