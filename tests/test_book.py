"""The extensions that make the pages: claims, math, the picture of sets, repairs."""

import base64
import builtins
import functools
import io
import json
import os
import re
import shutil
import symtable
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sphinx")
pytest.importorskip("myst_nb")

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "book" / "_ext"))

import claims_page  # noqa: E402
import copied_code  # noqa: E402
import method_sets  # noqa: E402
import page_weight  # noqa: E402
import repairs  # noqa: E402
import static_math  # noqa: E402
from bs4 import BeautifulSoup  # noqa: E402
from fontTools.ttLib import TTFont  # noqa: E402
from PIL import Image  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402
from sphinx.util.docutils import docutils_namespace  # noqa: E402

from normbook.claims import claim_id  # noqa: E402
from normbook.methods import METHODS  # noqa: E402

pytestmark = pytest.mark.processes  # node renders its formulas

STATIC = ROOT / "book" / "_static"


def notebook(*cells: str | tuple[str, str]) -> str:
    """A notebook of markdown (text) and code cells (source, what it printed)."""
    written = []
    for cell in cells:
        if isinstance(cell, str):
            written.append({"cell_type": "markdown", "metadata": {}, "source": cell})
            continue
        source, printed = cell
        output = {"output_type": "stream", "name": "stdout", "text": printed}
        code = {"cell_type": "code", "metadata": {}, "source": source}
        written.append(code | {"execution_count": 1, "outputs": [output]})
    for number, cell in enumerate(written):
        cell["id"] = f"cell-{number}"
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    }
    return json.dumps(
        {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": written}
    )


TWO = notebook(
    "# Chapter *two*",
    ("a = 1", "before\n✓ first, σ'²\n✓ second, a < b\nafter\n"),
    ("b = 1", "no claim: ✓ not at the start of the line\n"),
    ("c = 1", "✓ third\n"),
)
LAB = notebook("# Does it last?", ("a = 1", "✓ fourth\n"))
NONE = notebook("# Chapter three", ("a = 1", "nothing\n"))


def small_book(
    folder: Path, *, extensions: tuple[str, ...] = (), **pages: str
) -> tuple[Path, str]:
    """Build a book of a few pages; returns its output and what Sphinx warned of."""
    (folder / "notebooks").mkdir()
    names = [f"notebooks/{n}" if t[0] == "{" else n for n, t in pages.items()]
    index = "# Book\n\n```{toctree}\n" + "\n".join(names) + "\n```\n"
    for name, text in {"index": index, **pages}.items():
        place = folder / "notebooks" if text.startswith("{") else folder
        suffix = ".ipynb" if text.startswith("{") else ".md"
        (place / name).with_suffix(suffix).write_text(text, encoding="utf-8")
    warnings = io.StringIO()
    usual = ("myst_nb", "claims_page", "reading_time", "static_math")
    settings = {
        "extensions": [*usual, *extensions],
        "nb_execution_mode": "off",
        "myst_enable_extensions": ["amsmath", "dollarmath"],
        "html_math_renderer": "static_math",
    }
    out = folder / "out"
    with docutils_namespace():
        Sphinx(
            folder, None, out, folder / "trees", "html",
            confoverrides=settings, status=None, warning=warnings,
        ).build()  # fmt: skip
    return out, warnings.getvalue()


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., tuple[Path, str]]:
    return functools.partial(small_book, tmp_path)


# ---------------------------------------------------------------- claims


def test_collect_takes_only_claims(tmp_path: Path) -> None:
    path = tmp_path / "02_two.ipynb"
    path.write_text(TWO, encoding="utf-8")
    chapter = claims_page.collect(path)
    assert chapter.title == "Chapter *two*"
    assert chapter.claims == [(1, "first, σ'²"), (1, "second, a < b"), (3, "third")]
    path.write_text(NONE, encoding="utf-8")
    os.utime(path, ns=(1, 1))
    assert claims_page.collect(path).claims == []  # what changed is read again


