"""How long things take: rounds in which all rivals take turns."""

import ctypes
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


def rounds(
    runs: Sequence[Callable[[], Any]],
    device: str = "cpu",
    *,
    number: int = 9,
    least: float = 1e-3,
) -> list[list[float]]:
    """Seconds a call, a list of `number` rounds for each of `runs`.

    In a round each run has its turn, so that a machine that slows down slows all of
    them. A turn is as many calls as fill `least` seconds, after one that is not timed:
    it would find the caches, and the threads, as the run before has left them.
    """
    for run in runs:
        seconds(run, 3, device)
    calls = [1 + int(least / seconds(run, 3, device)) for run in runs]
    taken: list[list[float]] = [[] for _ in runs]
    for turn in range(number):
        for place in range(len(runs)):
            which = (turn + place) % len(runs)
            runs[which]()
            taken[which].append(seconds(runs[which], calls[which], device))
    return taken


def seconds(run: Callable[[], Any], calls: int, device: str = "cpu") -> float:
    """Mean time of so many calls in a row, the device's own work included.

    One thread of a CPU is timed by the time that it works: so other programs on the
    machine count only for what they do to the caches.
    """
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    _wait(device)
    start = clock()
    for _ in range(calls):
        run()
    _wait(device)
    return max(clock() - start, 1e-9) / calls


def _wait(device: str) -> None:
    """A GPU works on after the call that asks it to has returned."""
    if device == "cuda":
        torch.cuda.synchronize()


def reuse_memory() -> None:
    """From now on keep freed memory for the next tensor, in place of the system.

    Linux hands out new memory page by page, each at its first touch, which can double
    the time of a layer; and which of two rivals gets old pages is an accident. Does
    nothing on another system, or on one without glibc.
    """
    if sys.platform != "linux":
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
