"""Exercises of chapter 7: how fast can it go?"""

from collections.abc import Callable
from typing import Any

import numpy as np

from normbook import functional
from normbook.exercises.grading import Case, Exercise, normal


class Memory:
    """Rows of numbers outside the chip, which count how often they are moved."""

    def __init__(self, x: Any) -> None:
        self._x = x
        self._y: list[Any] = [None] * len(x)
        self.loads = self.stores = 0

    def load(self, row: int) -> Any:
        """Bring a row of x onto the chip."""
        self.loads += 1
        return self._x[row].copy()

    def store(self, row: int, y: Any) -> None:
        """Send a row of y to the memory."""
        self.stores += 1
        self._y[row] = y

    @property
    def y(self) -> Any:
        """What was stored."""
        if any(row is None for row in self._y):
            raise ValueError("a row was never stored: call memory.store(row, y)")
        if any(row is ... for row in self._y):
            return np.array(..., dtype=object)
        return np.array(self._y)


def launch(program: Callable[..., None]) -> Callable[..., tuple[Any, int, int]]:
    """Run `program(row, memory, gamma, eps)` for every row, as a GPU does.

    Returns a function of x, gamma and eps that gives y, and how many rows were loaded
    and stored.
    """

    def run(x: Any, gamma: Any, eps: float) -> tuple[Any, int, int]:
        memory = Memory(x)
        for row in range(len(x)):
            program(row, memory, gamma, eps)
        return memory.y, memory.loads, memory.stores

    return run


def _rms(
    loads: int = 1,
    stores: int = 1,
    eps: float = 1.0,
    gamma: float = 1.0,
    total: bool = False,
) -> Callable[..., Any]:
    """The program of RMSNorm, with weights for what may be forgotten."""

    def program(row: int, memory: Memory, weights: Any, epsilon: float) -> None:
        for _ in range(loads):
            x = memory.load(row)
        square = (x * x).sum() if total else (x * x).mean()
        y = x / np.sqrt(square + eps * epsilon)
        for _ in range(stores):
            memory.store(row, y * (weights if gamma else 1.0))

    return launch(program)


def _centered(row: int, memory: Memory, gamma: Any, eps: float) -> None:
    memory.store(row, functional.layer_norm(memory.load(row), gamma, eps=eps))


def _outside(row: int, memory: Memory, gamma: Any, eps: float) -> None:
    x = memory.load(row)
    memory.store(row, x / (np.sqrt((x * x).mean()) + eps) * gamma)


def _milliseconds(
    forward: float, backward: float, bytes_: int = 4
) -> tuple[float, ...]:
    """Of batch norm's passes on (64, 512, 28, 28), so many tensors each, at 3 TB/s."""
    tensor = 64 * 512 * 28 * 28 * bytes_
    return tuple(1e3 * n * tensor / 3e12 for n in (forward, backward))


def _parts(dy: Any, x_hat: Any, programs: int) -> Any:
    """Each program's part of dγ: rows p, p + programs, and so on."""
    return np.array([(dy * x_hat)[p::programs].sum(0) for p in range(programs)])


def _one_pass(x: Any, shift: float = 1.0, again: float = 1.0, less: int = 0) -> Any:
    """The variance of each row from two sums over x − shift·x[:, 0], in float32."""
    d = x - np.float32(shift) * x[:, :1]
    total, squares = d.sum(1, dtype=np.float32), (d * d).sum(1, dtype=np.float32)
    m = np.float32(x.shape[1] - less)
    return squares / m - np.float32(again) * (total / m) ** 2


_FAR = (normal(6, 64) + 3000).astype(np.float32)

EXERCISES = {
    "fused-rms-norm": Exercise(
        _rms(),
        {
            "you loaded a row twice: keep the first in a variable": (_rms(loads=2)),
            "you loaded each row three times: keep the first in a variable": (
                _rms(loads=3)
            ),
            "you stored a row twice: once is enough": _rms(stores=2),
            "γ is missing": _rms(gamma=0.0),
            "you took the sum of the squares for their mean": _rms(total=True),
            "ε is missing or far too small: divide by √(mean(x²) + ε)": _rms(eps=0.0),
            "ε is outside the root: divide by √(mean(x²) + ε)": launch(_outside),
            "you subtracted the mean: this is layer norm": launch(_centered),
        },
        cases=(
            Case((normal(4, 6), normal(6), 0.5)),
            Case((normal(3, 5), normal(5), 0.1)),
        ),
    ),
    "batch-norm-milliseconds": Exercise(
        lambda: _milliseconds(3, 5),
        {
            "batch norm reads x a second time: no processor holds its sets": (
                lambda: _milliseconds(2, 3)
            ),
            "float32 has 4 bytes, not 2": lambda: _milliseconds(3, 5, 2),
            "the backward reads dy and x twice and writes dx": (
                lambda: _milliseconds(3, 3)
            ),
            "these are seconds: the exercise asks for milliseconds": (
                lambda: tuple(t / 1e3 for t in _milliseconds(3, 5))
            ),
        },
        tolerance=2e-2,
    ),
    "gamma-parts": Exercise(
        _parts,
        {
            "row r goes to program r % programs; you gave each a block of neighbours": (
                lambda dy, x_hat, programs: np.array(
                    [part.sum(0) for part in np.array_split(dy * x_hat, programs)]
                )
            ),
            "x_hat is missing: these are parts of dβ": (
                lambda dy, x_hat, programs: _parts(dy, 1.0, programs)
            ),
            "you took means: γ's gradient is a sum": (
                lambda dy, x_hat, programs: np.array(
                    [(dy * x_hat)[p::programs].mean(0) for p in range(programs)]
                )
            ),
        },
        cases=(
            Case((normal(7, 4), normal(7, 4), 3)),
            Case((normal(8, 3), normal(8, 3), 2)),
        ),
    ),
    "one-pass": Exercise(
        _one_pass,
        {
            "E[x²] − E[x]² cancels where the mean is large: subtract x[:, 0] first": (
                lambda x: _one_pass(x, shift=0.0)
            ),
            "the mean of the shifted values is not 0: subtract its square": (
                lambda x: _one_pass(x, again=0.0)
            ),
            "you divided by m − 1: that is the unbiased variance": (
                lambda x: x.var(1, ddof=1)
            ),
        },
        cases=(Case((_FAR,)), Case((_FAR[:4, :32],))),
    ),
}