def test_the_claims_page_links_every_claim_to_its_line(
    build: Callable[..., tuple[Path, str]],
) -> None:
    out, warnings = build(
        **{"02_two": TWO, "03_three": NONE, "claims": "# Claims\n\n```{claims}\n```\n"}
    )
    assert warnings == ""
    listed = (out / "claims.html").read_text(encoding="utf-8")
    assert "3 claims in 2 chapters." in listed
    assert "0 claims." in listed
    chapter = (out / "notebooks/02_two.html").read_text(encoding="utf-8")
    for number, statement in enumerate(("first, σ'²", "second, a < b", "third"), 1):
        name, text = claim_id(statement), statement.replace("<", "&lt;")
        assert f'href="notebooks/02_two.html#{name}">{text}</a>' in listed
        assert f'<span class="number">2.{number}</span>' in listed
        assert chapter.count(f'id="{name}"') == 1
        # The anchor is the claim's own line, and shows the same number.
        assert f'<p class="claim" id="{name}">{text} <a' in chapter
        assert f'href="#{name}" title="Link to this claim">2.{number}</a>' in chapter
    # What else the cell printed stays where it was.
    assert chapter.index("before") < chapter.index(claim_id("first, σ'²"))
    assert chapter.index(claim_id("second, a < b")) < chapter.index("after")
    assert "no claim: ✓ not" in chapter


def test_lessons_and_labs_are_told_apart(
    build: Callable[..., tuple[Path, str]],
) -> None:
    pages = {"02_two": TWO, "02_two_lab": LAB, "03_three": NONE}
    out, warnings = build(**pages, claims="# Claims\n\n```{claims}\n```\n")
    assert warnings == ""
    listed = (out / "claims.html").read_text(encoding="utf-8")
    assert "4 claims in 2 chapters." in listed
    assert 'class="claims-of lesson chapter-2" id="claims-02_two"' in listed
    assert 'class="claims-of lab chapter-2" id="claims-02_two_lab"' in listed
    assert "<h2>Lab: Does it last?" in listed
    assert 'href="notebooks/02_two_lab.html">Read the lab</a>' in listed
    # A lab's numbers go on from its lesson's, on both pages.
    lab = (out / "notebooks/02_two_lab.html").read_text(encoding="utf-8")
    assert '<span class="number">2.4</span>' in listed
    assert 'title="Link to this claim">2.4</a>' in lab
    # The filter has what can be chosen, and is not shown without its script.
    assert '<form class="claims-filter" hidden>' in listed
    assert '<option value="2">Chapter *two*</option>' in listed
    assert '<option value="lab">Labs</option>' in listed
    assert "claims.js" in listed
    assert "claims.js" not in lab


def test_without_a_lab_there_is_no_choice_of_labs() -> None:
    lesson = {"notebooks/02_two": claims_page.Chapter("Two", [])}
    assert "claims-kind" not in claims_page.form(lesson)
    assert "claims-chapter" in claims_page.form(lesson)


def test_a_role_links_to_a_claim(build: Callable[..., tuple[Path, str]]) -> None:
    linking = notebook(
        "# Three\n\n| a |\n|---|\n| ({claim}`second, a < b`, {claim}`for the …`) |",
        ("a = 1", "✓ for the third time, it lasts\n"),
    )
    page = "# Page\n\nSee {claim}`first, σ'²` and {claim}`third`.\n"
    out, warnings = build(**{"02_two": TWO, "03_three": linking, "page": page})
    assert warnings == ""
    text = (out / "page.html").read_text(encoding="utf-8")
    first = claim_id("first, σ'²")
    assert (
        f'href="notebooks/02_two.html#{first}" title="first, σ\'²">claim\xa02.1</a>'
    ) in text
    assert ">claim\xa02.3</a>" in text
    table = (out / "notebooks/03_three.html").read_text(encoding="utf-8")
    second, own = claim_id("second, a < b"), claim_id("for the third time, it lasts")
    assert f'href="02_two.html#{second}" title="second, a &lt; b">claim\xa02.2' in table
    # A link within the page names no file.
    assert (
        f'href="#{own}" title="for the third time, it lasts">claim\xa03.1</a>' in table
    )


