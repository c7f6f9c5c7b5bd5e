"""What batch norm does to training: the runs of chapter 2.

Every function returns a plain record: lists with one number a seed, and the settings
that they belong to. Errors are shares of the test images in %, losses are in nats.
Rates are chosen on the validation images. First comes which nets train, then what
happens on the way, then what comes of statistics that a batch shares. `python -m
normbook.labs.batch_norm` makes the long runs and keeps them in
`records/batch_norm.json`; with names of runs behind it, only those.

The nets of the last part are small convolutional ones on MNIST at 14×14 (three layers,
16-32-64, each halving the map), trained with SGD, rate 0.05 falling along half a cosine
wave, momentum 0.9, batches of 32 and random shifts of up to 2 pixels, unless a function
says otherwise.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbook import data
from normbook.data import Part
from normbook.functional import InputError
from normbook.labs import record_long_runs
from normbook.training.stacked import (
    BATCH,
    SEEDS,
    SGD,
    WIDTHS,
    Batches,
    Linear,
    Record,
    Seeds,
    batch_norms,
    batch_statistics,
    convolutional,
    crossed,
    dense,
    errors,
    errors_by_rate,
    grouped,
    losses,
    mean_cosine,
    recalibrated,
    shuffled,
    side_by_side,
    thinned,
    train,
    trained_on_mnist,
)

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


# ------------------------------------------------- deep nets, rates, scales


def rates_that_train(
    kind: str,
    *,
    depth: int = 8,
    width: int = 64,
    activation: type[nn.Module] = nn.ReLU,
    batch: int = 64,
    gain: float = 2.0,
    rates: Sequence[float] = RATES,
    seeds: Seeds = SEEDS,
    steps: int = 300,
) -> Record:
    """Errors of fully connected nets on the digits, one row a learning rate.

    `depth` layers of `width` units, momentum 0.9, constant rate. The record has
    `validation` and `test` errors and the last `loss`, each as rates × seeds, the place
    `best` of the rate with the lowest mean validation error, and that rate's test
    errors `chosen`.
    """
    digits = data.digits()
    copies, per_copy = crossed(rates, seeds)
    net = dense(
        copies,
        kind,
        inputs=64,
        depth=depth,
        width=width,
        activation=activation,
        gain=gain,
    )
    history = train(
        net, shuffled(digits.train, copies, batch), steps=steps, rates=per_copy
    )
    validation = _grid(errors(net, digits.validation, len(copies)), seeds)
    test = _grid(errors(net, digits.test, len(copies)), seeds)
    last = history[-15:].mean(0).nan_to_num(99.0).clamp(max=99.0)
    best = min(range(len(rates)), key=lambda row: sum(validation[row]))
    return {
        "kind": kind,
        "depth": depth,
        "steps": steps,
        "rates": list(rates),
        "validation": validation,
        "test": test,
        "loss": _grid(last, seeds),
        "best": best,
        "chosen": test[best],
    }


def scales_that_train(
    kind: str,
    *,
    scales: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    rates: Sequence[float] = (0.01, 0.03, 0.1, 0.3),
    seeds: Seeds = SEEDS,
    steps: int = 300,
    **settings: Any,
) -> Record:
    """Test errors at each multiple of He's initial standard deviation.

    The nets of `rates_that_train` with its `settings` (depth, width, activation,
    batch); each scale at the rate that its validation error prefers. `test` is scales ×
    seeds.
    """
    settings |= {"rates": rates, "seeds": seeds, "steps": steps}
    runs = [rates_that_train(kind, gain=2 * scale**2, **settings) for scale in scales]
    return {
        "kind": kind,
        "steps": steps,
        "scales": list(scales),
        "rates": [rates[run["best"]] for run in runs],
        "test": [run["chosen"] for run in runs],
    }


def depths_that_train(
    kind: str,
    *,
    depths: Sequence[int] = (10, 20, 30, 50),
    rates: Sequence[float] = (0.001, 0.01, 0.03, 0.1, 0.3),
    seeds: Seeds = SEEDS,
    steps: int = 300,
    **settings: Any,
) -> Record:
    """Test errors by depth, each at the rate that its validation error prefers.

    The nets of `rates_that_train` with its `settings` (width, activation, batch,
    gain). `test` is depths × seeds.
    """
    settings |= {"rates": rates, "seeds": seeds, "steps": steps}
    runs = [rates_that_train(kind, depth=depth, **settings) for depth in depths]
    return {
        "kind": kind,
        "steps": steps,
        "depths": list(depths),
        "rates": [rates[run["best"]] for run in runs],
        "test": [run["chosen"] for run in runs],
    }


def deep_sigmoid(
    kind: str,
    *,
    depth: int = 6,
    width: int = 100,
    activation: type[nn.Module] = nn.Sigmoid,
    gain: float = 1.0,
    batch: int = 64,
    rates: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0),
    seeds: Seeds = SEEDS,
    steps: int = 300,
    every: int = 10,
) -> Record:
    """Six layers of 100 sigmoid units on the digits: losses, errors, moving inputs.

    After Santurkar et al. 2018, who add noise after batch norm so that the
    distributions move more, and see training stay good. `gain` as in `dense`: 16 makes
    the initial weights 4 times as large. `loss` and `drift` are curves, one row for
    `every` steps and one column a seed, at the rate that the validation error prefers.
    Drift is that of the inputs of the last hidden layer but one over the same 200
    validation images, in training mode: how far the mean of a unit moves in `every`
    steps, in its standard deviations over these images, averaged over units.
    `test` uses running statistics, `test_batch` those of test batches of 500.
    """
    digits = data.digits()
    copies, per_copy = crossed(rates, seeds)
    net = dense(
        copies,
        kind,
        inputs=64,
        depth=depth,
        width=width,
        activation=activation,
        gain=gain,
    )
    probe = side_by_side(digits.validation.x[:200], len(copies))
    places = [at for at, layer in enumerate(net) if isinstance(layer, Linear)]
    below = net[: places[max(depth - 2, 0)]]

    @torch.no_grad()
    def look() -> tuple[Tensor, Tensor]:
        """Mean and deviation of every unit that the watched layer reads: (S, units)."""
        with batch_statistics(net):
            x = below(probe).flatten(1).unflatten(1, (len(copies), -1))
        return x.mean(0), x.std(0)

    moments = [look()]

    def watch(step: int) -> None:
        if (step + 1) % every == 0:
            moments.append(look())
            net.train()

    history = train(
        net,
        shuffled(digits.train, copies, batch),
        steps=steps,
        rates=per_copy,
        watch=watch,
    )
    drift = torch.stack(
        [
            ((after - before).abs() / std.clamp(min=1e-6)).mean(1)
            for (before, std), (after, _) in pairwise(moments)
        ]
    )

    validation = _grid(errors(net, digits.validation, len(copies)), seeds)
    test = _grid(errors(net, digits.test, len(copies)), seeds)
    with batch_statistics(net):
        test_batch = _grid(errors(net, digits.test, len(copies)), seeds)
    best = min(range(len(rates)), key=lambda row: sum(validation[row]))
    columns = slice(best * len(seeds), (best + 1) * len(seeds))
    return {
        "kind": kind,
        "gain": gain,
        "steps": list(range(0, steps, every)),
        "rate": rates[best],
        "loss": thinned(history[:, columns], every),
        "drift": drift[:, columns].tolist(),
        "validation": validation[best],
        "test": test[best],
        "test_batch": test_batch[best],
    }


def _grid(values: Tensor, seeds: Seeds) -> list[list[float]]:
    """One value a copy as rows of one value a seed."""
    return values.view(-1, len(seeds)).tolist()


# ------------------------------- on the way: gradients, the loss around, weights


def gradient_growth(
    kind: str,
    *,
    residual: bool = False,
    depth: int = 50,
    width: int = 128,
    activation: type[nn.Module] = nn.ReLU,
    gain: float = 2.0,
    batch: int = 128,
    seeds: Seeds = SEEDS,
) -> Record:
    """Gradients and similarities of a deep net at its first weights, layer by layer.

    `batch` digits, `width` units a layer, gain as in `dense`. `gradient` holds the norm
    of the gradient at each pre-activation and `cosine` the mean cosine between the
    activations of two images, as layers × seeds. `growth` is the factor by which a
    layer multiplies the gradient on its way down, from layer depth - 5 to layer 5; so
    fewer than 11 layers raise InputError. Source of the theory, √(π/(π−1)) a layer for
    batch norm: Yang et al. 2019.
    """
    if depth < 11:
        raise InputError(
            "growth is measured from layer depth - 5 down to layer 5; got a depth of "
            f"{depth}. Use 11 layers or more."
        )
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
    x, y = digits.train.x[:batch], digits.train.y[:batch]
    h = net[0](side_by_side(x, copies))
    pre_activations, cosines = [], []
    hidden = list(net)[1:-2]
    layers = zip(hidden[0::3], hidden[1::3], hidden[2::3], strict=True)
    for index, (linear, normalization, activate) in enumerate(layers):
        z = normalization(linear(h))
        a = activate(z)
        h = h + a if residual and index else a
        pre_activations.append(z)
        cosines.append(mean_cosine(a.detach().unflatten(1, (copies, -1))))
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
    depth: int = 8,
    width: int = 64,
    activation: type[nn.Module] = nn.ReLU,
    batch: int = 64,
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
    net = dense(
        seeds, kind, inputs=64, depth=depth, width=width, activation=activation
    ).train()
    batches = shuffled(data.digits().train, seeds, batch)
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
    depth: int = 3,
    width: int = 100,
    activation: type[nn.Module] = nn.Sigmoid,
    batch: int = 60,
    rate: float = 0.3,
    seeds: Seeds = SEEDS,
    steps: int = 400,
    every: int = 10,
) -> Record:
    """How the input of one activation moves over training, and how it differs by depth.

    On MNIST at 14×14, with initial weights of variance 1/inputs; three layers of 100
    sigmoid units and batches of 60 are those of Ioffe & Szegedy 2015, section 4.1, who
    train for 50,000 steps on binary images of 28×28. Percentiles 15,
    50 and 85 of pre-activations over 500 validation images. `over_training` follows the
    first unit of the last hidden layer: points × 3 × seeds. `over_depth` shows every
    layer's units, pooled, at the first and the last step: 2 × layers × 3 × seeds.
    """
    mnist, copies = data.mnist(), len(seeds)
    net = dense(
        seeds,
        kind,
        inputs=196,
        depth=depth,
        width=width,
        activation=activation,
        gain=1.0,
    )
    probe = side_by_side(mnist.validation.x, copies)
    levels = torch.tensor([0.15, 0.5, 0.85])
    at: list[int] = []
    over_training: list[list[list[float]]] = []

    @torch.no_grad()
    def look() -> list[Tensor]:
        """The input of every activation: (images, S, units) each."""
        h, seen = net[0](probe), []
        for layer in list(net)[1:-2]:
            if isinstance(layer, activation):
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
        shuffled(mnist.train, seeds, batch),
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
        "validation": errors(net, mnist.validation, copies).tolist(),
        "test": errors(net, mnist.test, copies).tolist(),
    }


def weight_norm(
    decay: float,
    *,
    kind: str = "BN",
    widths: Sequence[int] = WIDTHS,
    activation: type[nn.Module] = nn.ReLU,
    batch: int = 64,
    rate: float = 0.5,
    seeds: Seeds = SEEDS,
    steps: int = 1000,
    every: int = 20,
) -> Record:
    """The norm of weights before a norm, and how far they turn at each step.

    The second convolution, of one a width, on MNIST at 14×14; plain SGD at a constant
    rate. `norm2` is ‖w‖² and `turn` the angle between w before and
    after one step in radians, each as points × seeds. Theory at equilibrium: √(2 · rate
    · decay).
    """
    mnist, copies = data.mnist(), len(seeds)
    net = convolutional(seeds, kind, widths=widths, activation=activation)
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
        shuffled(mnist.train, seeds, batch),
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


# -------------------------------------------- statistics that a batch shares


RATE = 0.05


def _trained(kind: str, seeds: Seeds, steps: int, **settings: Any) -> nn.Sequential:
    """`trained_on_mnist` at the rate of these experiments."""
    rates = (RATE,) * len(seeds)
    return trained_on_mnist(kind, tuple(seeds), rates, steps=steps, **settings)


# ------------------------------------------------------- who else is in the batch


@torch.no_grad()
def batch_mates(
    kind: str,
    *,
    sizes: Sequence[int] = (2, 8, 32, 128),
    images: int = 40,
    draws: int = 25,
    seeds: Seeds = SEEDS,
    steps: int = 750,
    **settings: Any,
) -> Record:
    """The same test image among random others: does its prediction stay?

    Each of `images` images is seen in `draws` random batches, with the batch's
    statistics. `flips` is the share of predictions, in %, that differ from that image's
    own majority, and `spread` the standard deviation of its logits, each as sizes ×
    seeds. `settings` are those of `trained_on_mnist`: batch, widths, activation.
    """
    test = data.mnist().test
    with torch.enable_grad():
        net = _trained(kind, seeds, steps, **settings)
    generator = torch.Generator().manual_seed(0)
    flips, spread = [], []
    for size in sizes:
        logits = []
        with batch_statistics(net, each=size):
            for image in range(images):
                mates = torch.randint(
                    images, len(test.y), (draws, size), generator=generator
                )
                mates[:, 0] = image
                x = side_by_side(test.x[mates.flatten()], len(seeds))
                logits.append(net(x).unflatten(0, (draws, size))[:, 0])
        seen = torch.stack(logits)
        predicted = seen.argmax(3)
        majority = predicted.mode(1, keepdim=True).values
        flips.append((100 * (predicted != majority).float().mean((0, 1))).tolist())
        spread.append(seen.std(1).mean((0, 2)).tolist())
    return {"kind": kind, "sizes": list(sizes), "flips": flips, "spread": spread}


def mates_class(
    kind: str,
    *,
    batch: int = BATCH,
    seeds: Seeds = SEEDS,
    steps: int = 600,
    batches: int = 60,
    **settings: Any,
) -> Record:
    """Nets that learn to name the class of the *other* image of a pair.

    Each pair of images shares its batch statistics (sub-batches of 2), and the label of
    one is the class of the other. Only what mixes samples can beat chance, 90 %. Six
    convolutions, no shifts. `training` and `evaluation` are errors in the two modes, in
    %. `settings` are those of `convolutional`: widths, activation, groups.
    """
    mnist = data.mnist()
    net = convolutional(seeds, kind, **{"per_size": 2, "each": 2} | settings)
    train(
        net,
        _of_mates(shuffled(mnist.train, seeds, batch)),
        steps=steps,
        rates=[RATE] * len(seeds),
        cosine=True,
    )

    @torch.no_grad()
    def error() -> list[float]:
        wrong = torch.zeros(len(seeds))
        pairs = _of_mates(shuffled(mnist.test, seeds, batch))
        for _, (x, y) in zip(range(batches), pairs, strict=False):
            wrong += (net(x).argmax(2) != y).float().mean(0)
        return (100 * wrong / batches).tolist()

    evaluation = error()
    with batch_statistics(net):
        training = error()
    return {"kind": kind, "training": training, "evaluation": evaluation}


def _of_mates(batches: Batches) -> Batches:
    """The same images, each with the class of the other image of its pair."""
    for x, y in batches:
        yield x, y.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def one_class_workers(
    kind: str,
    *,
    by_class: bool = True,
    widths: Sequence[int] = (16, 32),
    activation: type[nn.Module] = nn.ReLU,
    seeds: Seeds = SEEDS,
    steps: int = 300,
) -> Record:
    """Batches of 120 in sub-batches of 12, each of one class or shuffled.

    The SGD step sees every class; the statistics need not. On the digits, unshifted,
    with two convolutions a width and rate 0.2. `evaluation` is the test error
    with running statistics, `batch` that of test sub-batches grouped as in training,
    with their own statistics.
    """
    digits = data.digits()
    net = convolutional(
        seeds, kind, widths=widths, per_size=2, activation=activation, each=12
    )
    train(
        net,
        grouped(digits.train, seeds, by_class),
        steps=steps,
        rates=[0.2] * len(seeds),
        cosine=True,
    )
    evaluation = errors(net, digits.test, len(seeds)).tolist()
    wrong, rounds = torch.zeros(len(seeds)), 12
    with batch_statistics(net), torch.no_grad():
        test = grouped(digits.test, seeds, by_class)
        for _, (x, y) in zip(range(rounds), test, strict=False):
            wrong += (net(x).argmax(2) != y).float().mean(0)
    return {
        "kind": kind,
        "by_class": by_class,
        "evaluation": evaluation,
        "batch": (100 * wrong / rounds).tolist(),
    }


def small_batches(
    kind: str,
    each: int,
    *,
    depth: int = 2,
    width: int = 64,
    activation: type[nn.Module] = nn.ReLU,
    batch: int = 96,
    rates: Sequence[float] = (0.01, 0.03, 0.1, 0.3),
    seeds: Seeds = SEEDS,
    steps: int = 200,
) -> Record:
    """Fully connected nets whose statistics come from `each` samples.

    On the digits. The SGD batch has the same `batch` images for every `each`, which
    divides it: only the statistics change. `test` is at the rate that the validation
    error prefers.
    """
    digits = data.digits()
    copies, per_copy = crossed(rates, seeds)
    net = dense(
        copies,
        kind,
        inputs=64,
        depth=depth,
        width=width,
        activation=activation,
        each=each,
    )
    train(
        net,
        shuffled(digits.train, copies, batch),
        steps=steps,
        rates=per_copy,
        cosine=True,
    )
    chosen = errors_by_rate(net, digits, rates, seeds)
    return {"kind": kind, "each": each, "rate": chosen["rate"], "test": chosen["test"]}


# ------------------------------------------------------------ running statistics


def shifted_images(
    kind: str,
    *,
    seeds: Seeds = SEEDS,
    steps: int = 750,
    adapt: int = 200,
    **settings: Any,
) -> Record:
    """Test images with another contrast or brightness, under three statistics.

    `errors` has, for each change, the test errors with the `running` statistics of
    training, with those of each `batch` of 500 test images, and `adapted`: running
    statistics replaced by those of the first `adapt` changed images, without labels (Li
    et al. 2016, AdaBN). A net without batch norm has one way only. `settings` are those
    of `trained_on_mnist`: batch, widths, activation.
    """
    mnist, copies = data.mnist(), len(seeds)
    net = _trained(kind, seeds, steps, **settings)
    raw = mnist.raw(mnist.test.x)
    changes = {
        "as in training": raw,
        "contrast × 0.25": 0.25 * raw,
        "brightness + 0.25": raw + 0.25,
    }
    record: Record = {}
    for change, images in changes.items():
        part = Part(mnist.standardized(images), mnist.test.y)
        ways: dict[str, AbstractContextManager[None]] = {"running": nullcontext()}
        if kind == "BN":
            ways["batch"] = batch_statistics(net, each=500)
            ways["adapted"] = recalibrated(net, part.x[:adapt], copies)
        record[change] = {}
        for way, statistics in ways.items():
            with statistics:
                record[change][way] = errors(net, part, copies).tolist()
    return {"kind": kind, "errors": record}


def running_statistics(
    *,
    momenta: Sequence[float] = (0.001, 0.01, 0.1),
    widths: Sequence[int] = WIDTHS,
    activation: type[nn.Module] = nn.ReLU,
    batch: int = BATCH,
    seeds: Seeds = SEEDS,
    steps: int = 100,
) -> Record:
    """Test errors early in training, by the momentum of the running statistics.

    Constant rate, no shifts. The training is the same for every momentum; only
    evaluation differs. `running` is momenta × seeds; `recalibrated` replaces the
    running statistics by the mean over 1,000 training images.
    """
    mnist, copies = data.mnist(), len(seeds)
    running = []
    for momentum in momenta:
        net = convolutional(seeds, "BN", widths=widths, activation=activation)
        for layer in batch_norms(net):
            layer.momentum = momentum
        batches = shuffled(mnist.train, seeds, batch)
        train(net, batches, steps=steps, rates=[RATE] * copies)
        running.append(errors(net, mnist.test, copies).tolist())
    with recalibrated(net, mnist.train.x[:1000], copies):
        plain = errors(net, mnist.test, copies).tolist()
    return {"momenta": list(momenta), "running": running, "recalibrated": plain}


def long_runs() -> dict[str, Callable[[], Record]]:
    """Every recorded run by name; called, it gives its record.

    With five seeds, but for depth (three, for its time) and what is quick: ten for the
    landscape, twenty for small batches and running statistics.
    """
    seeds, twenty = (0, 1, 2, 3, 4), range(20)

    def by_kind(
        run: Callable[..., Record], *kinds: str, **settings: Any
    ) -> Callable[[], Record]:
        return lambda: {kind: run(kind, seeds=seeds, **settings) for kind in kinds}

    def one_class() -> Record:
        run = one_class_workers
        by_class = by_kind(run, "BN", "GN")
        return {
            "by class": by_class(),
            "shuffled": by_kind(run, "BN", by_class=False)(),
        }

    def by_sub_batch() -> Record:
        run, sizes = small_batches, (2, 3, 4, 8, 16, 32)
        bn = {f"BN {size}": run("BN", size, seeds=twenty) for size in sizes}
        return {**bn, "LN": run("LN", 96, seeds=twenty)}

    def sigmoids() -> Record:
        record = by_kind(deep_sigmoid, "none", "BN", "noisy BN")()
        return record | {"none, 4×": deep_sigmoid("none", gain=16.0, seeds=seeds)}

    def landscapes() -> Record:
        return {
            f"{kind}, rate {rate}": landscape(kind, rate=rate, seeds=range(10))
            for rate in (0.003, 0.01, 0.03)
            for kind in ("none", "BN")
        }

    def distributions_by_rate() -> Record:
        return {
            f"{kind}, rate {rate}": distributions(
                kind, rate=rate, steps=1000, seeds=seeds
            )
            for rate in (0.03, 0.1, 0.3, 1.0)
            for kind in ("none", "BN")
        }

    def depths() -> Record:
        # No 8-layer net trains at the three largest of RATES.
        by_depth = partial(depths_that_train, rates=RATES[:6], seeds=SEEDS)
        return {kind: by_depth(kind) for kind in ("none", "LN", "BN")}

    def growth() -> Record:
        run = gradient_growth
        residual = run("BN", residual=True, seeds=seeds)
        return {**by_kind(run, "none", "LN", "BN")(), "BN, residual": residual}

    def norms_of_weights() -> Record:
        settings = ((0.5, 0.0), (0.5, 0.02), (0.5, 0.01), (0.2, 0.02))
        return {
            f"rate {rate}, decay {decay}": weight_norm(decay, rate=rate, seeds=seeds)
            for rate, decay in settings
        }

    return {
        "deep_sigmoid": sigmoids,
        "rates_that_train": by_kind(rates_that_train, "none", "LN", "BN"),
        "scales_that_train": by_kind(scales_that_train, "none", "LN", "BN"),
        "depths_that_train": depths,
        "gradient_growth": growth,
        "landscape": landscapes,
        "distributions": distributions_by_rate,
        "weight_norm": norms_of_weights,
        "batch_mates": by_kind(batch_mates, "BN", "GN"),
        "mates_class": by_kind(mates_class, "BN", "GN"),
        "one_class_workers": one_class,
        "small_batches": by_sub_batch,
        "shifted_images": by_kind(shifted_images, "BN", "GN"),
        "running_statistics": lambda: running_statistics(seeds=twenty),
    }


if __name__ == "__main__":
    record_long_runs("batch_norm")
