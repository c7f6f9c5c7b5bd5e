"""Normalization on a GPU: Triton kernels, each under the formula that it computes.

A normalization layer does next to no arithmetic: its time is the bytes that it moves
between the memory and the chip. So everything here serves one aim, to read x once and
write y once (backward: read dy and x once, write dx once).

    resident pair   `_forward`, `_backward`: a set fits into the registers of one
                    program, which needs its mean before its variance before y, and
                    reads x once for all three.
    split pair      `_moments` and `_apply`, `_sums` and `_apply_back`: batch norm,
                    whose sets are spread over all of x, and sets too large. Statistics
                    first, then a second reading: 3 tensors moved instead of 2, and 5
                    instead of 3.

Values become float32 as they are loaded, and so are sums and statistics. No atomics:
only sizes and the device decide the order of a sum: the same input, the same bits.
"""

# mypy: allow-untyped-defs

import os
import shutil
from functools import cache
from itertools import product
from math import gcd, lcm, prod
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from normbook.fast import Task, Work
from normbook.fast.split import View, merged, of_channels, of_channels_back

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


H100 = SimpleNamespace(multi_processor_count=132, shared_memory_per_block_optin=232448)


@cache
def _gpu(index: int | None) -> Any:
    """What this GPU has; where there is none, as in the interpreter, an H100."""
    return H100 if index is None else torch.cuda.get_device_properties(index)


# The resident pair --------------------------------------------------------------------
#
# A row is a set. x as (N, G, A, S) = (2, 2, 2, 3), a to d its channels, ROWS = 2:
#
#     aaa bbb|ccc ddd   aaa bbb|ccc ddd     program 0 takes rows 0 and 1, program 1 the
#     row 0   row 1     row 2   row 3       others; in channels_last row 0 is
#     abcd abcd abcd    abcd abcd abcd      ab·· ab·· ab··
#
# A block has the shape (ROWS, AS, SS): A and S rounded up to powers of two.