def test_a_link_to_no_claim_fails_the_build(
    build: Callable[..., tuple[Path, str]],
) -> None:
    page = "# Page\n\nNo {claim}`thrid`.\n"
    _, warnings = build(**{"02_two": TWO, "page": page})
    assert "page.md:3: WARNING: no cell claims 'thrid'" in warnings
    assert "The nearest claim is 'third'" in warnings


def test_a_beginning_must_be_that_of_one_claim() -> None:
    statements = ["In the record A errs", "In the record B errs", "In the record"]
    assert claims_page.find("In the record B …", statements) == statements[1]
    assert claims_page.find("In the record", statements) == statements[2]  # it is whole
    with pytest.raises(LookupError, match=r"3 claims begin with 'In the record': \["):
        claims_page.find("In the record …", statements)
    with pytest.raises(LookupError, match="nearest claim is 'In the record A errs'"):
        claims_page.find("In the record A er", statements)  # no … at its end
    with pytest.raises(LookupError, match="nearest claim is 'In the record B errs'"):
        claims_page.find("In the reocrd B …", statements)
    with pytest.raises(LookupError, match="no claim is stored"):
        claims_page.find("anything", [])


def test_every_link_of_the_book_leads_to_a_claim() -> None:
    """The build says so as well, a minute later."""
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    statements = [
        text for path in notebooks for _, text in claims_page.collect(path).claims
    ]
    written = [
        page.read_text(encoding="utf-8") for page in (ROOT / "book").glob("*.md")
    ]
    for path in notebooks:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        written += [
            "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"
        ]
    links = re.findall(r"\{claim\}`([^`]*)`", "\n".join(written))
    assert len(links) > 100
    for text in links:
        assert claims_page.find(text, statements)


def test_count() -> None:
    assert [claims_page.count(n) for n in (0, 1, 2)] == [
        "0 claims", "1 claim", "2 claims",
    ]  # fmt: skip


# ---------------------------------------------------------------- math


def test_bad_tex_is_a_warning(build: Callable[..., tuple[Path, str]]) -> None:
    out, warnings = build(page="# Page\n\nGood $a^2$, bad $\\frac{1$.\n")
    assert "WARNING" in warnings
    assert "\\frac{1" in warnings
    assert '<span class="katex">' in (out / "page.html").read_text(encoding="utf-8")


def test_good_tex_warns_of_nothing_and_is_numbered(
    build: Callable[..., tuple[Path, str]],
) -> None:
    out, warnings = build(
        page="# Page\n\n$$\na = b\n$$ (one)\n\n{eq}`one`\n\n"
        "\\begin{align*}\na &= b \\\\\n &= c\n\\end{align*}\n"
    )
    assert warnings == ""
    text = (out / "page.html").read_text(encoding="utf-8")
    assert text.count('tabindex="0"') == 2
    assert '<span class="eqno">(1)' in text
    assert 'href="#equation-one">(1)</a>' in text


def test_one_process_renders_all() -> None:
    assert "<math" in static_math.render(r"\gamma")  # read aloud by screen readers
    first = static_math._server().pid
    static_math.render(r"\beta", display=True)
    assert static_math._server().pid == first
    process = static_math._server()
    static_math.stop()
    assert process.returncode is not None
    with pytest.raises(static_math.TexError, match="KaTeX parse error"):
        static_math.render(r"\nosuchcommand")
    static_math.stop()


def test_style_sheet_and_script_are_of_one_version() -> None:
    sheet = (STATIC / "katex" / "katex.min.css").read_text(encoding="utf-8")
    script = static_math.katex_script().read_text(encoding="utf-8")
    version = sheet.partition('.katex-version:after{content:"')[2].partition('"')[0]
    assert version.count(".") == 2
    assert f'version:"{version}"' in script


# ---------------------------------------------------------------- the sets


