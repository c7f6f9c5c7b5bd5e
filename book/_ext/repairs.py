"""Repairs to what the theme puts on each page, and what it ships that no page needs.

Nothing here changes the text. Thebe names another host; Font Awesome comes twice, as a
script of 1.5 MB and as fonts of 300 KB, for some twenty icons.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fontTools import subset
from fontTools.ttLib import TTFont
from sphinx.application import Sphinx

FONTS = "vendor/fontawesome/webfonts"
SHEET = "styles/pydata-sphinx-theme.css"
DROP = (
    "**/*.map",
    "**/*.LICENSE.txt",
    "scripts/fontawesome.js",
    "sphinx-thebe.*",
    "images/logo_deepnote.svg",
    "images/logo_jupyterhub.svg",
    "images/logo_jupyterlite.svg",
    f"{FONTS}/*",
)
# What is wrong in the theme's HTML, and what stands there instead.
HTML = [
    # 1.5 MB of icons that the page has as a font.
    (r'\s*<script[^>]* src="[^"]*fontawesome\.js[^"]*"></script>', ""),
    # Thebe: another host, and an error in the console.
    (r'\s*<script type="text/x-thebe-config">.*?</script>', ""),
    (r"\s*<script>kernelName = [^<]*</script>", ""),
    # A button's label must contain what it shows (WCAG 2.5.3).
    (
        r'(class="[^"]*search-button__button[^"]*" title="[^"]*") aria-label="[^"]*"',
        r"\1",
    ),
    # A role that ARIA has given up; the entry's parent is a list.
    (r'role="doc-biblioentry"', 'role="listitem"'),
    # An empty corner heads nothing.
    (r'<th class="[^"]*">(?:<p></p>)?</th>', "<td></td>"),
    # The fold of a chapter's lab in the sidebar: an icon without a name.
    (
        r'(<a class="[^"]*reference internal[^"]*" href="[^"]*">)([^<]+)'
        r"(</a><details[^>]*><summary)>",
        r'\1\2\3 aria-label="Sections of \2">',
    ),
    # What stands outside every landmark is skipped by screen readers.
    (
        r'<div class="sidebar-primary-items__start sidebar-primary__section">',
        '<div class="sidebar-primary-items__start sidebar-primary__section"'
        ' role="navigation" aria-label="Book">',
    ),
]


JAPANESE = r"[\u3005\u3040-\u30ff\u4e00-\u9fff]+"
# A script or a style, the page's head, what is marked as Japanese already, or the text
# between two tags.
TEXT = re.compile(
    r'<(script|style|head|svg|\w+(?=[^<>]* lang="ja"))\b.*?</\1>|>[^<]+(?=<)',
    re.DOTALL,
)


def without_thebe(app: Sphinx, page: str, template: str, context: Any, t: Any) -> None:
    """Leave out Thebe's files, and KaTeX's style sheet where there is no math."""
    math = 'class="math' in (context.get("body") or "")

    def needed(file: Any) -> bool:
        text = f"{getattr(file, 'filename', file)} {getattr(file, 'attributes', '')}"
        if "thebe" in text.lower():
            return False
        return math or "katex" not in text

    for key in ("script_files", "css_files"):
        context[key][:] = list(filter(needed, context[key]))


def repair(html: str) -> str:
    """Return a page without the theme's faults."""
    for fault, instead in HTML:
        html = re.sub(fault, instead, html, flags=re.DOTALL)
    return TEXT.sub(in_japanese, html)


def in_japanese(text: re.Match[str]) -> str:
    """Mark Japanese words, so that a reader reads and a browser draws them as such."""
    if text[1]:
        return text[0]
    return re.sub(JAPANESE, r'<span lang="ja">\g<0></span>', text[0])


def icons_named(texts: Iterable[str]) -> set[str]:
    """Return the classes of Font Awesome's icons that pages or scripts name."""
    return {name for text in texts for name in re.findall(r"\bfa-[\w-]+", text)}


def only_used(sheet: str, named: set[str]) -> str:
    """Return the theme's style sheet without other icons, with the small fonts."""

    def rule(match: re.Match[str]) -> str:
        return match[0] if named & icons_named([match[1]]) else ""

    sheet = re.sub(r'((?:\.fa-[\w-]+:before,?)+)\{content:"[^"]*"\}', rule, sheet)
    sheet = re.sub(r"/\*#.*?\*/", "", sheet)  # where the source map was
    other = r"\.woff2\) format\([^)]*\),url\([^)]*\) format\([^)]*\)"
    return re.sub(rf"(/fa-\w+-\d+){other}", r'\1.woff) format("woff")', sheet)


def icons_drawn(sheet: str) -> set[str]:
    """Return the characters of icon fonts (private use) that a style sheet shows."""
    escaped = re.findall(r"\\([ef][0-9a-f]{3})\b", sheet)
    return set(re.findall("[\ue000-\uf8ff]", sheet)) | {
        chr(int(x, 16)) for x in escaped
    }


def shrink_font(font: Path, characters: Iterable[str]) -> None:
    """Write, beside a TrueType font, a WOFF font that has only some characters."""
    small = TTFont(font)
    maker = subset.Subsetter()
    maker.populate(text="".join(characters))
    maker.subset(small)
    small.flavor = "woff"
    small.save(font.with_suffix(".woff"))


def finish(app: Sphinx, error: Exception | None) -> None:
    """Repair every page, then drop what none of them needs."""
    if error or app.builder.format != "html":
        return
    home = Path(app.outdir)
    static = home / "_static"
    pages = [page for page in home.rglob("*.html") if static not in page.parents]
    texts = [repair(page.read_text(encoding="utf-8")) for page in pages]
    for page, text in zip(pages, texts, strict=True):
        page.write_text(text, encoding="utf-8")
    scripts = [
        path.read_text(encoding="utf-8")
        for path in static.rglob("*.js")
        if path.name != "fontawesome.js"
    ]
    theme = static / SHEET
    named = icons_named([*texts, *scripts])
    theme.write_text(only_used(theme.read_text(encoding="utf-8"), named), "utf-8")
    sheets = [path.read_text(encoding="utf-8") for path in static.rglob("*.css")]
    icons = set().union(*map(icons_drawn, sheets))
    for font in (static / FONTS).glob("*.ttf"):
        shrink_font(font, icons)
    for pattern in DROP:
        for path in static.glob(pattern):
            if path.suffix != ".woff":
                path.unlink()


def setup(app: Sphinx) -> dict[str, bool]:
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells every table
    app.connect("html-page-context", without_thebe, priority=900)
    app.connect("build-finished", finish, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
