"""The same functions at the speed of memory: numba on a CPU, Triton on a GPU.

A layer of `normbook.nn` asks `kernel_for` first. There is a kernel only where it gives
what the plain formula gives. For everything else the plain path runs: another dtype or
layout, a mask, torch.func, no numba or no Triton, a release of torch without a private
name that `internals` lists, and all that the plain path answers with an error.

Kernels see every method as one shape of work, `Work`. Under torch.compile they are one
operation of its graph, see `compiled`. `python -m normbook.fast` compiles the kernels
of this machine ahead of their first call, or says why there are none.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib import import_module
from math import prod
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from normbook.fast.internals import MISSING, readable
from normbook.functional import CHANNEL, Sets

MODULES = {"cpu": "normbook.fast.cpu", "cuda": "normbook.fast.gpu"}
FURTHEST = 2**30 - 2**21  # a GPU counts in 32 bits, with room for blocks and parts
SMALLEST_EPS = 1e-24  # the kernels of a CPU take 1/√ε³ in float32
# By the rank of x.
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
Described = tuple[torch.device, torch.dtype, tuple[int, ...]]  # a tensor, by its shape


class Work(NamedTuple):
    """x as a kernel sees it: (N, G, A, S).

    N samples of G groups of A channels of S positions. A set is the (A, S) of one
    sample and group; where `batch` holds, the (N, S) of one channel, with A = 1.
    Neighbours in memory are the positions, (N, G, A, S), or with `channels_last` the
    channels, (N, S, G, A). γ and β have G·A values.
    """

    N: int
    G: int
    A: int
    S: int
    batch: bool = False
    channels_last: bool = False

    @property
    def sets(self) -> int:
        """How many means and variances there are."""
        return self.G if self.batch else self.N * self.G

    @property
    def set_size(self) -> int:
        """How many values a set has."""
        return self.S * (self.N if self.batch else self.A)

    @property
    def furthest(self) -> int:
        """The largest index that a kernel forms, which must fit 32 bits.

        It counts from a set's first value, over all sets, and but for rows over all
        channels of all samples.
        """
        N, G, A, S, _, channels_last = self
        channels = G * A * (N if S > 1 else 1)
        return max(N * G, self.set_size, channels, G * A * S if channels_last else 0)


class Task(NamedTuple):
    """What a kernel is asked to do with x; `affine`, whether there is γ or β."""

    work: Work
    eps: float
    centered: bool
    affine: bool


class Backend(Protocol):
    """What each module of kernels has."""

    DTYPES: tuple[torch.dtype, ...]
    LONGEST_ROW: int  # the most values of a set that are all of different channels

    def runs(self, device: torch.device) -> bool:
        """Whether its kernels work there."""

    def forward(
        self, x: Tensor, gamma: Tensor | None, beta: Tensor | None, task: Task
    ) -> tuple[Tensor, Tensor]:
        """y, and mean and variance of every set in float32, (2, sets)."""

    def backward(
        self, dy: Tensor, x: Tensor, gamma: Tensor | None, moments: Tensor, task: Task
    ) -> tuple[Tensor, Tensor]:
        """dx, and in float32 dγ and dβ of every channel, (2, C), where there are any.

        dy lies in memory as x does.
        """

    def shipped(self) -> list[Work]:
        """What models usually need."""


class Kernel(NamedTuple):
    """Who normalizes, what is asked for, and m/(m − 1) of its sets of m values."""

    backend: Backend
    task: Task
    unbiased: float = 1.0
    in_graph: bool = False  # of torch.compile

    def backward(
        self, dy: Tensor, x: Tensor, gamma: Tensor | None, moments: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What `Backend.backward` gives, for a dy in any layout."""
        if dy.stride() != x.stride():
            dy = torch.empty_like(x).copy_(dy)
        return self.backend.backward(dy, x, gamma, moments, self.task)


def of_parameters(sums: Tensor, *parameters: Tensor | None) -> list[Tensor | None]:
    """A row of sums for γ and one for β, in their shapes and dtypes."""
    return [
        None if parameter is None else row.view(parameter.shape).to(parameter.dtype)
        for row, parameter in zip(sums.unbind(), parameters, strict=True)
    ]