@pytest.mark.parametrize("method", METHODS)
def test_picture_colors_one_whole_set(method: str) -> None:
    sets = METHODS[method].sets_in_picture(method_sets.SHAPE, method_sets.GROUPS)
    assert method_sets.members(method).sum() == sets.size
    said = method_sets.sentence(method)
    assert f"The {sets.size} cells" in said
    assert f"has {sets.number} such sets" in said
    cells = method_sets.SHAPE[0] * method_sets.SHAPE[1] * method_sets.SHAPE[2]
    assert sets.size * sets.number == cells


def test_group_norm_ends_at_layer_and_instance_norm() -> None:
    channels = method_sets.SHAPE[1]
    same = (method_sets.members("GN", 1) == method_sets.members("LN")).all()
    assert same
    same = (method_sets.members("GN", channels) == method_sets.members("IN")).all()
    assert same


def test_every_choice_of_the_picture_has_its_rule() -> None:
    html, sheet = method_sets.picture("BN"), method_sets.style()
    groups = [f"g{n}" for n in method_sets.divisors(method_sets.SHAPE[1])]
    for key in [*map(str.lower, METHODS), *groups]:
        assert f'id="sets-{key}"' in html
        assert f"#sets-{key}:checked" in sheet
        assert f'"say is-{key}"' in html or key == "gn"
    for key, method in METHODS.items():
        assert f"--{key.lower()}:{method.color}" in sheet
        assert f".{key.lower()}{{--m:var(--{key.lower()})}}" in sheet


@pytest.mark.parametrize("picture", ["logo.svg", "favicon.svg"])
def test_the_logo_has_the_methods_colours(picture: str) -> None:
    inks = re.findall(r"#[0-9A-Fa-f]{6}", (STATIC / picture).read_text("utf-8"))
    known = {method.color for method in METHODS.values()}
    assert inks
    assert {ink.upper() for ink in inks} <= known | {"#262626", "#FFFFFF"}


def test_table_says_what_the_paper_says() -> None:
    said = {
        (method, use): method_sets.axis_names(axes, sets)
        for method, use, axes, sets in method_sets.rows()
    }
    assert said["BN", "images"] == (["N", "H", "W"], ["C"], ["C"])
    assert said["GN", "images"] == (["C/G", "H", "W"], ["N", "G"], ["C"])
    assert said["IN", "images"] == (["H", "W"], ["N", "C"], ["C"])
    assert said["RMSNorm", "tokens"] == (["C"], ["N", "T"], ["C"])
    html = method_sets.table()
    assert html.count("<tr>") == 1 + len(said)
    assert html.count("no β") == 1


# ---------------------------------------------------------------- repairs


def mended(html: str) -> str:
    page = BeautifulSoup(html, "html.parser")
    repairs.repair(page, Counter())
    return str(page)


BUTTON = '<span class="btn__text-container">{}</span>'
FOLD = """<div class="cell"><details class="hide"><summary aria-label="Toggle hidden
content"><p class="collapsed">Show code</p><p class="expanded">Hide code</p></summary>
</details>{}</div>"""


