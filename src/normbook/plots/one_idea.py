"""Figures of chapter 1: one idea."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from normbook import core
from normbook.plots import ACCENT, GREY, INK

# Three numbers seen along (1, 1, 1): the plane of the triples of sum 0, third axis up.
_ACROSS = np.array([-1, 1, 0]) / 2**0.5
_UP = np.array([-1, -1, 2]) / 6**0.5
_NORMAL = np.array([1, 1, 1]) / 3**0.5


def _in_plane(x: Any) -> Any:
    """Coordinates of triples within the plane of sum 0."""
    return np.asarray(x) @ np.stack([_ACROSS, _UP], axis=1)


def _oblique(x: Any) -> Any:
    """Triples on paper, the plane of sum 0 lying flat and (1, 1, 1) upright."""
    across, depth = np.moveaxis(_in_plane(x), -1, 0)
    height = np.asarray(x) @ _NORMAL
    turn = np.deg2rad(50)
    right = across * np.cos(turn) + depth * np.sin(turn)
    back = depth * np.cos(turn) - across * np.sin(turn)
    return np.stack([right, 0.34 * back + 0.8 * height], axis=-1)


def _arrow(ax: Axes, tail: Any, head: Any, color: str, **style: Any) -> None:
    arrow = {"arrowstyle": "-|>", "color": color, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", head, tail, arrowprops=arrow | style, zorder=4)


def _ring() -> Any:
    """The triples of mean 0 and variance 1, once around."""
    angle = np.linspace(0, 2 * np.pi, 121)[:, None]
    return 3**0.5 * (np.cos(angle) * _ACROSS + np.sin(angle) * _UP)


def plane_and_circle(ax: Axes, x: tuple[float, float, float] = (1, 2, 6)) -> Axes:
    """Draw how centering drops x onto a plane and rescaling moves it onto a circle."""
    centered = core.center(np.array(x, float), (0,))
    x_hat = core.rescale(centered, (0,), 0.0)[0]
    edge = 4.4 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2**0.5
    turned = edge @ np.array([[1, 1], [1, -1]]) / 2**0.5
    sheet = _oblique(turned @ np.stack([_ACROSS, _UP]))
    ax.fill(*sheet.T, color=ACCENT, alpha=0.1)
    ax.plot(*_oblique(_ring()).T, color=ACCENT)
    axis = _oblique(np.array([0 * _NORMAL, 3**0.5 * np.mean(x) * _NORMAL]))
    ax.plot(*axis.T, ":", color=GREY, lw=1.2)
    ax.plot(*axis[1], "o", color=GREY)
    start, middle, end = (_oblique(point) for point in (x, centered, x_hat))
    _arrow(ax, start, middle, INK)
    _arrow(ax, middle, end, INK)
    ax.plot(*np.stack([start, end]).T, "o", color=INK, ls="none", zorder=5)
    words = ", ".join(f"{value:g}" for value in x)
    mean = f"{np.mean(x):g}"
    for text, at, shift, side in (
        (f"x = ({words})", start, (7, 2), "left"),
        ("center", (start + middle) / 2, (7, 0), "left"),
        ("rescale", middle, (-2, -13), "center"),
        (r"$\hat{x}$", end, (-13, -1), "right"),
        (f"({mean}, {mean}, {mean})", axis[1], (-7, 0), "right"),
        ("mean 0: a plane", sheet[sheet[:, 1].argsort()[-2:]].min(0), (-8, 8), "left"),
        (
            "variance 1: a circle",
            -_oblique(_ring()).max(0) * (0, 1),
            (14, -9),
            "center",
        ),
    ):
        color = ACCENT if ":" in text else INK
        ax.annotate(
            text, at, shift, textcoords="offset points", ha=side, va="center", c=color
        )
    ax.set_xlim(-4.6, 7.2)
    ax.set_aspect("equal")
    ax.axis("off")
    return ax


def _triples(values: Any) -> Any:
    """The standardized third number of 1, 2, t, for every t, and the whole triple."""
    x = np.stack([np.ones_like(values), 2 * np.ones_like(values), values], axis=-1)
    return core.standardize(x, (1,), 0.0)[0]


_THIRD = np.array([-8.0, 0.0, 1.5, 2.0, 3.0, 6.0])


def circle_of_triples(ax: Axes) -> Axes:
    """Draw the circle face on, with 1, 2, t at several t; its height is t's own x̂."""
    ring, dots = _in_plane(_ring()), _in_plane(_triples(_THIRD))
    ax.plot(ring[:, 0], ring[:, 1] * (2 / 3) ** 0.5, color=GREY, lw=0.9)
    fine = _in_plane(_triples(np.linspace(-400, 400, 4001)))
    ax.plot(fine[:, 0], fine[:, 1] * (2 / 3) ** 0.5, color=ACCENT)
    for t, (across, up) in zip(_THIRD, dots, strict=True):
        at = (across, up * (2 / 3) ** 0.5)
        ax.plot(*at, "o", color=INK, zorder=3)
        ax.annotate(
            f"{t:g}".replace("-", "−"), at, (-8 * across, -8 * up),
            textcoords="offset points", ha="center", va="center", fontsize=9,
        )  # fmt: skip
    ax.set(xlim=(-1.96, 1.96), xticks=[], ylim=(-1.6, 1.6), box_aspect=1)
    ax.set_title("1, 2, t on the circle")
    ax.set_ylabel(r"third number of $\hat{x}$")
    return ax


