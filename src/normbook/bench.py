"""How fast the layers are: ours, torch's and others', side by side in one run.

    python -m normbook.bench                             this machine's CPU, one thread
    python -m normbook.bench --device cuda --record      a GPU, kept in records/
    python -m normbook.bench --methods LN BN --shapes 4096x1024 8x256x28x28 --quick

Every rival takes its turn in every round, in training mode, in memory that was used
before and after a call that is not timed. Times are set against torch.nn's own and
against the bound, the time in which a plain copy moves the bytes that the pass cannot
avoid. Errors are those of y, dx, dγ and dβ against float64. Peak memory is what one
forward and backward hold at most, in tensors of x's size: on a GPU by the allocator's
own count, on a CPU by torch's profiler, which does not see what numba allocates (a few
numbers a set).
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate, product
from statistics import quantiles
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normbook import fast
from normbook.fast import internals
from normbook.measure import agreement, timing
from normbook.methods import METHODS
from normbook.training.records import write_record

EPS = 1e-5
GROUPS = 32
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward + backward"

# The least that a pass can move, in copies of x (a copy reads one tensor and writes
# one): x in, y out; dy and x in, dx out. On a GPU batch norm, whose sets lie in all
# samples, is two kernels each way: there both passes read their inputs once more.
LEAST_COPIES = {FORWARD: 1.0, BACKWARD: 1.5, BOTH: 2.5}
READ_TWICE = {FORWARD: 1.5, BACKWARD: 2.5, BOTH: 4.0}

# On a GPU x and y together fill over twice the second-level cache (50 MB on an H100),
# all but the smallest over eight times. On a CPU the last two are a few kB each.
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "cpu": (
        (4096, 1024),
        (32, 64, 56, 56),
        (8, 256, 28, 28),
        (16, 64),
        (2, 64, 3, 3),
    ),
    "cuda": ((32768, 1024), (32768, 4096), (16384, 8192), (128, 256, 56, 56)),
}
DTYPES = {"cpu": ("float32",), "cuda": ("bfloat16", "float32")}
PACKAGES = ("numba", "triton", "liger_kernel", "quack-kernels")


class Case(NamedTuple):
    """One method on one input."""

    method: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    device: str = "cpu"


class Rival(NamedTuple):
    """Something that normalizes: a call of x, and the γ and β (or γ) that it reads."""

    call: Callable[[Tensor], Tensor]
    parameters: list[Tensor]


def cases(
    device: str,
    methods: Iterable[str] | None = None,
    shapes: Iterable[tuple[int, ...]] | None = None,
    dtypes: Iterable[str] | None = None,
) -> list[Case]:
    """Every method on every shape that suits it: rows, or maps."""
    return [
        Case(method, shape, dtype, device)
        for dtype, shape, method in product(
            dtypes or DTYPES[device], shapes or SHAPES[device], methods or METHODS
        )
        if (len(shape) == 2) == (METHODS[method].axis == -1)
    ]


def measure(
    case: Case,
    whom: Iterable[str] | None = None,
    number: int = 15,
    *,
    memory: bool = True,
) -> dict[str, Any]:
    """Seconds of every pass and rival as [lower quartile, median, upper quartile].

    Who cannot take part is under "missing", with the reason. Also errors and, unless
    told otherwise, memory.
    """
    torch.manual_seed(0)
    kind = {"device": case.device, "dtype": getattr(torch, case.dtype)}
    x = 3 + 2 * torch.randn(case.shape, **kind)
    dy = torch.randn_like(x)
    exact = _exact(case, x, dy)
    row: dict[str, Any] = case._asdict() | {"threads": torch.get_num_threads()}
    row |= {"error": {}, "peak": {}, "missing": {}}
    ready: dict[str, dict[str, Callable[[], Any]]] = {}
    for who in RIVALS if whom is None else whom:
        try:
            rival = RIVALS[who](case)
            row["error"][who] = _error(rival, x, dy, exact)
            if memory:
                row["peak"][who] = _peak(rival, x, dy) / x.nbytes
            ready[who] = _passes(rival, x, dy)
        except Exception as reason:  # a rival that cannot run here is no fault of ours
            if who in ("torch", "plain", "ours"):
                raise
            row["missing"][who] = f"{type(reason).__name__}: {reason}".splitlines()[0]
    target = torch.empty_like(x)
    least = 5e-3 if case.device == "cuda" else 1e-3  # of a turn: over many calls there
    for which in (FORWARD, BACKWARD, BOTH):
        runs: dict[str, Callable[[], Any]] = {"copy": partial(target.copy_, x)}
        runs |= {who: passes[which] for who, passes in ready.items()}
        taken = timing.rounds(
            list(runs.values()), case.device, number=number, least=least
        )
        row[which] = dict(zip(runs, map(_quartiles, taken), strict=True))
    return row


def ratio(row: dict[str, Any], which: str, who: str) -> float:
    """A rival's time in torch.nn's time: 1 is equal, less is faster."""
    return row[which][who][1] / row[which]["torch"][1]


def share(row: dict[str, Any], which: str, who: str) -> float:
    """A rival's speed in the bound's: 1 is as fast as a copy of the least bytes."""
    twice = row["method"] == "BN" and row["device"] == "cuda"
    least = (READ_TWICE if twice else LEAST_COPIES)[which]
    return least * row[which]["copy"][1] / row[which][who][1]


def _torch(case: Case) -> Rival:
    build = METHODS[case.method].build_native
    return _layer(build(_channels(case), GROUPS, eps=EPS), case)


def _plain(case: Case) -> Rival:
    """Our layer, one torch operation after another."""
    call, parameters = _ours(case)
    return Rival(fast.off()(call), parameters)


def _compiled(case: Case) -> Rival:
    """What torch.compile makes of our layer's plain formula."""
    torch.compiler.reset()  # else the eighth shape would silently run uncompiled
    (functorch,) = internals.need(internals.FUNCTORCH)
    functorch.donated_buffer = False  # given away, it would be gone when timed again
    layer, parameters = _ours(case)
    run = torch.compile(layer, fullgraph=True, dynamic=False)
    return Rival(fast.off()(run), parameters)