@triton.jit
def _place(row, a, s, rows, G, S, A: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Of the values (row, a, s): where they lie, and which of them exist.

    A 64-bit start a row and a 32-bit place in it: together they would take registers.
    """
    if CHANNELS_LAST:
        first = (row // G).to(tl.int64) * S * G * A + row % G * A
        at = s[None, None, :] * (G * A) + a[None, :, None]
    else:
        first = row.to(tl.int64) * A * S
        at = a[None, :, None] * S + s[None, None, :]
    inside = (row < rows)[:, None, None] & ((a < A)[:, None] & (s < S)[None, :])[None]
    return first[:, None, None], at, inside


@triton.jit
def _of_channel(ptr, row, a, G, A: tl.constexpr):
    """γ or β of the channels a of these rows' groups, in float32."""
    channel = (row % G * A)[:, None] + a[None, :]
    return tl.load(ptr + channel, mask=(a < A)[None, :], other=0.0).to(tl.float32)


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
    first, at, inside = _place(row, a, s, rows, G, S, A, CHANNELS_LAST)
    x = tl.load(x_ptr + first + at, mask=inside, other=0.0).to(tl.float32)
    if CENTERED:
        mean = tl.sum(tl.sum(x, 2), 1) / (A * S)
        tl.store(mean_ptr + row, mean, mask=row < rows)
        x = tl.where(inside, x - mean[:, None, None], 0.0)
    var = tl.sum(tl.sum(x * x, 2), 1) / (A * S)  # x is in registers still
    tl.store(var_ptr + row, var, mask=row < rows)
    y = x * (1 / tl.sqrt(var + eps))[:, None, None]
    if gamma_ptr is not None:
        y = y * _of_channel(gamma_ptr, row, a, G, A)[:, :, None]
    if beta_ptr is not None:
        y = y + _of_channel(beta_ptr, row, a, G, A)[:, :, None]
    tl.store(y_ptr + first + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    dy_ptr, x_ptr, gamma_ptr, mean_ptr, var_ptr,
    dx_ptr, d_gamma_ptr, d_beta_ptr,
    rows, G, S, eps,
    A: tl.constexpr, CENTERED: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr, AS: tl.constexpr, SS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dx = (g − mean(g) − x_hat·mean(g·x_hat))·rstd with g = γ·dy.

    A program takes the rows p, p + programs, …, each in steps of ROWS, and all of one
    place in it belong to one group: so its sums for dγ and dβ wait in registers and go
    to memory once, as its part. Copies of the next rows are under way while it computes
    (STAGES).
    """
    programs = tl.num_programs(0)
    p = tl.program_id(0)
    a, s = tl.arange(0, AS), tl.arange(0, SS)
    if gamma_ptr is not None:
        gamma = _of_channel(gamma_ptr, p * ROWS + tl.arange(0, ROWS), a, G, A)
    d_gamma = tl.zeros((ROWS, AS), tl.float32)
    d_beta = tl.zeros((ROWS, AS), tl.float32)
    for start in tl.range(p * ROWS, rows, programs * ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)
        first, at, inside = _place(row, a, s, rows, G, S, A, CHANNELS_LAST)
        x = tl.load(x_ptr + first + at, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + first + at, mask=inside, other=0.0).to(tl.float32)
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
        tl.store(dx_ptr + first + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    if d_gamma_ptr is not None:
        _store_part(d_gamma_ptr, d_gamma, p, a, G, A, ROWS)
        _store_part(d_beta_ptr, d_beta, p, a, G, A, ROWS)


@triton.jit
def _store_part(parts_ptr, part, p, a, G, A, ROWS: tl.constexpr):
    """What one program summed for γ or β; where all rows share them, one row of it."""
    if G == 1:
        tl.store(parts_ptr + p * A + a, tl.sum(part, 0), mask=a < A)
    else:
        row = p * ROWS + tl.arange(0, ROWS)
        at = (row * A)[:, None] + a[None, :]
        tl.store(parts_ptr + at, part, mask=(a < A)[None, :])


# The largest tiles whose values fit the 65536 registers of a multiprocessor: forward
# keeps x, backward x_hat and g, and with γ's sums four values for each.
FORWARD, BACKWARD, SUMS = 32768, 16384, 8192
LONGEST_ROW = BACKWARD


def _rows(w: Work, itemsize: int, most: int) -> dict[str, Any] | None:
    """The tile of the resident pair, or None where a set does not fit."""
    AS, SS = triton.next_power_of_2(w.A), triton.next_power_of_2(w.S)
    ROWS = max(1, 2048 // (AS * SS))
    if w.G > 1 and w.channels_last:
        ROWS = gcd(ROWS, w.G)  # rows of one sample, which lie side by side
    elif w.G > 1 and most < FORWARD:
        # From step to step a row stays in its group where steps are a multiple of G.
        while lcm(ROWS, w.G) > max(w.G, w.N * w.G // 64):
            ROWS //= 2
    size = ROWS * AS * SS
    if w.batch or size > most:
        return None
    if w.channels_last and ROWS * w.A * itemsize < 16:
        return None  # too few neighbours for a wide load
    num_warps = min(max(1, size // 512), 32)  # 16 values a thread, 32 of the largest
    return {"ROWS": ROWS, "AS": AS, "SS": SS, "num_warps": num_warps}


def _row_parts(x: Tensor, w: Work, tile: dict[str, Any]) -> tuple[Tensor, tuple[int]]:
    """Room for what the programs of `_backward` find for γ and β, and these programs.

    As many as run side by side, whose rows together are those of whole samples.
    """
    ROWS = tile["ROWS"]
    blocks, least = triton.cdiv(w.N * w.G, ROWS), w.G // gcd(w.G, ROWS)
    processors = _gpu(x.device.index).multi_processor_count
    wanted = processors * max(1, 16 // tile["num_warps"])
    programs = least * max(1, min(blocks, wanted) // least)
    parts = programs if w.G == 1 else programs * ROWS // w.G
    shape = (2, parts, w.G * w.A)
    return x.new_empty(shape, dtype=torch.float32), (programs,)


# The split pair -----------------------------------------------------------------------
#
# x as (B, P, C, R) in the order of memory; a set spans P, R and some neighbours of C:
#
#     BN             (1, N, C, S)     aaa bbb ccc  aaa bbb ccc     P = 2 samples, R = 3
#     channels_last  (N, S, C, 1)     abc abc abc  abc abc abc     P = 3 positions
#     a large set    (N, 1, C, S)     aaa bbb ccc  aaa bbb ccc     B = 2 samples
#
# A block has the shape (PS, CS, RS). What is known of a channel is a vector (B, C).


@triton.jit
def _block(t, b, c, P, C, R, PS: tl.constexpr, RS: tl.constexpr):
    """Block t of (P, R) at channels c: where its values lie, which exist, and its p."""
    p = t // tl.cdiv(R, RS) * PS + tl.arange(0, PS)
    r = t % tl.cdiv(R, RS) * RS + tl.arange(0, RS)
    at = ((b.to(tl.int64) * P + p) * C)[:, None] + c[None, :]
    at = (at * R)[:, :, None] + r[None, None, :]
    inside = ((p < P)[:, None] & (c < C)[None, :])[:, :, None] & (r < R)[None, None, :]
    return at, inside, p


@triton.jit
def _part(C, K, CS: tl.constexpr):
    """b, part k of K, and the channels c, of a program that sums."""
    pid, blocks = tl.program_id(0), tl.cdiv(C, CS)
    c = pid % blocks * CS + tl.arange(0, CS)
    return pid // blocks // K, pid // blocks % K, c


@triton.jit
def _turn(P, C, R, PS: tl.constexpr, CS: tl.constexpr, RS: tl.constexpr):
    """b, block t and channels c of a program that applies, in the order of memory."""
    pid, wide = tl.program_id(0), tl.cdiv(R, RS)
    r, pid = pid % wide, pid // wide
    c, pid = pid % tl.cdiv(C, CS), pid // tl.cdiv(C, CS)
    p, b = pid % tl.cdiv(P, PS), pid // tl.cdiv(P, PS)
    return b, p * wide + r, c * CS + tl.arange(0, CS)


@triton.jit
def _known(ptr, at, c, C):
    """What is known of the channels c."""
    return tl.load(ptr + at, mask=c < C, other=0.0).to(tl.float32)[None, :, None]


@triton.jit
def _moments(
    x_ptr, parts_ptr, B, P, C, R, K,
    PS: tl.constexpr, CS: tl.constexpr, RS: tl.constexpr,
):  # fmt: skip
    """Count, mean and Σ(x − mean)² of part k of K, of every (b, c).

    Two passes over each block while it is in registers; blocks, and later parts, are
    merged by the rule of Chan, Golub & LeVeque (1983), as in `normbook.moments`.
    """
    b, k, c = _part(C, K, CS)
    count = tl.zeros((CS,), tl.int32)  # exact, where a float would stop at 2²⁴
    mean = tl.zeros((CS,), tl.float32)
    m2 = tl.zeros((CS,), tl.float32)
    for t in range(k, tl.cdiv(P, PS) * tl.cdiv(R, RS), K):
        at, inside, _ = _block(t, b, c, P, C, R, PS, RS)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        here = tl.sum(tl.sum(inside.to(tl.int32), 2), 0)
        mean_here = tl.sum(tl.sum(x, 2), 0) / tl.maximum(here, 1)
        x = tl.where(inside, x - mean_here[None, :, None], 0.0)
        delta, share = mean_here - mean, here / tl.maximum(count + here, 1)
        mean += delta * share
        m2 += delta * (delta * (count * share)) + tl.sum(tl.sum(x * x, 2), 0)
        count += here
    at, far = (b * K + k) * C + c, B * K * C
    tl.store(parts_ptr + at, count.to(tl.float32), mask=c < C)
    tl.store(parts_ptr + far + at, mean, mask=c < C)
    tl.store(parts_ptr + 2 * far + at, m2, mask=c < C)


@triton.jit
def _apply(
    x_ptr, y_ptr, mean_ptr, scale_ptr, beta_ptr, P, C, R,
    PS: tl.constexpr, CS: tl.constexpr, RS: tl.constexpr,
):  # fmt: skip
    """y = (x − mean)·scale + β, where scale = γ·rstd."""
    b, t, c = _turn(P, C, R, PS, CS, RS)
    at, inside, _ = _block(t, b, c, P, C, R, PS, RS)
    y = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = (y - _known(mean_ptr, b * C + c, c, C)) * _known(scale_ptr, b * C + c, c, C)
    if beta_ptr is not None:
        y += _known(beta_ptr, c, c, C)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _sums(
    dy_ptr, x_ptr, mean_ptr, rstd_ptr, parts_ptr, B, P, C, R, A, K,
    PS: tl.constexpr, CS: tl.constexpr, RS: tl.constexpr,
):  # fmt: skip
    """Σ dy·(x − mean) and Σ dy of part k of K, of every (b, c).

    Or, with rstd, of resident rows: mean and rstd are those of sets of A channels of
    row p, and the sum is Σ dy·x_hat.
    """
    b, k, c = _part(C, K, CS)
    by_d = tl.zeros((PS, CS, RS), tl.float32)
    by_dy = tl.zeros((PS, CS, RS), tl.float32)
    for t in range(k, tl.cdiv(P, PS) * tl.cdiv(R, RS), K):
        at, inside, p = _block(t, b, c, P, C, R, PS, RS)
        d = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if rstd_ptr is not None:
            of_set = (p * (C // A))[:, None] + (c // A)[None, :]
            there = (p < P)[:, None] & (c < C)[None, :]
            d -= tl.load(mean_ptr + of_set, mask=there, other=0.0)[:, :, None]
            d *= tl.load(rstd_ptr + of_set, mask=there, other=0.0)[:, :, None]
        else:
            d -= _known(mean_ptr, b * C + c, c, C)
        by_d += dy * d  # dy is 0 beyond what exists
        by_dy += dy
    at, far = (b * K + k) * C + c, B * K * C
    tl.store(parts_ptr + at, tl.sum(tl.sum(by_d, 2), 0), mask=c < C)
    tl.store(parts_ptr + far + at, tl.sum(tl.sum(by_dy, 2), 0), mask=c < C)


@triton.jit
def _apply_back(
    dy_ptr, x_ptr, dx_ptr, mean_ptr, scale_ptr, slope_ptr, shift_ptr, P, C, R,
    PS: tl.constexpr, CS: tl.constexpr, RS: tl.constexpr,
):  # fmt: skip
    """dx = dy·scale + (x − mean)·slope + shift."""
    b, t, c = _turn(P, C, R, PS, CS, RS)
    at, inside, _ = _block(t, b, c, P, C, R, PS, RS)
    d = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dx = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dx *= _known(scale_ptr, b * C + c, c, C)
    d = (d - _known(mean_ptr, b * C + c, c, C)) * _known(slope_ptr, b * C + c, c, C)
    dx += d + _known(shift_ptr, b * C + c, c, C)
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)


def _tile(view: View, size: int) -> dict[str, Any]:
    """A block of about `size` values, neighbours first."""
    _, P, C, R = map(triton.next_power_of_2, view)
    RS = min(R, size)
    # Where channels are the neighbours 64 fill lines of memory.
    PS = min(P, size // (RS * (min(C, 64) if R == 1 else 1)))
    # Where samples and positions are few, as many channels as fill the block.
    CS = min(C, size // (RS * PS))
    return {"PS": PS, "CS": CS, "RS": RS, "num_warps": size // 512}


def _grid(view: View, tile: dict[str, Any]) -> tuple[int]:
    """A program a block."""
    B, P, C, R = view
    sizes = (P, tile["PS"]), (C, tile["CS"]), (R, tile["RS"])
    return (B * prod(triton.cdiv(length, step) for length, step in sizes),)


def _parts(
    view: View, x: Tensor, number: int, tile: dict[str, Any]
) -> tuple[Tensor, int, tuple[int]]:
    """Room for `number` sums of every part, the parts K, one program for each."""
    (blocks,) = _grid(view, tile)
    columns = view.B * triton.cdiv(view.C, tile["CS"])
    programs = 8 * _gpu(x.device.index).multi_processor_count
    K = max(1, min(blocks, programs) // columns)
    room = x.new_empty((number, view.B, K, view.C), dtype=torch.float32)
    return room, K, (columns * K,)


# The backend --------------------------------------------------------------------------


def runs(device: torch.device) -> bool:
    """Whether kernels are known to run on this GPU, and can be compiled here.

    Triton builds what starts a kernel with a C compiler.
    """
    gpu = torch.cuda.get_device_properties(device)
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return compiler is not None and gpu.major >= 8 and not torch.version.hip


def forward(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, task: Task
) -> tuple[Tensor, Tensor]:
    """y, and of every set its mean (nothing where not centered) and variance."""
    work, eps, centered, _ = task
    N, G, A, S, _, channels_last = work
    y = torch.empty_like(x)
    with torch.cuda.device_of(x):
        if tile := _rows(work, x.element_size(), FORWARD):
            moments = x.new_empty((2, work.sets), dtype=torch.float32)
            grid = (triton.cdiv(N * G, tile["ROWS"]),)
            _forward[grid](
                x, y, gamma, beta, *moments, N * G, G, S, eps,
                A, centered, channels_last, **tile,
            )  # fmt: skip
            return y, moments
        view = View.of(work)
        tile = _tile(view, 4096)
        parts, K, grid = _parts(view, x, 3, tile)
        _moments[grid](x, parts, *view, K, **tile)
        moments = merged(*parts.view(3, view.B, K, G, A))
        mean, scale = of_channels(moments, gamma, eps, view.B, A)
        _apply[_grid(view, tile)](x, y, mean, scale, beta, *view[1:], **tile)
    return y, moments


def backward(
    dy: Tensor, x: Tensor, gamma: Tensor | None, moments: Tensor, task: Task
) -> tuple[Tensor, Tensor]:
    """dx, and in float32 dγ and dβ of every channel, (2, C)."""
    work, eps, centered, affine = task
    N, G, A, S, _, channels_last = work
    dx = torch.empty_like(x)
    with torch.cuda.device_of(x):
        if tile := _rows(work, x.element_size(), BACKWARD):
            at_once = affine and tile["AS"] <= SUMS  # else dy and x are read once more
            parts, grid = _row_parts(x, work, tile)
            d_gamma, d_beta = parts if at_once else (None, None)
            # The next block of x and dy waits in shared memory, where there is room.
            waiting = 2 * prod((tile["ROWS"], tile["AS"], tile["SS"], x.itemsize))
            room = _gpu(x.device.index).shared_memory_per_block_optin - 4096
            _backward[grid](
                dy, x, gamma, *moments, dx, d_gamma, d_beta, N * G, G, S, eps,
                A, centered, channels_last, **tile,
                STAGES=2 if at_once and waiting <= room else 1,
            )  # fmt: skip
            if at_once or not affine:
                return dx, parts.sum(1)
            columns = View(1, N, G * A, 1)
            rstd = (moments[1] + eps).rsqrt()
            mean = moments[0] if centered else torch.zeros_like(rstd)
            return dx, _sum(dy, x, mean, rstd, columns, A)[:, 0]
        view = View.of(work)
        mean, scale = of_channels(moments, gamma, eps, view.B, A)
        by = _sum(dy, x, mean, None, view, A)
        slope, shift, sums = of_channels_back(by, moments, gamma, eps, work.set_size)
        tile = _tile(view, 4096)
        _apply_back[_grid(view, tile)](
            dy, x, dx, mean, scale, slope, shift, *view[1:], **tile
        )
    return dx, sums


def _sum(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor | None, view: View, A: int
) -> Tensor:
    """What `_sums` sums, (2, B, C)."""
    tile = _tile(view, 2048)
    parts, K, grid = _parts(view, x, 2, tile)
    _sums[grid](dy, x, mean, rstd, parts, *view, A, K, **tile)
    return parts.sum(2)


def shipped() -> list[Work]:
    """The widths and maps of common models."""
    works = [Work(16, 1, width, 1) for width in (768, 1024, 2048, 4096, 8192)]
    for size, channels_last in product((7, 14, 28, 56), (False, True)):
        maps = Work(16, 256, 1, size * size, False, channels_last)
        works += [maps._replace(G=32, A=8), maps, maps._replace(batch=True)]
    return works
