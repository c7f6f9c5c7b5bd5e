"""One source on every library and device: the same numbers, and what they cost.

`agreement` compares every place with float64 NumPy, `speed` times our plain layers
against torch's own kernels, `traffic` counts the bytes that both move. Time and traffic
are in copies of x, the least that any layer can take: a forward reads x and writes y,
which is 1 copy; a backward reads dy and x and writes dx, 1.5 more. What our layers take
with the kernels of `normbook.fast` is for `python -m normbook.bench`.

    python -m normbook.measure.agreement            prints the tables
    python -m normbook.measure.agreement --record   keeps them in records/ too
"""

import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from normbook import fast
from normbook.measure import timing
from normbook.measure.traffic import moved
from normbook.methods import METHODS, Method
from normbook.training.records import write_record

# The largest error of y and dx, in the largest |y| and |dx|. 16-bit results carry the
# rounding of the result alone, half a unit in the last place, since sums are in 32
# bits; in 32 and 64 bits the sums of a few thousand values round too.
TOLERANCE = {
    "float64": 2.0**-44,
    "float32": 2.0**-19,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
}

LEAST_COPIES = {"forward": 1.0, "forward + backward": 2.5}


# By the axis of the channel: maps (N, C, H, W) and rows (N, T, C).
SHAPES = {1: (8, 64, 16, 16), -1: (8, 64, 256)}
GROUPS = 8


def methods() -> dict[str, Method]:
    """Every method by the name of its function, as rows and records call it."""
    return {method.function.__name__: method for method in METHODS.values()}


def devices() -> list[tuple[str, str]]:
    """The places where the one source runs here: (library, device)."""
    places = [("numpy", "cpu"), ("torch", "cpu")]
    return places + [("torch", "cuda")] * torch.cuda.is_available()