def _ours(case: Case) -> Rival:
    build = METHODS[case.method].build
    return _layer(build(_channels(case), GROUPS, eps=EPS), case)


def _liger(case: Case) -> Rival:
    """Of the `liger_kernel` package, where it is installed; it needs a GPU."""
    layers = import_module("liger_kernel.transformers")
    channels = _channels(case)
    build: dict[str, Callable[[], nn.Module]] = {
        "LN": lambda: layers.LigerLayerNorm(channels, eps=EPS, bias=True),
        # In place it would overwrite dy, which the next round needs.
        "RMSNorm": lambda: layers.LigerRMSNorm(channels, eps=EPS, in_place=False),
        "GN": lambda: import_module(
            "liger_kernel.transformers.group_norm"
        ).LigerGroupNorm(channels, GROUPS, eps=EPS, bias=True),
    }
    return _layer(_one_of(build, case), case)


def _quack(case: Case) -> Rival:
    """Of the `quack` package, where it is installed; it needs a GPU."""
    parameters = _ours(case).parameters
    rmsnorm = import_module("quack").rmsnorm
    call = {"RMSNorm": lambda: lambda x: rmsnorm(x, parameters[0], eps=EPS)}
    return Rival(_one_of(call, case), parameters)


RIVALS: dict[str, Callable[[Case], Rival]] = {
    "torch": _torch,
    "plain": _plain,
    "compiled": _compiled,
    "ours": _ours,
    "Liger": _liger,
    "QuACK": _quack,
}


def _one_of(build: dict[str, Callable[[], Any]], case: Case) -> Any:
    """The package's layer; where it has none, `measure` notes so under "missing"."""
    if case.method not in build:
        raise LookupError(f"it has no {case.method} for training")
    return build[case.method]()


def _layer(layer: nn.Module, case: Case) -> Rival:
    """In training mode, with the same γ and β for every rival, none of them 1 or 0."""
    layer = layer.to(case.device, getattr(torch, case.dtype)).train()
    start = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        values = torch.rand(parameter.shape, generator=start) + 0.5
        parameter.data.copy_(values)
    return Rival(layer, list(layer.parameters()))


def _channels(case: Case) -> int:
    return case.shape[METHODS[case.method].axis]


def _passes(rival: Rival, x: Tensor, dy: Tensor) -> dict[str, Callable[[], Any]]:
    """What runs one pass; for the backward alone one graph is kept."""
    leaf = x.detach().requires_grad_()
    leaves = [leaf, *rival.parameters]
    y = rival.call(leaf)
    return {
        FORWARD: torch.no_grad()(lambda: rival.call(x)),
        BACKWARD: lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True),
        BOTH: lambda: torch.autograd.grad(rival.call(leaf), leaves, dy),
    }