@pytest.mark.parametrize(
    ("repair", "fault", "instead"),
    [
        (
            page_weight.leave_out_scripts,
            '<script src="searchtools.js"></script>'
            '<script defer="defer" src="doctools.js"></script>'
            '<script type="text/x-thebe-config">{}</script><script>kernelName = "p"'
            '</script><script src="fontawesome.js?1"></script>',
            '<script defer="defer" src="doctools.js"></script>',
        ),
        (
            page_weight.let_scripts_wait,
            '<head><script defer="" src="search.js"></script><script src="tools.js">'
            '</script></head><link as="script" href="tools.js" rel="preload"/>',
            '<head><script defer="defer" src="tools.js"></script>'
            '<script defer="" src="search.js"></script></head>',
        ),
        (
            page_weight.let_logos_wait,
            '<ul class="dropdown-menu"><img src="a.png"/></ul>',
            '<ul class="dropdown-menu"><img loading="lazy" src="a.png"/></ul>',
        ),
        (
            page_weight.read_sheet_as_one,
            '<link href="../_static/a.css?v=1" rel="stylesheet"/>'
            '<link href="../_static/b.css" rel="stylesheet"/>',
            '<link href="../_static/book-pages.css" rel="stylesheet"/>',
        ),
        (
            repairs.light_without_a_script,
            '<html data-theme="auto"></html>',
            '<html data-theme="light"></html>',
        ),
        (
            repairs.skip_to_the_article,
            '<main id="main-content"><article class="bd-article"></article></main>',
            '<main><article class="bd-article" id="main-content" tabindex="-1">'
            "</article></main>",
        ),
        (
            repairs.name_buttons,
            f'<button class="btn-download-pdf-button" title="Print to PDF">'
            f"{BUTTON.format('.pdf')}</button>",
            f'<button class="btn-download-pdf-button" title="Print this page">'
            f"{BUTTON.format('Print')}</button>",
        ),
        (
            repairs.name_buttons,
            '<a class="btn-source-issues-button" href="https://a.b/new?title=Issue%20on'
            '%20page%20%2Fnotebooks/05.html&amp;body=Your%20words"></a>',
            '<a class="btn-source-issues-button" '
            'href="https://a.b/new?title=notebooks%2F05.html%3A+"></a>',
        ),
        (
            repairs.tell_icons_alone,
            '<a data-bs-placement="left" data-bs-toggle="tooltip" title="Print this">'
            f"{BUTTON.format('Print')}</a>"
            '<a data-bs-toggle="tooltip" title="Search"><i></i></a>',
            f'<a title="Print this">{BUTTON.format("Print")}</a>'
            '<a data-bs-toggle="tooltip" title="Search"><i></i></a>',
        ),
        (
            repairs.name_landmarks,
            '<a class="reference internal">2. Batch norm</a><details><summary>'
            "</summary></details>",
            '<a class="reference internal">2. Batch norm</a><details><summary '
            'aria-label="Sections of 2. Batch norm"></summary></details>',
        ),
        (
            repairs.tables_and_lists,
            '<tr><th class="head"><p></p></th><th class="head"><p>a</p></th></tr>',
            '<tr><td></td><th class="head"><p>a</p></th></tr>',
        ),
        (
            repairs.keep_shapes_whole,
            '<table class="table"><td>(N, T, C)</td><td>(see b)</td></table>',
            '<table class="table"><td class="shape">(N, T, C)</td><td>(see b)</td>'
            "</table>",
        ),
        (
            repairs.one_of_each_in_head,
            "<title>Normalization \u2014 Normalization</title>",
            "<title>Normalization</title>",
        ),
    ],
)
def test_a_repair_mends_its_fault_and_nothing_else(
    repair: repairs.Repair, fault: str, instead: str
) -> None:
    page = BeautifulSoup(fault, "html.parser")
    assert list(repair(page)) != []
    assert str(page) == instead
    assert mended(instead) == instead


@pytest.mark.parametrize(
    ("after", "name"),
    [
        (
            '<div class="cell_output"><figure><span class="caption-number">Fig. 2.3 '
            "</span></figure></div>",
            "code of figure 2.3",
        ),
        ('<div class="cell_output"><p class="claim">a</p></div>', "check of the claim"),
        ('<div class="cell_output">1</div>', "code of what is below"),
        ("", "code that the cells below need"),
    ],
)
def test_a_fold_says_what_it_holds(after: str, name: str) -> None:
    page = mended(FOLD.format(after))
    assert f">Show {name}" in page
    assert f">Hide {name}" in page
    assert "aria-label" not in page


def test_a_repair_that_mends_nothing_is_told() -> None:
    hits: Counter[str] = Counter()
    repairs.repair(BeautifulSoup("<p>a</p>", "html.parser"), hits)
    assert hits == {repair.__name__: 0 for repair in repairs.REPAIRS}


