"""Where statistics come first and a second kernel reads x again, on either device.

What is known of each sample and channel is kept in float32 vectors (B, C). Between the
kernels a few operations of torch on these vectors will do. γ is of any dtype, or None.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from normbook.fast import Work


class View(NamedTuple):
    """x as both backends see it here, (B, P, C, R): in the order of memory.

    A set is of one of B samples: all P and R, and A neighbours of its C channels.
    """

    B: int
    P: int
    C: int
    R: int

    @classmethod
    def of(cls, work: Work) -> "View":
        """Batch norm's samples are positions; in channels_last all positions are P."""
        N, G, A, S, batch, channels_last = work
        B, P = (1, N) if batch else (N, 1)
        return cls(B, P * S, G * A, 1) if channels_last else cls(B, P, G * A, S)


def merged(count: Tensor, mean: Tensor, m2: Tensor) -> Tensor:
    """Mean and variance of every set, (2, sets), from the moments of its parts.

    mean and m2, and count broadcast to them: (B, K, G, A), K parts of each of the A
    channels of a set. Chan, Golub & LeVeque (1983), as in `normbook.moments`.
    """
    count, mean, m2 = count.double(), mean.double(), m2.double()
    m = count.expand_as(mean).sum((1, 3), keepdim=True)
    mu = (count * mean).sum((1, 3), keepdim=True) / m
    squares = m2 + count * (mean - mu).square()
    var = squares.sum((1, 3), keepdim=True) / m
    return torch.stack((mu.flatten(), var.flatten())).float()


def of_channels(
    moments: Tensor, gamma: Tensor | None, eps: float, B: int, A: int
) -> tuple[Tensor, Tensor]:
    """μ and γ·rstd of every channel, each (B, C)."""
    mean, var = moments.repeat_interleave(A, 1).view(2, B, -1)
    scale = (var + eps).rsqrt()
    return mean, scale if gamma is None else scale * gamma.float()


def of_channels_back(
    by: Tensor, moments: Tensor, gamma: Tensor | None, eps: float, m: int
) -> tuple[Tensor, Tensor, Tensor]:
    """dx = dy·γ·rstd + (x − μ)·slope + shift of every channel; and dγ and dβ, (2, C).

    by: Σ dy·(x − μ) and Σ dy over each channel, (2, B, C); m values to a set.
    With d = x − μ: dx = (g − mean(g) − d·rstd²·mean(g·d))·rstd.
    """
    _, B, C = by.shape
    by = by.double()
    rstd = (moments[1].double() + eps).rsqrt().view(B, -1, 1)
    g = by if gamma is None else by * gamma.double()
    mean_gd, mean_g = g.view(2, B, rstd.shape[1], -1).sum(3, keepdim=True) / m
    per_set = torch.stack((-mean_gd * rstd**3, -mean_g * rstd))
    A = C // rstd.shape[1]
    slope, shift = per_set.expand(-1, -1, -1, A).reshape(2, B, C).float()
    by[0] *= rstd.expand(-1, -1, A).reshape(B, C)
    return slope, shift, by.sum(1).float()