def _both(rival: Rival, x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """Y, dx and the gradients of the parameters."""
    leaf = x.detach().requires_grad_()
    y = rival.call(leaf)
    return y, *torch.autograd.grad(y, [leaf, *rival.parameters], dy)


def _exact(case: Case, x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """The same in float64, by the formulas of `functional`, from the same input."""
    method = METHODS[case.method]
    parameters = [p.detach().double() for p in _ours(case).parameters]
    x, dy = x.double(), dy.double()
    named: dict[str, Any] = {"eps": EPS, **method.options(GROUPS)}
    named |= zip(("gamma", "beta"), parameters, strict=False)
    gradients = method.vjp(dy, x, **named)
    return method.function(x, **named), *(g for g in gradients if g is not None)


def _error(rival: Rival, x: Tensor, dy: Tensor, exact: tuple[Tensor, ...]) -> float:
    """The largest error of y, dx, dγ and dβ, each in its own norm."""
    return max(
        ((got.double() - want).norm() / want.norm()).item()
        for got, want in zip(_both(rival, x, dy), exact, strict=True)
    )


def _peak(rival: Rival, x: Tensor, dy: Tensor) -> int:
    """The most bytes that a forward and backward hold at once, y and dx included."""
    _both(rival, x, dy)
    if x.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = _both(rival, x, dy)
        del kept
        return torch.cuda.max_memory_allocated() - before
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as seen:
        kept = _both(rival, x, dy)
    del kept
    events = seen.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in changes))


def _quartiles(taken: Sequence[float]) -> list[float]:
    return quantiles(taken, n=4, method="inclusive") if taken[1:] else [*taken] * 3


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Times, speeds, errors and memory as aligned text."""
    whom = [who for who in RIVALS if any(who in row["error"] for row in rows)]

    def head(row: dict[str, Any]) -> dict[str, Any]:
        names = ("method", "shape", "dtype", "threads")
        return {name: row[name] for name in names} | {"shape": list(row["shape"])}

    def cells(row: dict[str, Any], value: Callable[[str], Any]) -> dict[str, Any]:
        return {who: value(who) if who in row["error"] else "–" for who in whom}

    def speed(row: dict[str, Any], which: str) -> dict[str, Any]:
        def cell(who: str) -> str:
            return f"{ratio(row, which, who):.2f} ({share(row, which, who):.0%})"

        took = {f"{who}_us": row[which][who][1] * 1e6 for who in ("copy", "torch")}
        return head(row) | took | cells(row, cell)

    parts: dict[str, list[dict[str, Any]]] = {
        f"{which}: time in torch.nn's (speed in a copy's of the least bytes)": [
            speed(row, which) for row in rows
        ]
        for which in (FORWARD, BACKWARD, BOTH)
    }
    for name, title in (
        ("error", "largest error of y, dx, dγ, dβ against float64"),
        ("peak", "most memory held, in tensors of x's size"),
    ):
        parts[title] = [head(row) | cells(row, row[name].get) for row in rows]
    text = [f"{title}\n{agreement.table(part)}" for title, part in parts.items()]
    reasons = {who: why for row in rows for who, why in row["missing"].items()}
    text += [f"{who} is missing: {why}" for who, why in reasons.items()]
    return "\n\n".join(text)


def versions() -> dict[str, str]:
    """Of the packages whose kernels were timed, where they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main(arguments: Sequence[str]) -> None:
    """Measure, print, and with --record keep what was measured."""
    options = _options(arguments)
    began, device = time.perf_counter(), options.device
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda needs a GPU that torch can see; none is here.")
    timing.reuse_memory()
    threads_before = torch.get_num_threads()
    wanted = cases(device, options.methods, options.shapes, options.dtype)
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for case in wanted:
            title = f"{case.method} {case.shape} {case.dtype}, threads: {threads}"
            print(title, file=sys.stderr, flush=True)
            rows.append(measure(case, options.rivals, 5 if options.quick else 15))
    torch.set_num_threads(threads_before)
    print(tables(rows))
    if options.record:
        gpu = torch.cuda.get_device_name() if device == "cuda" else None
        path = write_record(
            f"bench-{agreement.slug(gpu)}",
            {"gpu": gpu, "versions": versions(), "rows": rows},
            command=" ".join(["python -m normbook.bench", *arguments]),
            seconds=time.perf_counter() - began,
        )
        print(f"\nkept as {path.parent.name}/{path.name}")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m normbook.bench",
        description="Time ours, torch's and others' layers side by side.",
    )

    def shape(text: str) -> tuple[int, ...]:
        return tuple(int(n) for n in text.split("x"))

    parser.add_argument("--device", choices=SHAPES, default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--shapes", nargs="+", type=shape, metavar="4096x1024")
    parser.add_argument("--dtype", nargs="+", choices=[*agreement.TOLERANCE])
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=[*RIVALS])
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 15")
    parser.add_argument("--record", action="store_true", help="keep it in records/")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