def test_a_picture_has_its_size(tmp_path: Path) -> None:
    head = '<svg xmlns="a" width="518.4pt" height="172.8pt" viewBox="0 0 518 173">'
    (tmp_path / "_images").mkdir()
    (tmp_path / "_images" / "a.svg").write_text(head)
    html = '<article class="bd-article"><img src="_images/a.svg"/>' * 2
    page = BeautifulSoup(html, "html.parser")
    first, second = repairs.size_pictures(page, tmp_path)
    assert (first["width"], first["height"]) == ("691", "230")
    assert ("loading" in first.attrs, second["loading"]) == (False, "lazy")
    assert (first["fetchpriority"], "fetchpriority" in second.attrs) == ("low", False)
    (tmp_path / "_images" / "a.svg").write_text('<svg width="100%">')
    with pytest.raises(ValueError, match="no SVG with width and height in points"):
        list(repairs.size_pictures(page, tmp_path))


def test_japanese_is_marked_in_text_alone() -> None:
    script = '<script>let a = "正規化"</script><head><title>正規化</title></head>'
    page = f'{script}<p title="正規化">norm (<em>バッチ正規化</em>), 最適 here</p>'
    assert mended(page) == (
        f'{script}<p title="正規化">norm (<em><span lang="ja">バッチ正規化</span></em>'
        '), <span lang="ja">最適</span> here</p>'
    )
    assert mended(mended(page)) == mended(page)


# ---------------------------------------------------------------- weight


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        (".seen{color:red}.unseen{color:blue}", ".seen{color:red}"),
        ("#seen a, #unseen a {color: red}", "#seen a{color: red}"),
        (".seen.unseen{color:red}", ""),
        # What an element must not have, or may have, need not be on a page.
        (".seen:not(.unseen){color:red}", ".seen:not(.unseen){color:red}"),
        (":is(.seen,.unseen) a{color:red}", ":is(.seen,.unseen) a{color:red}"),
        ("[data-theme=dark] .unseen{color:red}", ""),
        ("@media print{.unseen{color:red}}", ""),
        ("@media print{a{color:red}.unseen{}}", "@media print{a{color:red}}"),
        ("@font-face{font-family:A}", "@font-face{font-family:A}"),
        ('.seen:before{content:"}"}', '.seen:before{content:"}"}'),
        ('@charset "utf-8";', ""),
    ],
)
def test_rules_that_can_match_nothing_go(tmp_path: Path, rule: str, left: str) -> None:
    sheet = tmp_path / "a.css"
    sheet.write_text(rule, encoding="utf-8")
    found = page_weight.rules(sheet, tmp_path)
    assert page_weight.only_used(found, {"seen"}) == left


@pytest.mark.parametrize(
    ("sheet", "left"),
    [
        ("a{--used: 1;--unused: 2;top: var(--used)}", "a{--used: 1;top: var(--used)}"),
        ("a{--used: 1}b{top: var( --used, 0)}", "a{--used: 1}b{top: var( --used, 0)}"),
        ("a{--for-unused: 1;--unused: var(--for-unused)}b{top: 0}", "b{top: 0}"),
        ('a{--unused: url("data:;}{,");top: 0}', "a{top: 0}"),
        ("a{--unused: 1}b{top: 0}@media print{c{--unused: 2}d{top: 1}}",
         "b{top: 0}@media print{d{top: 1}}"),
        ("a{--of-a-page: 1;--of-a-script: 2}", "a{--of-a-page: 1;--of-a-script: 2}"),
        ("a:hover{top: 0}b--c:hover{top: 1}", "a:hover{top: 0}b--c:hover{top: 1}"),
    ],
)  # fmt: skip
def test_properties_that_nobody_asks_for_go(sheet: str, left: str) -> None:
    held = page_weight.Held()
    page = '<p style="color: var(--of-a-page)">a</p>'
    held.add_page(BeautifulSoup(page, "html.parser"))
    held.add_script('style.getPropertyValue("--of-a-script")')
    assert page_weight.only_asked_for(sheet, held.names) == left


