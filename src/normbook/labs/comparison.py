"""All norms on the same work: the runs of chapter 6.

Every function returns a plain record: lists with one number a seed, and the settings
that they belong to. The nets are convolutional; kinds are none, BN, LN over (C, H, W),
IN with γ and β, GN with four groups, and RMSNorm over the channels of a position.
Training calls torch's own kernels for speed; the tests hold them equal to this book's.
`python -m normbook.labs.comparison` makes the long runs and keeps them in
`records/comparison.json`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbook import data
from normbook import nn as nb
from normbook.data import CLASSES, Part
from normbook.measure.agreement import GROUPS as AGREEMENT_GROUPS
from normbook.measure.agreement import SHAPES, methods, speed, traffic
from normbook.training.records import run_and_record
from normbook.training.stacked import (
    SEEDS,
    Linear,
    Logits,
    Record,
    Seeds,
    WorkerBatchNorm,
    batch_statistics,
    errors,
    initialize,
    losses,
    shuffled,
    side_by_side,
    train,
)

KINDS = ("none", "BN", "LN", "IN", "GN", "RMSNorm")
GROUPS = 4
BATCH = 32  # at which a rate is what it says; others scale it
RATES = (0.02, 0.05, 0.15)
WIDTHS = (16, 32, 64)


# ------------------------------------------------------------------ networks


class PositionRMSNorm(nn.Module):
    """RMSNorm over the channels of each copy at each position of (N, S·C, H, W)."""

    def __init__(self, copies: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(copies, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        each = x.unflatten(1, self.weight.shape[:2])
        size = each.square().mean(2, keepdim=True)
        return (each * (size + 1e-5).rsqrt() * self.weight).flatten(1, 2)


def norm(
    kind: str, copies: int, channels: int, batch: int, groups: int = GROUPS
) -> nn.Module:
    """One layer for `copies` networks; `batch` is how many images BN trains on."""
    width = copies * channels
    layers: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "BN": lambda: WorkerBatchNorm(width, batch),
        "LN": lambda: nn.GroupNorm(copies, width),
        "IN": lambda: nn.InstanceNorm2d(width, affine=True),
        "GN": lambda: nn.GroupNorm(groups * copies, width),
        "RMSNorm": lambda: PositionRMSNorm(copies, channels),
    }
    if kind not in layers:
        raise ValueError(f"kind must be one of {', '.join(layers)}; got {kind!r}")
    return layers[kind]()


def network(
    seeds: Seeds,
    kind: str,
    *,
    widths: Sequence[int] = WIDTHS,
    stride: int = 2,
    pooled: bool = True,
    size: int = 14,
    batch: int = BATCH,
    gain: float = 2.0,
    groups: int = GROUPS,
) -> nn.Sequential:
    """Convolutional networks, one a seed: (N, S, H, W) images to (N, S, 10) logits.

    A 3×3 convolution of each width, its norm and a ReLU. The linear layer sees the mean
    of each last map, or with `pooled` false all of it.
    """
    copies, channels = len(seeds), 1
    layers: list[nn.Module] = []
    for width in widths:
        layers += [
            nn.Conv2d(
                copies * channels,
                copies * width,
                kernel_size=3,
                stride=stride,
                padding=1,
                groups=copies,
                bias=kind == "none",
            ),
            norm(kind, copies, width, batch, groups),
            nn.ReLU(),
        ]
        channels, size = width, -(-size // stride)
    if pooled:
        layers.append(nn.AdaptiveAvgPool2d(1))
    inputs = channels if pooled else channels * size * size
    layers += [nn.Flatten(), Linear(copies, inputs, CLASSES), Logits(copies)]
    return initialize(nn.Sequential(*layers), seeds, gain)


# ------------------------------------------------------------ before training


def first_weights(
    kind: str,
    *,
    depth: int = 20,
    width: int = 32,
    gain: float = 1 / 3,
    images: int = 64,
    groups: int = GROUPS,
    seeds: Seeds = SEEDS,
) -> Record:
    """What untrained nets do to activations, gradients and samples, layer by layer.

    Digits through `depth` convolutions that keep the 8×8 map. A gain of 1/3 is torch's
    default for convolutions. As layers × seeds: `deviation` of the convolutions'
    outputs, norm of the `gradient` there, `cosine` between the activations of two
    images.
    """
    digits, copies = data.digits(), len(seeds)
    net = network(
        seeds,
        kind,
        widths=[width] * depth,
        stride=1,
        batch=images,
        gain=gain,
        groups=groups,
    ).train()
    x, y = digits.train.x[:images], digits.train.y[:images]
    h = side_by_side(x, copies)
    outputs, deviation, cosine = [], [], []
    hidden = list(net)[:-4]
    for convolve, normalize, activate in zip(
        hidden[0::3], hidden[1::3], hidden[2::3], strict=True
    ):
        z = convolve(h)
        h = activate(normalize(z))
        outputs.append(z)
        deviation.append(_each(z, copies).std((0, 2)).tolist())
        cosine.append(mean_cosine(_each(h.detach(), copies)).tolist())
    logits = h
    for layer in list(net)[-4:]:
        logits = layer(logits)
    loss = losses(logits, y[:, None].expand(-1, copies)).sum()
    gradients = torch.autograd.grad(loss, outputs)
    norms = [_each(g, copies).square().sum((0, 2)).sqrt().tolist() for g in gradients]
    return {"kind": kind, "deviation": deviation, "gradient": norms, "cosine": cosine}


def _each(x: Tensor, copies: int) -> Tensor:
    """(N, S·C, H, W) → (N, S, C·H·W), detached."""
    return x.detach().unflatten(1, (copies, -1)).flatten(2)


def mean_cosine(h: Tensor) -> Tensor:
    """The mean cosine between two different rows of each copy: (N, S, F) → (S)."""
    unit = F.normalize(h, dim=2)
    count = len(h)
    return (unit.sum(0).square().sum(1) - count) / (count * (count - 1))


# ---------------------------------------------------------------- one task


def trained(
    kind: str,
    seeds: Seeds,
    rates: Sequence[float],
    *,
    batch: int = BATCH,
    pooled: bool = True,
    epochs: int = 6,
) -> nn.Sequential:
    """A stack trained on MNIST at 14×14, one copy for each pair of seed and rate.

    SGD, momentum 0.9, decay 1e-4, rates times batch/32, falling along half a cosine
    wave; images move by up to 2 pixels.
    """
    train_part = data.mnist().train
    net = network(seeds, kind, batch=batch, pooled=pooled)
    train(
        net,
        shuffled(train_part, seeds, batch, shift=2),
        steps=epochs * (len(train_part.y) // batch),
        rates=[rate * batch / BATCH for rate in rates],
        decay=1e-4,
        cosine=True,
    )
    return net


def task(
    kind: str,
    batch: int = BATCH,
    *,
    rates: Sequence[float] = RATES,
    seeds: Seeds = SEEDS,
    pooled: bool = True,
    epochs: int = 6,
) -> Record:
    """Test errors of one kind in %, one a seed, at the rate that validation prefers."""
    mnist = data.mnist()
    copies = [seed for _ in rates for seed in seeds]
    net = trained(
        kind,
        copies,
        [rate for rate in rates for _ in seeds],
        batch=batch,
        pooled=pooled,
        epochs=epochs,
    )
    validation, test = (
        errors(net, part, len(copies)).view(len(rates), -1)
        for part in (mnist.validation, mnist.test)
    )
    best = int(validation.mean(1).argmin())
    return {
        "kind": kind,
        "batch": batch,
        "rate": rates[best],
        "validation": validation.tolist(),
        "test": test[best].tolist(),
    }


CONTRASTS = (0.125, 0.25, 0.5, 1.0, 2.0)
OFFSETS = (-0.5, -0.25, 0.0, 0.25, 0.5)


def shifted(
    kind: str,
    rate: float,
    *,
    contrasts: Sequence[float] = CONTRASTS,
    offsets: Sequence[float] = OFFSETS,
    seeds: Seeds = SEEDS,
    epochs: int = 6,
) -> Record:
    """Test errors on images with another contrast or brightness.

    The linear layer sees whole maps. Pixels, from 0 to 1, are multiplied by a contrast
    or moved by an offset and not clipped. `contrast` and `brightness` are values ×
    seeds; `…_batch`, for BN, with the statistics of each batch of 500 test images.
    """
    mnist, copies = data.mnist(), len(seeds)
    net = trained(kind, seeds, [rate] * copies, pooled=False, epochs=epochs)
    raw = mnist.raw(mnist.test.x)
    changed = {
        "contrast": [factor * raw for factor in contrasts],
        "brightness": [raw + offset for offset in offsets],
    }
    ways: dict[str, AbstractContextManager[None]] = {"": nullcontext()}
    if kind == "BN":
        ways["_batch"] = batch_statistics(net, each=500)
    record: Record = {"kind": kind, "rate": rate}
    record |= {"contrasts": list(contrasts), "offsets": list(offsets)}
    for way, statistics in ways.items():
        with statistics:
            for change, versions in changed.items():
                record[change + way] = [
                    errors(
                        net, Part(mnist.standardized(images), mnist.test.y), copies
                    ).tolist()
                    for images in versions
                ]
    return record


# ------------------------------------------------------------ what they ask for


def _over_channels(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: layer(x.movedim(1, -1)).movedim(-1, 1)


def properties() -> list[dict[str, str]]:
    """What this book's layers do and need on (N, C, H, W), found by trying them."""
    x = torch.randn(4, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    rows = []
    for name, make in {
        "batch norm": lambda _: nb.BatchNorm(8),
        "layer norm, whole sample": lambda shape: nb.LayerNorm(shape[1:]),
        "layer norm, channels": lambda _: nb.LayerNorm(8),
        "instance norm": lambda _: nb.InstanceNorm(8),
        "group norm, G = 2": lambda _: nb.GroupNorm(2, 8),
        "RMSNorm": lambda _: nb.RMSNorm(8),
    }.items():
        last = name in ("layer norm, channels", "RMSNorm")
        layer = make(x.shape)
        run = _over_channels(layer) if last else layer
        y, mates = run(x), x.clone()
        mates[1:] += 3 * mates[1:].square()
        moved = (run(mates) - y)[0].abs().max() > 1e-6
        layer.eval()
        same = torch.allclose(run(x), y, atol=1e-6)
        rows.append(
            {
                "layer": name,
                "in evaluation": "the same" if same else "another function",
                "a sample's mates": "matter" if moved else "do not",
                "fixes": "C" if _takes(run, (3, 8, 6, 5)) else "C, H, W",
                "two 1×1 maps": _two_small_maps(make, last),
            }
        )
    return rows


def _takes(run: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> bool:
    try:
        run(torch.zeros(shape))
    except ValueError:
        return False
    return True


def _two_small_maps(make: Callable[[Any], nn.Module], last: bool) -> str:
    x = torch.randn(2, 8, 1, 1, generator=torch.Generator().manual_seed(0))
    layer = make(x.shape)
    run = _over_channels(layer) if last else layer
    if not _takes(run, (2, 8, 1, 1)):
        return "raises"
    return "±1" if (run(x).abs() > 0.99).all() and not last else "works"


# -------------------------------------------------------------------- cost


def parameters() -> list[dict[str, Any]]:
    """What torch's own layers learn and remember, for the inputs of `agreement`."""
    return [
        {
            "method": name.replace("_", " "),
            "shape": "×".join(map(str, shape)),
            "learned": sum(value.numel() for value in layer.parameters()),
            "remembered": sum(value.numel() for value in layer.buffers()),
        }
        for name, method in methods().items()
        for shape in [SHAPES[method.axis]]
        for layer in [method.build_native(shape[method.axis], AGREEMENT_GROUPS)]
    ]


def cost(device: str = "cpu", rounds: int = 5) -> list[dict[str, Any]]:
    """One row a method and pass: bytes counted and time measured, in copies of x.

    `least` and `bytes` are those of a copy and of torch's kernel, `steps` those of this
    book's layer one operation at a time; `native` and `ours` are times on the larger
    of `agreement.speed`'s inputs.
    """
    moved = {(row["method"], row["pass"]): row for row in traffic()}
    rows = []
    for row in speed(device, rounds=rounds):
        if tuple(row["shape"]) in SHAPES.values():
            continue
        counted = moved[row["method"], row["pass"]]
        rows.append(
            {
                "method": row["method"],
                "pass": row["pass"],
                "least": row["least"],
                "bytes": counted["native"],
                "steps": counted["ours"],
                "native": row["native"],
                "ours": row["ours"],
            }
        )
    return rows


# ------------------------------------------------------------------ the record


def long_runs() -> dict[str, Callable[[], Record]]:
    """Every recorded run by name, with five seeds; called, it gives its record."""
    seeds = (0, 1, 2, 3, 4)
    sizes = (1, 2, 4, 8, BATCH)
    chosen: dict[str, float] = {}

    def batch_sizes() -> Record:
        record: Record = {}
        for kind in KINDS:
            runs = [task(kind, n, seeds=seeds) for n in sizes]
            record[kind] = {
                "sizes": list(sizes),
                "rates": [run["rate"] for run in runs],
                "test": [run["test"] for run in runs],
            }
        return record

    def whole_maps() -> Record:
        record = {kind: task(kind, seeds=seeds, pooled=False) for kind in KINDS}
        chosen.update({kind: run["rate"] for kind, run in record.items()})
        return record

    return {
        "first_weights": lambda: {k: first_weights(k, seeds=seeds) for k in KINDS},
        "batch_sizes": batch_sizes,
        "larger_rate": lambda: {
            k: task(k, rates=(0.15, 0.45), seeds=seeds) for k in KINDS
        },
        "whole_maps": whole_maps,
        "shifted": lambda: {k: shifted(k, chosen[k], seeds=seeds) for k in KINDS},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    command = "python -m normbook.labs.comparison"
    run_and_record("comparison", long_runs(), command)
