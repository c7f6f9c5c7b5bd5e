"""The networks of chapter 5, and two cures for small batches, each a small function.

`batch_renorm` and `standardized_weights` are the mathematics; `use_batch_renorm` and
`use_weight_standardization` put them into a stack of networks. A third, ghost batch
norm (Hoffer et al. 2017), needs no code: it is `WorkerBatchNorm` with sub-batches.

Convolutional nets for MNIST at 14×14, every layer halving the map: `A` has three
(widths 16-32-64, last map 2×2), `B` a fourth (64, last map 1×1); `C` has two (16-32)
for the 8×8 digits (last map 2×2).
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normbook import core, data, functional
from normbook import nn as nb
from normbook.experiments.stacked import (
    Seeds,
    WorkerBatchNorm,
    convolutional,
    shuffled,
    train,
)

NETS = {"A": (16, 32, 64), "B": (16, 32, 64, 64), "C": (16, 32)}
RATE, BATCH = 0.1, 32

# ------------------------------------------------------------------ variants


def batch_renorm(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    r_max: float,
    d_max: float,
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm, moved towards the running statistics `mean` and `var`.

    y = r·x̂ + d with r = σ_batch/σ and d = (μ_batch − μ)/σ, each held within
    [1/r_max, r_max] and [−d_max, d_max] and constant for the gradient. With no bounds
    y is what evaluation mode gives; with r_max = 1 and d_max = 0 it is batch norm. x:
    (N, C, ...); `mean` and `var` have shape (C,). Ioffe (2017).
    """
    sets = functional.batch_sets(x.shape)
    with torch.no_grad():
        batch = functional.moments(x, sets)
        ones = (1, -1) + (1,) * (x.ndim - 2)
        std = (var + eps).sqrt().view(ones)
        r = ((batch.var() + eps).sqrt() / std).clamp(1 / r_max, r_max)
        d = ((batch.mean - mean.view(ones)) / std).clamp(-d_max, d_max)
    return r * nb.plain(x, sets, None, None, eps).y + d


def standardized_weights(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Every filter with mean 0 and mean square 1/fan_in, whatever its size was.

    weight: (out, in, ...). A norm behind takes any common factor out again. Qiao et al.
    (2019).
    """
    fan_in = weight[0].numel()
    axes = tuple(range(1, weight.ndim))
    w_hat, _ = core.standardize(weight, axes, eps / fan_in)
    return w_hat / fan_in**0.5


class WorkerBatchRenorm(WorkerBatchNorm):
    """Batch renorm over consecutive sub-batches of `each` samples.

    `share` of the training that has passed sets the bounds: batch norm for its first
    quarter, then r_max up to 3 and d_max up to 5 by its half. The paper does this over
    fixed numbers of steps.
    """

    share = 0.0

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # no masks here
        if not self.training:
            return super().forward(x)
        folded = self.fold(x)
        workers = len(x) // self.each
        opened = min(max(4 * self.share - 1, 0.0), 1.0)
        y = batch_renorm(
            folded,
            self.running_mean.repeat(workers),
            self.running_var.repeat(workers),
            r_max=1 + 2 * opened,
            d_max=5 * opened,
            eps=self.eps,
        )
        with torch.no_grad():
            batch = functional.moments(folded, functional.batch_sets(folded.shape))
            for buffer, value in (
                (self.running_mean, batch.mean),
                (self.running_var, batch.var(correction=1)),
            ):
                buffer.lerp_(value.view(workers, -1).mean(0), self.momentum)
        fit = (-1,) + (1,) * (x.ndim - 2)
        return core.affine(self.unfold(y), self.weight.view(fit), self.bias.view(fit))


class _Standardized(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return standardized_weights(weight)


def use_batch_renorm(net: nn.Sequential) -> list[WorkerBatchRenorm]:
    """Put batch renorm wherever `net` has batch norm; return the new layers."""
    layers = []
    for place, layer in enumerate(net):
        if isinstance(layer, WorkerBatchNorm):
            net[place] = new = WorkerBatchRenorm(layer.num_features, layer.each)
            layers.append(new)
    return layers


def use_weight_standardization(net: nn.Sequential) -> None:
    """From now on every convolution of `net` uses its standardized weights."""
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            parametrize.register_parametrization(layer, "weight", _Standardized())


# ------------------------------------------------------------------ networks


def build(
    net: str, kind: str, seeds: Seeds, each: int | None, groups: int, steps: int
) -> tuple[nn.Sequential, Callable[[int], None]]:
    """Networks of one kind, and what they want called after every training step."""
    base, *more = kind.split(" + ")
    of = "BN" if base == "batch renorm" else base
    stack = convolutional(seeds, of, widths=NETS[net], each=each, groups=groups)
    if more:
        use_weight_standardization(stack)
    renorms = use_batch_renorm(stack) if base == "batch renorm" else []

    def watch(step: int) -> None:
        for layer in renorms:
            layer.share = (step + 1) / steps

    return stack, watch


@cache
def upright(
    net: str, kind: str, seeds: tuple[int, ...], times: int, steps: int
) -> nn.Sequential:
    """The stack before tuning: each seed `times` times, for as many rates."""
    copies = seeds * times
    stack, _ = build(net, kind, copies, BATCH, 4, steps)
    train(
        stack,
        shuffled(data.mnist().train, copies, BATCH, shift=2),
        steps=steps,
        rates=[RATE] * len(copies),
        decay=1e-4,
        cosine=True,
    )
    return stack
