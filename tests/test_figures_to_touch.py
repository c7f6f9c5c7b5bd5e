"""The figures that a reader moves, in a real browser: every number is the library's.

The sets explorer is driven by mouse and keyboard through a grid of shapes, methods,
batch sizes, modes and paddings; what it shows is compared with `functional`. Three
numbers are compared with `core`.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from test_pages import (  # some are fixtures
    DESK,
    HTML,
    PAGES,
    PHONE,
    ROOT,
    axe,
    browser,  # noqa: F401
    show_in,
    site,  # noqa: F401
    visit,  # noqa: F401
)
from torch.nn import functional as F

from normbook import core, functional
from normbook.methods import METHODS

pytestmark = pytest.mark.browser

FRONT, ONE = "book/index.html", "notebooks/01_one_idea.html"
N, C, P = 4, 6, 4
LENGTHS = np.array([2, 4, 3, 4])
EPS = 1e-5
GROUPS = {"images": (1, 2, 3, 6), "tokens": (1, 3), "features": (2, 6)}

# Few pixels to paint at each of many steps.
SMALL = {"width": 900, "height": 640}
# What the explorer shows, read in one go, once what was done is in the frame.
READ = """async () => {
    await new Promise(requestAnimationFrame)
    const explorer = document.querySelector('.explorer')
    const [x, y] = [...explorer.querySelectorAll('.grid')].map((grid) => {
        const cells = [...grid.querySelectorAll('[data-cell]')]
        return cells.sort((a, b) => a.dataset.cell - b.dataset.cell)
    })
    const which = (cells, name) => cells.map((cell) => cell.classList.contains(name))
    return {
        x: x.map((cell) => cell.dataset.value), x_text: x.map((c) => c.textContent),
        y: y.map((cell) => cell.dataset.value), y_text: y.map((c) => c.textContent),
        on: which(x, 'on'), on_y: which(y, 'on'), moved: which(y, 'moved'),
        here: which(x, 'here').indexOf(true),
        numbers: [...explorer.querySelectorAll('.numbers > div')].map((row) => [
            row.querySelector('dt').textContent, row.querySelector('data').value,
            row.querySelector('data').textContent]),
        say: explorer.querySelector('.say').textContent,
        moves: explorer.querySelector('.moves').textContent,
    }
}"""


class State(NamedTuple):
    """What is chosen."""

    kind: str
    method: str
    n: int
    groups: int = 1
    mode: str = "training"
    padding: str = "none"


def states(kind: str) -> Iterator[State]:
    paddings = [(N, "none"), (1, "none")]
    if kind == "tokens":
        paddings = [(N, "counted"), (N, "masked"), (1, "none")]
    for n, padding in paddings:
        for key, method in METHODS.items():
            if n == 1 and not (method.tracks or method.grouped):
                continue  # of one sample they make what they make of four
            for groups in GROUPS[kind] if method.grouped else (1,):
                yield State(kind, key, n, groups, "training", padding)
            if method.tracks:
                yield State(kind, key, n, 1, "evaluation", padding)


def real_positions(n: int) -> np.ndarray:
    """Which positions of n sequences are no padding, N × 1 × positions."""
    return (np.arange(P) < LENGTHS[:n, None])[:, None]


class Expected(NamedTuple):
    """The library's numbers, each an array N × C × positions."""

    y: np.ndarray
    m: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    set_of: np.ndarray  # an index of the set that a value is in


def expected(state: State, block: np.ndarray, stored: tuple[Any, Any]) -> Expected:
    """Normalize in the layout of the layer itself, and back to N × C × positions."""
    method, n = METHODS[state.method], len(block)
    last = state.kind == "tokens" and method.axis == -1
    x = block.transpose(0, 2, 1) if last else block
    shape = (n, C, 2, 2) if state.kind == "images" else x.shape
    if state.kind == "features":
        shape = (n, C)
    if state.kind == "images" and method.axis == -1:
        axes = (1, 2, 3) if state.method == "LN" else (1,)
        sets = functional.layer_sets(shape, axes)
    else:
        sets = method.sets_of(shape, state.groups)

    def back(values: Any) -> np.ndarray:
        values = np.broadcast_to(values, sets.view).reshape(x.shape)
        return values.transpose(0, 2, 1) if last else values

    real = np.ones(block.shape, bool)
    if state.padding == "masked":
        real &= real_positions(n)
    # A token's set has padding only where it is all padding, which the library refuses.
    where = None if last else (real.transpose(0, 2, 1) if last else real).reshape(shape)
    number = np.arange(sets.number).reshape(
        [1 if axis in sets.axes else size for axis, size in enumerate(sets.view)]
    )
    if state.mode == "evaluation":
        mean, var = stored
        y = functional.batch_norm_eval(x.reshape(shape), mean, var, where=where)
        m, mu, square = np.ones(x.shape), mean[:, None], var[:, None]
        mu, square = (np.broadcast_to(v, x.shape) for v in (mu, square))
        return Expected(y.reshape(x.shape), m, mu, np.sqrt(square), back(number))
    y, moments = functional.normalize(
        x.reshape(shape), sets, eps=EPS, where=where, centered=method.centered
    )
    spread = np.sqrt(moments.m2 / moments.count)
    m, mu, spread = map(back, (moments.count, moments.mean, spread))
    return Expected(back(y.reshape(sets.view)) * real, m, mu, spread, back(number))


