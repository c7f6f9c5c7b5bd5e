"""Many small networks trained at once, side by side.

A stack of S networks keeps its activations side by side in the channel axis: copy k
owns the k-th of S equal groups of channels. A linear map becomes a batched product and
a convolution a grouped one; their norms are in `norms`. Copies never mix: each has its
own first weights, order of images, learning rate and statistics. Only the shifts of
moved images come from one generator for all copies, so a seed's net is another one in
another stack. Training eight at once costs far less than training one eight times.

The first axis of every parameter is split by copy, so `parameter.view(S, -1)` has one
row for each.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from normbook import data
from normbook import nn as nb
from normbook.data import CLASSES, Part, Split
from normbook.training.norms import GROUPS, WorkerBatchNorm, norm

Seeds = Sequence[int]
Record = dict[str, Any]
SEEDS = (0, 1, 2)
BATCH, WIDTHS = 32, (16, 32, 64)  # of the usual training on MNIST
Batches = Iterator[tuple[Tensor, Tensor]]
CHANCE = 100 * (1 - 1 / CLASSES)


# ------------------------------------------------------------------ layers


class Linear(nn.Module):
    """S linear maps side by side: (N, S·I) → (N, S·O)."""

    def __init__(self, copies: int, inputs: int, outputs: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(copies, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(copies, outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (len(self.weight), -1)).transpose(0, 1)
        y = torch.bmm(x, self.weight)
        if self.bias is not None:
            y = y + self.bias[:, None]
        return y.transpose(0, 1).flatten(1)


# ---------------------------------------------------------------- networks


class Logits(nn.Module):
    """The last layer's (N, S·10), one row of ten a copy: (N, S, 10)."""

    def __init__(self, copies: int):
        super().__init__()
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.copies, CLASSES))


def dense(
    seeds: Seeds,
    kind: str,
    *,
    inputs: int,
    depth: int,
    width: int,
    activation: type[nn.Module] = nn.ReLU,
    gain: float = 2.0,
    each: int | None = None,
) -> nn.Sequential:
    """Fully connected networks, one a seed: (N, S, H, W) images to (N, S, 10) logits.

    `depth` hidden layers of `width` units, normalized before the activation. First
    weights are Gaussian with variance gain/inputs: 2 is He's for ReLU, 1 Xavier's for
    square maps.
    """
    copies = len(seeds)
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in in [inputs] + [width] * (depth - 1):
        layers += [
            Linear(copies, fan_in, width, bias=kind == "none"),
            norm(kind, copies, width, each=each),
            activation(),
        ]
    layers += [Linear(copies, width, CLASSES), Logits(copies)]
    return initialize(nn.Sequential(*layers), seeds, gain)


