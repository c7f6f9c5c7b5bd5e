"""What the pages show of the methods, computed from `normbook`: nothing is typed twice.

`picture` is that of the sets, to choose from by mouse or keyboard and without a script;
`figures_to_touch` puts it on a page. `{axes-table}` is the table of axes, statistics
and parameters. {method}`BN` is a method's name in its colour. Also the card for social
media.
"""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

from normbook import functional, plots
from normbook.methods import METHODS
from normbook.plots.comparison import axis_names

SHAPE = (4, 6, 4)  # N, C, H·W of the picture
GROUPS = 2
GROUPED = "GN"  # the method whose number of groups the picture lets one choose
SCALE = 30  # of one cell, in the picture's own units


def _number(value: int) -> str:
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


# ------------------------------------------------------------------ the picture


def members(method: str, groups: int = GROUPS) -> np.ndarray:
    """Which cells of the block share their statistics with its first cell."""
    sets = METHODS[method].sets_in_picture(SHAPE, groups)
    return plots.shares_statistics(sets, SHAPE, (0, 0, 0))


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def block(colored: dict[str, np.ndarray], label: str) -> str:
    """Return the block of cells as SVG; a cell has the names of the sets it is in."""
    faces = plots.faces(SHAPE)
    points = np.concatenate([corners.reshape(-1, 2) for _, corners in faces])
    points = points * (SCALE, -SCALE)
    low = points.min(0) - 2
    width, height = points.max(0) - low + 2
    drawn = []
    for face, (cells, corners) in zip("nch", faces, strict=True):
        drawn.append(f'<g class="face-{face}">')
        for cell, polygon in zip(cells, corners * (SCALE, -SCALE) - low, strict=True):
            names = [name for name, inside in colored.items() if inside[tuple(cell)]]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in polygon)
            kind = f' class="{" ".join(names)}"' if names else ""
            drawn.append(f'<polygon{kind} points="{path}"/>')
        drawn.append("</g>")
    look = f'role="img" aria-label="{label}"' if label else 'aria-hidden="true"'
    box = f'viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg class="block" {look} {box}>{"".join(drawn)}</svg>'


def sentence(method: str, groups: int = GROUPS) -> str:
    """Say how many cells share a mean, and how many means there are."""
    entry = METHODS[method]
    sets = entry.sets_in_picture(SHAPE, groups)
    of = entry.set_of.format(groups=groups)
    if entry.grouped and groups == 1:
        of = "one sample and its only group: layer norm"
    if entry.grouped and groups == SHAPE[1]:
        of = "one sample and a group of one channel: instance norm"
    kind = "mean and one variance" if entry.centered else "mean square"
    return (
        f"The {sets.size} cells in colour share one {kind}: {of}. "
        f"The block has {sets.number} such sets."
    )


def picture(chosen: str) -> str:
    """Return the HTML of the picture: one block a method, and the chosen one large."""
    choices, big, said = [], {}, []
    for method in METHODS:
        key = method.lower()
        checked = " checked" if method == chosen else ""
        small = block({"on": members(method)}, "")
        choices.append(
            f'<label class="choice {key}"><input type="radio" name="sets" '
            f'value="{method}" id="sets-{key}"{checked}>{small}'
            f"<span>{plots.name(method)}</span></label>"
        )
        if not METHODS[method].grouped:
            big[f"is-{key}"] = members(method)
            said.append(f'<p class="say is-{key}">{sentence(method)}</p>')
    groups = []
    for number in divisors(SHAPE[1]):
        checked = " checked" if number == GROUPS else ""
        big[f"is-g{number}"] = members(GROUPED, number)
        said.append(f'<p class="say is-g{number}">{sentence(GROUPED, number)}</p>')
        groups.append(
            f'<label><input type="radio" name="groups" value="{number}" '
            f'id="sets-g{number}"{checked}>{number}</label>'
        )
    n, c, positions = SHAPE
    label = f"A block of cells: {n} samples, {c} channels, {positions} positions"
    return (
        '<div class="sets"><fieldset class="methods">'
        "<legend>Choose a method: which cells share their statistics?</legend>"
        f"{''.join(choices)}</fieldset>"
        f'<div class="stage"><div class="large">{block(big, label)}'
        '<span class="axis n">N, the batch</span>'
        '<span class="axis c">C, channels</span>'
        '<span class="axis h">H, W</span></div>'
        f'<div class="says" aria-live="polite">{"".join(said)}'
        '<fieldset class="groups"><legend>Number of groups G</legend>'
        f"{''.join(groups)}</fieldset></div></div></div>"
    )


# ------------------------------------------------------------------ the table

# An image batch and a batch of token sequences, of sizes met in practice.
NCHW = {"N": 32, "C": 64, "H": 56, "W": 56}
NTC = {"N": 32, "T": 512, "C": 768}
TABLE_GROUPS = 32


def rows() -> list[tuple[str, str, dict[str, int], functional.Sets]]:
    """Return method, use, named axes and sets, one a row of the table."""
    image, text = tuple(NCHW.values()), tuple(NTC.values())
    found = []
    for key, method in METHODS.items():
        if method.axis == 1:
            sets = method.sets_of(image, TABLE_GROUPS)
            found.append((key, "images", NCHW, sets))
            continue
        if method.of_whole_samples:
            sets = functional.layer_sets(image, (1, 2, 3))
            found.append((key, "images, Wu & He’s figure", NCHW, sets))
        use = "tokens, in transformers" if method.of_whole_samples else "tokens"
        found.append((key, use, NTC, method.sets_of(text, TABLE_GROUPS)))
    return found


