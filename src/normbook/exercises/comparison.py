"""Exercises of chapter 6: the comparison."""

from collections.abc import Callable
from typing import Any

import numpy as np

from normbook import functional
from normbook.exercises.grading import Case, Exercise, normal


def _probe(norm: Callable[[Any], Any]) -> tuple[int, int, int]:
    """Whether the first output depends on other samples, channels and positions."""
    x = np.random.default_rng(0).normal(size=(3, 4, 2, 2))
    moves = []
    for axis in (0, 1, 2):
        other = x.copy()
        place = [0, 0, 0, 0]
        place[axis] = 1
        other[tuple(place)] += 1.0
        moves.append(int(abs(norm(other) - norm(x))[0, 0, 0, 0] > 1e-9))
    return moves[0], moves[1], moves[2]


def _probe_anywhere(norm: Callable[[Any], Any]) -> tuple[int, int, int]:
    """The same probe, looking at every output: the changed value's own moves too."""
    x = np.random.default_rng(0).normal(size=(3, 4, 2, 2))
    other = x.copy()
    other[1, 1, 1, 1] += 1.0
    moved = int(abs(norm(other) - norm(x)).max() > 1e-9)
    return moved, moved, moved


def _layer(x: Any) -> Any:
    return functional.layer_norm(x, axes=(1, 2, 3))


def _positions(x: Any) -> Any:
    return functional.layer_norm(x, axes=(1,))


def _groups(x: Any) -> Any:
    return functional.group_norm(x, 2)


EXERCISES = {
    "mean-shapes": Exercise(
        lambda: ((1, 6, 1, 1), (8, 1, 1, 1), (8, 6, 1, 1), (8, 1, 5, 4)),
        {
            "batch norm's set is N, H and W, not N alone": (
                lambda: ((1, 6, 5, 4), (8, 1, 1, 1), (8, 6, 1, 1), (8, 1, 5, 4))
            ),
            "instance norm keeps C and averages over H and W": (
                lambda: ((1, 6, 1, 1), (8, 1, 1, 1), (8, 1, 5, 4), (8, 1, 5, 4))
            ),
            "layer norm over the whole image leaves N alone": (
                lambda: ((1, 6, 1, 1), (8, 1, 5, 4), (8, 6, 1, 1), (8, 1, 5, 4))
            ),
            "RMSNorm takes one mean square a position here": (
                lambda: ((1, 6, 1, 1), (8, 1, 1, 1), (8, 6, 1, 1), (8, 1, 1, 1))
            ),
            "you gave the axes that disappear; they become 1, the others stay": (
                lambda: ((8, 1, 5, 4), (1, 6, 5, 4), (1, 1, 5, 4), (1, 6, 1, 1))
            ),
        },
        tolerance=1e-9,
    ),
    "means-and-values": Exercise(
        lambda: ((32, 4096), (16, 8192), (512, 256), (64, 2048)),
        {
            "the order is (means, values in each): you swapped them": (
                lambda: ((4096, 32), (8192, 16), (256, 512), (2048, 64))
            ),
            "group norm has G means for every sample": (
                lambda: ((32, 4096), (16, 8192), (512, 256), (4, 2048))
            ),
            "instance norm has a mean for every sample and channel": (
                lambda: ((32, 4096), (16, 8192), (32, 256), (64, 2048))
            ),
            "batch norm averages over positions too": (
                lambda: ((32, 16), (16, 8192), (512, 256), (64, 2048))
            ),
            "layer norm over the whole image averages over channels too": (
                lambda: ((32, 4096), (16, 256), (512, 256), (64, 2048))
            ),
        },
        tolerance=1e-9,
    ),
    "probe": Exercise(
        _probe,
        {
            "you look at the value that you changed, or at all of them: look at one "
            "that you left alone": _probe_anywhere,
            "your 0 and 1 are exchanged": (
                lambda norm: tuple(1 - bit for bit in _probe(norm))
            ),
            "the order is samples, channels, positions": (
                lambda norm: _probe(norm)[::-1]
            ),
        },
        cases=(
            Case((functional.batch_norm,)),
            Case((_layer,)),
            Case((functional.instance_norm,)),
            Case((_positions,)),
            Case(
                (_groups,),
                "it misses group norm: change a channel of the same group, a neighbour",
            ),
        ),
        tolerance=1e-9,
    ),
    "from-group-norm": Exercise(
        lambda x, group_norm: (group_norm(x, 1), group_norm(x, x.shape[1])),
        {
            "you swapped them: one group is layer norm": (
                lambda x, group_norm: (group_norm(x, x.shape[1]), group_norm(x, 1))
            ),
            "instance norm is one channel a group: as many groups as channels": (
                lambda x, group_norm: (group_norm(x, 1), group_norm(x, 2))
            ),
            "both are the same here: change the number of groups": (
                lambda x, group_norm: (group_norm(x, 1), group_norm(x, 1))
            ),
        },
        cases=(
            Case((normal(2, 4, 3, 3), functional.group_norm)),
            Case((normal(3, 6, 2, 2), functional.group_norm)),
        ),
    ),
    "who-survives": Exercise(
        lambda: (0, 1, 0, 0, 1),
        {
            "batch norm has two values a channel left: they come out as ±1": (
                lambda: (1, 1, 0, 0, 1)
            ),
            "32 groups of 32 channels are instance norm: one value a set": (
                lambda: (0, 1, 0, 1, 1)
            ),
            "instance norm has one value a set: it comes out as β": (
                lambda: (0, 1, 1, 0, 1)
            ),
            "layer norm still has its 32 channels": lambda: (0, 0, 0, 0, 1),
            "four channels make a group of 8 groups: that is enough": (
                lambda: (0, 1, 0, 0, 0)
            ),
        },
        tolerance=1e-9,
    ),
}
