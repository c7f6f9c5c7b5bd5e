"""Exercises of chapter 9: S across machines."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from normbook.exercises.grading import Case, Exercise, normal


def across(
    part: Callable[..., Any],
) -> Callable[..., tuple[Any, int, int]]:
    """Run `part(dy, x_hat, rstd, m, add_up)` for each process's part of a batch.

    `add_up(array)` gives the sum of what all processes called it with. Returns a
    function of the parts of dy and x_hat, rstd and m that gives dx of the whole batch,
    and how often a process called `add_up` and with how many numbers in all.
    """

    def run(dy: Sequence[Any], x_hat: Sequence[Any], rstd: Any, m: int) -> Any:
        sums: list[Any] = []
        while True:  # each time round knows the results of one call more
            sent: list[list[Any]] = []
            dx = []
            for dy_here, x_hat_here in zip(dy, x_hat, strict=True):
                mine: list[Any] = []

                def add_up(array: Any, mine: list[Any] = mine) -> Any:
                    mine.append(np.asarray(array, dtype=float))
                    known = len(mine) <= len(sums)
                    return sums[len(mine) - 1] if known else mine[-1]

                dx.append(part(dy_here, x_hat_here, rstd, m, add_up))
                sent.append(mine)
            calls = min(map(len, sent))
            if calls <= len(sums):
                break
            place = len(sums)
            sums.append(sum(mine[place] for mine in sent))
        if any(here is ... or here is None for here in dx):
            return np.array(..., dtype=object)
        numbers = sum(array.size for array in sent[0][:calls])
        return np.concatenate(dx), calls, numbers

    return run


def _merged(counts: Any, means: Any, variances: Any, between: float = 1.0) -> Any:
    m = counts.sum()
    mean = (counts * means).sum() / m
    m2 = (counts * variances).sum() + between * (counts * (means - mean) ** 2).sum()
    return np.array([mean, m2 / m])


def _plain_means(counts: Any, means: Any, variances: Any) -> Any:
    return np.array([means.mean(), variances.mean()])


def _sums_of_variances(counts: Any, means: Any, variances: Any) -> Any:
    mean = _merged(counts, means, variances)[0]
    between = (counts * (means - mean) ** 2).sum()
    return np.array([mean, (variances.sum() + between) / counts.sum()])


def _dx(
    dy: Any,
    x_hat: Any,
    rstd: Any,
    m: int,
    add_up: Callable[[Any], Any],
    first: float = 1.0,
    second: float = 1.0,
) -> Any:
    sums = add_up(np.stack([dy.sum(0), (dy * x_hat).sum(0)]))
    return (dy - first * sums[0] / m - second * x_hat * sums[1] / m) * rstd


def _twice(dy: Any, x_hat: Any, rstd: Any, m: int, add_up: Callable[[Any], Any]) -> Any:
    first, second = add_up(dy.sum(0)), add_up((dy * x_hat).sum(0))
    return (dy - first / m - x_hat * second / m) * rstd


def _local(dy: Any, x_hat: Any, rstd: Any, m: int, add_up: Callable[[Any], Any]) -> Any:
    return _dx(dy, x_hat, rstd, len(dy), lambda sums: sums)


def _local_count(
    dy: Any, x_hat: Any, rstd: Any, m: int, add_up: Callable[[Any], Any]
) -> Any:
    return _dx(dy, x_hat, rstd, len(dy), add_up)


def _resnet(numbers: int = 4, directions: int = 2) -> Any:
    """Kilobytes and exchanges of a step: 53 layers of 26,560 channels together."""
    return numbers * 4 * 26560 / 1e3, 53 * directions


_COUNTS = np.array([2.0, 5.0, 1.0])
_PARTS = [normal(2, 3), normal(5, 3)]
_HATS = [normal(2, 3), normal(5, 3)]

EXERCISES = {
    "merge-parts": Exercise(
        _merged,
        {
            "what lies between the parts is missing: add mᵢ·(meanᵢ − mean)²": (
                partial(_merged, between=0.0)
            ),
            "you averaged over parts: a part counts as often as it has values": (
                _plain_means
            ),
            "a part's m2 is its count times its variance": _sums_of_variances,
            "you divided by m − 1: the biased variance has m": (
                lambda counts, means, variances: (
                    _merged(counts, means, variances)
                    * np.array([1, counts.sum() / (counts.sum() - 1)])
                )
            ),
        },
        cases=(
            Case((_COUNTS, normal(3), normal(3) ** 2)),
            Case((_COUNTS[:2] + 1, normal(2), normal(2) ** 2)),
        ),
    ),
    "sync-backward": Exercise(
        across(_dx),
        {
            "you called add_up twice: stack both sums and send them together": (
                across(_twice)
            ),
            "nothing is added up: these are the sums of one process": across(_local),
            "the sums are those of all processes, m is only your part's": (
                across(_local_count)
            ),
            "the mean of dy is missing": across(partial(_dx, first=0.0)),
            "the term with x_hat is missing": across(partial(_dx, second=0.0)),
        },
        cases=(
            Case((_PARTS, _HATS, np.array([0.5, 1.0, 2.0]), 7)),
            Case((_PARTS[::-1], _HATS[::-1], np.array([1.5, 0.3, 1.0]), 7)),
        ),
    ),
    "sync-bytes": Exercise(
        _resnet,
        {
            "this is forward alone: backward sends two sums a channel": (
                lambda: _resnet(2, 1)
            ),
            "the bytes are right; each layer exchanges forward and backward": (
                lambda: _resnet(4, 1)
            ),
            "forward sends two numbers a channel, and so does backward": (
                lambda: _resnet(2, 2)
            ),
            "these are bytes: the exercise asks for kilobytes": (
                lambda: (1e3 * _resnet()[0], _resnet()[1])
            ),
        },
        tolerance=1e-3,
    ),
}
