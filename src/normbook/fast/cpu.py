"""The kernels of a CPU, in numba: what a value costs is its way from memory.

Resident: a set is read from memory once. It stays in a cache while it is summed,
centred and squared, and applied; so it serves every set up to `CACHE` values. Split:
larger sets, and channels_last, where the values of a set are no neighbours. There the
statistics of chunks that fit a cache are merged, and a second kernel reads x again.

numba makes a function of each kernel for float32, bfloat16 and float16; sums are
float32 within a block or a chunk, float64 beyond. No loop here asks for a thread:
`threads.share` gives each its ranges.
"""

# mypy: allow-untyped-defs
# numba finds the types of a kernel's arguments, most of them addresses and sizes.

from collections.abc import Callable
from contextlib import suppress
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import extending, njit, types
from torch import Tensor
from torch.autograd.graph import increment_version

from normbook.fast import DTYPES, NUMBER, Running, Work
from normbook.fast.internals import NUMBA, need, processor
from normbook.fast.threads import share

need(*NUMBA)

CACHE = 2**17  # values of a set that a second pass still finds in a cache
CHUNK = 2**16  # values of a chunk of the split kernels, and the least for a thread
ROWS = 2**12  # of a chunk, whose sums over them are taken one after the other
PARTS = 64  # of the samples, each with its own sums of dγ and dβ
PIECES = 8  # of the work for each thread
BLOCK = 2**10  # values that are summed in float32 before they join a longer sum
F32 = np.float32

intrinsic: Any = extending.intrinsic
HALF = types.int16  # numba has no float16 on a CPU, but LLVM has
# What tells `pointer` the type of a tensor's values.
LIKE = {torch.float32: 1.0, torch.bfloat16: 1, torch.float16: True}
# Whatever torch's defaults are, a kernel reads and writes float32 in this memory.
FLOAT32 = torch.empty(0, dtype=torch.float32, device="cpu")
empty, zeros = FLOAT32.new_empty, FLOAT32.new_zeros
NOTHING = empty(0)  # where a kernel would look for lengths; its address is 0
# Sums in any order, so that they fill a vector; nan, infinity and denormals as ever
# ("arcp" would make 1/√∞ a nan).
FASTMATH = {"reassoc", "nsz", "contract"}
jit: Any = partial(njit, nogil=True, error_model="numpy", fastmath=FASTMATH)


def kernel(function: Callable[..., Any]) -> Any:
    """Compiled at its first call, and kept on disk where some folder can be written."""
    compiled = jit(function)
    with suppress(RuntimeError):  # nowhere to keep it: every process compiles its own
        compiled.enable_caching()
    return compiled


def helper(function: Callable[..., Any]) -> Any:
    """Compiled as a part of each kernel that calls it, which takes less time."""
    return jit(inline="always")(function)


@intrinsic
def pointer(_: Any, address: Any, like: Any) -> Any:
    """An address as a pointer to values of a type that the type of `like` stands for.

    A float: float32. An integer: the bits of bfloat16. A boolean: those of float16.
    None: int32.
    """
    known = {types.float64: types.float32, types.boolean: HALF, types.none: types.int32}
    value = known.get(types.unliteral(like), types.uint16)

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        to = context.get_value_type(types.CPointer(value))
        return builder.inttoptr(args[0], to)

    return types.CPointer(value)(address, like), build


@intrinsic
def get(_: Any, p: Any, i: Any) -> Any:
    """p[i] as float32, of which bfloat16 is the upper half."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        value = builder.load(builder.gep(args[0], [args[1]]))
        if p.dtype == types.float32:
            return value
        if p.dtype == HALF:
            return builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType())
        bits = builder.shl(builder.zext(value, ir.IntType(32)), ir.IntType(32)(16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(p, types.intp), build


@intrinsic
def put(_: Any, p: Any, i: Any, value: Any) -> Any:
    """p[i] = value, rounded to the nearest, a tie to the even one."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        to, (p, i, value) = signature.args[0].dtype, args
        if to == HALF:
            value = builder.fptrunc(value, ir.HalfType())
            value = builder.bitcast(value, ir.IntType(16))
        elif to != types.float32:
            int32 = ir.IntType(32)
            bits = builder.bitcast(value, int32)
            odd = builder.and_(builder.lshr(bits, int32(16)), int32(1))
            near = builder.add(builder.add(bits, int32(0x7FFF)), odd)
            nan = builder.fcmp_unordered("uno", value, value)
            near = builder.select(nan, int32(0x7FC00000), near)
            value = builder.trunc(builder.lshr(near, int32(16)), ir.IntType(16))
        builder.store(value, builder.gep(p, [i]))
        return context.get_dummy_value()

    signature = types.void(p, types.intp, types.float32)
    return signature, build