def convolutional(
    seeds: Seeds,
    kind: str,
    *,
    widths: Sequence[int] = WIDTHS,
    per_size: int = 1,
    stride: int = 2,
    pooled: bool = True,
    inputs: int = 1,
    size: int = 14,
    activation: type[nn.Module] = nn.ReLU,
    gain: float = 2.0,
    each: int | None = None,
    groups: int = GROUPS,
    native: bool = False,
) -> nn.Sequential:
    """Convolutional networks, one a seed: (N, S·I, H, W) images to (N, S, 10) logits.

    3×3 convolutions, each with its norm and activation; the first of every width has
    the `stride`, `per_size` - 1 more keep the map. The linear layer sees the mean of
    each last map, or with `pooled` false all of it, for images of `size` pixels a side.
    Images have `inputs` channels, I. `each`, `groups` and `native` as in `norm`, gain
    as in `dense`.
    """
    copies, channels = len(seeds), inputs
    layers: list[nn.Module] = []
    for width in widths:
        for step in [stride] + [1] * (per_size - 1):
            layers += [
                nn.Conv2d(
                    copies * channels,
                    copies * width,
                    kernel_size=3,
                    stride=step,
                    padding=1,
                    groups=copies,
                    bias=kind == "none",
                ),
                norm(kind, copies, width, each=each, groups=groups, native=native),
                activation(),
            ]
            channels, size = width, -(-size // step)
    if pooled:
        layers.append(nn.AdaptiveAvgPool2d(1))
    features = channels if pooled else channels * size * size
    layers += [nn.Flatten(), Linear(copies, features, CLASSES), Logits(copies)]
    return initialize(nn.Sequential(*layers), seeds, gain)


@torch.no_grad()
def initialize(net: nn.Sequential, seeds: Seeds, gain: float) -> nn.Sequential:
    """Give every copy the first weights that its seed would give it alone.

    Their variance is gain/inputs, and 1/inputs in the last layer.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    maps = [layer for layer in net if isinstance(layer, (Linear, nn.Conv2d))]
    for layer in maps:
        fan_in = layer.weight[0].numel()
        if isinstance(layer, Linear):
            fan_in = layer.weight.shape[1]
        variance = (1 if layer is maps[-1] else gain) / fan_in
        rows = layer.weight.view(len(seeds), -1)
        drawn = [torch.randn(rows.shape[1], generator=g) for g in generators]
        rows.copy_(torch.stack(drawn) * math.sqrt(variance))
        if layer.bias is not None:
            layer.bias.zero_()
    return net


# ----------------------------------------------------------------- batches


def shuffled(part: Part, seeds: Seeds, batch: int, shift: int = 0) -> Batches:
    """Endless batches x (batch, S, H, W), y (batch, S): each copy in its own order.

    With `shift`, every image moves by up to that many pixels, at random, each way.
    """
    generators = [torch.Generator().manual_seed(1000 + seed) for seed in seeds]
    moves = torch.Generator().manual_seed(77)
    per_epoch = len(part.y) // batch
    while True:
        order = torch.stack(
            [torch.randperm(len(part.y), generator=g) for g in generators], dim=1
        )
        for indices in order[: per_epoch * batch].split(batch):
            x = part.x[indices]
            yield (moved(x, shift, moves) if shift else x), part.y[indices]


def grouped(part: Part, seeds: Seeds, by_class: bool) -> Batches:
    """Endless batches of 120, twelve of each class, sorted by class or shuffled."""
    generators = [torch.Generator().manual_seed(1000 + seed) for seed in seeds]
    members = [torch.nonzero(part.y == label).flatten() for label in range(CLASSES)]

    def draw(generator: torch.Generator) -> Tensor:
        chosen = [
            same[torch.randperm(len(same), generator=generator)[:12]]
            for same in members
        ]
        indices = torch.cat(chosen)
        order = torch.randperm(len(indices), generator=generator)
        return indices if by_class else indices[order]

    while True:
        indices = torch.stack([draw(generator) for generator in generators], dim=1)
        yield part.x[indices], part.y[indices]


def moved(x: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Each image of x (N, S, H, W) moved by its own random number of pixels."""
    *lead, height, width = x.shape
    padded = F.pad(x, (shift,) * 4, value=x.min().item())

    def window(size: int) -> Tensor:
        start = torch.randint(0, 2 * shift + 1, lead, generator=generator)
        return start[..., None] + torch.arange(size)

    rows = window(height)[..., None].expand(*lead, height, padded.shape[-1])
    columns = window(width)[..., None, :].expand(*lead, height, width)
    return padded.gather(-2, rows).gather(-1, columns)


# ---------------------------------------------------------------- training


def crossed(rates: Sequence[float], seeds: Seeds) -> tuple[list[int], list[float]]:
    """A copy for each rate and seed, rates × seeds: the seed and the rate of each."""
    return [seed for _ in rates for seed in seeds], [r for r in rates for _ in seeds]


class SGD:
    """Gradient descent with momentum, and a rate for each copy.

    Weights decay; biases and the scale and shift of a norm do not.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        rates: Sequence[float],
        momentum: float = 0.9,
        decay: float = 0.0,
    ):
        self.parameters = list(parameters)
        self.rates = torch.tensor(rates)[:, None]
        self.momentum, self.decay = momentum, decay
        self.velocities = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Iterable[Tensor], factor: float = 1.0) -> None:
        """One update, with every rate multiplied by `factor`."""
        rates = factor * self.rates
        for p, g, v in zip(self.parameters, gradients, self.velocities, strict=True):
            v.mul_(self.momentum).add_(g)
            if self.decay and p.ndim > 2:
                v.add_(p, alpha=self.decay)
            p.sub_((rates * v.view(len(rates), -1)).view_as(p))


def losses(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of each copy, in nats: (N, S, 10), (N, S) → (S)."""
    each = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    return each.view(y.shape).mean(0)


def train(
    net: nn.Module,
    batches: Batches,
    *,
    steps: int,
    rates: Sequence[float],
    momentum: float = 0.9,
    decay: float = 0.0,
    cosine: bool = False,
    frozen: bool = False,
    watch: Callable[[int], None] | None = None,
) -> Tensor:
    """Train every copy for `steps` steps; return the losses (steps, S).

    `rates` holds one learning rate a copy; `cosine` lowers them to zero along half a
    wave. `frozen` leaves batch norm in evaluation mode: its running statistics stay,
    and every step uses them. `watch(step)` is called after each step; a bar shows in a
    terminal. A copy that overflows takes none with it.
    """
    optimizer = SGD(net.parameters(), rates, momentum, decay)
    history = torch.empty(steps, len(rates))
    net.train()
    for layer in batch_norms(net):
        layer.train(not frozen)
    bar = tqdm(range(steps), leave=False, disable=None)
    for step, (x, y) in zip(bar, batches, strict=False):
        loss = losses(net(x), y)
        gradients = torch.autograd.grad(loss.sum(), optimizer.parameters)
        factor = (1 + math.cos(math.pi * step / steps)) / 2 if cosine else 1.0
        optimizer.step(gradients, factor)
        history[step] = loss.detach()
        if watch:
            watch(step)
    net.eval()
    return history


def train_on_images(
    net: nn.Module,
    part: Part,
    seeds: Seeds,
    *,
    steps: int,
    rates: Sequence[float],
    batch: int = BATCH,
    shift: int = 2,
    **settings: Any,
) -> Tensor:
    """The usual training: what `train` does, with what most experiments choose.

    Momentum 0.9, weight decay 1e-4, rates falling along half a cosine wave, images
    moved by up to `shift` pixels. `settings` are those of `train`.
    """
    batches = shuffled(part, seeds, batch, shift=shift)
    usual = {"decay": 1e-4, "cosine": True}
    return train(net, batches, steps=steps, rates=rates, **usual | settings)


@cache
def trained_on_mnist(
    kind: str,
    seeds: tuple[int, ...],
    rates: tuple[float, ...],
    *,
    steps: int,
    batch: int = BATCH,
    widths: tuple[int, ...] = WIDTHS,
    **settings: Any,
) -> nn.Sequential:
    """A stack of `convolutional` after its usual training on MNIST at 14×14.

    One copy for each pair of seed and rate. Remembered, because several experiments ask
    the same nets: who changes one takes a copy. Batch norm takes sub-batches, of the
    whole `batch` while it trains. `settings` are those of `convolutional`.
    """
    net = convolutional(seeds, kind, widths=widths, each=batch, **settings)
    part = data.mnist().train
    train_on_images(net, part, seeds, steps=steps, rates=rates, batch=batch)
    return net


# -------------------------------------------------------------- evaluation


@torch.no_grad()
def errors(net: nn.Module, part: Part, copies: int, batch: int = 500) -> Tensor:
    """Share of `part` that each copy gets wrong, in %; an overflow counts as chance."""
    wrong, finite = torch.zeros(copies), torch.ones(copies, dtype=torch.bool)
    for x, y in zip(part.x.split(batch), part.y.split(batch), strict=True):
        logits = net(side_by_side(x, copies))
        wrong += (logits.argmax(2) != y[:, None]).sum(0)
        finite &= logits.isfinite().all(2).all(0)
    return torch.where(finite, 100 * wrong / len(part.y), CHANCE)


def errors_by_rate(
    net: nn.Module, split: Split, rates: Sequence[float], seeds: Seeds
) -> Record:
    """Errors in % of copies that are `crossed`, and at the rate validation prefers.

    `validation` and `tests` are rates × seeds; `rate` has the lowest mean validation
    error, and `test` has the test errors there, one a seed.
    """
    copies = len(rates) * len(seeds)
    validation = errors(net, split.validation, copies).view(len(rates), -1)
    best = int(validation.mean(1).argmin())
    tests = errors(net, split.test, copies).view(len(rates), -1)
    return {
        "rates": list(rates),
        "validation": validation.tolist(),
        "tests": tests.tolist(),
        "rate": rates[best],
        "test": tests[best].tolist(),
    }


def thinned(curve: Tensor, every: int) -> list[list[float]]:
    """A curve (steps, seeds) as means over `every` steps."""
    return [part.mean(0).tolist() for part in curve.split(every)]


def mean_cosine(h: Tensor) -> Tensor:
    """The mean cosine between two different rows of each copy: (N, S, F) → (S)."""
    unit = F.normalize(h, dim=2)
    count = len(h)
    return (unit.sum(0).square().sum(1) - count) / (count * (count - 1))


def side_by_side(x: Tensor, copies: int) -> Tensor:
    """The same images for every copy: (N, H, W) → (N, S, H, W)."""
    return x[:, None].expand(-1, copies, -1, -1)


def batch_norms(net: nn.Module) -> list[nb.BatchNorm]:
    """The layers of `net` that keep running statistics."""
    return [layer for layer in net.modules() if isinstance(layer, nb.BatchNorm)]


@contextmanager
def batch_statistics(net: nn.Module, each: int | None = None) -> Iterator[None]:
    """Within, batch norm uses a batch's own statistics; what it has learned stays.

    `each` sets the size of the sub-batches, where the net has them.
    """
    layers = batch_norms(net)
    kept = {name: buffer.clone() for name, buffer in net.named_buffers()}
    sizes = [layer.each for layer in layers if isinstance(layer, WorkerBatchNorm)]
    _set_workers(layers, [each or size for size in sizes])
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        net.eval()
        _set_workers(layers, sizes)
        for name, buffer in net.named_buffers():
            buffer.copy_(kept[name])


def _set_workers(layers: Iterable[nn.Module], sizes: Sequence[int]) -> None:
    workers = [layer for layer in layers if isinstance(layer, WorkerBatchNorm)]
    for layer, size in zip(workers, sizes, strict=True):
        layer.each = size


@contextmanager
def recalibrated(net: nn.Module, x: Tensor, copies: int) -> Iterator[None]:
    """Within, running statistics are the plain mean over x, in batches of 200."""
    with batch_statistics(net, each=200):
        layers = batch_norms(net)
        momenta = [layer.momentum for layer in layers]
        with torch.no_grad():
            for count, images in enumerate(x.split(200), start=1):
                for layer in layers:
                    layer.momentum = 1 / count
                net(side_by_side(images, copies))
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        net.eval()
        yield