def s_curve(ax: Axes) -> Axes:
    """Draw the standardized t of 1, 2, t over t, with the dots of the circle."""
    t = np.linspace(-10, 13, 301)
    ax.plot(t, _triples(t)[:, 2], color=ACCENT)
    ax.plot(_THIRD, _triples(_THIRD)[:, 2], "o", color=INK, zorder=3)
    for level, text in ((2**0.5, r"$\sqrt{2}$"), (-(2**0.5), r"$-\sqrt{2}$")):
        ax.axhline(level, color=GREY, lw=0.9, ls="--")
        ax.annotate(
            text, (1, level), (4, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center",
        )  # fmt: skip
    ax.set(xlabel="t", title="the same height over t")
    return ax


def tangent(ax: Axes, x: Any, dy: Any) -> Axes:
    """Draw dy, standing at x̂ on the circle of triples, and what is left of it in dx."""
    x_hat, rstd = core.standardize(np.asarray(x, float), (0,), 0.0)
    flat = core.center(np.asarray(dy, float), (0,))
    left = core.standardize_vjp(np.asarray(dy, float), x_hat, rstd, (0,)) / rstd
    ax.plot(*_in_plane(_ring()).T, color=ACCENT)
    at, whole, kept = (_in_plane(v) for v in (x_hat, x_hat + flat, x_hat + left))
    ax.plot(*np.stack([np.zeros(2), at]).T, ":", color=GREY, lw=1.2)
    _arrow(ax, at, whole, GREY)
    _arrow(ax, at, kept, INK, lw=2.6)
    ax.plot(*np.stack([whole, kept]).T, "--", color=GREY, lw=1.2)
    ax.plot(*at, "o", color=INK, zorder=5)
    for text, place, shift, side in (
        (r"$\hat{x}$", at, (0, 11), "center"),
        ("dy, mean removed", whole, (-4, 9), "center"),
        ("dx/r", kept, (5, -9), "left"),
        ("along $\\hat{x}$: removed", (whole + kept) / 2, (8, 2), "left"),
    ):
        ax.annotate(
            text, place, shift, textcoords="offset points", ha=side, va="center"
        )
    ax.set_aspect("equal")
    ax.axis("off")
    return ax


def eigenvalues(ax: Axes, spectra: dict[str, Any]) -> Axes:
    """Draw the eigenvalues of some matrices of one size, smallest first."""
    for (label, values), marker, color in zip(
        spectra.items(), "oD", (ACCENT, INK), strict=True
    ):
        place = np.arange(1, len(values) + 1)
        face = color if marker == "o" else "none"
        ax.plot(place, values, marker, color=color, mfc=face, ms=7, label=label)
    ax.set(
        xticks=place,
        xlabel="direction",
        ylim=(-0.15, 1.25),
        title="stretch along it",
        xlim=(0.5, len(place) + 0.5),
    )
    ax.legend(loc="upper left", handletextpad=0.2)
    return ax


def output_deviation(ax: Axes, std: Any, outputs: dict[str, Any]) -> Axes:
    """Draw the output's standard deviation over the input's, one curve a divisor."""
    styles = ((ACCENT, "-"), (INK, "-"), (GREY, "--"))
    places = ((0.3, -7, "right"), (0.8, 7, "left"), (0.55, 9, "left"))
    for (label, values), (color, line), (height, shift, side) in zip(
        outputs.items(), styles, places, strict=True
    ):
        ax.semilogx(std, values, line, color=color)
        near = np.argmin(abs(np.asarray(values) - height))
        ax.annotate(
            label, (std[near], values[near]), (shift, -3), textcoords="offset points",
            color=color, va="center", ha=side,
        )  # fmt: skip
    ax.set(xlabel="standard deviation of the input", ylim=(0, 1.08))
    ax.set_ylabel("standard deviation of the output")
    return ax


def variance_errors(ax: Axes, offset: Any, errors: dict[str, Any]) -> Axes:
    """Draw the relative error of a float32 variance over mean/σ, a curve a method."""
    styles = ((INK, "s-"), (GREY, "^-"), (ACCENT, "o-"))
    for (label, values), (color, line) in zip(errors.items(), styles, strict=True):
        ax.loglog(offset, values, line, color=color)
        ax.annotate(
            label, (offset[-1], values[-1]), (8, 0), textcoords="offset points",
            color=color, va="center",
        )  # fmt: skip
    ax.axhline(1, color=GREY, lw=0.9, ls="--")
    ax.annotate("nothing right", (offset[0], 1), (0, 5), textcoords="offset points")
    ax.set(xlabel="mean divided by σ", ylabel="relative error of the variance")
    return ax


def squares(ax: Axes, points: Any, centers: Any, title: str) -> Axes:
    """Draw (point − center)² as a square between the two, on the line of numbers."""
    for point, middle in zip(points, centers, strict=True):
        side = abs(point - middle)
        corner = (min(point, middle), 0)
        ax.add_patch(
            Rectangle(corner, side, side, fc=ACCENT, alpha=0.22, ec=ACCENT, lw=1.2)
        )
    ax.plot(points, np.zeros(len(points)), "o", color=INK, clip_on=False, zorder=3)
    ax.plot(centers, np.zeros(len(centers)), "|", color=ACCENT, ms=14, mew=2)
    area = sum((np.asarray(points) - np.asarray(centers)) ** 2)
    ax.set_title(f"{title}: {area:g}")
    highest = max(abs(np.asarray(points) - np.asarray(centers)))
    ax.set(xlim=(0.5, 6.5), ylim=(0, highest + 0.1), yticks=[], xticks=range(1, 7))
    ax.spines["left"].set_visible(False)
    ax.grid(visible=False)
    ax.set_aspect("equal")
    return ax