@helper
def add(p, i, value):
    """p[i] += value, for float32."""
    put(p, i, get(p, i) + value)


@helper
def chunk(p, K, S, lengths):
    """The sample of chunk p, the k-th of K of it, and its first and last position."""
    n, k = p // K, p % K
    first, end = S * k // K, S * (k + 1) // K
    if lengths != 0:
        end = max(first, min(end, pointer(lengths, None)[n]))
    return n, first, end


@helper
def around(x, start, end, mu):
    """Σ(x − μ) and Σ(x − μ)². Blocks are summed in float32, their sums in float64."""
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


# Resident -----------------------------------------------------------------------------
#
# Sets stand in a queue. One loop applies a set, out of a cache, and sums the one behind
# it, out of memory, which would else have nothing to do. The first has none before it:
# what goes to its own place is overwritten. The last has none behind it: its loop's sum
# is dropped. So one loop takes every sum, in the same order wherever a thread begins.


@helper
def apply_run(x, y, start, end, line, ahead, near):
    """y = (x − μ)·scale + shift. Σ(x − near) of the values that lie `ahead`."""
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
def apply_row(x, y, gamma, beta, c, start, A, line, ahead, near):
    """The same where every value is a channel, the first of them c."""
    mu, rstd = line
    total = 0.0
    for first in range(0, A, BLOCK):
        part: Any = F32(0)
        for a in range(first, min(first + BLOCK, A)):
            scale = get(gamma, c + a) * rstd
            put(y, start + a, (get(x, start + a) - mu) * scale + get(beta, c + a))
            part += get(x, start + ahead + a) - near
        total += part
    return total


@kernel
def forward_resident(
    p0, p1, g0, g1, like, x, y, gamma, beta, moments, lengths, eps, centered,
    P, N, G, A, S, batch,
):  # fmt: skip
    """Of each set of parts p0 to p1 and groups g0 to g1: μ, σ², y = γ·x_hat + β."""
    x, y = pointer(x, like), pointer(y, like)
    gamma, beta = pointer(gamma, 0.0), pointer(beta, 0.0)
    kept, moments = moments != 0, pointer(moments, 0.0)
    number, lengths = lengths != 0, pointer(lengths, None)
    samples, sets = (N, G) if batch else (1, N * G)
    begin, end = N * p0 // P, N * p1 // P
    queue = samples if number else end - begin  # one loop: one length
    for first in range(begin, end, queue):
        mu, rstd = F32(0), F32(0)
        g, new, last = g0, first * G + g0, queue // samples * (g1 - g0)
        for k in range(last + 1):
            before, old = g, new
            if 0 < k < last:
                g, new = (g + 1, new + 1) if g + 1 < g1 else (g0, new + g0 - g + G)
            ahead = (new - old) * A * S
            # Measured from the set's first value, a large mean costs no digits.
            m, n, total = 0, 0, 0.0
            while number and n + 1 < samples and lengths[first + n] == 0:
                n += 1
            near = get(x, (new + n * G) * A * S)
            for n in range(samples):
                start = (old + n * G) * A * S
                run = lengths[first + n] if number else S
                m += A * run
                if S == 1:
                    total += apply_row(
                        x, y, gamma, beta, before * A, start, A, (mu, rstd), ahead, near
                    )
                    continue
                for c in range(before * A, (before + 1) * A):
                    line = mu, get(gamma, c) * rstd, get(beta, c)
                    total += apply_run(x, y, start, start + run, line, ahead, near)
                    for i in range(start + run, start + S):
                        put(y, i, F32(0))
                    start += S
            if k == last:
                break
            mu = near + F32(total / m) if centered else F32(0)
            sum_d, sum_d2 = 0.0, 0.0
            for n in range(samples):
                runs, run = (A, lengths[first + n]) if number else (1, A * S)
                for a in range(runs):
                    start = ((new + n * G) * A + a) * S
                    by_d, by_d2 = around(x, start, start + run, mu)
                    sum_d += by_d
                    sum_d2 += by_d2
            # What rounding left of Σ(x − μ) mends both. Chan, Golub & LeVeque (1983).
            left = sum_d / m if centered else 0.0
            mu, sigma2 = mu + F32(left), F32(sum_d2 / m - left * left)
            if sigma2 < 0:
                sigma2 = F32(0)
            rstd = F32(1) / np.sqrt(sigma2 + F32(eps))
            if kept:
                put(moments, g if batch else new, mu)
                put(moments, sets + (g if batch else new), sigma2)