def text(number: float, digits: int) -> str:
    return f"{number:.{digits}f}".replace("-", "−")


class Explorer:
    """The figure of a page, driven as a reader does."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.keyboard = itertools.cycle((False, True))
        self.chosen: dict[str, Any] = {
            "sets-kind": "images",
            "sets": "BN",
            "sets-batch": N,
            "groups": 2,
            "sets-mode": "training",
            "sets-padding": "none",
        }

    def choose(self, name: str, value: str) -> None:
        """Click a choice, and every second time press its key."""
        query = f".sets input[name='{name}'][value='{value}']"
        if next(self.keyboard):
            self.page.eval_on_selector(query, "e => e.focus()")
            self.page.keyboard.press("Space")
        else:
            box = self.page.eval_on_selector(
                query, "e => e.parentNode.getBoundingClientRect().toJSON()"
            )
            self.page.mouse.click(box["x"] + 12, box["y"] + 12)
        assert self.page.eval_on_selector(query, "e => e.checked")

    def set(self, state: State) -> None:
        for name, value in zip(self.chosen, state, strict=True):
            free = name != "groups" or METHODS[state.method].grouped
            free &= name != "sets-padding" or state.kind == "tokens"
            if free and value != self.chosen[name]:
                self.choose(name, str(value))
                self.chosen[name] = value

    def place(self, cell: int, grid: int = 0) -> tuple[float, float]:
        box = self.page.evaluate(
            "([cell, grid]) => document.querySelectorAll('.explorer .grid')[grid]"
            ".querySelector(`[data-cell='${cell}']`).getBoundingClientRect().toJSON()",
            [cell, grid],
        )
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(self, cell: int, steps: int) -> None:
        x, y = self.place(cell)
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + 4 * steps, y)
        self.page.mouse.up()

    def press(self, cell: int, steps: int) -> None:
        self.page.mouse.click(*self.place(cell))
        for _ in range(abs(steps)):
            self.page.keyboard.press("+" if steps > 0 else "-")

    def read(self) -> dict[str, Any]:
        return self.page.evaluate(READ)


def refusal(state: State) -> str:
    """What torch says of these shapes, or nothing: where a set has one value."""
    try:
        if state.mode == "training" and state.method == "BN":
            F.batch_norm(torch.ones(state.n, C), None, None, training=True)
        if state.method == "GN":
            F.group_norm(torch.ones(state.n, C), state.groups)
    except ValueError as error:
        return f"ValueError: {error}"
    return ""


@pytest.mark.parametrize("kind", ["images", "tokens", "features"])
def test_every_number_of_the_sets_is_the_librarys(
    visit: Callable[..., Any],  # noqa: F811
    kind: str,
    rng: np.random.Generator,
) -> None:
    with visit(FRONT, viewport=SMALL) as seen:
        explorer = Explorer(seen.page)
        seen.page.eval_on_selector(".sets", "e => e.scrollIntoView()")
        first = np.array(explorer.read()["x"], float).reshape(N, C, P)
        block = first[:, :, :1].copy() if kind == "features" else first.copy()
        rows = block.transpose(0, 2, 1).reshape(-1, C)
        stored = rows.mean(0), rows.var(0, ddof=1)  # as after a batch of momentum 1
        for number, state in enumerate(states(kind)):
            explorer.set(state)
            x = block[: state.n].copy()
            if state.padding != "none":
                x[~np.broadcast_to(real_positions(state.n), x.shape)] = 0
            if check_refused(explorer.read(), state):
                continue
            real = np.ones(x.shape, bool)
            if state.padding != "none":
                real &= real_positions(state.n)
            cell = int(rng.choice(np.flatnonzero(real)))  # padding cannot be changed
            # A key is a frame, a drag is two however far it goes.
            steps = int(rng.choice([-1, 1, 2] if number % 2 else [-5, -2, 3, 9]))
            (explorer.press if number % 2 else explorer.drag)(cell, steps)
            after = x.copy()
            after.flat[cell] += steps
            block.flat[cell] += steps
            hover = int(rng.integers(x.size))
            seen.page.mouse.move(*explorer.place(hover, number % 2))
            results = (expected(state, values, stored) for values in (x, after))
            compare(explorer.read(), state, (cell, hover), *results, after)
        assert seen.faults == []


def check_refused(shown: dict[str, Any], state: State) -> bool:
    """Whether there are no outputs, and that the page says why."""
    if state.kind != "features":
        return False
    if state.method == "IN":
        assert set(shown["y_text"]) == {""}
        assert "instance norm needs at least 3 axes" in shown["say"]
        return True
    said = refusal(state)
    if said:
        assert set(shown["y_text"]) == {""}
        assert said in shown["say"]
        return True
    if state.groups == C and state.mode == "training":  # one value a set
        assert set(shown["y_text"]) == {"0.0"}
        assert (F.group_norm(torch.rand(state.n, C), C) == 0).all()
        assert "torch says nothing" in shown["say"]
        return True
    return False


def compare(
    shown: dict[str, Any],
    state: State,
    cells: tuple[int, int],
    before: Expected,
    after: Expected,
    x: np.ndarray,
) -> None:
    """Every number that the figure shows, what is lit, and which outputs moved.

    cells: the one that was changed, and the one that is pointed at.
    """
    cell, hover = cells
    assert [float(value) for value in shown["x"]] == x.ravel().tolist()
    assert shown["x_text"] == [text(value, 0) for value in x.ravel()]
    y = np.array(shown["y"], float)
    assert np.abs(y - after.y.ravel()).max() < 1e-6
    for said, value in zip(shown["y_text"], y, strict=True):
        assert abs(float(said.replace("−", "-")) - value) <= 0.5 + 1e-9
        assert abs(value) >= 9.95 or abs(float(said.replace("−", "-")) - value) < 0.051
    moved = np.abs(after.y - before.y).ravel() > 1e-9
    assert shown["moved"] == moved.tolist()
    samples, own = np.flatnonzero(moved) // x[0].size + 1, cell // x[0].size + 1
    others = sorted({*samples.tolist()} - {own})
    where = ", in that sample alone" if moved.any() else ""
    if others:
        where = f", also in sample{'s' * (len(others) > 1)} {str(others)[1:-1]}"
    number = int(moved.sum())
    outputs = f"{number} output{'s' * (number != 1)} moved"
    assert shown["moves"].endswith(f"in sample {own}: {outputs}{where}.")
    # What is pointed at: its set and the numbers of it.
    real = np.ones(x.shape, bool)
    if state.padding == "masked":
        real &= real_positions(state.n)
    at, evaluates = np.unravel_index(hover, x.shape), state.mode == "evaluation"
    lit = (after.set_of == after.set_of[at]) & real & real[at]
    if evaluates:
        lit = np.arange(x.size).reshape(x.shape) == hover
    assert shown["here"] == hover
    assert shown["on"] == shown["on_y"] == lit.ravel().tolist()
    centered = METHODS[state.method].centered
    root = "standard deviation" if centered else "root mean square"
    stored = "stored " * evaluates
    want = [("x", x[at], 0)]
    if real[at]:
        want += [("m", after.m[at], 0)] * (not evaluates)
        want += [(f"{stored}mean", after.mean[at], 3)] * centered
        want += [(f"{stored}{root}", after.spread[at], 3)]
    want += [("output", after.y[at], 3)]
    assert [row[0] for row in shown["numbers"]] == [row[0] for row in want]
    for (_, exact, said), (_, value, digits) in zip(
        shown["numbers"], want, strict=True
    ):
        assert abs(float(exact) - value) < 1e-6
        assert len(said.partition(".")[2]) == digits
        # To the nearest, whichever way a tie goes.
        error = abs(float(said.replace("−", "-")) - value)
        assert error <= 0.5 * 10.0**-digits + 1e-9
    if real[at] and not evaluates:
        assert f"The {lit.sum()} cells" in shown["say"]


def test_what_moved_is_said_to_who_cannot_see_it(
    visit: Callable[..., Any],  # noqa: F811
) -> None:
    with visit(FRONT, viewport=DESK) as seen:
        page = seen.page
        spoken = page.locator(".explorer .spoken")
        assert spoken.inner_text() == ""  # not while the page loads
        page.locator(".explorer [tabindex='0']").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("PageUp")
        focused = page.locator(".explorer [role=gridcell]:focus")
        assert focused.get_attribute("aria-label").endswith(
            "sample 1, channel 1, position 4"
        )
        page.wait_for_function(
            "document.querySelector('.spoken').textContent.includes('16 outputs moved')"
        )
        assert "also in samples 2, 3, 4" in spoken.text_content()
        page.get_by_text("Start again").click()
        assert "Drag a value" in page.locator(".explorer .moves").inner_text()


def test_a_finger_that_moves_sideways_changes_a_value(
    visit: Callable[..., Any],  # noqa: F811
) -> None:
    with visit(FRONT, viewport=PHONE, has_touch=True, is_mobile=True) as seen:
        page = seen.page
        cell = page.locator(".explorer [role=gridcell]").nth(3)
        cell.scroll_into_view_if_needed()
        before = int(cell.get_attribute("data-value"))
        box = cell.bounding_box()
        x, y = box["x"] + 9, box["y"] + 9
        touch = page.context.new_cdp_session(page)
        for kind, points in (
            ("Start", [(x, y)]), ("Move", [(x + 30, y)]), ("Move", [(x + 60, y)]),
            ("End", []),
        ):  # fmt: skip
            points = [{"x": x, "y": y} for x, y in points]
            touch.send(
                "Input.dispatchTouchEvent",
                {"type": f"touch{kind}", "touchPoints": points},
            )
        page.evaluate("new Promise(requestAnimationFrame)")
        assert int(cell.get_attribute("data-value")) > before + 5
        page.get_by_label("Lower this value").tap()
        page.evaluate("new Promise(requestAnimationFrame)")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


# ---------------------------------------------------------------- three numbers


def test_every_number_of_the_three_is_the_librarys(
    visit: Callable[..., Any],  # noqa: F811
) -> None:
    with visit(ONE, viewport=SMALL) as seen:
        page = seen.page
        page.locator("summary", has_text="third number").click()
        page.eval_on_selector(".three-numbers", "e => e.scrollIntoView()")
        third, epsilon = page.locator(".three-numbers input").all()
        dy = np.array([-1.0, 1.0, 1.0])

        def agrees(eps: float) -> np.ndarray:
            page.evaluate("new Promise(requestAnimationFrame)")
            shown, said, point = page.evaluate(
                """() => {
                  const cells = [...document.querySelectorAll('.three-numbers data')]
                  const point = document.querySelector('.three-numbers .point')
                  return [cells.map((e) => Number(e.value)),
                    cells.map((e) => e.textContent),
                    [point.cx.baseVal.value, point.cy.baseVal.value]]
                }"""
            )
            x = np.array(shown[:3])
            assert (x[:2] == (1, 2)).all()
            x_hat, rstd = core.standardize(x, (0,), eps)
            dx = core.standardize_vjp(dy, x_hat, rstd, (0,))
            want = np.concatenate([x, x_hat, dy, dy - dy.mean(), dx / rstd, dx])
            assert np.abs(np.array(shown) - want).max() < 1e-6
            assert [float(t.replace("−", "-")) for t in said] == pytest.approx(
                want, abs=5.1e-4
            )
            # The point is x̂: as far from 0, and x̂₃ = √(2/3) of its height.
            assert np.hypot(*point) / 50 == pytest.approx((x_hat @ x_hat) ** 0.5, 1e-3)
            assert -point[1] / 50 == pytest.approx(x_hat[2] * 1.5**0.5, abs=1e-3)
            return x

        epsilons = [0, 1e-5, 1e-3, 0.1, 1, 10]
        for number, eps in enumerate(epsilons):
            third.focus()
            for key in ("Home", "PageUp", "End", "ArrowLeft"):
                page.keyboard.press(key)
                x = agrees(eps)
            assert x[2] == pytest.approx(11.9)
            epsilon.focus()
            page.keyboard.press("ArrowRight")
            assert int(epsilon.input_value()) == min(number + 1, 5)
        point = page.locator(".three-numbers .point").bounding_box()
        box = page.locator(".three-numbers svg").bounding_box()
        page.mouse.move(point["x"] + 5, point["y"] + 5)
        page.mouse.down()
        page.mouse.move(box["x"] + 20, box["y"] + box["height"] * 0.7)
        x = agrees(10)
        assert -8 <= x[2] < 1.5  # left and below: the third is the least
        assert seen.faults == []


def test_without_a_script_the_still_figures_are_there(
    visit: Callable[..., Any],  # noqa: F811
) -> None:
    with visit(ONE, viewport=DESK, java_script_enabled=False) as seen:
        for fold in seen.page.locator("details.to-touch summary").all():
            fold.click()
        numbers = seen.page.locator(".three-numbers data").all_inner_texts()
        assert numbers[3:6] == ["−0.926", "−0.463", "1.389"]
        assert seen.page.locator(".sets .large").is_visible()
        assert seen.page.locator(".explorer").count() == 0


# ---------------------------------------------------------------- how they behave


def test_a_module_is_small_and_loaded_only_where_it_is_used() -> None:
    for module, figure in (
        ("sets_explorer", "sets"), ("three_numbers", "three-numbers"),
    ):  # fmt: skip
        script = (ROOT / "book" / "_static" / f"{module}.js").read_bytes()
        assert len(script) < 30_000
        assert b"import " not in script
        pages = {path: (HTML / path).read_text(encoding="utf-8") for path in PAGES}
        users = {path for path, html in pages.items() if f'class="{figure}"' in html}
        assert users
        assert users == {
            path for path, html in pages.items() if f"_static/{module}.js" in html
        }
        assert (HTML / "_static" / f"{module}.js").exists()


@pytest.mark.parametrize("window", [DESK, PHONE], ids=["desk", "phone"])
def test_nothing_shifts_while_the_figure_comes_or_a_choice_is_made(
    visit: Callable[..., Any],  # noqa: F811
    window: dict[str, int],
) -> None:
    with visit("book/notation.html", viewport=window) as seen:
        page = seen.page
        page.add_init_script(
            """window.shifts = []
            new PerformanceObserver((list) => {
              for (const entry of list.getEntries()) window.shifts.push(
                ...entry.sources.map((s) => s.node).filter((e) => e?.closest?.('.sets'))
                  .map((e) => e.className))
            }).observe({ type: 'layout-shift', buffered: true })"""
        )
        height = "document.querySelector('.stage').getBoundingClientRect().height"
        page.route("**/sets_explorer.js*", lambda route: route.abort())
        seen.open(FRONT)
        before = page.evaluate(height)
        page.unroute("**/sets_explorer.js*")
        seen.open(FRONT)
        page.locator(".explorer").scroll_into_view_if_needed()
        assert page.evaluate(height) == before
        below = "document.querySelector('.sets + *').getBoundingClientRect().top"
        first = page.evaluate(f"{below} + scrollY")
        for state in (
            State("tokens", "GN", 4, 6, "evaluation", "masked"),
            State("tokens", "LN", 4, 6, "evaluation", "masked"),
            State("features", "GN", 4, 6),
            State("features", "IN", 1),
            State("features", "BN", 1),
            State("features", "BN", 1, 1, "evaluation"),
        ):
            for name, value in zip(
                ("sets", "sets-kind", "sets-batch", "sets-mode"),
                (state.method, state.kind, state.n, state.mode),
                strict=True,
            ):
                page.eval_on_selector(
                    f".sets input[name='{name}'][value='{value}']", "e => e.click()"
                )
            assert page.evaluate(f"{below} + scrollY") == first
        assert page.evaluate("window.shifts") == []


def test_open_figures_are_accessible(
    visit: Callable[..., Any],  # noqa: F811
) -> None:
    with visit(ONE, viewport=PHONE) as seen:
        for fold in seen.page.locator("details.to-touch > summary").all():
            fold.click()
        seen.page.locator(".explorer [data-cell='4']").first.click()
        seen.page.keyboard.press("+")
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
        # axe takes long over a whole page, and over cells that look alike: the figures
        # are left, with one cell of each look.
        seen.page.evaluate(
            """(methods) => {
                const main = document.createElement('main')
                main.className = 'bd-article'
                main.append(...document.querySelectorAll('details.to-touch'))
                document.body.replaceChildren(main)
                const looks = new Set()
                for (const cell of document.querySelectorAll('.explorer .cell')) {
                    const look = cell.parentNode.parentNode.role + cell.className
                    if (looks.has(look)) cell.remove()
                    looks.add(look)
                }
                for (const line of document.querySelectorAll('.explorer .line')) {
                    if (!line.children.length) line.remove()
                }
                // Values stand on the colours of all methods.
                const cell = document.querySelector('.explorer .cell.on')
                for (const name of methods) {
                    const copy = cell.cloneNode(true)
                    copy.style.setProperty('--m', `var(--${name.toLowerCase()})`)
                    cell.after(copy)
                }
            }""",
            [*METHODS],
        )
        for scheme in ("light", "dark"):
            show_in(seen.page, scheme)
            assert axe(seen, "main") == []
