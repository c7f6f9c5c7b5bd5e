"""The cheat sheet: every method on one sheet, read from `METHODS` and from torch.nn.

`{cheat-sheet}` gives each method a card. Axes, shapes, stored values, modes, names and
defaults are asked of the functions and layers; only the traps are written, in
book/words/traps.toml, and a method needs none.
"""

import inspect
from html import escape
from typing import Any, NamedTuple

import torch
from docutils import nodes
from method_sets import block, members, tag
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from words import FOLDER, WordsError, nearest, read_file

from normbook.methods import METHODS
from normbook.plots.comparison import axis_names, layouts

PAGE = "book/cheatsheet"  # printed on one sheet, on its side
IMAGES = {"N": 8, "C": 6, "H": 5, "W": 7}
TOKENS = {"N": 8, "C": 6, "T": 9}
GROUPS = 2


class Means(NamedTuple):
    """Which axes share a mean, and what counts the means, of one layout of x."""

    layout: str
    over: str
    number: str


def means(key: str) -> list[Means]:
    """Return what the method takes means over: of images, then of tokens.

    Tokens are (N, T, C); a method whose channel is axis 1 takes them as (N, C, T).
    """
    rows = []
    for axes in (IMAGES, TOKENS):
        for method, _, named, sets in layouts(axes, GROUPS):
            # (N, H, W, C) tells no more than (N, T, C): a mean for each position.
            of_positions = named is not axes and axes is IMAGES
            # And a mean over all tokens of a sample is a trap of layer norm.
            of_samples = METHODS[key].of_whole_samples and named is TOKENS
            if method == key and not of_positions and not of_samples:
                over, left, _ = axis_names(named, sets)
                layout = f"({', '.join(named)})"
                rows.append(Means(layout, ", ".join(over), " · ".join(left)))
    return rows


def stored(layer: torch.nn.Module) -> dict[str, str]:
    """Return the shape of each value of a layer's state dict, in the axes' names."""
    names = {IMAGES["C"]: "C", GROUPS: "G"}
    return {
        key: f"({', '.join(names.get(n, str(n)) for n in value.shape)})"
        if value.ndim
        else "a number"
        for key, value in layer.state_dict().items()
    }


def input_of(key: str) -> torch.Tensor:
    """Return an x that the method's layer for IMAGES["C"] channels takes."""
    N, C, H, W = IMAGES.values()
    shape = (N, C, H, W) if METHODS[key].axis == 1 else (N, H, C)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def modes_differ(key: str) -> bool:
    """Whether torch's layer gives other outputs in evaluation, after a step."""
    layer, x = METHODS[key].build_native(IMAGES["C"], GROUPS), input_of(key)
    return not torch.equal(layer.train()(x), layer.eval()(x))


def call(layer: torch.nn.Module) -> tuple[str, list[str]]:
    """Return a layer's class and its arguments with their defaults.

    Where it is and in which dtype, no page needs.
    """
    arguments = [
        name if p.default is p.empty else f"{name}={p.default!r}"
        for name, p in inspect.signature(type(layer)).parameters.items()
        if name not in ("device", "dtype")
    ]
    home = "nn." * type(layer).__module__.startswith("torch.nn.")
    return home + type(layer).__name__, arguments


def read_traps() -> dict[str, list[str]]:
    """Return the traps of each method that has some, in Markdown.

    Raises WordsError for a method that METHODS does not have.
    """
    traps: dict[str, list[str]] = {}
    for name, table in read_file(FOLDER / "traps.toml").items():
        if table["method"] not in METHODS:
            raise WordsError(
                f"{FOLDER.name}/traps.toml: entry {name!r}, field 'method': no method "
                f"{table['method']!r}: {nearest(table['method'], METHODS)}"
            )
        traps.setdefault(table["method"], []).append(table["says"])
    return traps


def facts(key: str) -> str:
    """Return a method's card in HTML, without its traps."""
    method = METHODS[key]
    layer = method.build_native(IMAGES["C"], GROUPS)
    values = stored(layer)
    learned = dict(layer.named_parameters())
    shapes = ", ".join(
        f"{letter} {values[name]}" if name in learned else f"no {letter}"
        for name, letter in (("weight", "γ"), ("bias", "β"))
    )
    default = inspect.signature(type(layer)).parameters.get("affine")
    if default is not None and default.default is False:
        shapes += "; by default none"
    over = means(key)
    numbers = {m.number for m in over}
    rows = {
        "S": [f"{m.layout}: <b>{m.over}</b>" for m in over],
        "means": numbers
        if len(numbers) == 1
        else [f"{m.number} of {m.layout}" for m in over],
        "learned": [shapes],
        "stored": [f"<code>{name}</code> {shape}" for name, shape in values.items()],
        "modes": ["evaluation differs" if modes_differ(key) else "both alike"],
    }
    listed = "".join(
        f"<dt>{name}</dt><dd>{'<br>'.join(row)}</dd>" for name, row in rows.items()
    )
    name, arguments = call(layer)
    spans = ", ".join(f"<span>{escape(argument)}</span>" for argument in arguments)
    picture = block({"on": members(key)}, f"One set of {method.name}")
    return (
        f"<h2>{tag(key)}</h2><div class='{key.lower()}'>{picture}</div>"
        f"<p>One mean: {method.set_of.format(groups='G')}.</p><dl>{listed}</dl>"
        f"<p><code><span>{name}(</span><wbr>{spans})</code></p>"
    )


class CheatSheet(SphinxDirective):
    """A card for each method."""

    def run(self) -> list[nodes.Node]:
        if self.env.docname != PAGE:
            raise self.error(f"cheat-sheet belongs on the page {PAGE}")
        self.env.note_dependency(str(FOLDER / "traps.toml"))
        traps = read_traps()
        sheet = nodes.container(classes=["cheat-sheet"])
        for key in METHODS:
            card = nodes.container(classes=["card-of-method"])
            card += nodes.raw("", facts(key), format="html")
            if key in traps:
                card += nodes.paragraph("Traps", "Traps", classes=["traps"])
                card += nodes.bullet_list("", *map(self.trap, traps[key]))
            sheet += card
        return [sheet]

    def trap(self, text: str) -> nodes.list_item:
        pieces = self.parse_inline(text, lineno=self.lineno)[0]
        return nodes.list_item("", nodes.paragraph("", "", *pieces))


def add_sheet(app: Sphinx, page: str, template: str, context: Any, tree: Any) -> None:
    """Print the page on its side, with narrow margins."""
    if page == PAGE:
        rule = "<style>@page{size:landscape;margin:9mm}</style>"
        context["metatags"] = f"{context.get('metatags', '')}{rule}"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("cheat-sheet", CheatSheet)
    app.connect("html-page-context", add_sheet)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