@helper
def apply_run_back(dy, x, dx, start, end, line, ahead, next_mu):
    """dx = dy·scale + (x − μ)·along + back. Σ dy and Σ dy·(x − next_mu) `ahead`."""
    mu, scale, along, back = line
    sum_dy, sum_x = 0.0, 0.0
    for first in range(start, end, BLOCK):
        by_dy: Any = F32(0)
        by_x: Any = F32(0)
        for i in range(first, min(first + BLOCK, end)):
            put(dx, i, get(dy, i) * scale + (get(x, i) - mu) * along + back)
            by_dy += get(dy, i + ahead)
            by_x += get(dy, i + ahead) * (get(x, i + ahead) - next_mu)
        sum_dy += by_dy
        sum_x += by_x
    return sum_dy, sum_x


@helper
def apply_row_back(dy, x, dx, gamma, c, next_c, start, A, line, ahead, next_mu):
    """The same where every value is a channel; the sums are of γ·dy."""
    mu, rstd, along, back = line
    sum_g, sum_gx = 0.0, 0.0
    for first in range(0, A, BLOCK):
        by_g: Any = F32(0)
        by_gx: Any = F32(0)
        for a in range(first, min(first + BLOCK, A)):
            i = start + a
            scaled = get(gamma, c + a) * rstd * get(dy, i)
            put(dx, i, scaled + (get(x, i) - mu) * along + back)
            g = get(gamma, next_c + a) * get(dy, i + ahead)
            by_g += g
            by_gx += g * (get(x, i + ahead) - next_mu)
        sum_g += by_g
        sum_gx += by_gx
    return sum_g, sum_gx


