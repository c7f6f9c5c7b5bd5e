"""What chapter 7 measures as it runs: the machine, a naive layer, orders of work.

    python -m normbook.labs.fast     a Triton kernel in Triton's interpreter

The interpreter has to be asked for before Triton is imported, so `interpreted` runs
that command in a process of its own.
"""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normbook import fast
from normbook.measure import timing
from normbook.methods import METHODS, Method


def caches() -> dict[str, int]:
    """Bytes of the first core's data caches, {"L1": ..., "L2": ...}, where Linux says.

    A third level is left out: it is shared, often with other programs.
    """
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = (
            (index / name).read_text().strip() for name in ("type", "level", "size")
        )
        if kind != "Instruction" and level in "12":
            found[f"L{level}"] = int(size.rstrip("K")) * 1024
    return found


def arithmetic(
    counts: Sequence[int], values: int = 2**22, number: int = 3
) -> list[float] | None:
    """Nanoseconds a value to read it, multiply and add so many times, and write it.

    In blocks of 64, which wait in registers or in the first cache meanwhile. None where
    numba is missing.
    """
    try:
        from numba import njit
    except ImportError:
        return None

    @njit(cache=True)
    def chain(x: Any, y: Any, count: int) -> None:
        for start in range(0, len(x), 64):
            block = y[start : start + 64]
            block[:] = x[start : start + 64]
            for _ in range(count):
                for i in range(64):
                    block[i] = block[i] * np.float32(0.5) + np.float32(1)

    x = np.ones(values, np.float32)
    y = np.empty_like(x)
    taken = timing.rounds([partial(chain, x, y, n) for n in counts], number=number)
    return [median(seconds) / values * 1e9 for seconds in taken]


def in_blocks(x: Tensor, rows: int, eps: float = 1e-5) -> Callable[[], Tensor]:
    """Layer norm of x (rows, C), so many rows at a time: what runs it.

    The five operations and their results are the same for every number of rows. All
    memory is taken beforehand, so that only the order of the work differs.
    """
    y, block = torch.empty_like(x), torch.empty_like(x[:rows])
    sums = torch.empty(rows, 1)

    def run() -> Tensor:
        for start in range(0, len(x), rows):
            part, d = x[start : start + rows], y[start : start + rows]
            square, of_row = block[: len(part)], sums[: len(part)]
            torch.mean(part, -1, keepdim=True, out=of_row)
            torch.sub(part, of_row, out=d)
            torch.mul(d, d, out=square)
            torch.mean(square, -1, keepdim=True, out=of_row)
            d.mul_(of_row.add_(eps).rsqrt_())
        return y

    return run


def orders(x: Tensor, rows: Sequence[int], number: int = 5) -> list[float]:
    """What `in_blocks` takes for each number of rows, in copies of x."""
    runs: list[Callable[[], Any]] = [partial(torch.empty_like(x).copy_, x)]
    copy, *taken = map(
        median,
        timing.rounds([*runs, *(in_blocks(x, n) for n in rows)], number=number),
    )
    return [seconds / copy for seconds in taken]


def overlap(
    x: Tensor, gamma: Tensor, beta: Tensor, number: int = 5
) -> tuple[dict[str, float], Tensor] | None:
    """Layer norm of rows (rows, C), by two orders of the same loops.

    What each takes, in copies of x, and y as the second leaves it. In the first every
    loop of a row has its turn; in the second one loop applies a row and sums the next.
    None where numba is missing.
    """
    try:
        from numba import njit
    except ImportError:
        return None

    @njit(cache=True, fastmath={"reassoc", "nsz", "contract"})
    def rows(x: Any, gamma: Any, beta: Any, y: Any, ahead: bool) -> None:
        C, zero, total = x.shape[1], np.float32(0), np.float32(0)
        for row in range(len(x)):
            if row == 0 or not ahead:
                total = zero
                for c in range(C):
                    total += x[row, c]
            mean, square = total / np.float32(C), zero
            for c in range(C):
                square += (x[row, c] - mean) * (x[row, c] - mean)
            rstd = np.float32(1) / np.sqrt(square / np.float32(C) + np.float32(1e-5))
            total = zero
            if ahead and row + 1 < len(x):
                for c in range(C):
                    y[row, c] = (x[row, c] - mean) * (gamma[c] * rstd) + beta[c]
                    total += x[row + 1, c]
            else:
                for c in range(C):
                    y[row, c] = (x[row, c] - mean) * (gamma[c] * rstd) + beta[c]

    y = torch.empty_like(x)
    run = partial(rows, x.numpy(), gamma.numpy(), beta.numpy(), y.numpy())
    calls: list[Callable[[], Any]] = [partial(y.copy_, x)]
    calls += [partial(run, False), partial(run, True)]
    copy, apart, ahead = map(median, timing.rounds(calls, number=number))
    run(True)
    return {
        "loop after loop": apart / copy,
        "the next row meanwhile": ahead / copy,
    }, y