def agreement(names: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Every method × place × dtype: errors of y and dx against float64 NumPy.

    The reference takes the very input that the place got, rounded to its dtype, and
    errors are relative to the largest value of the reference.
    """
    return [
        {"method": name, "library": library, "device": device, "dtype": dtype}
        | _errors(methods()[name], library, device, dtype)
        for name in names or methods()
        for library, device in devices()
        for dtype in TOLERANCE
        if hasattr(np if library == "numpy" else torch, dtype)
        and (library, dtype) != ("numpy", "float64")
    ]


def agrees(rows: Iterable[dict[str, Any]]) -> bool:
    """Whether every error lies within the rounding of its dtype."""
    return all(max(row["y"], row["dx"]) <= TOLERANCE[row["dtype"]] for row in rows)


def _errors(method: Method, library: str, device: str, dtype: str) -> dict[str, float]:
    shape = SHAPES[method.axis]
    sizes = method.sets_of(shape, GROUPS).param
    rng = np.random.default_rng(0)
    parameter = tuple(shape[axis] for axis in sizes)
    inputs = [
        rng.normal(size=shape),  # dy
        rng.normal(3.0, 2.0, size=shape),  # x
        rng.uniform(0.5, 2.0, size=parameter),  # γ
        rng.normal(size=parameter),  # β
    ][: 4 if method.centered else 3]
    here = [_put(value, library, device, dtype) for value in inputs]
    exact = [_numpy(value) for value in here]
    return {
        name: float(np.abs(_numpy(got) - want).max() / np.abs(want).max())
        for name, got, want in zip(
            ("y", "dx"), _both(method, here), _both(method, exact), strict=True
        )
    }


def _both(method: Method, inputs: list[Any]) -> tuple[Any, Any]:
    """Y and dx of one method."""
    dy, x, *parameters = inputs
    given = dict(zip(("gamma", "beta"), parameters, strict=False))
    given |= method.options(GROUPS)
    return method.function(x, **given), method.vjp(dy, x, **given).x


def _put(value: np.ndarray, library: str, device: str, dtype: str) -> Any:
    if library == "numpy":
        return value.astype(dtype)
    return torch.tensor(value).to(device, getattr(torch, dtype))


def _numpy(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.double().cpu().numpy()
    return value.astype("float64")


def traffic(names: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Bytes moved, in copies of x: the least, torch's kernels, ours one step a time.

    Counted, not measured: each operation reads its inputs and writes its outputs once,
    so what stays in a cache between two operations is not seen.
    """
    return [
        {"method": name, "pass": which, "least": LEAST_COPIES[which]}
        | {who: moved(run) / (2 * x.nbytes) for who, run in runs.items()}
        for name in names or methods()
        for which, x, runs in _passes(methods()[name], "cpu", "float32", 1)
    ]


def speed(
    device: str,
    names: Iterable[str] | None = None,
    dtype: str = "float32",
    rounds: int = 9,
) -> list[dict[str, Any]]:
    """Microseconds to copy x, and what torch's layer and ours take, in copies.

    Medians over rounds in which the three take turns, so that a machine that slows
    down slows all three.
    """
    rows = []
    for name in names or methods():
        for scale in (1, 16) if device == "cpu" else (1, 16, 256):
            for which, x, runs in _passes(methods()[name], device, dtype, scale):
                target = torch.empty_like(x)
                runs = {"copy": partial(target.copy_, x), **runs}
                taken = timing.rounds(list(runs.values()), device, number=rounds)
                copy, native, ours = map(median, taken)
                row: dict[str, Any] = {"method": name, "device": device}
                row |= {"dtype": dtype, "shape": list(x.shape), "pass": which}
                row |= {"least": LEAST_COPIES[which], "native": native / copy}
                rows.append(row | {"ours": ours / copy, "copy_us": copy * 1e6})
    return rows


def _passes(
    method: Method, device: str, dtype: str, scale: int
) -> list[tuple[str, torch.Tensor, dict[str, Callable[[], Any]]]]:
    """(pass, x, {native, ours: what runs it}), in training mode, ours the plain one."""
    kind = {"device": device, "dtype": getattr(torch, dtype)}
    samples, *rest = SHAPES[method.axis]
    shape = (samples * scale, *rest)
    x, dy = torch.randn(shape, **kind), torch.randn(shape, **kind)
    build = {"native": method.build_native, "ours": method.build}
    channels = shape[method.axis]
    layers = {who: make(channels, GROUPS).to(**kind) for who, make in build.items()}

    def forward(layer: nn.Module) -> Callable[[], Any]:
        return torch.no_grad()(lambda: layer(x))

    def both(layer: nn.Module) -> Callable[[], Any]:
        leaf = x.detach().requires_grad_()
        inputs = [leaf, *layer.parameters()]
        return lambda: torch.autograd.grad(layer(leaf), inputs, dy)

    return [
        (name, x, {who: fast.off()(run(layer)) for who, layer in layers.items()})
        for name, run in zip(LEAST_COPIES, (forward, both), strict=True)
    ]


def slug(gpu: str | None) -> str:
    """What a record of this GPU, or of a CPU, is called."""
    return re.sub(r"\W+", "-", gpu or "cpu").lower()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as aligned text, numbers to two significant digits."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.0e}" if value < 1e-2 else f"{value:.3g}"
        return "×".join(map(str, value)) if isinstance(value, list) else str(value)

    lines = [list(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(n) for text, n in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def main(arguments: Sequence[str]) -> None:
    """Print agreement, traffic and speed of this machine; with --record, keep them."""
    start = time.perf_counter()
    here = sorted({device for _, device in devices()})
    gpu = torch.cuda.get_device_name() if "cuda" in here else None
    tables = {
        "agreement": agreement(),
        "traffic": traffic(),
        "speed": [row for device in here for row in speed(device)],
    }
    for name, rows in tables.items():
        print(f"{name}\n{table(rows)}\n")
    if not agrees(tables["agreement"]):
        raise SystemExit("An error is larger than its dtype's rounding: see above.")
    if "--record" in arguments:
        path = write_record(
            f"agreement-{slug(gpu)}",
            {"gpu": gpu, **tables},
            command="python -m normbook.measure.agreement --record",
            seconds=time.perf_counter() - start,
        )
        print(f"kept as {path.parent.name}/{path.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