@kernel
def backward_resident(
    p0, p1, g0, g1, like, dy, x, dx, gamma, moments, d_gamma, d_beta, lengths, eps,
    centered, P, N, G, A, S, batch,
):  # fmt: skip
    """dx = (g − mean(g) − x_hat·mean(g·x_hat))·rstd, and each part's share of dγ, dβ.

    g = γ·dy. Samples of one part are summed in their order, the parts by the caller.
    """
    dy, x, dx = pointer(dy, like), pointer(x, like), pointer(dx, like)
    gamma, moments = pointer(gamma, 0.0), pointer(moments, 0.0)
    d_gamma, d_beta = pointer(d_gamma, 0.0), pointer(d_beta, 0.0)
    number, lengths = lengths != 0, pointer(lengths, None)
    samples, sets = (N, G) if batch else (1, N * G)
    for p in range(p0, p1):
        for c in range((p * G + g0) * A, (p * G + g1) * A):
            put(d_gamma, c, F32(0))
            put(d_beta, c, F32(0))
        begin, end = N * p // P, N * (p + 1) // P
        queue = samples if number else end - begin
        for first in range(begin, end, queue):
            mu, rstd, along, back = F32(0), F32(0), F32(0), F32(0)
            g, new, last = g0, first * G + g0, queue // samples * (g1 - g0)
            for k in range(last + 1):
                before, old = g, new
                if 0 < k < last:
                    g, new = (g + 1, new + 1) if g + 1 < g1 else (g0, new + g0 - g + G)
                ahead, at = (new - old) * A * S, g if batch else new
                next_mu = get(moments, at) if centered else F32(0)
                next_rstd = F32(1) / np.sqrt(get(moments, sets + at) + F32(eps))
                m, sum_g, sum_gx = 0, 0.0, 0.0
                sum_dy, sum_x = 0.0, 0.0
                for n in range(samples):
                    start = (old + n * G) * A * S
                    run = lengths[first + n] if number else S
                    m += A * run
                    if S == 1:
                        sum_g, sum_gx = apply_row_back(
                            dy, x, dx, gamma, before * A, g * A, start, A,
                            (mu, rstd, along, back), ahead, next_mu,
                        )  # fmt: skip
                        continue
                    for a in range(A):
                        scale = get(gamma, before * A + a) * rstd
                        by_dy, by_x = apply_run_back(
                            dy, x, dx, start, start + run,
                            (mu, scale, along, back), ahead, next_mu,
                        )  # fmt: skip
                        for i in range(start + run, start + S):
                            put(dx, i, F32(0))
                        start += S
                        c = g * A + a
                        sum_g += get(gamma, c) * by_dy
                        sum_gx += get(gamma, c) * by_x
                        if n == 0:  # only batch norm has more, and A = 1 there
                            sum_dy, sum_x = 0.0, 0.0
                        sum_dy += by_dy
                        sum_x += by_x
                        if k < last and n + 1 == samples:
                            add(d_beta, p * G * A + c, F32(sum_dy))
                            add(d_gamma, p * G * A + c, F32(sum_x) * next_rstd)
                mu, rstd = next_mu, next_rstd
                # With d = x − μ: dx = (g − mean(g) − d·rstd²·mean(g·d))·rstd.
                back = -F32(sum_g / m) * rstd if centered else F32(0)
                along = -F32(sum_gx / m) * rstd * rstd * rstd
                for a in range(A if S == 1 and k < last else 0):
                    c, i = (p * G + g) * A + a, new * A + a
                    add(d_gamma, c, get(dy, i) * (get(x, i) - mu) * rstd)
                    add(d_beta, c, get(dy, i))


@kernel
def fold(parts, d_gamma, d_beta, P, C):
    """Add P parts of dγ, and P of dβ behind them: half of them to the other half."""
    parts, far = pointer(parts, 0.0), P * C
    d_gamma, d_beta = pointer(d_gamma, 0.0), pointer(d_beta, 0.0)
    while P > 1:
        half = (P + 1) // 2
        for i in range((P - half) * C):
            add(parts, i, get(parts, half * C + i))
            add(parts, far + i, get(parts, far + half * C + i))
        P = half
    for c in range(C):
        put(d_gamma, c, get(parts, c))
        put(d_beta, c, get(parts, far + c))


# Split --------------------------------------------------------------------------------


@kernel
def chunk_moments(p0, p1, c0, c1, like, x, mean, m2, lengths, K, C, S, last):
    """Mean and Σ(x − mean)² of every channel in chunks of the samples, K of each."""
    x, mean, m2 = pointer(x, like), pointer(mean, 0.0), pointer(m2, 0.0)
    for p in range(p0, p1):
        n, first, end = chunk(p, K, S, lengths)
        m = F32(end - first)
        if m == 0:
            continue
        if last:
            start = (n * S + first) * C
            for c in range(C):
                put(mean, p * C + c, F32(0))
                put(m2, p * C + c, F32(0))
            for row in range(start, (n * S + end) * C, C):
                for c in range(C):
                    add(mean, p * C + c, get(x, row + c) - get(x, start + c))
            for c in range(C):
                put(mean, p * C + c, get(x, start + c) + get(mean, p * C + c) / m)
            for row in range(start, (n * S + end) * C, C):
                for c in range(C):
                    d = get(x, row + c) - get(mean, p * C + c)
                    add(m2, p * C + c, d * d)
            continue
        for c in range(c0, c1):
            start = (n * C + c) * S
            near, total, squares = get(x, start + first), F32(0), F32(0)
            for i in range(start + first, start + end):
                total += get(x, i) - near
            mu = near + total / m
            for i in range(start + first, start + end):
                d = get(x, i) - mu
                squares += d * d
            put(mean, p * C + c, mu)
            put(m2, p * C + c, squares)


