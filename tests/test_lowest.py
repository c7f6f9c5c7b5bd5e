"""The range of versions in pyproject.toml is the one that was tested."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL, TOOLS = {"numba"}, {"pytest", "hypothesis"}


def pins(file):
    """Every package that a file pins, with its version."""
    return dict(re.findall(r"^([\w-]+)==([^\s;]+)", (ROOT / file).read_text(), re.M))


def numbers(version):
    """2.13.0+cpu as [2, 13]: what counts, without zeros at the end."""
    parts = [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]
    while parts[-1:] == [0]:
        parts.pop()
    return parts


def bounds():
    """The lower bound of every requirement; each has one and nothing else."""
    return dict(line.split(">=") for line in PROJECT["dependencies"])


def test_the_lowest_versions_are_the_bounds():
    lowest = pins("requirements-lowest.txt")
    assert set(lowest) == set(bounds()) | OPTIONAL | TOOLS
    for name, bound in bounds().items():
        assert numbers(lowest[name]) == numbers(bound), name


@pytest.mark.parametrize("name", sorted(TOOLS))
def test_the_tools_are_the_usual_ones(name):
    assert pins("requirements-lowest.txt")[name] == pins("requirements.txt")[name]


def test_no_pin_lies_below_its_bound():
    pinned = pins("requirements.txt")
    for name in set(bounds()) & set(pinned):
        assert numbers(pinned[name]) >= numbers(bounds()[name]), name


def test_ci_uses_the_files_and_the_oldest_python():
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    oldest = PROJECT["requires-python"].removeprefix(">=")
    job = workflow.partition("\n  lowest:\n")[2].partition("\n  jax:\n")[0]
    assert f'python-version: "{oldest}"' in job
    assert "make lowest" in job
    assert "requirements-jax.txt" in workflow.partition("\n  jax:\n")[2]
