"""The kernels of a CPU, in numba: what a value costs is its way from memory.

Sets of neighbours: one set is summed, centred and squared, and applied before the next
begins. Its first loop fetches it from memory, the others from a cache, as long as the
set fits in one. Channels last: there a set's values lie apart, so that all channels are
worked on at once. The statistics of chunks of rows are merged, and a second kernel
reads x again.

numba makes a function of each kernel for float32 and for bfloat16; sums are float32
within a block or a chunk, float64 beyond. No loop here asks for a thread: `_run` gives
each its ranges.
"""

# mypy: allow-untyped-defs
# numba finds the types of a kernel's arguments, most of them addresses and sizes.

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import extending, njit, types
from torch import Tensor

from normbook.fast import FURTHEST, Task, Work
from normbook.fast.split import View, merged, of_channels, of_channels_back

LONGEST_ROW = FURTHEST  # of any length
DTYPES = (torch.float32, torch.bfloat16)
CHUNK = 2**16  # values of a chunk of channels_last, and the fewest for a thread
ROWS = 2**12  # of a chunk, whose sums over them are taken one after the other
PARTS = 64  # of the samples, each with its own sums of dγ and dβ
PIECES = 4  # of the work for each thread
BLOCK = 2**10  # values that are summed in float32 before they join a longer sum
F32 = np.float32

intrinsic: Any = extending.intrinsic
# What tells `pointer` the type of a tensor's values.
LIKE = {torch.float32: 1.0, torch.bfloat16: 1}
# Whatever torch's defaults are, a kernel reads and writes float32 in this memory.
FLOAT32 = torch.empty(0, dtype=torch.float32, device="cpu")
empty, zeros, ones = FLOAT32.new_empty, FLOAT32.new_zeros, FLOAT32.new_ones
# Sums in any order, so that they fill a vector; nan, infinity and denormals as ever
# ("arcp" would make 1/√∞ a nan).
FASTMATH = {"reassoc", "nsz", "contract"}
jit: Any = partial(njit, nogil=True, error_model="numpy", fastmath=FASTMATH)


def kernel(function: Callable[..., Any]) -> Any:
    """Compiled at its first call, and kept on disk where some folder can be written."""
    try:
        return jit(function, cache=True)
    except RuntimeError:  # nowhere to keep it: every process compiles its own
        return jit(function)


# Compiled as a part of each kernel that calls it, which takes less time.
helper = partial(jit, inline="always")


@intrinsic
def pointer(_: Any, address: Any, like: Any) -> Any:
    """An address as a pointer: to float32 for a float, to bfloat16 for an integer."""
    wide = types.unliteral(like) == types.float64
    value = types.float32 if wide else types.uint16
    to = (ir.FloatType() if wide else ir.IntType(16)).as_pointer()

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], to)

    return types.CPointer(value)(address, like), build


