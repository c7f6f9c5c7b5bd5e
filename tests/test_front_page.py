"""The front page: its ten lines of NumPy, its reading paths, and what is counted."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import error
from torch.nn import functional as F

pytest.importorskip("sphinx")
pytest.importorskip("myst_nb")

import reading_time
from test_book import notebook, small_book
from words import WordsError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "book" / "index.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------- ten lines


@pytest.fixture(scope="module")
def norms() -> dict:
    """What the page's block of Python defines."""
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(block.splitlines()) == 10
    defined: dict = {}
    exec(block, defined)
    return defined


@pytest.mark.parametrize("name", ["batch", "layer", "instance", "group", "rms"])
def test_the_ten_lines_are_pytorchs_layers(name: str, norms: dict, rng) -> None:
    images, tokens = rng.normal(3, 2, (4, 6, 5, 3)), rng.normal(3, 2, (4, 7, 6))
    x = tokens if name in ("layer", "rms") else images
    native = {
        "batch": lambda x: F.batch_norm(x, None, None, training=True),
        "layer": lambda x: F.layer_norm(x, (6,)),
        "instance": F.instance_norm,
        "group": lambda x: F.group_norm(x, 3),
        "rms": lambda x: F.rms_norm(x, (6,), eps=1e-5),
    }[name]
    got = norms[f"{name}_norm"](x, *[3] * (name == "group"))
    assert error(got, native(torch.tensor(x))) < 1e-12
    # Of all five none but this one gives this.
    others = {"batch", "instance"} if x is images else {"layer", "rms"}
    for other in others - {name}:
        assert error(norms[f"{other}_norm"](x), got) > 0.01


def test_the_affine_line_is_pytorchs(norms: dict, rng) -> None:
    x, gamma, beta = rng.normal(size=(4, 6)), rng.normal(size=6), rng.normal(size=6)
    x_, gamma_, beta_ = map(torch.tensor, (x, gamma, beta))
    want = F.layer_norm(x_, (6,), gamma_, beta_)
    assert error(norms["affine"](norms["layer_norm"](x), gamma, beta), want) < 1e-12


# ---------------------------------------------------------------- what is counted


def cell(kind: str, source: str, *tags: str, **more: object) -> dict:
    return {"cell_type": kind, "source": source, "metadata": {"tags": [*tags]}, **more}


COUNTED = [
    cell(
        "markdown", "# Five words — one, two\n\n**1.** Do it.\n\n**2. Title.** And it."
    ),
    cell("markdown", "| a | b |\n|---|---|\n| of **3.** it | d |"),
    cell(
        "code",
        "a = 1\n\n\nb = 2\n",
        outputs=[
            {"output_type": "stream", "text": ["✓ one\n", "no ✓\n", "✓ two\n"]},
            {"output_type": "display_data", "data": {"image/svg+xml": "", "t": ""}},
        ],
    ),
    cell("code", "hidden", "hide-input", outputs=[{"text": "✓ three\n"}]),
    cell("code", "folded", "hide-cell", outputs=[]),
    cell("code", "removed", "remove-cell", outputs=[]),
]


def test_what_is_counted() -> None:
    assert reading_time.measure(COUNTED) == reading_time.Length(
        words=17, lines=2, claims=3, figures=1, exercises=2
    )


@pytest.mark.parametrize(
    ("length", "minutes"),
    [
        ((2000, 0, 0, 0, 0), 10),
        ((0, 120, 0, 0, 0), 10),
        ((0, 0, 30, 0, 0), 10),
        ((0, 0, 0, 30, 0), 10),
        ((0, 0, 0, 0, 5), 20),
        ((1900, 210, 14, 5, 4), 50),  # 9.5 + 17.5 + 6.3 + 16
        ((10, 0, 0, 0, 0), 5),
    ],
)
def test_the_rule(length: tuple[int, ...], minutes: int) -> None:
    assert reading_time.Length(*length).minutes == minutes


def test_the_rule_is_told_as_it_is() -> None:
    told = [int(number) for number in re.findall(r"\d+", reading_time.RULE)]
    one = [
        reading_time.WORDS_A_MINUTE,
        reading_time.SECONDS_A_LINE,
        reading_time.SECONDS_A_RESULT,
        reading_time.MINUTES_AN_EXERCISE,
    ]
    assert told == one == [200, 5, 20, 4]