def _one_pass(x: Any) -> Any:
    return (x * x).mean(-1) - x.mean(-1) ** 2


def _two_passes(x: Any) -> Any:
    d = x - x.mean(-1, keepdims=True)
    return (d * d).mean(-1)


VARIANCES: dict[str, Callable[[Any], Any]] = {
    "one pass": _one_pass,
    "one pass, less the first value": lambda x: _one_pass(x - x[..., :1]),
    "two passes": _two_passes,
}


def variance_errors(
    means: Sequence[float], sets: int = 50, size: int = 4096
) -> dict[str, list[float]]:
    """Median relative error of 1/√(variance + ε) in float32, for N(mean, 1).

    A variance below −ε, which has no root, counts as an error of 1.
    """
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((sets, size))
    found: dict[str, list[float]] = {name: [] for name in VARIANCES}
    for mean in means:
        x = (noise + mean).astype(np.float32)
        exact = (x.astype(np.float64).var(-1) + 1e-5) ** -0.5
        for name, variance in VARIANCES.items():
            with np.errstate(invalid="ignore", divide="ignore"):
                rstd = (variance(x).astype(np.float64) + 1e-5) ** -0.5
            error = np.nan_to_num(abs(rstd / exact - 1), nan=1.0, posinf=1.0)
            found[name].append(float(np.median(error)))
    return found


def source(backend: str, name: str) -> str:
    """The text of one function of `normbook.fast`, whether or not it can be imported.

    backend: "cpu" or "gpu".
    """
    text = Path(fast.__file__).with_name(f"{backend}.py").read_text()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            first = min([node.lineno, *(above.lineno for above in node.decorator_list)])
            return "\n".join(text.splitlines()[first - 1 : node.end_lineno])
    raise KeyError(f"{backend}.py has no function {name}")


# By the axis of the channel: what Triton's interpreter is shown, maps and rows.
SHAPES = {1: (5, 6, 4, 3), -1: (6, 41)}
GROUPS = 2


def interpreted() -> dict[str, dict[str, float]] | None:
    """The errors of the kernels for every method, run by Triton's interpreter.

    {method: {"y": ..., "dx": ..., "dγ": ...}}, against the formulas in float64 and
    relative to the largest value. None where Triton is missing.
    """
    source = str(Path(fast.__file__).parents[2])
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "normbook.labs.fast"],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def _errors() -> dict[str, dict[str, float]] | None:
    try:
        from normbook.fast import gpu
    except ImportError:
        return None
    torch.manual_seed(0)
    return {method.name: _errors_of(gpu, method) for method in METHODS.values()}


def _errors_of(gpu: Any, method: Method) -> dict[str, float]:
    shape = SHAPES[method.axis]
    x, dy = 3 + 2 * torch.randn(shape), torch.randn(shape)
    gamma = torch.rand(shape[method.axis]) + 0.5
    beta = torch.randn(shape[method.axis]) if method.centered else None
    sets = method.sets_of(shape, GROUPS)
    task = fast.Task(fast.work_of(x.shape, sets), 1e-5, method.centered, affine=True)
    y, moments = gpu.forward(x, gamma, beta, task)
    dx, of_parameters = gpu.backward(dy, x, gamma, moments, task)
    got = y, dx, *of_parameters
    given: dict[str, Any] = {"gamma": gamma.double(), **method.options(GROUPS)}
    if beta is not None:
        given |= {"beta": beta.double()}
    exact = (
        method.function(x.double(), **given),
        *method.vjp(dy.double(), x.double(), **given),
    )
    return {
        title: float((ours - wanted).abs().max() / wanted.abs().max())
        for title, ours, wanted in zip(("y", "dx", "dγ", "dβ"), got, exact, strict=True)
        if wanted is not None
    }


if __name__ == "__main__":
    print(json.dumps(_errors()))
