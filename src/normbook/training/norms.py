"""The normalization of many small networks that stand side by side, by kind.

Copy k of S networks owns the k-th of S equal groups of channels, and copies never mix.
Batch and instance norm treat every channel alone, so one layer serves all copies; layer
norm is group norm with one group a copy. Any other method of `METHODS` gets a layer a
copy, called all at once.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from normbook import nn as nb
from normbook.functional import InputError
from normbook.methods import METHODS

GROUPS, EPS = 4, 1e-5


class SideBySide(nn.Module):
    """A layer for each copy, on its own channels: (N, S·C, ...) → (N, S·C, ...).

    With `axis` -1 the layer gets a copy's channels last, as (N, ..., C), and so treats
    every position by itself; with 1 it gets (N, C, ...). Parameters are stacked: their
    first axis is S. Evaluation is as training, for no layer here remembers anything.
    """

    def __init__(self, layers: list[nn.Module], axis: int):
        super().__init__()
        parameters, _ = stack_module_state(layers)
        self.values = nn.ParameterDict(
            {name: nn.Parameter(value.detach()) for name, value in parameters.items()}
        )
        self.copies, self.axis = len(layers), axis
        self.one = [layers[0]]  # in a list, so that its own parameters are not ours

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (self.copies, -1))
        if self.axis == -1:
            x = x.movedim(2, -1)
        y = vmap(self._call, (0, 1), 1)(dict(self.values.items()), x)
        if self.axis == -1:
            y = y.movedim(-1, 2)
        return y.flatten(1, 2)

    def _call(self, values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.one[0], values, (x,))


class WorkerBatchNorm(nb.BatchNorm):
    """Batch norm over consecutive sub-batches of `each` samples, as workers compute it.

    The sub-batches are folded into the channel axis, so any size costs the same; the
    running statistics follow the workers' mean. It calls torch's batch norm for speed:
    the tests hold it equal to this book's, one sub-batch at a time.
    """

    def __init__(self, channels: int, each: int):
        super().__init__(channels)
        self.each = each

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # no masks here
        if not self.training:
            return super().forward(x)
        workers = len(x) // self.each
        folded = self.fold(x)
        mean, var = self.running_mean.repeat(workers), self.running_var.repeat(workers)
        y = F.batch_norm(
            folded,
            mean,
            var,
            self.weight.repeat(workers),
            self.bias.repeat(workers),
            training=True,
            momentum=self.momentum,
            eps=self.eps,
        )
        self.running_mean.copy_(mean.view(workers, -1).mean(0))
        self.running_var.copy_(var.view(workers, -1).mean(0))
        return self.unfold(y)

    def fold(self, x: Tensor) -> Tensor:
        """Sub-batches side by side as channels: (N, C, ...) → (n, N/n·C, ...)."""
        if len(x) % self.each:
            raise InputError(
                f"a batch must divide into its sub-batches; got {len(x)} samples and "
                f"sub-batches of {self.each}. Use a multiple of {self.each} samples."
            )
        return x.unflatten(0, (-1, self.each)).transpose(0, 1).flatten(1, 2)

    def unfold(self, y: Tensor) -> Tensor:
        """What `fold` did, undone."""
        return y.unflatten(1, (-1, self.num_features)).transpose(0, 1).flatten(0, 1)


class Noise(nn.Module):
    """In training, another random mean and scale for every channel at every step.

    With the constants of Santurkar et al. 2018, appendix A: the shift of a channel is
    drawn from ±0.5 and its factor from 1 to 1.25, once a step; each sample then adds
    its own shift from ±0.1 and factor with a standard deviation of 0.1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        samples, channels = x.shape[:2]

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=self.generator)

        shift = (uniform(1, channels) - 0.5) + 0.2 * (uniform(samples, channels) - 0.5)
        jitter = torch.randn(samples, channels, generator=self.generator)
        scale = 1 + 0.25 * uniform(1, channels) + 0.1 * jitter
        fit = (samples, channels) + (1,) * (x.ndim - 2)
        return x * scale.view(fit) + shift.view(fit)


