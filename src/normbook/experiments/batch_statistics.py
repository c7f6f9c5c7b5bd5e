"""What comes of statistics that a batch shares: the second half of chapter 2's runs.

Each function returns a plain record, as in `normbook.experiments.batch_norm`. The nets
are small convolutional ones on MNIST at 14×14 (three layers, 16-32-64, each halving the
map), trained with SGD, rate 0.05 falling along half a cosine wave, momentum 0.9,
batches of 32 and random shifts of up to 2 pixels, unless a function says otherwise.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor, nn

from normbook import data
from normbook.data import CLASSES, Part
from normbook.experiments.stacked import (
    SEEDS,
    Batches,
    Record,
    Seeds,
    batch_norms,
    batch_statistics,
    convolutional,
    dense,
    errors,
    recalibrated,
    shuffled,
    side_by_side,
    train,
)

RATE, BATCH = 0.05, 32


@cache
def trained(kind: str, seeds: tuple[int, ...], steps: int) -> nn.Sequential:
    """A trained stack; kept, because several experiments ask the same nets.

    Its batch norm takes sub-batches, of all 32 images while it trains.
    """
    net = convolutional(seeds, kind, each=BATCH)
    train(
        net,
        shuffled(data.mnist().train, seeds, BATCH, shift=2),
        steps=steps,
        rates=[RATE] * len(seeds),
        decay=1e-4,
        cosine=True,
    )
    return net


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
) -> Record:
    """The same test image among random others: does its prediction stay?

    Each of `images` images is seen in `draws` random batches, with the batch's
    statistics. `flips` is the share of predictions, in %, that differ from that image's
    own majority, and `spread` the standard deviation of its logits, each as sizes ×
    seeds.
    """
    test = data.mnist().test
    with torch.enable_grad():
        net = trained(kind, tuple(seeds), steps)
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
    seeds: Seeds = SEEDS,
    steps: int = 600,
    batches: int = 60,
) -> Record:
    """Nets that learn to name the class of the *other* image of a pair.

    Each pair of images shares its batch statistics (sub-batches of 2), and the label of
    one is the class of the other. Only what mixes samples can beat chance, 90 %. Six
    convolutions, no shifts. `training` and `evaluation` are errors in the two modes, in
    %.
    """
    mnist = data.mnist()
    net = convolutional(seeds, kind, per_size=2, each=2)
    train(
        net,
        _of_mates(shuffled(mnist.train, seeds, BATCH)),
        steps=steps,
        rates=[RATE] * len(seeds),
        cosine=True,
    )

    @torch.no_grad()
    def error() -> list[float]:
        wrong = torch.zeros(len(seeds))
        pairs = _of_mates(shuffled(mnist.test, seeds, BATCH))
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
    seeds: Seeds = SEEDS,
    steps: int = 300,
) -> Record:
    """Batches of 120 in sub-batches of 12, each of one class or shuffled.

    The SGD step sees every class; the statistics need not. On the digits, unshifted,
    with four convolutions (16-16-32-32) and rate 0.2. `evaluation` is the test error
    with running statistics, `batch` that of test sub-batches grouped as in training,
    with their own statistics.
    """
    digits = data.digits()
    net = convolutional(seeds, kind, widths=(16, 32), per_size=2, each=12)
    train(
        net,
        _grouped(digits.train, seeds, by_class),
        steps=steps,
        rates=[0.2] * len(seeds),
        cosine=True,
    )
    evaluation = errors(net, digits.test, len(seeds)).tolist()
    wrong, rounds = torch.zeros(len(seeds)), 12
    with batch_statistics(net), torch.no_grad():
        test = _grouped(digits.test, seeds, by_class)
        for _, (x, y) in zip(range(rounds), test, strict=False):
            wrong += (net(x).argmax(2) != y).float().mean(0)
    return {
        "kind": kind,
        "by_class": by_class,
        "evaluation": evaluation,
        "batch": (100 * wrong / rounds).tolist(),
    }


def _grouped(part: Part, seeds: Seeds, by_class: bool) -> Batches:
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


def small_batches(
    kind: str,
    each: int,
    *,
    rates: Sequence[float] = (0.01, 0.03, 0.1, 0.3),
    seeds: Seeds = SEEDS,
    steps: int = 200,
) -> Record:
    """Fully connected nets whose statistics come from `each` samples.

    Two layers of 64 ReLU units on the digits. The SGD batch is 96 for every `each`:
    only the statistics change. `test` is at the rate that the validation error prefers.
    """
    digits = data.digits()
    copies = [seed for _ in rates for seed in seeds]
    net = dense(copies, kind, inputs=64, depth=2, width=64, each=each)
    train(
        net,
        shuffled(digits.train, copies, 96),
        steps=steps,
        rates=[rate for rate in rates for _ in seeds],
        cosine=True,
    )
    validation = errors(net, digits.validation, len(copies)).view(-1, len(seeds))
    best = int(validation.mean(1).argmin())
    test = errors(net, digits.test, len(copies)).view(-1, len(seeds))[best]
    return {"kind": kind, "each": each, "rate": rates[best], "test": test.tolist()}


# ------------------------------------------------------------ running statistics


def shifted_images(
    kind: str, *, seeds: Seeds = SEEDS, steps: int = 750, adapt: int = 200
) -> Record:
    """Test images with another contrast or brightness, under three statistics.

    `errors` has, for each change, the test errors with the `running` statistics of
    training, with those of each `batch` of 500 test images, and `adapted`: running
    statistics replaced by those of the first `adapt` changed images, without labels (Li
    et al. 2016, AdaBN). A net without batch norm has one way only.
    """
    mnist, copies = data.mnist(), len(seeds)
    net = trained(kind, tuple(seeds), steps)
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
        net = convolutional(seeds, "BN")
        for layer in batch_norms(net):
            layer.momentum = momentum
        batches = shuffled(mnist.train, seeds, BATCH)
        train(net, batches, steps=steps, rates=[RATE] * copies)
        running.append(errors(net, mnist.test, copies).tolist())
    with recalibrated(net, mnist.train.x[:1000], copies):
        plain = errors(net, mnist.test, copies).tolist()
    return {"momenta": list(momenta), "running": running, "recalibrated": plain}