def test_a_broken_sheet_is_an_error(tmp_path: Path) -> None:
    sheet = tmp_path / "a.css"
    sheet.write_text("a{color:red} .b", encoding="utf-8")
    with pytest.raises(ValueError, match="a style sheet has an error: EOF"):
        page_weight.only_used(page_weight.rules(sheet, tmp_path), set())


def test_addresses_in_a_sheet_lead_where_they_led(tmp_path: Path) -> None:
    (tmp_path / "styles").mkdir()
    (tmp_path / "basic.css").write_text("a{background:url(file.png)}")
    (tmp_path / "styles" / "theme.css").write_text(
        '@import "../basic.css"; /* b{} */ i{background:url("../fonts/a.woff2")}'
        "u{background:url(data:image/png;base64,aaaa)}"
    )
    found = page_weight.rules(tmp_path / "styles" / "theme.css", tmp_path)
    assert page_weight.only_used(found, set()) == (
        "a{background:url(file.png)}i{background:url(fonts/a.woff2)}"
        "u{background:url(data:image/png;base64,aaaa)}"
    )


def test_sheets_keep_the_order_that_pages_have_them_in() -> None:
    held = page_weight.Held()
    for names in ("ac", "abcd", "bce"):
        links = "".join(
            f'<link href="_static/{name}.css?v=1" rel="stylesheet"/>' for name in names
        )
        held.add_sheets(BeautifulSoup(links, "html.parser"))
    assert [name[0] for name in held.sheets if name != "d.css"] == ["a", "b", "c", "e"]


def test_a_page_and_a_script_say_what_they_hold() -> None:
    held = page_weight.Held()
    page = '<p class="a b-c" id="d">\N{GREEK SMALL LETTER GAMMA}</p>'
    held.add_page(BeautifulSoup(page, "html.parser"))
    held.add_script('box.classList.add("is-on")')
    assert {"a", "b-c", "d", "is-on"} <= held.names
    assert {"\N{GREEK SMALL LETTER GAMMA}", "~"} <= held.letters
    assert page_weight.letters_drawn('a{content:"\\f0c9"}') >= {"\uf0c9", "c"}


def test_a_small_font_has_only_letters_in_use(tmp_path: Path) -> None:
    (tmp_path / "fonts").mkdir()
    (copied,) = STATIC.glob("fonts/*-400-normal.woff2")
    shutil.copy(copied, tmp_path / "fonts" / "a.woff2")
    sheet = (
        "@font-face{font-family:A;src:url(fonts/a.woff2) format('woff2'),"
        "url(fonts/a.ttf)}"
    )
    assert page_weight.small_fonts(sheet, tmp_path, {"a", "b"}) == (
        '@font-face{font-family:A;src:url(fonts/a.small.woff2) format("woff2")}'
    )
    small = tmp_path / "fonts" / "a.small.woff2"
    assert set(TTFont(small).getBestCmap()) == {ord("a"), ord("b")}
    assert small.stat().st_size < copied.stat().st_size / 5


def test_a_font_of_icons_has_only_icons(tmp_path: Path) -> None:
    import pydata_sphinx_theme

    theme = Path(pydata_sphinx_theme.__file__).parent
    (font,) = theme.rglob("fa-solid-900.ttf")
    shutil.copy(font, tmp_path)
    name = page_weight.shrink_font(tmp_path / font.name, {"\uf0c9", "a", "1"})
    assert set(TTFont(tmp_path / name).getBestCmap()) == {0xF0C9}


def test_a_photograph_keeps_its_pixels_in_less(rng: np.random.Generator) -> None:
    smooth = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)

    def drawing(image: np.ndarray) -> str:
        png = io.BytesIO()
        Image.fromarray(image).save(png, "png")
        data = base64.b64encode(png.getvalue()).decode()
        return f'<svg><image xlink:href="data:image/png;base64,{data}"/></svg>'

    before = drawing(smooth)
    after = page_weight.repacked(before)
    assert len(after) < len(before)
    kept = re.search('data:image/webp;base64,([^"]+)"', after)
    assert kept
    with Image.open(io.BytesIO(base64.b64decode(kept[1]))) as image:
        assert (np.asarray(image.convert("RGB")) == smooth).all()
    assert page_weight.repacked("<svg><image/></svg>") == "<svg><image/></svg>"