def test_a_page_says_its_time() -> None:
    say = reading_time.sentence
    assert say(reading_time.Length(1912, 210, 14, 5, 4)) == (
        "About 50 minutes: 1,900 words, 210 lines of code, 14 claims, 5 figures, "
        "4 exercises."
    )
    assert say(reading_time.Length(100, 1, 1, 0, 1)) == (
        "About 5 minutes: 100 words, 1 line of code, 1 claim, 1 exercise."
    )
    assert [*map(reading_time.duration, (5, 60, 70, 120))] == [
        "5 minutes", "1 hour", "1 h 10 min", "2 hours",
    ]  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")))
def test_every_exercise_is_counted(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    checked = set(re.findall(r'\bcheck\("([\w-]+)"', code))
    assert reading_time.measure(cells).exercises >= len(checked)


# ---------------------------------------------------------------- the paths

FIRST = notebook("# *One* idea\n\n**1.** Try.", ("a = 1", "✓ first\n"))
SECOND = notebook("# Batch norm\n\n```{reading-time}\n```\n" + "word " * 3000)
LAB = notebook("# Does it last?\n\n" + "word " * 4000)
PATHS = """
["notebooks/01_one"]
exam = "Standardize *by hand*."

["notebooks/02_two"]
exam = "Derive."
engineer = "Build."
"""


@pytest.fixture
def build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Path, str]]:
    """Build a book of a front page and some notebooks; returns what small_book does."""

    def run(paths: str = PATHS, **pages: str) -> tuple[Path, str]:
        folder = tmp_path / "words"
        folder.mkdir()
        shutil.copy(reading_time.FOLDER / "paths.schema.json", folder)
        (folder / "paths.toml").write_text(paths, encoding="utf-8")
        monkeypatch.setattr(reading_time, "FOLDER", folder)
        front = "# Front\n\n```{reading-paths}\n```\n"
        pages = {"01_one": FIRST, "02_two": SECOND} | pages
        return small_book(tmp_path, front=front, **pages)

    return run


def text_of(page: Path) -> str:
    """What a page shows, on one line, links as [text](address)."""
    html = page.read_text(encoding="utf-8").partition('<div class="body"')[2]
    html = re.sub(r'<a [^>]*href="([^"]*)"[^>]*>(.*?)</a>', r"[\2](\1)", html)
    return " ".join(re.sub(r"<[^>]*>", "", html).split())


def test_paths_have_times_and_sums(build: Callable[..., tuple[Path, str]]) -> None:
    out, warnings = build()
    assert warnings == ""
    front = text_of(out / "front.html")
    assert (
        "For an exam. About 20 minutes. [One idea](notebooks/01_one.html) 5 minutes. "
        "Standardize by hand. [Batch norm](notebooks/02_two.html) 15 minutes. Derive. "
        "For an engineer. About 15 minutes. [Batch norm](notebooks/02_two.html) 15 "
        "minutes. Build. Times are counted: 200"
    ) in front
    said = text_of(out / "notebooks" / "02_two.html")
    assert "Batch norm" in said
    assert "About 15 minutes: 3,000 words." in said


def test_a_lab_is_listed_when_it_is_there(
    build: Callable[..., tuple[Path, str]],
) -> None:
    out, warnings = build(**{"02_two_lab": LAB})
    assert warnings == ""
    front = text_of(out / "front.html")
    lab = "15 minutes, [lab](notebooks/02_two_lab.html) 20 minutes. "
    assert "For an exam. About 20 minutes; with the labs 40 minutes." in front
    assert f"{lab}Derive. For an engineer. About 15 minutes; with the labs 35" in front
    assert f"{lab}Build." in front


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (
            PATHS.replace("02_two", "02_tow"),
            "paths.toml: entry 'notebooks/02_tow' is no notebook of the book: did you "
            "mean 'notebooks/02_two'?",
        ),
        (PATHS.replace("engineer", "ingineer"), "did you mean 'engineer'?"),
        (PATHS.replace("Build.", "build"), "field 'engineer': 'build': write one sent"),
        (
            PATHS.replace("notebooks/02_two", "two"),
            "entry 'two': its name: name a page",
        ),
    ],
)
def test_a_page_that_does_not_exist_fails_the_build(
    build: Callable[..., tuple[Path, str]], paths: str, said: str
) -> None:
    try:
        warnings = build(paths)[1]
    except WordsError as error:
        warnings = str(error)
    assert said in " ".join(warnings.split())


def test_only_a_notebook_has_a_time(tmp_path: Path) -> None:
    page = "# Page\n\n```{reading-time}\n```\n"
    _, warnings = small_book(tmp_path, page=page)
    assert (
        "page.md:3: ERROR: reading-time belongs on the page of a notebook" in warnings
    )
