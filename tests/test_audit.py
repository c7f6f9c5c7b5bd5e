"""The page that judges the study note counts its own verdicts."""

import re
from collections import Counter
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / "book" / "audit.md"
VERDICTS = ("Right", "Imprecise", "Wrong")
HEAD = "| the note says | verdict |"


def stated(page: str) -> tuple[int, dict[str, int]]:
    """What the page says of itself: its statements, and how many have each verdict."""
    every = re.search(r"\*\*(\d+)\*\* statements", page)
    legend = re.findall(
        r"^\| \*\*(\w+)\*\* \|.*\| \*\*(\d+)\*\* \|$", page, re.MULTILINE
    )
    assert every
    return int(every[1]), {verdict: int(count) for verdict, count in legend}


def judged(page: str) -> list[tuple[str, str]]:
    """Every statement in the page's tables, with how its verdict begins."""
    rows: list[tuple[str, str]] = []
    for table in re.split(rf"^{re.escape(HEAD)}$", page, flags=re.MULTILINE)[1:]:
        lines = table.strip().partition("\n\n")[0].splitlines()[1:]
        for line in lines:
            _, statement, verdict, _ = re.split(r"(?<!\\)\|", line)
            rows.append((statement.strip(), verdict.strip()))
    return rows


def wrong_counts(page: str) -> list[str]:
    """What is wrong with a page's counts, one line a fault."""
    every, legend = stated(page)
    rows = judged(page)
    begun = re.compile(rf"\*\*({'|'.join(VERDICTS)})\.\*\* ")
    faults = [f"no verdict: {text}" for text, said in rows if not begun.match(said)]
    found = Counter(said[1] for _, text in rows if (said := begun.match(text)))
    if every != len(rows):
        faults.append(f"{len(rows)} statements, not {every}")
    for verdict in VERDICTS:
        if found[verdict] != legend.get(verdict):
            faults.append(f"{found[verdict]} {verdict}, not {legend.get(verdict)}")
    return faults


@pytest.fixture
def page() -> str:
    return AUDIT.read_text(encoding="utf-8")


def test_the_audit_counts_its_own_verdicts(page: str) -> None:
    assert len(judged(page)) > 40
    assert wrong_counts(page) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("| **Wrong.** H and W.", "| **Right.** H and W.", "2 Wrong, not 3"),
        ("| **Wrong.** H and W.", "| Wrong. H and W.", "no verdict"),
        (
            "| A batch is several",
            "| One. | **Right.** Two. |\n| A batch is several",
            "46",
        ),
        ("**45** statements", "**44** statements", "45 statements, not 44"),
    ],
)
def test_another_verdict_is_noticed(page: str, old: str, new: str, fault: str) -> None:
    assert old in page
    assert any(fault in line for line in wrong_counts(page.replace(old, new, 1)))