@kernel
def merge(
    means, m2s, gamma, moments, middle, scale, lengths, eps, K, N, G, A, S, batch
):
    """The moments of all chunks of a set, and y = (x − middle)·scale + β for channels.

    Channels of (n, c), or of c.
    """
    means, m2s, gamma = pointer(means, 0.0), pointer(m2s, 0.0), pointer(gamma, 0.0)
    middle, scale = pointer(middle, 0.0), pointer(scale, 0.0)
    kept, moments, C = moments != 0, pointer(moments, 0.0), G * A
    samples, sets = (N, G) if batch else (1, N * G)
    for at in range(sets):
        n, g = (0, at) if batch else (at // G, at % G)
        m, total, squares = 0, 0.0, 0.0
        for p in range(n * K, (n + samples) * K):
            _, first, end = chunk(p, K, S, lengths)
            m += (end - first) * A
            for c in range(g * A, (g + 1) * A if end > first else g * A):
                total += (end - first) * get(means, p * C + c)
        mu = total / m
        for p in range(n * K, (n + samples) * K):
            _, first, end = chunk(p, K, S, lengths)
            for c in range(g * A, (g + 1) * A if end > first else g * A):
                d = get(means, p * C + c) - mu
                squares += get(m2s, p * C + c) + (end - first) * d * d
        sigma2 = F32(squares / m)
        if kept:
            put(moments, at, F32(mu))
            put(moments, sets + at, sigma2)
        rstd = F32(1) / np.sqrt(sigma2 + F32(eps))
        for c in range(n * C + g * A, n * C + (g + 1) * A):
            put(middle, c, F32(mu))
            put(scale, c, get(gamma, c - n * C) * rstd)


@kernel
def apply(
    p0, p1, c0, c1, like, x, y, mean, scale, beta, lengths, K, C, S, batch,
    last,
):  # fmt: skip
    """y = (x − μ)·scale + β of chunks; μ and scale = γ·rstd of (n, c), or of c."""
    x, y, beta = pointer(x, like), pointer(y, like), pointer(beta, 0.0)
    mean, scale = pointer(mean, 0.0), pointer(scale, 0.0)
    for p in range(p0, p1):
        n, first, end = chunk(p, K, S, lengths)
        own = 0 if batch else n * C
        if last:
            for row in range((n * S + first) * C, (n * S + end) * C, C):
                for c in range(C):
                    d = get(x, row + c) - get(mean, own + c)
                    put(y, row + c, d * get(scale, own + c) + get(beta, c))
            continue
        for c in range(c0, c1):
            start = (n * C + c) * S
            mu, times, shift = get(mean, own + c), get(scale, own + c), get(beta, c)
            for i in range(start + first, start + end):
                put(y, i, (get(x, i) - mu) * times + shift)
            for i in range(start + end, start + S * (p % K + 1) // K):
                put(y, i, F32(0))


@kernel
def sums(
    p0, p1, c0, c1, like, dy, x, mean, by_x, by_dy, lengths, K, C, S, batch,
    last,
):  # fmt: skip
    """Σ dy·(x − μ) and Σ dy of chunks, for every channel."""
    dy, x, mean = pointer(dy, like), pointer(x, like), pointer(mean, 0.0)
    by_x, by_dy = pointer(by_x, 0.0), pointer(by_dy, 0.0)
    for p in range(p0, p1):
        n, first, end = chunk(p, K, S, lengths)
        own = 0 if batch else n * C
        if last:
            for row in range((n * S + first) * C, (n * S + end) * C, C):
                for c in range(C):
                    d = get(x, row + c) - get(mean, own + c)
                    add(by_x, p * C + c, get(dy, row + c) * d)
                    add(by_dy, p * C + c, get(dy, row + c))
            continue
        for c in range(c0, c1):
            start = (n * C + c) * S
            mu, total_x, total = get(mean, own + c), F32(0), F32(0)
            for i in range(start + first, start + end):
                total += get(dy, i)
                total_x += get(dy, i) * (get(x, i) - mu)
            put(by_x, p * C + c, total_x)
            put(by_dy, p * C + c, total)


@kernel
def merge_back(
    by_x, by_dy, gamma, moments, d_gamma, d_beta, scale, along, back, lengths, eps,
    K, N, G, A, S, batch,
):  # fmt: skip
    """dγ and dβ, and dx = dy·scale + (x − μ)·along + back, for (n, c) or for c."""
    by_x, by_dy, gamma = pointer(by_x, 0.0), pointer(by_dy, 0.0), pointer(gamma, 0.0)
    moments, scale = pointer(moments, 0.0), pointer(scale, 0.0)
    along, back = pointer(along, 0.0), pointer(back, 0.0)
    d_gamma, d_beta = pointer(d_gamma, 0.0), pointer(d_beta, 0.0)
    C, (samples, sets) = G * A, (N, G) if batch else (1, N * G)
    for c in range(C):
        put(d_gamma, c, F32(0))
        put(d_beta, c, F32(0))
    for at in range(sets):
        n, g = (0, at) if batch else (at // G, at % G)
        rstd = F32(1) / np.sqrt(get(moments, sets + at) + F32(eps))
        m, sum_g, sum_gx = 0, 0.0, 0.0
        for p in range(n * K, (n + samples) * K):
            _, first, end = chunk(p, K, S, lengths)
            m += (end - first) * A
        for c in range(g * A, (g + 1) * A):
            sum_dy, sum_x = 0.0, 0.0
            for p in range(n * K, (n + samples) * K):
                sum_dy += get(by_dy, p * C + c)
                sum_x += get(by_x, p * C + c)
            sum_g += get(gamma, c) * sum_dy
            sum_gx += get(gamma, c) * sum_x
            add(d_gamma, c, F32(sum_x) * rstd)
            add(d_beta, c, F32(sum_dy))
        for c in range(n * C + g * A, n * C + (g + 1) * A):
            put(scale, c, get(gamma, c - n * C) * rstd)
            put(along, c, -F32(sum_gx / m) * rstd * rstd * rstd)
            put(back, c, -F32(sum_g / m) * rstd)


@kernel
def apply_back(
    p0, p1, c0, c1, like, dy, x, dx, mean, scale, along, back, lengths, K, C, S, batch,
    last,
):  # fmt: skip
    """dx of chunks from what `merge_back` found."""
    dy, x, dx = pointer(dy, like), pointer(x, like), pointer(dx, like)
    mean, scale = pointer(mean, 0.0), pointer(scale, 0.0)
    along, back = pointer(along, 0.0), pointer(back, 0.0)
    for p in range(p0, p1):
        n, first, end = chunk(p, K, S, lengths)
        own = 0 if batch else n * C
        if last:
            for row in range((n * S + first) * C, (n * S + end) * C, C):
                for c in range(C):
                    d = (get(x, row + c) - get(mean, own + c)) * get(along, own + c)
                    g = get(dy, row + c) * get(scale, own + c)
                    put(dx, row + c, g + d + get(back, own + c))
            continue
        for c in range(c0, c1):
            start, at = (n * C + c) * S, own + c
            mu, times = get(mean, at), get(scale, at)
            slope, shift = get(along, at), get(back, at)
            for i in range(start + first, start + end):
                put(dx, i, get(dy, i) * times + (get(x, i) - mu) * slope + shift)
            for i in range(start + end, start + S * (p % K + 1) // K):
                put(dx, i, F32(0))


@kernel
def move(moments, mean, var, unbiased, momentum, sets, C):
    """Running statistics: (1 − momentum)·old + momentum·new, new the mean over sets."""
    moments, mean, var = pointer(moments, 0.0), pointer(mean, 0.0), pointer(var, 0.0)
    keep, share = F32(1 - momentum), F32(momentum * C / sets)
    for c in range(C):
        mu, sigma2 = 0.0, 0.0
        for at in range(c, sets, C):
            mu += get(moments, at)
            sigma2 += get(moments, sets + at)
        put(mean, c, keep * get(mean, c) + share * F32(mu))
        put(var, c, keep * get(var, c) + share * F32(unbiased) * F32(sigma2))


# The backend --------------------------------------------------------------------------


def runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this processor converts values of this type."""
    return dtype != torch.float16 or _converts()


@cache
def _converts() -> bool:
    """Whether this processor turns float16 into float32 and back."""
    triple, features = processor()
    return "+f16c" in features or triple.startswith(("aarch64", "arm64"))


def forward(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    work: Work,
    eps: float,
    lengths: Tensor | None,
    centered: bool,
    kept: bool = True,
) -> tuple[Tensor, Tensor]:
    """y, and of every set its mean (0 where not centered) and variance, (2, sets).

    Unless these are kept, their place is empty.
    """
    N, G, A, S, batch, last = work
    lengths = NOTHING if lengths is None else lengths
    y, C, like = torch.empty_like(x), G * A, LIKE[x.dtype]
    moments = empty(2, G if batch else N * G) if kept else NOTHING
    gamma, beta = _values(gamma, C, 1), _values(beta, C, 0)
    if _resident(work):
        P = 1 if batch else min(N, PARTS)
        at = _at(x, y, gamma, beta, moments, lengths)
        _run(forward_resident, x, P, G, like, *at, eps, centered, P, N, G, A, S, batch)
        return y, moments
    N, K, S = _chunks(work)
    groups = 1 if last else C
    means, m2s = zeros(N * K, C), zeros(N * K, C)
    middle, scale = empty(work.sets * A), empty(work.sets * A)
    at = _at(x, means, m2s, lengths)
    _run(chunk_moments, x, N * K, groups, like, *at, K, C, S, last)
    at = _at(means, m2s, gamma, moments, middle, scale, lengths)
    merge(*at, eps, K, N, G, A, S, batch)
    at = _at(x, y, middle, scale, beta, lengths)
    _run(apply, x, N * K, groups, like, *at, K, C, S, batch, last)
    return y, moments


def backward(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    moments: Tensor,
    work: Work,
    eps: float,
    lengths: Tensor | None,
    centered: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of x, γ and β."""
    N, G, A, S, batch, last = work
    lengths = NOTHING if lengths is None else lengths
    dx, C, like = torch.empty_like(x), G * A, LIKE[x.dtype]
    if dy.stride() != x.stride():
        dy = torch.empty_like(x).copy_(dy)
    wide = _values(gamma, C, 1)
    d_gamma, d_beta = _room(gamma, C), _room(beta, C)
    if _resident(work):
        # As many parts as pay for their sums. The shape alone decides, so that any
        # number of threads gives the same gradients.
        most = max(PARTS, N // ROWS)
        P = 1 if batch else min(N, most, 1 + 4 * x.numel() // CHUNK)
        whole = parts = _at(d_gamma, d_beta)
        if P > 1:
            room = empty(2, P, C)
            parts = [room.data_ptr(), room.data_ptr() + room.nbytes // 2]
        to = [*_at(dy, x, dx, wide, moments), *parts, *_at(lengths)]
        _run(backward_resident, x, P, G, like, *to, eps, centered, P, N, G, A, S, batch)
        if P > 1:
            fold(parts[0], *whole, P, C)
    else:
        N, K, S = _chunks(work)
        groups = 1 if last else C
        by_x, by_dy = zeros(N * K, C), zeros(N * K, C)
        scale, along, back = (empty(work.sets * A) for _ in range(3))
        middle = moments[0] if A == 1 else moments[0].repeat_interleave(A)
        at = _at(dy, x, middle, by_x, by_dy, lengths)
        _run(sums, x, N * K, groups, like, *at, K, C, S, batch, last)
        at = _at(
            by_x, by_dy, wide, moments, d_gamma, d_beta, scale, along, back, lengths
        )
        merge_back(*at, eps, K, N, G, A, S, batch)
        at = _at(dy, x, dx, middle, scale, along, back, lengths)
        _run(apply_back, x, N * K, groups, like, *at, K, C, S, batch, last)
    return dx, _as(d_gamma, gamma), _as(d_beta, beta)


def track(moments: Tensor, unbiased: Any, running: Running) -> None:
    """Move running statistics, by a kernel where it can read all of this."""
    mean, var, momentum = running
    numbers = isinstance(unbiased, NUMBER) and isinstance(momentum, NUMBER)
    if not numbers or not (_movable(mean) and _movable(var)):
        running.track(moments[0], moments[1] * unbiased)
        return
    at, sizes = _at(moments, mean, var), (moments.shape[1], mean.numel())
    move(*at, float(unbiased), float(momentum), *sizes)
    increment_version((mean, var))


def _movable(running: Tensor) -> bool:
    return (
        type(running) is Tensor
        and not running.is_neg()
        and running.dtype is torch.float32
        and running.device == FLOAT32.device
        and running.is_contiguous()
    )


def _resident(work: Work) -> bool:
    """Whether the values of a set are neighbours, or runs of them, and fit a cache."""
    if work.channels_last:
        return False
    return work.S == 1 or work.S * (work.N if work.batch else work.A) <= CACHE


def _chunks(work: Work) -> tuple[int, int, int]:
    """N, K, S: the S positions of every sample in K chunks.

    A batch of rows of channels is one sample: its rows are as good as positions.
    """
    N, G, A, S, batch, last = work
    if last and batch:
        N, S = 1, N * S
    run = max(1, min(ROWS, CHUNK // (G * A))) if last else CHUNK
    return N, -(-S // run), S


def _values(parameter: Tensor | None, C: int, otherwise: int) -> Tensor:
    """γ or β in float32; where there is none, the same number for every channel."""
    if parameter is None:
        return _constant(C, otherwise)
    return parameter if parameter.dtype is torch.float32 else parameter.float()


@lru_cache(64)
def _constant(C: int, value: int) -> Tensor:
    return torch.full((C,), value, dtype=torch.float32, device="cpu")


def _at(*tensors: Tensor) -> list[int]:
    """Where they begin in memory."""
    return list(map(Tensor.data_ptr, tensors))


def _room(parameter: Tensor | None, C: int) -> Tensor:
    """For the gradient of γ or β; where there is none, nobody asks for it."""
    if parameter is None:
        return empty(C)
    return torch.empty_like(parameter, dtype=torch.float32)


def _as(gradient: Tensor, parameter: Tensor | None) -> Tensor | None:
    """The gradient of this parameter, in its own dtype."""
    if parameter is None or parameter.dtype == torch.float32:
        return None if parameter is None else gradient
    return gradient.to(parameter.dtype)


def _run(kernel: Any, x: Tensor, parts: int, groups: int, *to: Any) -> None:
    """Call the kernel on ranges of parts, or of groups, with as many threads as torch.

    A thread that wakes late finds less left to do: who is free takes the next piece.
    """
    threads, size = 1, x.numel()
    if size >= CHUNK:
        threads = min(torch.get_num_threads(), 1 + size // CHUNK)
    if threads == 1:
        kernel(0, parts, 0, groups, *to)
        return
    # A part is one stretch of memory, a group a stretch in each of them.
    most = parts if parts >= 4 * threads else max(parts, groups)
    share(kernel, threads, min(most, PIECES * threads), parts, groups, *to)


def compile_ahead() -> None:
    """Compile every kernel, for each dtype that this processor converts."""
    for dtype in DTYPES if _converts() else (torch.float32, torch.bfloat16):
        for last in (False, True):
            x, work = zeros(2, 2, 1, 2, dtype=dtype), Work(2, 2, 1, 2, last, last)
            _, moments = forward(x, None, None, work, 1.0, None, True)
            backward(x, x, None, None, moments, work, 1.0, None, True)
    track(moments, 1.0, Running(zeros(2), zeros(2), 1.0))