class PositionRMSNorm(nn.Module):
    """RMSNorm over the channels of each copy at each position of (N, S·C, ...).

    What `SideBySide` gives, at a third of its time.
    """

    def __init__(self, copies: int, channels: int):
        super().__init__()
        # Of four axes, so that the decay of SGD takes γ along, as in the records.
        self.weight = nn.Parameter(torch.ones(copies, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        each = x.unflatten(1, self.weight.shape[:2])
        square = each.square().mean(2, keepdim=True)
        gamma = self.weight.view(*self.weight.shape[:2], *[1] * (x.ndim - 2))
        return (each * (square + EPS).rsqrt() * gamma).flatten(1, 2)


class DynamicTanh(nn.Module):
    """γ tanh(α x) + β, with one α a network: (N, S·C, ...) → (N, S·C, ...).

    Source: Zhu et al. 2025. With `erf` it is Derf, γ erf(α x + s) + β, with one s a
    network that starts at 0 (Chen et al. 2025).
    """

    def __init__(self, copies: int, channels: int, *, erf: bool = False):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((copies, 1), 0.5))
        self.shift = nn.Parameter(torch.zeros(copies, 1)) if erf else None
        self.weight = nn.Parameter(torch.ones(copies, channels))
        self.bias = nn.Parameter(torch.zeros(copies, channels))

    def forward(self, x: Tensor) -> Tensor:
        positions = [1] * (x.ndim - 2)
        alpha, gamma, beta = (
            value.view(*value.shape, *positions)
            for value in (self.alpha, self.weight, self.bias)
        )
        x = x.unflatten(1, self.weight.shape)
        if self.shift is None:
            curve = torch.tanh(alpha * x)
        else:
            curve = torch.erf(alpha * x + self.shift.view(-1, 1, *positions))
        return (gamma * curve + beta).flatten(1, 2)


def norm(
    kind: str,
    copies: int,
    channels: int,
    *,
    each: int | None = None,
    groups: int = GROUPS,
    native: bool = False,
) -> nn.Module:
    """The normalization of `copies` networks with `channels` channels each.

    `kind` is the key of a method of `METHODS`, none, noisy BN, DyT or Derf. LN is over
    all of a copy's channels and positions, as in Wu & He's figure; RMSNorm, and any
    method of the last axis that is new to this module, is over the channels of a
    position.

    `each`, for BN, is the size of the sub-batches that share statistics; by default
    they are those of the whole batch. `groups`, for methods with groups, is their
    number, at most one a channel. `native` takes torch's own layers in place of this
    book's, where one layer serves all copies. Raises InputError for another kind.
    """
    width, groups = copies * channels, min(groups, channels)
    methods = {
        key: method.build_native if native else method.build
        for key, method in METHODS.items()
    }
    special: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "noisy BN": lambda: nn.Sequential(nb.BatchNorm(width), Noise()),
        "DyT": lambda: DynamicTanh(copies, channels),
        "Derf": lambda: DynamicTanh(copies, channels, erf=True),
        "BN": lambda: WorkerBatchNorm(width, each) if each else nb.BatchNorm(width),
        "LN": lambda: methods["GN"](width, copies),
        "IN": lambda: methods["IN"](width, groups),
        "GN": lambda: methods["GN"](width, groups * copies),
        "RMSNorm": lambda: PositionRMSNorm(copies, channels),
    }
    if kind in special:
        return special[kind]()
    if kind not in METHODS:
        known = ", ".join(dict.fromkeys([*special, *METHODS]))
        raise InputError(f"kind must be one of {known}; got {kind!r}.")
    method = METHODS[kind]
    layers = [method.build(channels, groups) for _ in range(copies)]
    return SideBySide(layers, method.axis)
