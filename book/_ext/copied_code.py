"""What copied code needs: the imports of the cells above, and the names they define.

A cell that is copied alone would fail with a NameError. These lines come first in what
is copied, and are not shown on the page.
"""

import ast
import builtins
from collections.abc import Iterator

from bs4 import BeautifulSoup
from bs4.element import Tag

# Within these a name may be bound before it is used, whatever the order of walking.
INNER = (
    ast.FunctionDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp,
    ast.GeneratorExp, ast.For, ast.With,
)  # fmt: skip


def bound(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Each name that code binds, with the import that binds it ("" if none does)."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name, ""
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, ""
            case ast.Import(names=names):
                for each in names:
                    name = each.asname or each.name.partition(".")[0]
                    yield name, ast.unparse(ast.Import([each]))
            case ast.ImportFrom(module=module, names=names):
                for each in names:
                    line = ast.unparse(ast.ImportFrom(module, [each], 0))
                    yield each.asname or each.name, line


def needed(code: str, known: dict[str, str]) -> list[str]:
    """Return the known names that `code` uses before it binds them, in their order.

    `known` holds what earlier cells have bound; what this code binds is added to it.
    """
    found: dict[str, None] = {}
    here = dict.fromkeys(dir(builtins), "")
    for statement in ast.parse(code).body:
        inner = [node for node in ast.walk(statement) if isinstance(node, INNER)]
        local = {name for node in inner for name, _ in bound(node)}
        for node in ast.walk(statement):
            used = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
            if used and node.id in known.keys() - here.keys() - local:
                found[node.id] = None
        here |= dict(bound(statement))
    known |= here
    return list(found)


def lines_before(code: str, known: dict[str, str]) -> str:
    """Return the lines that make a copied cell run, or say what it lacks."""
    bound_before = dict(known)
    before = {name: bound_before[name] for name in needed(code, known)}
    imports = sorted({line for line in before.values() if line})
    names = ", ".join(name for name, line in before.items() if not line)
    note = [f"# Needs from the cells above: {names}"] * bool(names)
    return "".join(f"{line}\n" for line in imports + note)


def say_what_copied_code_needs(page: BeautifulSoup) -> Iterator[Tag]:
    """Put lines that are only copied before the code of a cell that needs others."""
    known: dict[str, str] = {}
    for code in page.select("div.cell_input pre"):
        lines = lines_before(code.get_text(), known)
        if lines:
            note = page.new_tag("span", attrs={"class": "needs", "hidden": ""})
            note.string = lines
            code.insert(0, note)
            yield code