def kernel_for(
    x: Tensor,
    sets: Sets,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    centered: bool,
) -> Kernel | None:
    """The kernel that gives what the plain formula gives, or None without any."""
    find: Callable[..., Kernel | None]
    if _off:
        return None
    if in_graph := is_dynamo_compiling():
        from normbook.fast.compiled import backend_of  # which imports a compiler

        backend, find = backend_of(x.device, x.dtype), _kernel
    elif readable(x, gamma, beta):
        if x.is_inference() and torch.is_grad_enabled():  # a backward may not save it
            return None
        backend, find = _backend(x.device, x.dtype), _cached_kernel
    else:
        return None
    last = not x.is_contiguous()
    if last:
        layout = CHANNELS_LAST.get(x.dim())
        if layout is None or not x.is_contiguous(memory_format=layout):
            return None
    parameters: tuple[Described, ...] = ()
    for value in (gamma, beta):
        if value is not None:
            parameters += ((value.device, value.dtype, value.shape),)
            if not value.is_contiguous():
                return None
    described = x.device, x.dtype, x.shape
    return find(backend, described, last, sets, parameters, eps, centered, in_graph)


def _kernel(
    backend: Backend | None,
    x: Described,
    channels_last: bool,
    sets: Sets,
    parameters: tuple[Described, ...],
    eps: float,
    centered: bool,
    in_graph: bool,
) -> Kernel | None:
    """`kernel_for` by what can be known without looking into memory."""
    device, dtype, shape = x
    if not isinstance(eps, (int, float)) or not eps >= SMALLEST_EPS:
        return None
    work = work_of(shape, sets, channels_last)
    if backend is None or work is None:
        return None
    if work.S == 1 and not work.batch and backend.LONGEST_ROW < work.A:
        return None
    full = tuple(shape[axis] for axis in sets.param)
    for at, kind, own in parameters:
        if at != device or own != full or kind not in (torch.float32, dtype):
            return None
    task, m = Task(work, float(eps), centered, bool(parameters)), work.set_size
    return Kernel(backend, task, m / (m - 1) if m > 1 else 1.0, in_graph)


_cached_kernel = lru_cache(1024)(_kernel)


def work_of(
    shape: tuple[int, ...], sets: Sets, channels_last: bool = False
) -> Work | None:
    """How a kernel sees an x of this shape, or None for sets of another kind.

    None, too, for no values at all, and for sets of too few values or too many.
    """
    (view, axes, param, fewest), rank, work = sets, len(shape), None
    if 0 in shape:
        return None
    if axes == param and axes == tuple(range(rank - len(axes), rank)):
        size = prod(view[-len(axes) :])
        if not channels_last:
            work = Work(prod(shape) // size, 1, size, 1)
    elif param == CHANNEL and axes == tuple(range(2, len(view))):
        N, G, *rest = view
        A = 1 if len(view) == rank else rest.pop(0)
        work = Work(N, G, A, prod(rest), channels_last=channels_last)
    elif param == CHANNEL and axes == (0, *range(2, rank)):
        N, C, *rest = view
        last = channels_last or prod(rest) == 1
        work = Work(N, C, 1, prod(rest), batch=True, channels_last=last)
    if work is None or work.furthest > FURTHEST or work.set_size < fewest:
        return None
    return work


_off = 0 if MISSING is None else 1


@contextmanager
def off() -> Iterator[None]:
    """Within it every layer takes the plain path: for comparison."""
    global _off
    _off += 1
    try:
        yield
    finally:
        _off -= 1


@cache
def _backend(device: torch.device, dtype: torch.dtype) -> Backend | None:
    """The module of kernels that can work on such tensors, or None."""
    if why_plain(device, dtype) is not None:
        return None
    kernels: Any = import_module(MODULES[device.type])
    return kernels


@cache
def why_plain(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why no kernel works on such tensors here, or None where one does."""
    if MISSING is not None:
        return MISSING
    if device.type not in MODULES:
        return f"there are no kernels on {device.type}"
    if device.type == "cuda" and not torch.cuda.is_available():
        return "torch sees no GPU"
    try:
        kernels = import_module(MODULES[device.type])
    except (ImportError, AttributeError, OSError) as error:  # or lacks its own library
        return str(error)
    if dtype not in kernels.DTYPES or not kernels.runs(device):
        return f"no kernels for {dtype} run on this {device.type}"
    return None