def table() -> str:
    """Return the table of axes as HTML."""
    body = []
    for method, use, axes, sets in rows():
        over, left, gamma = axis_names(axes, sets)
        only = "" if METHODS[method].centered else "<small>no β</small>"
        body.append(
            f"<tr><th scope='row'>{tag(method)}<small>{use}</small></th>"
            f"<td>({', '.join(axes)})</td><td><b>{', '.join(over)}</b></td>"
            f"<td>{' · '.join(left)}</td><td>{' · '.join(gamma)}{only}</td>"
            f"<td class='n'>{_number(sets.size)}</td>"
            f"<td class='n'>{_number(sets.number)}</td></tr>"
        )
    sizes = " and ".join(
        f"({', '.join(axes)}) = ({', '.join(map(str, axes.values()))})"
        for axes in (NCHW, NTC)
    )
    return (
        # Outside the box, which scrolls, so that a phone does not cut it off.
        '<p class="table-caption" id="axes-caption">What each method takes its '
        f"statistics over. Sizes are for {sizes}, G = {TABLE_GROUPS}.</p>"
        '<div class="wide" tabindex="0" role="region" aria-label="Table of axes">'
        '<table class="axes" aria-labelledby="axes-caption"><thead><tr>'
        '<th scope="col">method</th><th scope="col">x</th><th scope="col">S</th>'
        '<th scope="col">one set for each</th><th scope="col">γ, β indexed by</th>'
        '<th scope="col">m = |S|</th><th scope="col">sets</th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


class AxesTable(SphinxDirective):
    """The table of axes."""

    def run(self) -> list[nodes.Node]:
        return [nodes.raw("", table(), format="html")]


# ------------------------------------------------------------------ names, colours


def tag(method: str) -> str:
    """Return a method's name with its colour, as HTML."""
    return f'<span class="method {method.lower()}">{plots.name(method)}</span>'


class Method(SphinxRole):
    """{method}`BN`: a method's name in its colour."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        if self.text not in (*METHODS, "none"):
            known = ", ".join([*METHODS, "none"])
            error = self.inliner.reporter.error(
                f"no method {self.text!r}; one of {known}", line=self.lineno
            )
            return [], [error]
        return [nodes.raw("", tag(self.text), format="html")], []


def style() -> str:
    """Return the rules that hold for each method: its colour, its place in the picture.

    What is chosen in the picture is shown, large and in its colour.
    """
    keys = [key.lower() for key in METHODS]
    colors = {key.lower(): method.color for key, method in METHODS.items()}
    chosen = {key: f".sets:has(#sets-{key}:checked)" for key in keys}
    shown = [f"{chosen[key]} .is-{key}" for key in keys if key != GROUPED.lower()]
    grouped = chosen[GROUPED.lower()]
    shown += [
        f"{grouped}:has(#sets-g{number}:checked) .is-g{number}"
        for number in divisors(SHAPE[1])
    ]
    variables = "".join(
        f"--{key}:{hex};" for key, hex in {**colors, "none": plots.GREY}.items()
    )
    rules = [
        f":root{{{variables}}}",
        *(f".{key}{{--m:var(--{key})}}" for key in [*keys, "none"]),
        f"{','.join([*shown, f'{grouped} .groups'])}{{display:block;"
        "fill:color-mix(in srgb,#fff var(--tone),var(--m));"
        "stroke:color-mix(in srgb,#000 55%,var(--m))}",
        *(f"{chosen[key]} .stage{{--m:var(--{key})}}" for key in keys),
    ]
    return "".join(rules)


def add_style(app: Sphinx, page: str, template: str, context: Any, tree: Any) -> None:
    """Give every page the rules of the methods."""
    context["metatags"] = f"{context.get('metatags', '')}<style>{style()}</style>"


def draw_card(path: Path) -> None:
    """Draw the 1200 × 630 picture that links to the book are shown with."""
    with plt.style.context(plots.STYLE):
        figure, axes = plt.subplots(1, len(METHODS), figsize=(12, 6.3), layout="none")
        figure.subplots_adjust(left=0.05, right=0.95, bottom=0.1, top=0.64, wspace=0.1)
        for ax, method in zip(axes, METHODS, strict=True):
            plots.sets(ax, method, SHAPE, groups=GROUPS, labels=False)
            ax.text(
                0.5, -0.08, plots.name(method), transform=ax.transAxes, ha="center",
                fontsize=15,
            )  # fmt: skip
        serif = {"family": "STIXGeneral", "color": "#1B1B1B"}
        figure.text(0.05, 0.77, "Normalization, Derived", fontsize=58, **serif)
        line = "One idea, five methods, and every claim checked"
        figure.text(0.052, 0.67, line, fontsize=25, **serif)
        figure.savefig(path, dpi=100, facecolor="#FCFBF8", transparent=False)
        plt.close(figure)


def add_card(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        draw_card(Path(app.outdir) / app.config.ogp_image)


def setup(app: Sphinx) -> dict[str, bool]:
    plt.switch_backend("agg")
    app.add_directive("axes-table", AxesTable)
    app.add_role("method", Method())
    app.connect("html-page-context", add_style)
    app.connect("build-finished", add_card)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