@intrinsic
def get(_: Any, p: Any, i: Any) -> Any:
    """p[i] as float32, of which bfloat16 is the upper half."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        value = builder.load(builder.gep(args[0], [args[1]]))
        if p.dtype == types.float32:
            return value
        bits = builder.shl(builder.zext(value, ir.IntType(32)), ir.IntType(32)(16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(p, types.intp), build


@intrinsic
def put(_: Any, p: Any, i: Any, value: Any) -> Any:
    """p[i] = value, rounded to the nearest, a tie to the even one."""
    wide = p.dtype == types.float32

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        p, i, value = args
        if not wide:
            int32 = ir.IntType(32)
            bits = builder.bitcast(value, int32)
            odd = builder.and_(builder.lshr(bits, int32(16)), int32(1))
            near = builder.add(builder.add(bits, int32(0x7FFF)), odd)
            nan = builder.fcmp_unordered("uno", value, value)
            near = builder.select(nan, int32(0x7FC00000), near)
            value = builder.trunc(builder.lshr(near, int32(16)), ir.IntType(16))
        builder.store(value, builder.gep(p, [i]))
        return args[2]

    return types.float32(p, types.intp, types.float32), build


@helper
def add(p, i, value):
    """p[i] += value, for float32."""
    put(p, i, get(p, i) + value)


# Sets of neighbours -------------------------------------------------------------------
#
# x as (N, G, A, S) = (2, 2, 2, 3) in the order of memory, a to d its channels:
#
#     aaa bbb ccc ddd  aaa bbb ccc ddd     GN, IN, LN: set 1 of 4 is ccc ddd, one run of
#             |- set 1                     A·S values; the next set is the next run
#     aaa bbb ccc ddd  aaa bbb ccc ddd     BN, A = 1: set 2 of 4 is a run ccc of S in
#             |-               |-          each of N samples; set 3 lies S further
#
# Two loops for a set, not three: while a set is written out of a cache, memory brings
# the next one, and the loop that writes sums it. So one round of the loop over sets is
#
#     round 0:  write set 0 as zeros    sum set 0    μ, σ² of set 0
#     round 1:  write set 0             sum set 1    μ, σ² of set 1
#     round 2:  write set 1             (sum set 1)                      for two sets


@helper
def apply_run(x, y, start, end, line, ahead, near):
    """y = (x − μ)·scale + shift. Σ(x − near) of the values that lie `ahead`.

    Blocks are summed in float32, their sums in float64; so in all loops here.
    """
    mu, scale, shift = line
    total = 0.0
    for first in range(start, end, BLOCK):
        part: Any = F32(0)
        for i in range(first, min(first + BLOCK, end)):
            put(y, i, (get(x, i) - mu) * scale + shift)
            part += get(x, i + ahead) - near
        total += part
    return total


@helper
def apply_row(x, y, gamma, beta, start, c, A, line, ahead, near):
    """The same where every value is a channel, the first of them c."""
    mu, rstd = line
    total = 0.0
    for first in range(0, A, BLOCK):
        part: Any = F32(0)
        for a in range(first, min(first + BLOCK, A)):
            scale = get(gamma, c + a) * rstd
            put(y, start + a, (get(x, start + a) - mu) * scale + get(beta, c + a))
            part += get(x, start + a + ahead) - near
        total += part
    return total


@helper
def squares(x, start, end, mu):
    """Σ(x − μ) and Σ(x − μ)²."""
    sum_d, sum_d2 = 0.0, 0.0
    for first in range(start, end, BLOCK):
        by_d: Any = F32(0)
        by_d2: Any = F32(0)
        for i in range(first, min(first + BLOCK, end)):
            d = get(x, i) - mu
            by_d += d
            by_d2 += d * d
        sum_d += by_d
        sum_d2 += by_d2
    return sum_d, sum_d2


@kernel
def forward_sets(
    s0, s1, like, x, y, gamma, beta, moments, eps, centered, N, G, A, S, batch
):
    """Of the sets s0 to s1: μ, σ², y = γ·x_hat + β."""
    x, y, moments = pointer(x, like), pointer(y, like), pointer(moments, 0.0)
    gamma, beta = pointer(gamma, 0.0), pointer(beta, 0.0)
    runs, sets = (N, G) if batch else (1, N * G)
    run, apart = A * S, G * A * S
    m = runs * run
    mu, rstd = F32(0), F32(0)
    for k in range(s0, s1 + 1):
        old, new = max(k - 1, s0), min(k, s1 - 1)
        ahead = (new - old) * run
        # Measured from one of its values, a large mean costs no digits.
        near, total, c = get(x, new * run), 0.0, old % G * A
        for start in range(old * run, old * run + runs * apart, apart):
            if S == 1:
                line = mu, rstd
                total += apply_row(x, y, gamma, beta, start, c, A, line, ahead, near)
            for a in range(A if S > 1 else 0):
                i = start + a * S
                of_run = mu, get(gamma, c + a) * rstd, get(beta, c + a)
                total += apply_run(x, y, i, i + S, of_run, ahead, near)
        if k == s1:
            break
        mu = near + F32(total / m) if centered else F32(0)
        sum_d, sum_d2 = 0.0, 0.0
        for start in range(new * run, new * run + runs * apart, apart):
            by_d, by_d2 = squares(x, start, start + run, mu)
            sum_d += by_d
            sum_d2 += by_d2
        # What rounding left of Σ(x − μ) mends both. Chan, Golub & LeVeque (1983).
        left = sum_d / m if centered else 0.0
        mu, sigma2 = mu + F32(left), F32(sum_d2 / m - left * left)
        if sigma2 < 0:
            sigma2 = F32(0)
        rstd = F32(1) / np.sqrt(sigma2 + F32(eps))
        put(moments, new, mu)
        put(moments, sets + new, sigma2)


@helper
def apply_run_back(dy, x, dx, start, end, line, ahead, next_mu):
    """dx = dy·scale + (x − μ)·slope + shift. Σ dy and Σ dy·(x − next_mu) `ahead`."""
    mu, scale, slope, shift = line
    sum_dy, sum_d = 0.0, 0.0
    for first in range(start, end, BLOCK):
        by_dy: Any = F32(0)
        by_d: Any = F32(0)
        for i in range(first, min(first + BLOCK, end)):
            put(dx, i, get(dy, i) * scale + (get(x, i) - mu) * slope + shift)
            by_dy += get(dy, i + ahead)
            by_d += get(dy, i + ahead) * (get(x, i + ahead) - next_mu)
        sum_dy += by_dy
        sum_d += by_d
    return sum_dy, sum_d


@helper
def apply_row_back(dy, x, dx, gamma, start, c, next_c, A, line, ahead, next_mu):
    """The same where every value is a channel; the sums are of γ·dy."""
    mu, rstd, slope, shift = line
    sum_g, sum_d = 0.0, 0.0
    for first in range(0, A, BLOCK):
        by_g: Any = F32(0)
        by_d: Any = F32(0)
        for a in range(first, min(first + BLOCK, A)):
            i = start + a
            scaled = get(gamma, c + a) * rstd * get(dy, i)
            put(dx, i, scaled + (get(x, i) - mu) * slope + shift)
            g = get(gamma, next_c + a) * get(dy, i + ahead)
            by_g += g
            by_d += g * (get(x, i + ahead) - next_mu)
        sum_g += by_g
        sum_d += by_d
    return sum_g, sum_d


@kernel
def backward_sets(
    p0, p1, like, dy, x, dx, gamma, moments, d_gamma, d_beta, eps, centered, P,
    N, G, A, S, batch,
):  # fmt: skip
    """dx = (g − mean(g) − x_hat·mean(g·x_hat))·rstd, and each part's share of dγ, dβ.

    g = γ·dy. The sets of one of P parts are summed in their order, the parts by the
    caller. In batch norm each channel has one set, so that its parts share one sum.
    """
    dy, x, dx = pointer(dy, like), pointer(x, like), pointer(dx, like)
    gamma, moments = pointer(gamma, 0.0), pointer(moments, 0.0)
    d_gamma, d_beta = pointer(d_gamma, 0.0), pointer(d_beta, 0.0)
    runs, sets = (N, G) if batch else (1, N * G)
    run, apart = A * S, G * A * S
    m = runs * run
    for p in range(p0, p1):
        part = 0 if batch else p * G * A
        s0, s1 = sets * p // P, sets * (p + 1) // P
        mu, rstd, slope, shift = F32(0), F32(0), F32(0), F32(0)
        for k in range(s0, s1 + 1):
            old, new = max(k - 1, s0), min(k, s1 - 1)
            first, ahead = old * run, (new - old) * run
            c, next_c = old % G * A, new % G * A
            next_mu = get(moments, new)
            next_rstd = F32(1) / np.sqrt(get(moments, sets + new) + F32(eps))
            sum_g, sum_d = 0.0, 0.0
            if S == 1:
                line = mu, rstd, slope, shift
                sum_g, sum_d = apply_row_back(
                    dy, x, dx, gamma, first, c, next_c, A, line, ahead, next_mu
                )
                for a in range(A if k < s1 else 0):
                    i, by_dy = new * A + a, get(dy, new * A + a)
                    by_d = by_dy * (get(x, i) - next_mu)
                    add(d_beta, part + next_c + a, by_dy)
                    add(d_gamma, part + next_c + a, by_d * next_rstd)
            for a in range(A if S > 1 else 0):
                by_dy, by_d = 0.0, 0.0
                line = mu, get(gamma, c + a) * rstd, slope, shift
                for i in range(first + a * S, first + a * S + runs * apart, apart):
                    dy_run, d_run = apply_run_back(
                        dy, x, dx, i, i + S, line, ahead, next_mu
                    )
                    by_dy += dy_run
                    by_d += d_run
                sum_g += get(gamma, next_c + a) * by_dy
                sum_d += get(gamma, next_c + a) * by_d
                if k < s1:
                    add(d_beta, part + next_c + a, F32(by_dy))
                    add(d_gamma, part + next_c + a, F32(by_d) * next_rstd)
            mu, rstd = next_mu, next_rstd
            # With d = x − μ: dx = (g − mean(g) − d·rstd²·mean(g·d))·rstd.
            slope = -F32(sum_d / m) * rstd * rstd * rstd
            shift = -F32(sum_g / m) * rstd if centered else F32(0)


# Channels last ------------------------------------------------------------------------
#
# x as (N, S, C) = (2, 4, 3) in the order of memory, rows of channels abc:
#
#     abc abc|abc abc   abc abc|abc abc    K = 2 chunks of each sample's S rows:
#     p=0     p=1       p=2     p=3        chunk p is the (p mod K)-th of sample p div K


@helper
def chunk(p, K, C, S):
    """The first channel of chunk p's sample, and where its rows begin and end."""
    n, k = p // K, p % K
    return n * C, (n * S + S * k // K) * C, (n * S + S * (k + 1) // K) * C


@kernel
def chunk_moments(p0, p1, like, x, count, mean, m2, K, C, S):
    """Rows of chunks p0 to p1, and mean and Σ(x − mean)² of every channel in them."""
    x, count = pointer(x, like), pointer(count, 0.0)
    mean, m2 = pointer(mean, 0.0), pointer(m2, 0.0)
    for p in range(p0, p1):
        _, start, end = chunk(p, K, C, S)
        rows = F32((end - start) // C)
        put(count, p, rows)
        for row in range(start, end, C):
            for c in range(C):
                add(mean, p * C + c, get(x, row + c) - get(x, start + c))
        for c in range(C):
            put(mean, p * C + c, get(x, start + c) + get(mean, p * C + c) / rows)
        for row in range(start, end, C):
            for c in range(C):
                d = get(x, row + c) - get(mean, p * C + c)
                add(m2, p * C + c, d * d)


@kernel
def apply(p0, p1, like, x, y, mean, scale, beta, K, C, S):
    """y = (x − μ)·scale + β of chunks; μ and scale = γ·rstd of every (n, c)."""
    x, y, beta = pointer(x, like), pointer(y, like), pointer(beta, 0.0)
    mean, scale = pointer(mean, 0.0), pointer(scale, 0.0)
    for p in range(p0, p1):
        n, start, end = chunk(p, K, C, S)
        for row in range(start, end, C):
            for c in range(C):
                d = get(x, row + c) - get(mean, n + c)
                put(y, row + c, d * get(scale, n + c) + get(beta, c))


@kernel
def sums(p0, p1, like, dy, x, mean, by_d, by_dy, K, C, S):
    """Σ dy·(x − μ) and Σ dy of chunks, for every channel."""
    dy, x, mean = pointer(dy, like), pointer(x, like), pointer(mean, 0.0)
    by_d, by_dy = pointer(by_d, 0.0), pointer(by_dy, 0.0)
    for p in range(p0, p1):
        n, start, end = chunk(p, K, C, S)
        for row in range(start, end, C):
            for c in range(C):
                d = get(x, row + c) - get(mean, n + c)
                add(by_d, p * C + c, get(dy, row + c) * d)
                add(by_dy, p * C + c, get(dy, row + c))


@kernel
def apply_back(p0, p1, like, dy, x, dx, mean, scale, slope, shift, K, C, S):
    """dx = dy·scale + (x − μ)·slope + shift of chunks, each of every (n, c)."""
    dy, x, dx = pointer(dy, like), pointer(x, like), pointer(dx, like)
    mean, scale = pointer(mean, 0.0), pointer(scale, 0.0)
    slope, shift = pointer(slope, 0.0), pointer(shift, 0.0)
    for p in range(p0, p1):
        n, start, end = chunk(p, K, C, S)
        for row in range(start, end, C):
            for c in range(C):
                d = (get(x, row + c) - get(mean, n + c)) * get(slope, n + c)
                g = get(dy, row + c) * get(scale, n + c)
                put(dx, row + c, g + d + get(shift, n + c))


# The backend --------------------------------------------------------------------------


def runs(device: torch.device) -> bool:
    """Whether its kernels work there: numba compiles for every CPU that it is on."""
    return True


def forward(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, task: Task
) -> tuple[Tensor, Tensor]:
    """y, and of every set its mean (0 where not centered) and variance, (2, sets)."""
    (N, G, A, S, batch, channels_last), eps, centered, _ = task
    y, C, sets = torch.empty_like(x), G * A, G if batch else N * G
    gamma = ones(C) if gamma is None else gamma.float()
    beta = zeros(C) if beta is None else beta.float()
    if not channels_last:
        moments = empty(2, sets)
        tensors = x, y, gamma, beta, moments
        _run(forward_sets, sets, tensors, eps, centered, N, G, A, S, batch)
        return y, moments
    B, K, S = _chunks(task.work)
    count, (mean, m2) = empty(B, K, 1, 1), zeros(2, B, K, G, A)
    _run(chunk_moments, B * K, (x, count, mean, m2), K, C, S)
    moments = merged(count, mean, m2)
    mean, scale = of_channels(moments, gamma, eps, B, A)
    _run(apply, B * K, (x, y, mean, scale, beta), K, C, S)
    return y, moments


def backward(
    dy: Tensor, x: Tensor, gamma: Tensor | None, moments: Tensor, task: Task
) -> tuple[Tensor, Tensor]:
    """dx, and in float32 dγ and dβ of every channel, (2, C)."""
    (N, G, A, S, batch, channels_last), eps, centered, _ = task
    dx, C = torch.empty_like(x), G * A
    gamma = ones(C) if gamma is None else gamma.float()
    if not channels_last:
        # As many parts as pay for their sums. But for batch norm the shape alone
        # decides, so that any number of threads gives the same gradients.
        P = min(N * G, max(PARTS, N // ROWS), 1 + 4 * x.numel() // CHUNK)
        parts = zeros(2, 1 if batch else P, C)
        P = min(G, PIECES * torch.get_num_threads()) if batch else P
        tensors = dy, x, dx, gamma, moments, *parts
        _run(backward_sets, P, tensors, eps, centered, P, N, G, A, S, batch)
        return dx, parts.sum(1) if P > 1 else parts[:, 0]
    B, K, S = _chunks(task.work)
    mean, scale = of_channels(moments, gamma, eps, B, A)
    by = zeros(2, B, K, C)
    _run(sums, B * K, (dy, x, mean, *by), K, C, S)
    by = by.sum(2, dtype=torch.float64)
    slope, shift, by = of_channels_back(by, moments, gamma, eps, task.work.set_size)
    _run(apply_back, B * K, (dy, x, dx, mean, scale, slope, shift), K, C, S)
    return dx, by


def _chunks(work: Work) -> tuple[int, int, int]:
    """B, K, S: the S rows of each of B samples in K chunks."""
    B, S, C, _ = View.of(work)
    return B, -(-S // max(1, min(ROWS, CHUNK // C))), S


def _run(kernel: Any, parts: int, tensors: tuple[Tensor, ...], *numbers: Any) -> None:
    """Call the kernel on ranges of parts, with as many threads as torch has.

    A thread that wakes late finds less left to do: who is free takes the next range. No
    cut changes the order of a sum.
    """
    x = tensors[0]
    to = LIKE[x.dtype], *map(Tensor.data_ptr, tensors), *numbers
    size = x.numel()
    threads = 1 if size < CHUNK else min(torch.get_num_threads(), 1 + size // CHUNK)
    if threads == 1:
        kernel(0, parts, *to)
        return
    pieces = min(parts, PIECES * threads)
    ranges = iter([*pairwise(parts * k // pieces for k in range(pieces + 1))])

    # Each thread holds the tensors: an interrupt of this one must free none of them.
    def take(_: tuple[Tensor, ...]) -> None:
        for ends in ranges:  # the next of a list is one thread's alone
            kernel(*ends, *to)

    others = [_pool(os.getpid()).submit(take, tensors) for _ in range(threads - 1)]
    take(tensors)
    for other in others:
        other.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork has none of those that its parent started."""
    return ThreadPoolExecutor(os.cpu_count(), "normbook")


def shipped() -> list[Work]:
    """One of each kind: a kernel of a CPU is compiled for every size at once."""
    return [Work(2, 2, 1, 2), Work(2, 2, 1, 2, True, True)]
