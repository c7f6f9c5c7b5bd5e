"""The same functions at the speed of memory: numba on a CPU, Triton on a GPU.

A layer of `normbook.nn` asks `normalize` first. It answers only where a kernel gives
what the plain formula gives; otherwise it returns None and the plain path runs: another
dtype or layout, a mask that is no run of lengths, torch.compile, torch.func, no numba
or no Triton, a release of torch or numba without a private name that `internals` lists,
and everything that the plain path answers with an error. Second derivatives always go
through the plain formula.

Kernels see every method as one shape of work, `Work`, and both files hold the same two
pairs of them: resident, where the set stays on the chip between its passes, and split,
where it does not. `python -m normbook.fast` compiles the kernels of this machine ahead
of their first call, or says why there are none.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib import import_module
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from normbook.fast.internals import (
    MISSING,
    direct_apply,
    is_legacy_batched,
    is_zero,
    untransformed,
)
from normbook.functional import Normalized, Sets

MODULES = {"cpu": "normbook.fast.cpu", "cuda": "normbook.fast.gpu"}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NUMBER = (int, float)
MOST = 2**30 - 2**21  # what a GPU counts in 32 bits, with room for blocks and parts
LEAST = 1e-24  # of ε: the kernels of a CPU take 1/√ε³ in float32
PROCESS = os.getpid()  # that of a fork is another: it has none of torch's workers
Plain = Callable[..., Normalized]


class Running(NamedTuple):
    """Running statistics, one a channel, and the weight of what is new."""

    mean: Tensor
    var: Tensor
    momentum: Any

    def track(self, mean: Tensor, var: Tensor) -> None:
        """Move towards these, in place; where each sample has its own, to their mean.

        `moments.running` in one step.
        """
        for old, new in ((self.mean, mean), (self.var, var)):
            if new.shape != old.shape:
                new = new.reshape(-1, old.numel()).mean(0)
            old.lerp_(new.to(old.dtype), self.momentum)


class Work(NamedTuple):
    """One normalization as a kernel sees it: x as (N, G, A, S).

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
    def furthest(self) -> int:
        """How far a kernel counts: from a set's first value, and over all sets.

        But for rows, over all channels of all samples, too.
        """
        N, G, A, S, batch, channels_last = self
        in_set, channels = S * (N if batch else A), G * A * (N if S > 1 else 1)
        return max(N * G, in_set, channels, G * A * S if channels_last else 0)


def work(x: Tensor, sets: Sets) -> Work | None:
    """How a kernel sees x, or None where it cannot: sets or strides of another kind.

    None, too, for no values at all, and for sets of too few values or too many.
    """
    contiguous = x.is_contiguous()
    if not contiguous and not any(
        x.dim() == rank and x.is_contiguous(memory_format=layout)
        for rank, layout in ((4, torch.channels_last), (5, torch.channels_last_3d))
    ):
        return None
    return _work(x.shape, sets, not contiguous)


