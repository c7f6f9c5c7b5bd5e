"""The built pages in a real browser: what a reader's machine asks for, shows, allows.

Skipped without Chromium or without a built book; in continuous integration (CI set)
either is a failure.
"""

import functools
import http.server
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
PAGES = sorted(
    page.relative_to(HTML).as_posix()
    for page in HTML.rglob("*.html")
    if "_static" not in page.parts and page != HTML / "index.html"  # it redirects
) or [None]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # Chromium's own errands are no request of a page.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def unavailable(what: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"continuous integration must test the pages, but {what}")
    pytest.skip(what)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the built book, served from this machine."""
    if PAGES == [None]:
        unavailable("the book is not built (make book)")
    handler = functools.partial(Quiet, directory=str(HTML))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        unavailable("playwright is not installed")
    if not CHROMIUM:
        unavailable("there is no chromium on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """One page opened in one window, and what went wrong meanwhile."""

    def __init__(self, browser: Any, site: str, path: str, **window: Any) -> None:
        self.context = browser.new_context(**window)
        self.page = self.context.new_page()
        self.outside: list[str] = []
        self.faults: list[str] = []
        self.page.on("request", lambda r: self._asked(r.url, site))
        self.page.on("requestfailed", lambda r: self.faults.append(f"failed: {r.url}"))
        self.page.on("response", self._answered)
        self.page.on("console", self._told)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.goto(site + path, wait_until="load")
        if window.get("java_script_enabled", True):
            self.page.wait_for_function("document.fonts.status === 'loaded'")
        # Asked from here: a page without scripts has no frame to wait in.
        while self.page.evaluate("document.fonts.status") != "loaded":
            self.page.wait_for_timeout(20)

    def _asked(self, url: str, site: str) -> None:
        if not url.startswith((site, "data:", "blob:")):
            self.outside.append(url)

    def _answered(self, response: Any) -> None:
        if response.status >= 400:
            self.faults.append(f"{response.status}: {response.url}")

    def _told(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"console: {message.text}")

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.fixture(scope="module")
def visit(browser: Any, site: str) -> Any:
    return functools.partial(Visit, browser, site)


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_quiet_local_and_accessible(visit: Any, path: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    with visit(path, viewport=DESK, color_scheme=scheme) as seen:
        assert seen.page.evaluate("document.documentElement.dataset.theme") == scheme
        assert seen.outside == []
        assert seen.faults == []
        report = Axe().run(seen.page)  # asks for style sheets itself, so it is last
        assert report.violations_count == 0, report.generate_report()


@pytest.mark.parametrize("path", PAGES)
def test_nothing_scrolls_sideways_on_a_phone(visit: Any, path: str) -> None:
    with visit(path, viewport=PHONE, is_mobile=True, has_touch=True) as seen:
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
        wide = seen.page.evaluate(
            """() => [...document.querySelectorAll('.bd-article *')].filter(e => {
              if (e.getBoundingClientRect().right <= 391) return false;
              for (let box = e; box; box = box.parentElement) {
                if (getComputedStyle(box).overflowX !== 'visible') return false;
              }
              return true;
            }).map(e => e.outerHTML.slice(0, 80))"""
        )
        assert wide == []  # neither cut off nor outside a box that scrolls


def prose(path: str) -> str:
    """What an author wrote on a page, without code; "" for a generated page."""
    page = (ROOT / path).with_suffix(".md")
    notebook = page.with_suffix(".ipynb")
    text = ""
    if page.exists():
        text = page.read_text(encoding="utf-8")
    elif notebook.exists():
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        written = (cell["source"] for cell in cells if cell["cell_type"] == "markdown")
        text = "\n".join("".join(source) for source in written)
    return re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("path", PAGES)
def test_math_is_on_the_page_without_a_script(visit: Any, path: str) -> None:
    with visit(path, viewport=DESK, java_script_enabled=False) as seen:
        formulas = seen.page.locator(".bd-article .katex").count()
        # Twice a dollar is one formula; $$ opens and closes one as well.
        written = len(re.findall(r"\$\$?", prose(path))) // 2
        assert formulas >= written
        assert seen.page.locator(".katex-error").count() == 0
        assert "$$" not in seen.page.locator("body").inner_text()


@pytest.mark.parametrize("path", PAGES)
def test_images_have_text_and_links_a_target(visit: Any, path: str) -> None:
    with visit(path, viewport=DESK) as seen:
        bare = "img:not([alt]), .bd-article img[alt='']"
        assert seen.page.locator(bare).count() == 0
        dead = seen.page.evaluate(
            """() => [...document.querySelectorAll('.bd-article a[href^="#"]')]
              .map(a => a.getAttribute('href').slice(1))
              .filter(id => id && !document.getElementById(decodeURIComponent(id)))"""
        )
        assert dead == []


def test_every_claim_leads_to_its_cell(visit: Any) -> None:
    with visit("book/claims.html", viewport=DESK) as seen:
        links = seen.page.locator("ol.claims a").evaluate_all(
            "all => all.map(a => [a.href, a.textContent])"
        )
        for address in {href.split("#")[0] for href, _ in links}:
            seen.page.goto(address)
            for href, statement in links:
                place, _, name = href.partition("#")
                if place == address:
                    cell = seen.page.locator(f".cell:has(#{name}), .cell#{name}")
                    assert statement in cell.inner_text()


def test_the_book_can_be_used_by_keyboard(visit: Any) -> None:
    with visit("book/index.html", viewport=DESK) as seen:
        focused = "document.activeElement"
        seen.page.keyboard.press("Tab")
        assert seen.page.evaluate(f"{focused}.getAttribute('href')") == "#main-content"
        reached = set()
        for _ in range(60):
            seen.page.keyboard.press("Tab")
            reached.add(seen.page.evaluate(f"{focused}.id"))
        assert "sets-bn" in reached  # one stop for the group; arrows go on
        seen.page.locator("#sets-bn").focus()
        said = set()
        for method in ("ln", "in", "gn", "rmsnorm"):
            seen.page.keyboard.press("ArrowRight")
            assert seen.page.evaluate(f"{focused}.id") == f"sets-{method}"
            said.add(seen.page.locator(".say:visible").inner_text())
        assert len(said) == 4
        seen.page.keyboard.press("ArrowLeft")
        for groups in (1, 2, 3, 6):
            seen.page.locator(f"#sets-g{groups}").focus()
            seen.page.keyboard.press("Space")
            assert seen.page.locator(f".say.is-g{groups}").is_visible()


def test_the_picture_shows_the_chosen_set_without_a_script(visit: Any) -> None:
    with visit("book/index.html", viewport=DESK, java_script_enabled=False) as seen:
        color = "e => getComputedStyle(e).fill"
        cell = seen.page.locator(".large polygon.is-in:not(.is-ln)")
        assert cell.count() == 0  # an instance's set is part of the layer's
        cell = seen.page.locator(".large polygon.is-ln:not(.is-bn)").first
        before = cell.evaluate(color)
        seen.page.locator("label.choice.ln").click()
        seen.page.wait_for_timeout(400)
        assert cell.evaluate(color) != before


def test_search_finds_a_word(visit: Any) -> None:
    with visit("search.html?q=notation", viewport=DESK) as seen:
        seen.page.wait_for_selector("#search-results li a")
        titles = seen.page.locator("#search-results li a").all_inner_texts()
        assert any("Notation" in title for title in titles)
        assert seen.faults == []
