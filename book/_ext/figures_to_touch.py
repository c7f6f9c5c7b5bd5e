"""Figures that a reader moves: the sets of each method, and three numbers.

`{method-sets}` is the picture of the sets (`method_sets.picture`), which a module takes
over: shapes, batch sizes, modes and padding to choose from, values to change. It comes
in a fold, `{method-sets} BN` set to this method; with `:open:` it stands on the page.
`{three-numbers}` draws three numbers and what becomes of them.

Which values share a set, what torch refuses, colours and names are the library's: they
stand in the page as JSON. The modules in book/_static add up and divide, no more; a
test drives them and compares every number with the library's.
"""

import functools
import json
from typing import Any

import numpy as np
import torch
from docutils import nodes
from docutils.parsers.rst import directives
from method_sets import SHAPE, divisors, picture
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from torch import nn

from normbook import core, functional, plots
from normbook import nn as nb
from normbook.methods import METHODS, Method
from normbook.plots.comparison import axis_names

EPS = 1e-5
N, C, POSITIONS = SHAPE
# The axes of each kind of input. All are drawn as blocks N × C × positions.
SHAPES = {
    "images": {"N": N, "C": C, "H": 2, "W": POSITIONS // 2},
    "tokens": {"N": N, "T": POSITIONS, "C": C},
    "features": {"N": N, "C": C},
}
LENGTHS = (2, 4, 3, 4)  # of the sequences, where they are padded
OF = {"N": "one sample", "C": "one channel", "H, W": "one position", "T": "one token"}


def values() -> np.ndarray:
    """The whole numbers that the figure begins with, N × C × positions."""
    draw = np.random.default_rng(4)
    around = draw.integers(-4, 9, (N, C, 1)) + draw.integers(-3, 4, SHAPE)
    return around.astype(float)


def block(kind: str, n: int) -> tuple[int, ...]:
    """The shape of n samples with the channel at axis 1; features have no positions."""
    return (n, C) if kind == "features" else (n, C, POSITIONS)


def sets_of(kind: str, method: Method, n: int, groups: int) -> functional.Sets:
    """The sets of a block; a layer that takes the channel last has them along axis 1.

    Of images they are those of Wu & He's figure.
    """
    if kind == "images":
        return method.sets_in_picture(block(kind, n), groups)
    if method.axis == -1:
        return functional.layer_sets(block(kind, n), (1,))
    return method.sets_of(block(kind, n), groups)


def refusal_of_torch(kind: str, method: Method, n: int, groups: int) -> str:
    """What torch says of n samples in training, or nothing."""
    shape = [n, *list(SHAPES[kind].values())[1:]]
    if kind == "tokens" and method.axis == 1:
        shape = [n, C, POSITIONS]
    x = torch.ones(shape)
    if method.axis == -1:
        x = x.movedim(1, -1) if kind == "images" else x
    layer = method.build_native(C, groups)
    flat = type(layer).__name__.replace("2d", "1d")
    if x.ndim < 4 and flat != type(layer).__name__:
        layer = getattr(nn, flat)(C)
    try:
        layer(x)
    except ValueError as error:
        return f"ValueError: {error}"
    return ""


def case(kind: str, key: str, n: int, groups: int) -> dict[str, Any]:
    """What is to be known of n samples under a method."""
    method = METHODS[key]
    axes = dict(zip(("N", "C", "H, W"), block(kind, n), strict=False))
    if kind == "tokens":
        axes = {"N": n, "C": C, "T": POSITIONS}
    try:
        sets = sets_of(kind, method, n, groups)
    except functional.InputError as error:
        return {"refused": str(error)}
    over, left, _ = axis_names(axes, sets)
    words = OF | {"G": f"one of {groups} groups of channels" if groups > 1 else ""}
    of = " and ".join(words[name] for name in left if words[name])
    known: dict[str, Any] = {"view": sets.view, "axes": sets.axes}
    known |= {"over": ", ".join(over), "of": of}
    if method.grouped and groups == 1:
        known["same"] = "layer norm of whole samples"
    if method.grouped and groups == C and kind != "features":
        known["same"] = "instance norm"
    if refused := refusal_of_torch(kind, method, n, groups):
        known["torch"] = refused
    try:
        functional.normalize(np.ones(block(kind, n)), sets, eps=EPS)
    except functional.InputError as error:
        known["refused"] = str(error)
    return known


def running(kind: str) -> dict[str, list[float]]:
    """What batch norm stores of the first batch when it forgets all before it."""
    x = torch.from_numpy(values())
    layer = nb.BatchNorm(C, momentum=1.0).double()
    layer(x[:, :, 0] if kind == "features" else x)
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None  # as it is in a layer that tracks
    assert var is not None
    return {"mean": mean.tolist(), "var": var.tolist()}


@functools.cache
def facts() -> dict[str, Any]:
    """All that the module has to know."""
    cases = {
        f"{kind} {n} {key} {groups}": case(kind, key, n, groups)
        for kind in SHAPES
        for n in range(1, N + 1)
        for key, method in METHODS.items()
        for groups in (divisors(C) if method.grouped else [1])
    }
    methods = {
        key: {
            "name": plots.name(key),
            "centered": method.centered,
            "grouped": method.grouped,
            "tracks": method.tracks,
        }
        for key, method in METHODS.items()
    }
    return {
        "eps": EPS,
        "shapes": SHAPES,
        "lengths": LENGTHS,
        "values": values().ravel().tolist(),
        "methods": methods,
        "cases": cases,
        "running": {kind: running(kind) for kind in SHAPES},
    }


def data(content: dict[str, Any]) -> str:
    """Return what a module reads, as an element of the page."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    text = text.replace("<", r"\u003c")  # no end of a script
    return f'<script type="application/json">{text}</script>'


class MethodSets(SphinxDirective):
    """The picture of the sets, set to a method; in a fold unless it is to be open."""

    optional_arguments = 1
    option_spec = {"open": directives.flag}  # noqa: RUF012 (Sphinx reads it so)

    def run(self) -> list[nodes.Node]:
        chosen = self.arguments[0] if self.arguments else next(iter(METHODS))
        if chosen not in METHODS:
            raise self.error(f"no method {chosen!r}; one of {', '.join(METHODS)}")
        shown = picture(chosen).removesuffix("</div>") + data(facts()) + "</div>"
        if "open" not in self.options:
            shown = (
                '<details class="to-touch"><summary>Touch the sets: choose a method, '
                f"change a value, see which outputs move</summary>{shown}</details>"
            )
        return [needs(shown, "sets_explorer")]


def needs(html: str, module: str) -> nodes.raw:
    """Return what a page shows, marked with the module that it needs."""
    return nodes.raw("", html, format="html", module=module)


# ---------------------------------------------------------------- three numbers

NUMBERS = (1.0, 2.0, 6.0)  # of the chapter, as is the gradient
GRADIENT = (-1.0, 1.0, 1.0)
EPSILONS = (0, 1e-5, 1e-3, 0.1, 1, 10)
LOW, HIGH = -8, 12  # of the third number
# Across the plane in which three numbers sum to 0: x̂₃ is measured upwards.
PLANE = np.array([[1, -1, 0], [-1, -1, 2]]) / np.sqrt([[2], [6]])
UNIT = 50  # of the circle's picture
ROWS = (
    ("x", "x"),
    ("x_hat", "x̂"),
    ("dy", "dy"),
    ("centered", "dy − its mean"),
    ("projected", "− its part along x̂"),
    ("dx", "× r = dx"),
)


def three(x: np.ndarray, dy: np.ndarray, eps: float) -> dict[str, np.ndarray]:
    """What becomes of a set, forward and backward, by `core`."""
    x_hat, rstd = core.standardize(x, (0,), eps)
    dx = core.standardize_vjp(dy, x_hat, rstd, (0,))
    centered = core.center_vjp(dy, (0,))
    steps = {"x": x, "x_hat": x_hat, "dy": dy, "centered": centered}
    return steps | {"projected": dx / rstd, "dx": dx}


def on_paper(vector: np.ndarray) -> tuple[float, float]:
    """Where three numbers that sum to 0 lie in the circle's picture."""
    right, up = PLANE @ vector
    return UNIT * right, -UNIT * up


def still() -> str:
    """The two pictures and the table of numbers, for 1, 2 and 6."""
    numbers = three(np.array(NUMBERS), np.array(GRADIENT), 0.0)

    def arrow(name: str, vector: np.ndarray) -> str:
        (x1, y1), (x2, y2) = on_paper(numbers["x_hat"]), on_paper(vector)
        ends = f'x1="{x1:.2f}" y1="{y1:.2f}" x2="{x1 + x2:.2f}" y2="{y1 + y2:.2f}"'
        return f'<line class="{name}" marker-end="url(#tip-{name})" {ends}/>'

    tips = "".join(
        f'<marker id="tip-{name}" class="{name}" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="5" markerHeight="5" orient="auto"><path d="M0 0 8 4 0 8z"/>'
        "</marker>"
        for name in ("centered", "projected")
    )
    axes = []
    for place, along in enumerate(np.eye(3) - 1 / 3):
        x, y = on_paper(along * 3 / np.sqrt(2))  # where this number is √2
        axes.append(
            f'<line class="axis" x1="{-x:.1f}" y1="{-y:.1f}" x2="{x:.1f}" '
            f'y2="{y:.1f}"/>'
            f'<text x="{1.4 * x:.1f}" y="{1.16 * y + 4:.1f}">x̂{"₁₂₃"[place]} = √2'
            "</text>"
        )
    x, y = on_paper(numbers["x_hat"])
    circle = (
        '<svg class="circle" viewBox="-170 -135 340 245" role="img" aria-label="Three '
        "standardized numbers lie on a circle of radius √3 in the plane where they sum "
        f'to 0"><defs>{tips}</defs>{"".join(axes)}'
        f'<circle r="{UNIT * np.sqrt(3):.2f}"/>'
        f"{arrow('centered', numbers['centered'])}"
        f"{arrow('projected', numbers['projected'])}"
        f'<circle class="point" cx="{x:.2f}" cy="{y:.2f}" r="5"/></svg>'
    )
    rows = []
    for name, title in ROWS:
        cells = "".join(
            f'<td class="n"><data value="{float(v)}">{v:.3f}</data></td>'.replace(
                ">-", ">−"
            )
            for v in numbers[name]
        )
        kind = f' class="{name}"'
        rows.append(f'<tr{kind}><th scope="row">{title}</th>{cells}</tr>')
    table = (
        '<div class="wide" tabindex="0" role="region" aria-label="The numbers"><table>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    arrows = (
        "Arrows, from x̂: dashed dy − its mean; solid what is left along the circle."
    )
    return f'<div class="pictures">{circle}{table}</div><p class="arrows">{arrows}</p>'


class ThreeNumbers(SphinxDirective):
    """Three numbers, standardized, and the two projections of a gradient."""

    def run(self) -> list[nodes.Node]:
        known = {
            "numbers": NUMBERS,
            "gradient": GRADIENT,
            "epsilons": EPSILONS,
            "range": (LOW, HIGH),
            "plane": (UNIT * PLANE).tolist(),
        }
        shown = (
            '<details class="to-touch"><summary>Touch it: move the third number and ε'
            f'</summary><div class="three-numbers">{still()}<div class="sliders"></div>'
            '<p class="moves"></p><p class="spoken" aria-live="polite"></p>'
            f"{data(known)}</div></details>"
        )
        return [needs(shown, "three_numbers")]


def add_files(
    app: Sphinx, page: str, template: str, context: Any, doctree: nodes.document | None
) -> None:
    """Load a module, and the look of both, on the pages that have its figure."""
    raws = doctree.findall(nodes.raw) if doctree else ()
    for module in sorted({raw["module"] for raw in raws if "module" in raw}):
        app.add_css_file("touch.css", priority=900)  # after book.css
        app.add_js_file(f"{module}.js", type="module")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("method-sets", MethodSets)
    app.add_directive("three-numbers", ThreeNumbers)
    app.connect("html-page-context", add_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
