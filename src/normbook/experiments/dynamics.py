"""What batch norm does on the way: gradients, the loss around, distributions, weights.

Each function returns a plain record, as in `normbook.experiments.batch_norm`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbook import data
from normbook.experiments.stacked import (
    SEEDS,
    SGD,
    Record,
    Seeds,
    batch_statistics,
    convolutional,
    dense,
    errors,
    losses,
    shuffled,
    side_by_side,
    thinned,
    train,
)


def gradient_growth(
    kind: str,
    *,
    residual: bool = False,
    depth: int = 50,
    width: int = 128,
    activation: type[nn.Module] = nn.ReLU,
    gain: float = 2.0,
    seeds: Seeds = SEEDS,
) -> Record:
    """Gradients and similarities of a deep net at its first weights, layer by layer.

    128 digits, `width` units a layer, gain as in `dense`. `gradient` holds the norm of
    the gradient at each pre-activation and `cosine` the mean cosine between the
    activations of two images, as layers × seeds. `growth` is the factor by which a
    layer multiplies the gradient on its way down, from layer depth - 5 to layer 5.
    Source of the theory, √(π/(π−1)) a layer for batch norm: Yang et al. 2019.
    """
    digits, copies = data.digits(), len(seeds)
    net = dense(
        seeds,
        kind,
        inputs=64,
        depth=depth,
        width=width,
        activation=activation,
        gain=gain,
    ).train()
    x, y = digits.train.x[:128], digits.train.y[:128]
    h = net[0](side_by_side(x, copies))
    pre_activations, cosines = [], []
    hidden = list(net)[1:-2]
    layers = zip(hidden[0::3], hidden[1::3], hidden[2::3], strict=True)
    for index, (linear, normalization, activate) in enumerate(layers):
        z = normalization(linear(h))
        a = activate(z)
        h = h + a if residual and index else a
        pre_activations.append(z)
        cosines.append(_mean_cosine(a.detach().unflatten(1, (copies, -1))))
    loss = losses(net[-1](net[-2](h)), y[:, None].expand(-1, copies)).sum()
    gradients = torch.autograd.grad(loss, pre_activations)
    norms = torch.stack(
        [g.unflatten(1, (copies, -1)).square().sum((0, 2)).sqrt() for g in gradients]
    )
    between = depth - 10
    growth = (norms[4] / norms[depth - 6]) ** (1 / between)
    return {
        "kind": kind,
        "residual": residual,
        "gradient": norms.tolist(),
        "cosine": torch.stack(cosines).tolist(),
        "growth": growth.tolist(),
    }


def landscape(
    kind: str,
    *,
    rate: float = 0.03,
    seeds: Seeds = SEEDS,
    steps: int = 200,
    every: int = 10,
) -> Record:
    """The loss along the gradient, seen from points of a training run.

    The nets of `rates_that_train`. At every `every`-th step the loss is measured after
    ½, 1, 2 and 4 times the step `rate` × gradient on the same batch: `lowest` and
    `highest` of these losses, and the `cosine` between the gradients here and there
    that is smallest, each as points × seeds. After Santurkar et al. 2018, figure 4.
    """
    net = dense(seeds, kind, inputs=64, depth=8, width=64).train()
    batches = shuffled(data.digits().train, seeds, 64)
    optimizer = SGD(net.parameters(), [rate] * len(seeds))
    at, here, lowest, highest, cosine = [], [], [], [], []
    for step, (x, y) in zip(range(steps), batches, strict=False):
        loss, gradients = _loss_and_gradients(net, x, y)
        if step % every == 0:
            reached, cosines = _look_ahead(net, x, y, gradients, rate)
            at.append(step)
            here.append(loss.tolist())
            lowest.append(reached.amin(0).tolist())
            highest.append(reached.amax(0).tolist())
            cosine.append(cosines.amin(0).tolist())
        optimizer.step(gradients)
    return {
        "kind": kind,
        "rate": rate,
        "steps": at,
        "loss": here,
        "lowest": lowest,
        "highest": highest,
        "cosine": cosine,
    }


def _loss_and_gradients(
    net: nn.Module, x: Tensor, y: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    loss = losses(net(x), y)
    return loss.detach(), torch.autograd.grad(loss.sum(), list(net.parameters()))


def _look_ahead(
    net: nn.Module, x: Tensor, y: Tensor, gradients: Sequence[Tensor], rate: float
) -> tuple[Tensor, Tensor]:
    """Losses, and cosines with `gradients`, at 4 places along them: (4, S) each."""
    parameters = list(net.parameters())
    start = [p.detach().clone() for p in parameters]
    reached, cosines = [], []
    for reach in (0.5, 1.0, 2.0, 4.0):
        _place(parameters, start, gradients, reach * rate)
        loss, there = _loss_and_gradients(net, x, y)
        copies = len(loss)
        here_rows = torch.cat([g.view(copies, -1) for g in gradients], dim=1)
        there_rows = torch.cat([g.view(copies, -1) for g in there], dim=1)
        reached.append(loss)
        cosines.append(F.cosine_similarity(here_rows, there_rows))
    _place(parameters, start, gradients, 0.0)
    return torch.stack(reached), torch.stack(cosines)


@torch.no_grad()
def _place(
    parameters: Sequence[Tensor],
    start: Sequence[Tensor],
    gradients: Sequence[Tensor],
    distance: float,
) -> None:
    for p, origin, g in zip(parameters, start, gradients, strict=True):
        p.copy_(origin - distance * g)


# ------------------------------------------- distributions, weights over time


def distributions(
    kind: str,
    *,
    rate: float = 0.3,
    seeds: Seeds = SEEDS,
    steps: int = 400,
    every: int = 10,
) -> Record:
    """How the input of one sigmoid moves over training, and how it differs by depth.

    Three layers of 100 sigmoid units on MNIST at 14×14, batches of 60, first weights of
    variance 1/inputs: the setting of Ioffe & Szegedy 2015, section 4.1. Percentiles 15,
    50 and 85 of pre-activations over 500 validation images. `over_training` follows the
    first unit of the last hidden layer: points × 3 × seeds. `over_depth` shows every
    layer's units, pooled, at the first and the last step: 2 × layers × 3 × seeds.
    """
    mnist, copies = data.mnist(), len(seeds)
    net = dense(
        seeds,
        kind,
        inputs=196,
        depth=3,
        width=100,
        activation=nn.Sigmoid,
        gain=1.0,
    )
    probe = side_by_side(mnist.validation.x, copies)
    levels = torch.tensor([0.15, 0.5, 0.85])
    at: list[int] = []
    over_training: list[list[list[float]]] = []

    @torch.no_grad()
    def look() -> list[Tensor]:
        """The input of every sigmoid: (images, S, units) each."""
        h, seen = net[0](probe), []
        for layer in list(net)[1:-2]:
            if isinstance(layer, nn.Sigmoid):
                seen.append(h.unflatten(1, (copies, -1)))
            h = layer(h)
        return seen

    def pooled(seen: list[Tensor]) -> list[list[list[float]]]:
        flat = [z.transpose(1, 2).flatten(0, 1) for z in seen]
        return [torch.quantile(z, levels, dim=0).tolist() for z in flat]

    def watch(step: int) -> None:
        if step % every == 0:
            with batch_statistics(net):
                last = look()[-1][:, :, 0]
            net.train()
            at.append(step)
            over_training.append(torch.quantile(last, levels, dim=0).tolist())

    with batch_statistics(net):
        first = pooled(look())
    train(
        net,
        shuffled(mnist.train, seeds, 60),
        steps=steps,
        rates=[rate] * copies,
        watch=watch,
    )
    with batch_statistics(net):
        final = pooled(look())
    return {
        "kind": kind,
        "rate": rate,
        "steps": at,
        "percentiles": [15, 50, 85],
        "over_training": over_training,
        "over_depth": [first, final],
        "test": errors(net, mnist.test, copies).tolist(),
    }


def weight_norm(
    decay: float,
    *,
    rate: float = 0.5,
    seeds: Seeds = SEEDS,
    steps: int = 1000,
    every: int = 20,
) -> Record:
    """The norm of weights before batch norm, and how far they turn at each step.

    The second of three convolutions (16-32-64) on MNIST at 14×14, batches of 64, plain
    SGD at a constant rate. `norm2` is ‖w‖² and `turn` the angle between w before and
    after one step in radians, each as points × seeds. Theory at equilibrium: √(2 · rate
    · decay).
    """
    mnist, copies = data.mnist(), len(seeds)
    net = convolutional(seeds, "BN")
    weight = [layer for layer in net if isinstance(layer, nn.Conv2d)][1].weight
    norms, turns = [], []
    before = weight.detach().view(copies, -1).clone()

    def watch(step: int) -> None:
        nonlocal before
        after = weight.detach().view(copies, -1).clone()
        norms.append(after.square().sum(1))
        chord = F.normalize(after) - F.normalize(before)
        turns.append(2 * torch.asin(chord.norm(dim=1) / 2))
        before = after

    train(
        net,
        shuffled(mnist.train, seeds, 64),
        steps=steps,
        rates=[rate] * copies,
        momentum=0.0,
        decay=decay,
        watch=watch,
    )
    rises = (torch.stack(norms).diff(dim=0) > 0).float().mean(0)
    return {
        "rate": rate,
        "decay": decay,
        "theory": math.sqrt(2 * rate * decay),
        "steps": list(range(0, steps, every)),
        "norm2": thinned(torch.stack(norms), every),
        "turn": thinned(torch.stack(turns), every),
        "share_of_rises": rises.tolist(),
        "test": errors(net, mnist.test, copies).tolist(),
    }


def _mean_cosine(a: Tensor) -> Tensor:
    """Mean cosine between two different images: (N, S, units) → (S)."""
    unit = F.normalize(a, dim=2)
    count = len(unit)
    return (unit.sum(0).square().sum(1) - count) / (count * (count - 1))