def test_a_section_tells_about_how_high_it_is() -> None:
    inside = (
        "<h2>Two</h2>"  # 50
        f"<p>{'ab cd ' * 20}</p>"  # three lines: 100
        "<pre>a\nb\n</pre>"  # 48
        '<img width="716" height="200"/>'  # half as wide, and a caption: 140
        "<table><tr><td><p>1</p></td></tr></table>"  # 60
        "<details><summary>code</summary><pre>a</pre></details>"  # 50, as it is closed
    )
    sections = f'<section><div class="cell"></div><section>{inside}</section></section>'
    page = BeautifulSoup(f'<div class="bd-article">{sections}</div>', "html.parser")
    (section,) = page_weight.tell_heights(page)
    assert section["style"] == "--height: 448px"
    short = BeautifulSoup(str(page).replace("cell", "text"), "html.parser")
    assert list(page_weight.tell_heights(short)) == []


def test_the_theme_looks_at_what_is_drawn_alone() -> None:
    theme = "all.forEach(e=>{e.tabIndex=e.scrollWidth>e.clientWidth?0:-1})"
    assert page_weight.look_at_what_is_drawn(theme) == theme.replace(
        "{e.", "{if(e.checkVisibility({contentVisibilityAuto:true}))e."
    )
    with pytest.raises(ValueError, match="the theme's script does not say"):
        page_weight.look_at_what_is_drawn("all.forEach(e=>{e.tabIndex=0})")


# ---------------------------------------------------------------- copied code


@pytest.mark.parametrize(
    ("code", "before"),
    [
        ("y = x + 1", "# Needs from the cells above: x\n"),
        ("x = x + 1\nx", "# Needs from the cells above: x\n"),
        ("x = 2\ny = x", ""),
        ("print(len([x for x in range(3)]))", ""),
        ("def f(x):\n    return np.sum(x)", "import numpy as np\n"),
        ("for x in range(3):\n    print(x, y)", "# Needs from the cells above: y\n"),
        (
            "claim('a', x > nn.e)",
            "from normbook.claims import claim\nfrom torch import nn\n"
            "# Needs from the cells above: x\n",
        ),
        ("unheard_of", ""),  # it is not above either
        ("f'{x} {y}'", "# Needs from the cells above: x, y\n"),
    ],
)
def test_copied_code_says_what_it_needs(code: str, before: str) -> None:
    known: dict[str, str] = {}
    above = (
        "import numpy as np\nfrom torch import nn\n"
        "from normbook.claims import claim\nx = 1\ny = 2"
    )
    assert copied_code.lines_before(above, known) == ""
    assert copied_code.lines_before(code, known) == before


def test_code_copied_with_what_it_needs_runs() -> None:
    """Each code cell of a lesson, alone, asks for the names that it would miss."""
    path = ROOT / "notebooks" / "02_batch_norm.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    known: dict[str, str] = {}
    asked = 0
    for cell in cells:
        code = "".join(cell["source"])
        if cell["cell_type"] != "code" or "%pip" in code:
            continue
        before = copied_code.lines_before(code, known)
        names = re.findall("# Needs from the cells above: (.*)", before)
        given = {name for line in names for name in line.split(", ")}
        asked += bool(given)
        # What a function or the module reads from outside, as Python itself sees it.
        table = symtable.symtable(before + code, "cell", "exec")
        tables = [table]
        for each in tables:
            tables += each.get_children()
        outside = {
            symbol.get_name()
            for each in tables
            for symbol in each.get_symbols()
            if symbol.is_global()
            and symbol.is_referenced()
            and not symbol.is_assigned()
        }
        own = {s.get_name() for s in table.get_symbols() if s.is_assigned()}
        own |= {s.get_name() for s in table.get_symbols() if s.is_imported()}
        assert outside - own - set(dir(builtins)) <= given
    assert asked > 10
