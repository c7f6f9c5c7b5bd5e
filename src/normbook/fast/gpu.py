"""Normalization on a GPU: Triton kernels, each under the formula that it computes.

A normalization layer does next to no arithmetic: its time is the bytes that it moves
between the memory and the chip. So everything here serves one aim, to read x once and
write y once (backward: read dy and x once, write dx once).

    resident pair   `_forward`, `_backward`: a set fits into the registers of one
                    program, which needs its mean before its variance before y, and
                    reads x once for all three.
    walk            `_backward_walk`: a set too large for the registers, which a program
                    reads twice, the second time out of the second-level cache.
    split pair      `_moments` and `_apply`, `_sums` and `_backward_apply`: batch norm,
                    whose sets are spread over all of x, and sets too large. Statistics
                    first, then a second reading: 3 tensors moved instead of 2, and 5
                    instead of 3.

Values are widened to float32 as they are loaded, so sums and statistics are float32
for every dtype. No atomics: every sum has an order that only sizes and the device
decide, so the same input gives the same bits.
"""

# mypy: allow-untyped-defs

import os
import shutil
from functools import cache
from math import gcd, lcm
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from normbook.fast import Task, Work

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# ---------------------------------------------------------------- the resident pair


@triton.jit
def _where(row, a, s, rows, G, S, A: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Of the values (row, a, s): where they lie, and which of them exist."""
    n, g = row // G, row % G
    if CHANNELS_LAST:
        first = n.to(tl.int64) * S * G * A + g * A
        at = s[None, None, :] * (G * A) + a[None, :, None]
    else:
        first = row.to(tl.int64) * A * S
        at = a[None, :, None] * S + s[None, None, :]
    inside = (row < rows)[:, None, None] & ((a < A)[:, None] & (s < S)[None, :])[None]
    return first[:, None, None] + at, inside


@triton.jit
def _forward(
    x_ptr, y_ptr, gamma_ptr, beta_ptr, mean_ptr, var_ptr,
    rows, G, S, eps,
    A: tl.constexpr, CENTERED: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr, AS: tl.constexpr, SS: tl.constexpr,
):  # fmt: skip
    """y = γ·(x − mean)·rstd + β. A row is a set; a program takes ROWS of them."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    a, s = tl.arange(0, AS), tl.arange(0, SS)
    at, inside = _where(row, a, s, rows, G, S, A, CHANNELS_LAST)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if CENTERED:
        mean = tl.sum(tl.sum(x, 2), 1) / (A * S)
        tl.store(mean_ptr + row, mean, mask=row < rows)
        x = tl.where(inside, x - mean[:, None, None], 0.0)
    var = tl.sum(tl.sum(x * x, 2), 1) / (
        A * S
    )  # x is in registers still: no new reading
    tl.store(var_ptr + row, var, mask=row < rows)
    y = x * (1 / tl.sqrt(var + eps))[:, None, None]
    channel = (row % G * A)[:, None] + a[None, :]
    if gamma_ptr is not None:
        gamma = tl.load(gamma_ptr + channel, mask=(a < A)[None, :], other=0.0)
        y = y * gamma.to(tl.float32)[:, :, None]
    if beta_ptr is not None:
        beta = tl.load(beta_ptr + channel, mask=(a < A)[None, :], other=0.0)
        y = y + beta.to(tl.float32)[:, :, None]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    dy_ptr, x_ptr, gamma_ptr, mean_ptr, var_ptr,
    dx_ptr, d_gamma_ptr, d_beta_ptr,
    rows, G, S, eps,
    A: tl.constexpr, CENTERED: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr, AS: tl.constexpr, SS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dx = (g − mean(g) − x_hat·mean(g·x_hat))·rstd with g = γ·dy.

    A program walks through the rows in steps that keep each in its group: so its sums
    for dγ and dβ wait in registers and go to memory once, as its part. Copies of
    the next rows are under way while it computes (STAGES).
    """
    programs = tl.num_programs(0)
    p = tl.program_id(0)
    a, s = tl.arange(0, AS), tl.arange(0, SS)
    if gamma_ptr is not None:
        gamma = _gamma(gamma_ptr, p * ROWS + tl.arange(0, ROWS), a, G, A)
    d_gamma = tl.zeros((ROWS, AS), tl.float32)
    d_beta = tl.zeros((ROWS, AS), tl.float32)
    for start in tl.range(p * ROWS, rows, programs * ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)
        at, inside = _where(row, a, s, rows, G, S, A, CHANNELS_LAST)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        var = tl.load(var_ptr + row, mask=row < rows, other=1.0)
        rstd = (1 / tl.sqrt(var + eps))[:, None, None]
        if CENTERED:
            mean = tl.load(mean_ptr + row, mask=row < rows, other=0.0)
            x -= mean[:, None, None]
        x_hat = x * rstd  # anything beyond what exists, where dy is 0
        # One sum a channel serves dγ as it is and mean(g·x_hat) after a factor γ.
        by_x_hat, by_one = tl.sum(dy * x_hat, 2), tl.sum(dy, 2)
        if d_gamma_ptr is not None:
            d_gamma += by_x_hat
            d_beta += by_one
        g = dy
        if gamma_ptr is not None:
            g = gamma[:, :, None] * dy
            by_x_hat, by_one = gamma * by_x_hat, gamma * by_one
        dx = g - x_hat * (tl.sum(by_x_hat, 1) / (A * S))[:, None, None]
        if CENTERED:
            dx -= (tl.sum(by_one, 1) / (A * S))[:, None, None]
        dx *= rstd
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    if d_gamma_ptr is not None:
        _store_part(d_gamma_ptr, d_gamma, p, a, G, A, ROWS)
        _store_part(d_beta_ptr, d_beta, p, a, G, A, ROWS)


@triton.jit
def _store_part(parts_ptr, part, p, a, G, A, ROWS: tl.constexpr):
    """What one program found for γ or β; where all rows share them, one row of it."""
    if G == 1:
        tl.store(parts_ptr + p * A + a, tl.sum(part, 0), mask=a < A)
    else:
        row = p * ROWS + tl.arange(0, ROWS)
        at = (row * A)[:, None] + a[None, :]
        tl.store(parts_ptr + at, part, mask=(a < A)[None, :])


@triton.jit
def _backward_walk(
    dy_ptr, x_ptr, gamma_ptr, mean_ptr, var_ptr,
    dx_ptr, d_gamma_ptr, d_beta_ptr,
    rows, G, S, eps,
    A: tl.constexpr, CENTERED: tl.constexpr, AS: tl.constexpr, SS: tl.constexpr,
):  # fmt: skip
    """The same of one set that registers cannot hold, in blocks of (AS, SS).

    A first walk finds the sums; the second comes back from the last block and finds
    most of dy and x in the second-level cache: memory gives them once. What a sample
    adds to dγ and dβ is its own part.
    """
    row = tl.program_id(0) + tl.arange(0, 1)
    rstd = 1 / tl.sqrt(tl.load(var_ptr + row) + eps)[:, None, None]
    mean = tl.zeros((1, 1, 1), tl.float32)
    if CENTERED:
        mean = tl.load(mean_ptr + row)[:, None, None]
    along = tl.zeros((1, AS), tl.float32)
    level = tl.zeros((1, AS), tl.float32)
    for first_a in range(0, A, AS):
        a = first_a + tl.arange(0, AS)
        by_x_hat = tl.zeros((1, AS, SS), tl.float32)
        by_one = tl.zeros((1, AS, SS), tl.float32)
        for first_s in range(0, S, SS):
            at, inside = _where(
                row, a, first_s + tl.arange(0, SS), rows, G, S, A, False
            )
            x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
            dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
            by_x_hat += dy * ((x - mean) * rstd)
            by_one += dy
        by_x_hat, by_one = tl.sum(by_x_hat, 2), tl.sum(by_one, 2)
        here = (row.to(tl.int64) * A)[:, None] + a[None, :]
        if d_gamma_ptr is not None:
            tl.store(d_gamma_ptr + here, by_x_hat, mask=(a < A)[None, :])
            tl.store(d_beta_ptr + here, by_one, mask=(a < A)[None, :])
        if gamma_ptr is not None:
            gamma = _gamma(gamma_ptr, row, a, G, A)
            by_x_hat, by_one = gamma * by_x_hat, gamma * by_one
        along += by_x_hat
        level += by_one
    along, level = tl.sum(along, 1), tl.sum(level, 1)
    for block_a in range(0, tl.cdiv(A, AS)):
        a = (tl.cdiv(A, AS) - 1 - block_a) * AS + tl.arange(0, AS)
        for block_s in range(0, tl.cdiv(S, SS)):
            s = (tl.cdiv(S, SS) - 1 - block_s) * SS + tl.arange(0, SS)
            at, inside = _where(row, a, s, rows, G, S, A, False)
            x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
            dx = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
            if gamma_ptr is not None:
                dx *= _gamma(gamma_ptr, row, a, G, A)[:, :, None]
            dx -= (x - mean) * rstd * (along / (A * S))[:, None, None]
            if CENTERED:
                dx -= (level / (A * S))[:, None, None]
            dx *= rstd
            tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gamma(gamma_ptr, row, a, G, A: tl.constexpr):
    """γ of the channels a of these rows' groups, in float32."""
    channel = (row % G * A)[:, None] + a[None, :]
    gamma = tl.load(gamma_ptr + channel, mask=(a < A)[None, :], other=0.0)
    return gamma.to(tl.float32)


# ------------------------------------------------------------------- the split pair


@triton.jit
def _block(b, t, c, P, C, R, PS: tl.constexpr, RS: tl.constexpr):
    """Block t of (P, R) at channels c: its p and r, where it lies, what exists.

    x is seen as (B, P, C, R), in this order in memory; see `_View`.
    """
    p = t // tl.cdiv(R, RS) * PS + tl.arange(0, PS)
    r = t % tl.cdiv(R, RS) * RS + tl.arange(0, RS)
    at = ((b.to(tl.int64) * P + p) * C)[:, None] + c[None, :]
    at = (at * R)[:, :, None] + r[None, None, :]
    inside = ((p < P)[:, None] & (c < C)[None, :])[:, :, None] & (r < R)[None, None, :]
    return p, r, at, inside


@triton.jit
def _of_set(ptr, b, p, c, B, P, C, A, BY_ROW: tl.constexpr):
    """A statistic of the sets that these values belong to."""
    sample = p[:, None] if BY_ROW else b
    at = sample * (C // A) + (c // A)[None, :]
    known = at < (P if BY_ROW else B) * (C // A)
    return tl.load(ptr + at, mask=known, other=1.0)[:, :, None]


@triton.jit
def _of_channel(ptr, c, r, C, R, ACROSS: tl.constexpr):
    """γ or β of these channels."""
    at = (c * R)[:, None] + r[None, :] if ACROSS else c[:, None]
    return tl.load(ptr + at, mask=at < (C * R if ACROSS else C), other=0.0).to(
        tl.float32
    )[None]


@triton.jit
def _moments(
    x_ptr, parts_ptr, B, P, C, R, K,
    CENTERED: tl.constexpr, PS: tl.constexpr, CS: tl.constexpr, RS: tl.constexpr,
):  # fmt: skip
    """Count, mean and Σ(x − mean)² of part k of K, of every (b, c).

    Two passes over each block while it is in registers; blocks, and later parts, are
    merged by the rule of Chan, Golub & LeVeque (1983), as in `normbook.moments`.
    """
    blocks = tl.cdiv(C, CS)
    c = tl.program_id(0) % blocks * CS + tl.arange(0, CS)
    k, b = tl.program_id(0) // blocks % K, tl.program_id(0) // blocks // K
    count = tl.zeros((CS,), tl.int32)  # exact, where a float would stop at 2²⁴
    mean = tl.zeros((CS,), tl.float32)
    m2 = tl.zeros((CS,), tl.float32)
    for t in range(k, tl.cdiv(P, PS) * tl.cdiv(R, RS), K):
        _, _, at, inside = _block(b, t, c, P, C, R, PS, RS)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        here = tl.sum(tl.sum(inside.to(tl.int32), 2), 0)
        if CENTERED:
            mean_here = tl.sum(tl.sum(x, 2), 0) / tl.maximum(here, 1)
            x = tl.where(inside, x - mean_here[None, :, None], 0.0)
            delta, share = mean_here - mean, here / tl.maximum(count + here, 1)
            mean += delta * share
            m2 += delta * (delta * (count * share))
        m2 += tl.sum(tl.sum(x * x, 2), 0)
        count += here
    at, far = (b * K + k) * C + c, B * K * C
    tl.store(parts_ptr + at, count.to(tl.float32), mask=c < C)
    tl.store(parts_ptr + far + at, mean, mask=c < C)
    tl.store(parts_ptr + 2 * far + at, m2, mask=c < C)


@triton.jit
def _merge(parts_ptr, mean_ptr, var_ptr, B, K, C, A, SIZE: tl.constexpr):
    """Mean and variance of a set, from its parts: K of each of its A channels."""
    pid, far = tl.program_id(0), B * K * C
    b, g = pid // (C // A), pid % (C // A)
    count = tl.zeros((SIZE,), tl.float32)
    total = tl.zeros((SIZE,), tl.float32)
    m2 = tl.zeros((SIZE,), tl.float32)
    for first in range(0, K * A, SIZE):
        q = first + tl.arange(0, SIZE)
        at = (b * K + q // A) * C + g * A + q % A
        here = tl.load(parts_ptr + at, mask=q < K * A, other=0.0)
        total += here * tl.load(parts_ptr + far + at, mask=q < K * A, other=0.0)
        count += here
    m = tl.sum(count, 0)
    mean = tl.sum(total, 0) / m
    for first in range(0, K * A, SIZE):
        q = first + tl.arange(0, SIZE)
        at = (b * K + q // A) * C + g * A + q % A
        here = tl.load(parts_ptr + at, mask=q < K * A, other=0.0)
        delta = tl.load(parts_ptr + far + at, mask=q < K * A, other=0.0) - mean
        m2 += tl.load(parts_ptr + 2 * far + at, mask=q < K * A, other=0.0)
        m2 += here * delta * delta
    if mean_ptr is not None:
        tl.store(mean_ptr + pid, mean)
    tl.store(var_ptr + pid, tl.sum(m2, 0) / m)


@triton.jit
def _place(P, C, R, PS: tl.constexpr, CS: tl.constexpr, RS: tl.constexpr):
    """b, block and channels of this program: they follow each other as in memory."""
    pid, wide = tl.program_id(0), tl.cdiv(R, RS)
    r, pid = pid % wide, pid // wide
    c, pid = pid % tl.cdiv(C, CS), pid // tl.cdiv(C, CS)
    p, b = pid % tl.cdiv(P, PS), pid // tl.cdiv(P, PS)
    return b, p * wide + r, c * CS + tl.arange(0, CS)


@triton.jit
def _apply(
    x_ptr, y_ptr, gamma_ptr, beta_ptr, mean_ptr, var_ptr,
    B, P, C, R, A, eps,
    ACROSS: tl.constexpr, PS: tl.constexpr, CS: tl.constexpr, RS: tl.constexpr,
):  # fmt: skip
    """y = γ·(x − mean)·rstd + β with statistics that are known by now."""
    b, t, c = _place(P, C, R, PS, CS, RS)
    p, r, at, inside = _block(b, t, c, P, C, R, PS, RS)
    y = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if mean_ptr is not None:
        y -= _of_set(mean_ptr, b, p, c, B, P, C, A, False)
    y *= 1 / tl.sqrt(_of_set(var_ptr, b, p, c, B, P, C, A, False) + eps)
    if gamma_ptr is not None:
        y *= _of_channel(gamma_ptr, c, r, C, R, ACROSS)
    if beta_ptr is not None:
        y += _of_channel(beta_ptr, c, r, C, R, ACROSS)
    y = tl.where(inside, y, 0.0)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _sums(
    dy_ptr, x_ptr, gamma_ptr, mean_ptr, var_ptr, parts_ptr,
    B, P, C, R, A, K, eps,
    ACROSS: tl.constexpr, BY_ROW: tl.constexpr,
    PS: tl.constexpr, CS: tl.constexpr, RS: tl.constexpr,
):  # fmt: skip
    """Σ dy·x_hat and Σ dy (of γ·dy where γ is given), in parts as `_moments` has."""
    blocks = tl.cdiv(C, CS)
    c = tl.program_id(0) % blocks * CS + tl.arange(0, CS)
    k, b = tl.program_id(0) // blocks % K, tl.program_id(0) // blocks // K
    by_x_hat = tl.zeros((PS, CS, RS), tl.float32)
    by_one = tl.zeros((PS, CS, RS), tl.float32)
    for t in range(k, tl.cdiv(P, PS) * tl.cdiv(R, RS), K):
        p, r, at, inside = _block(b, t, c, P, C, R, PS, RS)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if gamma_ptr is not None:
            g *= _of_channel(gamma_ptr, c, r, C, R, ACROSS)
        if mean_ptr is not None:
            x -= _of_set(mean_ptr, b, p, c, B, P, C, A, BY_ROW)
        var = _of_set(var_ptr, b, p, c, B, P, C, A, BY_ROW)
        by_x_hat += g * (x * (1 / tl.sqrt(var + eps)))  # g is 0 beyond what exists
        by_one += g
    at, far = (b * K + k) * C + c, B * K * C
    tl.store(parts_ptr + at, tl.sum(tl.sum(by_x_hat, 2), 0), mask=c < C)
    tl.store(parts_ptr + far + at, tl.sum(tl.sum(by_one, 2), 0), mask=c < C)


@triton.jit
def _backward_apply(
    dy_ptr, x_ptr, gamma_ptr, mean_ptr, var_ptr, by_x_hat_ptr, by_one_ptr,
    dx_ptr, B, P, C, R, A, eps,
    ACROSS: tl.constexpr, PS: tl.constexpr, CS: tl.constexpr, RS: tl.constexpr,
):  # fmt: skip
    """dx = (g − mean(g) − x_hat·mean(g·x_hat))·rstd, both means known by now."""
    b, t, c = _place(P, C, R, PS, CS, RS)
    p, r, at, inside = _block(b, t, c, P, C, R, PS, RS)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dx = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
    rstd = 1 / tl.sqrt(_of_set(var_ptr, b, p, c, B, P, C, A, False) + eps)
    if gamma_ptr is not None:
        dx *= _of_channel(gamma_ptr, c, r, C, R, ACROSS)
    if mean_ptr is not None:
        x -= _of_set(mean_ptr, b, p, c, B, P, C, A, False)
        dx -= _of_set(by_one_ptr, b, p, c, B, P, C, A, False)
    dx -= x * rstd * _of_set(by_x_hat_ptr, b, p, c, B, P, C, A, False)
    dx = tl.where(inside, dx * rstd, 0.0)
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)


# ----------------------------------------------------------------- what the layers call


class _View(NamedTuple):
    """x as the split pair sees it: (B, P, C, R), in this order in memory.

    A set spans P, R and `A` neighbouring channels of C, for one b; or, `by_row`, it
    belongs to one p. γ and β go with C or, `across`, with (C, R).
    """

    B: int
    P: int
    C: int
    R: int
    A: int = 1
    across: bool = False
    by_row: bool = False

    @classmethod
    def of(cls, w: Work) -> "_View":
        C = w.G * w.A
        if w.batch:
            return cls(1, w.N * w.S, C, 1) if w.channels_last else cls(1, w.N, C, w.S)
        if w.S == 1:
            return cls(w.N, 1, w.G, w.A, across=True)
        return cls(w.N, w.S, C, 1, w.A) if w.channels_last else cls(w.N, 1, C, w.S, w.A)

    def columns(self) -> "_View":
        """The same x where a set lies across: with its samples on P, to sum over."""
        C = self.C * self.R
        return _View(1, self.B, C, 1, self.R, by_row=True)

    def tile(self, size: int) -> dict[str, Any]:
        """A block of about `size` values, neighbours first."""
        RS = min(triton.next_power_of_2(self.R), size)
        CS = 1
        if self.R == 1:  # then channels are the neighbours: 64 fill lines of memory
            CS = min(triton.next_power_of_2(self.C), 64)
        PS = min(triton.next_power_of_2(self.P), size // (RS * CS))
        # Where samples and positions are few, as many channels as fill the block.
        CS = min(triton.next_power_of_2(self.C), size // (RS * PS))
        return {"PS": PS, "CS": CS, "RS": RS, "num_warps": size // 512}

    def grid(self, tile: dict[str, Any]) -> tuple[int]:
        """A program a block."""
        P, C = triton.cdiv(self.P, tile["PS"]), triton.cdiv(self.C, tile["CS"])
        return (self.B * P * C * triton.cdiv(self.R, tile["RS"]),)

    def parts(
        self, x: Tensor, number: int, tile: dict[str, Any]
    ) -> tuple[Tensor, int, tuple[int]]:
        """Room for `number` sums of every part, the parts K, one program for each."""
        (blocks,) = self.grid(tile)
        columns = self.B * triton.cdiv(self.C, tile["CS"])
        K = max(1, min(blocks // columns, 8 * _processors(x.device.index) // columns))
        room = x.new_empty((number, self.B, K, self.C), dtype=torch.float32)
        return room, K, (columns * K,)


# The largest tiles whose values fit the 65536 registers of a multiprocessor: forward
# keeps x, backward x_hat and g, and with γ's sums four values for each.
FORWARD, BACKWARD, SUMS = 32768, 16384, 8192


def _row_parts(x: Tensor, w: Work, tile: dict[str, Any]) -> tuple[Tensor, tuple[int]]:
    """Room for what the programs of `_backward` find for γ and β, and these programs.

    As many as run side by side, whose rows together are those of whole samples.
    """
    ROWS = tile["ROWS"]
    blocks, least = triton.cdiv(w.N * w.G, ROWS), w.G // gcd(w.G, ROWS)
    wanted = _processors(x.device.index) * max(1, 16 // tile["num_warps"])
    programs = least * max(1, min(blocks, wanted) // least)
    parts = programs if w.G == 1 else programs * ROWS // w.G
    shape = (2, parts, w.G * w.A)
    return x.new_empty(shape, dtype=torch.float32), (programs,)


def _set_parts(x: Tensor, w: Work) -> tuple[Tensor, tuple[int]]:
    """The same for `_backward_walk`, a program a set; nothing where S = 1."""
    shape = (2, w.N if w.S > 1 else 0, w.G * w.A)
    return x.new_empty(shape, dtype=torch.float32), (w.N * w.G,)


def _sum(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    mean: Tensor | None,
    var: Tensor,
    eps: float,
    view: _View,
) -> Tensor:
    """Σ dy·x_hat and Σ dy of every (b, c), with γ·dy for dy where γ is given."""
    tile = view.tile(2048)
    parts, K, grid = view.parts(x, 2, tile)
    _sums[grid](
        dy, x, gamma, mean, var, parts, *view[:5], K, eps,
        view.across, view.by_row, **tile,
    )  # fmt: skip
    return parts.sum(2)


def _rows(w: Work, itemsize: int, most: int) -> dict[str, Any] | None:
    """The tile of the resident pair, or None where sets are split."""
    AS, SS = triton.next_power_of_2(w.A), triton.next_power_of_2(w.S)
    ROWS = max(1, 2048 // (AS * SS))
    if w.G > 1 and w.channels_last:
        ROWS = gcd(ROWS, w.G)  # rows of one sample, which lie side by side
    elif w.G > 1 and most < FORWARD:
        # From step to step a row stays in its group where steps are a multiple of G.
        while lcm(ROWS, w.G) > max(w.G, w.N * w.G // 64):
            ROWS //= 2
    size = ROWS * AS * SS
    if w.batch or size > most or AS > BACKWARD:
        return None
    if w.channels_last and ROWS * w.A * itemsize < 16:
        return None  # too few neighbours for a wide load
    num_warps = min(max(1, size // 512), 32)  # 16 values a thread, 32 of the largest
    return {"ROWS": ROWS, "AS": AS, "SS": SS, "num_warps": num_warps}


# The largest set that is walked, in bytes of x: that and dy of all the sets on the way
# at one time shall find room in the second-level cache. And the values of a block.
WALKED, BLOCK = 2**17, 4096


def _walk(x: Tensor, w: Work) -> dict[str, Any] | None:
    """The tile of `_backward_walk`, or None where sets are split.

    That is where they are too large or too few to go round, or no neighbours, or where
    a channel has so few positions that its sums for dγ and dβ would be no small part.
    """
    few = _processors(x.device.index) > w.N * w.G or 1 < w.S < 16
    size = w.A * w.S * x.element_size()
    if few or w.batch or w.channels_last or size > WALKED:
        return None
    SS = min(triton.next_power_of_2(w.S), BLOCK)
    AS = min(triton.next_power_of_2(w.A), BLOCK // SS)
    return {"AS": AS, "SS": SS, "num_warps": max(1, AS * SS // 512)}


@cache
def _processors(index: int | None) -> int:
    """How many multiprocessors a GPU has."""
    if index is None:
        return 132
    return torch.cuda.get_device_properties(index).multi_processor_count


def _has_room(x: Tensor, tile: dict[str, Any]) -> bool:
    """Whether the next block of x and dy can wait in shared memory."""
    size = tile["ROWS"] * tile["AS"] * tile["SS"] * x.element_size()
    return 2 * size + 4096 <= _shared_memory(x.device.index)


@cache
def _shared_memory(index: int | None) -> int:
    """How many bytes of it a program can have."""
    if index is None:
        return 227 * 1024
    found: Any = torch.cuda.get_device_properties(index)
    return found.shared_memory_per_block_optin


def runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels are known to run on this GPU, and can be compiled here.

    Triton builds what starts a kernel with a C compiler.
    """
    gpu = torch.cuda.get_device_properties(device)
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if dtype not in DTYPES or compiler is None:
        return False
    return gpu.major >= 8 and not torch.version.hip


def forward(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, task: Task
) -> tuple[Tensor, Tensor]:
    """y, and of every set its mean (nothing where not centered) and variance."""
    work, eps, centered, _ = task
    N, G, A, S, _, channels_last = work
    y = torch.empty_like(x)
    moments = x.new_empty((2, work.sets), dtype=torch.float32)
    mean, var = moments[0] if centered else None, moments[1]
    with torch.cuda.device_of(x):
        if tile := _rows(work, x.element_size(), FORWARD):
            grid = (triton.cdiv(N * G, tile["ROWS"]),)
            _forward[grid](
                x, y, gamma, beta, mean, var, N * G, G, S, eps,
                A, centered, channels_last, **tile,
            )  # fmt: skip
            return y, moments
        view = _View.of(work)
        B, P, C, R, A, across, _ = view
        tile = view.tile(4096)
        parts, K, grid = view.parts(x, 3, tile)
        _moments[grid](x, parts, B, P, C, R, K, centered, **tile)
        _merge[(work.sets,)](parts, mean, var, B, K, C, A, 256, num_warps=1)
        _apply[view.grid(tile)](
            x, y, gamma, beta, mean, var, B, P, C, R, A, eps, across, **tile
        )
    return y, moments


def backward(
    dy: Tensor, x: Tensor, gamma: Tensor | None, moments: Tensor, task: Task
) -> tuple[Tensor, Tensor]:
    """dx, and in float32 dγ and dβ of every channel, (2, C)."""
    work, eps, centered, affine = task
    N, G, A, S, _, channels_last = work
    dx, view = torch.empty_like(x), _View.of(work)
    mean, var = moments[0] if centered else None, moments[1]
    with torch.cuda.device_of(x):
        rows = _rows(work, x.element_size(), BACKWARD)
        if tile := rows or _walk(x, work):
            # Parts of dγ and dβ: in registers, or of each sample; else read once more.
            at_once = affine and (tile["AS"] <= SUMS if rows else S > 1)
            parts, grid = _row_parts(x, work, tile) if rows else _set_parts(x, work)
            d_gamma, d_beta = parts if at_once else (None, None)
            tensors = dy, x, gamma, mean, var, dx, d_gamma, d_beta
            if rows:
                _backward[grid](
                    *tensors, N * G, G, S, eps, A, centered, channels_last, **tile,
                    STAGES=2 if at_once and _has_room(x, tile) else 1,
                )  # fmt: skip
            else:
                _backward_walk[grid](*tensors, N * G, G, S, eps, A, centered, **tile)
            if at_once or not affine:
                return dx, parts.sum(1)
            return dx, _sum(dy, x, None, mean, var, eps, view.columns()).view(2, -1)
        by = _sum(dy, x, gamma if view.across else None, mean, var, eps, view)
        if view.across:
            sums = _sum(dy, x, None, mean, var, eps, view.columns())
        else:
            sums, by = by.sum(1), by if gamma is None else by * gamma
        by = by.reshape(2, work.sets, -1).sum(2) / work.set_size
        tile = view.tile(4096)
        _backward_apply[view.grid(tile)](
            dy, x, gamma, mean, var, *by, dx, *view[:5], eps, view.across, **tile
        )
    return dx, sums.view(2, -1)


def shipped() -> list[Work]:
    """The widths and maps of common models."""
    shapes = [Work(16, 1, width, 1) for width in (768, 1024, 2048, 4096, 8192)]
    for size in (7, 14, 28, 56):
        for channels_last in (False, True):
            S = size * size
            shapes.append(Work(16, 32, 8, S, False, channels_last))
            shapes.append(Work(16, 256, 1, S, False, channels_last))
            shapes.append(Work(16, 256, 1, S, True, channels_last))
    return shapes


def compile_ahead() -> None:
    """Compile what is `shipped`, once and for all."""
    for work in shipped():
        for dtype in DTYPES:
            x = torch.zeros(work.N * work.G * work.A * work.S, device="cuda").to(dtype)
            gamma = torch.ones(work.G * work.A, device="cuda")
            for centered in (True, False) if work.S == 1 else (True,):
                task = Task(work, 1e-5, centered, affine=True)
                _, moments = forward(x, gamma, gamma if centered else None, task)
                backward(x, x, gamma, moments, task)