@lru_cache(1024)
def _work(shape: tuple[int, ...], sets: Sets, channels_last: bool) -> Work | None:
    """`work` of a shape in one of the two layouts: seen once, it is known."""
    (view, axes, param, least), rank, found = sets, len(shape), None
    if not prod(shape):
        return None
    if axes == param and axes == tuple(range(rank - len(axes), rank)):
        size = prod(view[-len(axes) :])
        if not channels_last:
            found = Work(prod(shape) // size, 1, size, 1)
    elif axes == tuple(range(2, len(view))):
        N, G, *rest = view
        A = 1 if len(view) == rank else rest.pop(0)
        found = Work(N, G, A, prod(rest), channels_last=channels_last)
    elif axes == (0, *range(2, rank)):
        N, C, *rest = view
        last = channels_last or prod(rest) == 1
        found = Work(N, C, 1, prod(rest), batch=True, channels_last=last)
    if found is None or found.furthest > MOST or _count(found, None) < least:
        return None
    return found


def lengths(where: Tensor, x: Tensor, sets: Sets) -> Tensor | None:
    """The number of real positions of each sample, where a mask says just that.

    x: (N, C, T), T > 1; where: (N, 1, T), True up to a length. None for any other mask,
    and for one that leaves a set too few values, which the plain path answers.
    """
    if not isinstance(where, Tensor) or x.dim() != 3 or x.shape[2] == 1:
        return None
    if where.shape != (x.shape[0], 1, x.shape[2]) or sets.param != (1,):
        return None
    if where.dtype != torch.bool or where.device != x.device:
        return None
    found = where.sum((1, 2), dtype=torch.int32)
    number = found.sum() if 0 in sets.axes else found.min() * (sets.size // x.shape[2])
    told = (mask(found, x.shape[2]) == where).all() & (number >= sets.least)
    return found if bool(told) else None


def mask(lengths: Tensor, T: int) -> Tensor:
    """The mask that these lengths stand for, (N, 1, T)."""
    positions = torch.arange(T, device=lengths.device)
    return (positions < lengths[:, None])[:, None]


class Call:
    """One normalization by a kernel: what is asked for, and the moments it finds."""

    def __init__(
        self,
        plain: Plain,
        sets: Sets,
        kernels: Any,
        task: tuple[Work, float, Tensor | None, bool],
    ) -> None:
        self.plain, self.sets = plain, sets
        self.kernels, self.task = kernels, task
        self.moments: Any = None

    def forward(
        self, x: Tensor, gamma: Tensor | None, beta: Tensor | None, kept: bool = True
    ) -> Tensor:
        """y; the moments stay here, if anybody will ask for them."""
        y, self.moments = self.kernels.forward(x, gamma, beta, *self.task, kept)
        return y

    def answers(self, dy: Tensor, x: Tensor, *given: Tensor | None) -> bool:
        """Whether the kernels can read dy, and what was saved is as it was.

        A hook on saved tensors may give back another layout or dtype.
        """
        same = self.kernels, self.task[0]
        return (
            untransformed()
            and _plain_memory(dy)
            and not is_legacy_batched(dy)
            and dy.dtype is x.dtype
            and _readers(x, self.sets, *given) == same
        )

    def backward(self, dy: Tensor, *given: Tensor | None) -> tuple[Any, ...]:
        """The gradients of x, γ and β, given x, γ and β."""
        return self.kernels.backward(dy, *given, self.moments, *self.task)

    def differentiable(
        self, x: Tensor, gamma: Tensor | None, beta: Tensor | None
    ) -> Tensor:
        """y by the plain formula."""
        _, eps, real, centered = self.task
        where = None if real is None else mask(real, x.shape[2])
        return self.plain(x, self.sets, gamma, beta, eps, where, centered).y

    def track(self, running: Running) -> None:
        """Move running statistics towards the mean and σ²·m/(m − 1) of every set."""
        seen, _, real, _ = self.task
        m = _count(seen, real)
        self.kernels.track(self.moments, m / (m - 1), running)


class Fused(torch.autograd.Function):
    """One kernel call forward, one backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor | None, beta: Tensor | None, call: Call
    ) -> Tensor:
        ctx.save_for_backward(x, gamma, beta)
        ctx.call = call
        return call.forward(x, gamma, beta)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> tuple[Any, ...]:
        given, call = ctx.saved_tensors, ctx.call
        again = torch.is_grad_enabled()  # then this gradient is differentiated, too
        if not again and call.answers(dy, *given):
            return *call.backward(dy, *given), None
        with torch.enable_grad():
            # Views: their gradients end here, where those of x would go on into what
            # x was made of, and call the hooks of γ.
            given = [None if value is None else value.view_as(value) for value in given]
            wanted = [v for v in given if v is not None and v.requires_grad]
            y = call.differentiable(*given)
        gradients = torch.autograd.grad(y, wanted, dy.to(y.dtype), create_graph=again)
        found = iter(gradients)
        return *(
            next(found) if value is not None and value.requires_grad else None
            for value in given
        ), None  # fmt: skip


_apply = direct_apply(Fused)  # what it leaves out, `normalize` asks before


def normalize(
    plain: Plain,
    x: Tensor,
    sets: Sets,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    where: Tensor | None,
    centered: bool,
    running: Running | None,
) -> Tensor | None:
    """y, or None where the plain path must answer; moves running statistics, if given.

    plain: the same function of x to centered, differentiable twice.
    """
    if _off or not untransformed() or not isinstance(eps, NUMBER) or not eps >= LEAST:
        return None
    if (found := _readers(x, sets, gamma, beta)) is None:
        return None
    kernels, seen = found
    real = None
    if where is not None and (real := lengths(where, x, sets)) is None:
        return None
    call = Call(plain, sets, kernels, (seen, float(eps), real, centered))
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (gamma is not None and gamma.requires_grad)
        or (beta is not None and beta.requires_grad)
    ):
        if x.is_inference():
            return None
        y = _apply(x, gamma, beta, call)
    else:
        y = call.forward(x, gamma, beta, running is not None)
    if running is not None:
        call.track(running)
    return y


def _plain_memory(value: Tensor) -> bool:
    """Whether what lies in a tensor's memory is its values."""
    kind = type(value)
    known = kind is Tensor or kind is Parameter
    return known and not value.is_neg() and not is_zero(value)


def _readers(
    x: Tensor, sets: Sets, gamma: Tensor | None, beta: Tensor | None
) -> tuple[Any, Work] | None:
    """The kernels that can read these tensors, and how they see x; None without any.

    γ and β are float32 or of x's dtype, on its device.
    """
    dtype, device = x.dtype, x.device
    if not _plain_memory(x) or (kernels := _backend(device, dtype)) is None:
        return None
    if (seen := work(x, sets)) is None:
        return None
    rank, values = len(sets.param), seen.G * seen.A
    for value in (gamma, beta):
        if value is None:
            continue
        kind, own = type(value), value.dtype
        if not (
            (kind is Parameter or kind is Tensor)
            and (own is torch.float32 or own is dtype)
            and value.device == device
            and value.dim() == rank
            and value.numel() == values
            and (rank == 1 or value.shape == x.shape[-rank:])
            and value.is_contiguous()
            and not value.is_neg()
        ):
            return None
    return kernels, seen


def _count(seen: Work, real: Tensor | None) -> Any:
    """How many values a set has: one number, or one a set where lengths differ."""
    if real is None:
        return seen.S * (seen.N if seen.batch else seen.A)
    return real.sum() if seen.batch else (real * seen.A).repeat_interleave(seen.G)


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
def _backend(device: torch.device, dtype: torch.dtype) -> Any:
    """The module of kernels that can work on such tensors, or None."""
    if why_plain(device, dtype) is not None:
        return None
    return import_module(MODULES[device.type])


@cache
def why_plain(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why no kernel works on such tensors here, or None where one does."""
    if MISSING is not None:
        return MISSING
    if device.type not in MODULES or dtype not in DTYPES:
        return f"there are no kernels for {dtype} on {device.type}"
    try:
        kernels = import_module(MODULES[device.type])
    except (ImportError, AttributeError) as error:
        return str(error)
    if not kernels.runs(device, dtype):
        return (
            f"kernels for {dtype} do not run on this {device.type}, or lack a compiler"
        )
    return None
