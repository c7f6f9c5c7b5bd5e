"""All norms on the same work: the runs of chapter 6's lab.

Every function returns a plain record: lists with one number a seed, and the settings
that they belong to. The nets are convolutional; kinds are none, BN, LN over (C, H, W),
IN with γ and β, GN with four groups, RMSNorm over the channels of a position, and any
other that `training.norm` makes.
Training calls torch's own kernels for speed; the tests hold them equal to this book's.
`python -m normbook.labs.comparison` makes the long runs and keeps them in
`records/comparison.json`; with names behind it, those runs alone.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from normbook import data
from normbook.data import Part
from normbook.labs import record_long_runs
from normbook.measure.agreement import GROUPS as AGREEMENT_GROUPS
from normbook.measure.agreement import SHAPES, methods, speed, traffic
from normbook.training.norms import GROUPS
from normbook.training.stacked import (
    BATCH,
    SEEDS,
    Record,
    Seeds,
    batch_statistics,
    convolutional,
    crossed,
    errors,
    errors_by_rate,
    losses,
    mean_cosine,
    recalibrated,
    side_by_side,
    trained_on_mnist,
)

KINDS = ("none", "BN", "LN", "IN", "GN", "RMSNorm")
RATES = (0.02, 0.05, 0.15)
Function = Callable[[Tensor], Tensor]


# ------------------------------------------------------------ before training


def first_weights(
    kind: str | Function,
    *,
    depth: int = 20,
    width: int = 32,
    gain: float = 1 / 3,
    images: int = 64,
    activation: type[nn.Module] = nn.ReLU,
    groups: int = GROUPS,
    seeds: Seeds = SEEDS,
) -> Record:
    """What untrained nets do to activations, gradients and samples, layer by layer.

    Digits through `depth` convolutions that keep the 8×8 map. A gain of 1/3 is torch's
    default for convolutions. Instead of a kind, a function of (N, C, H, W) that looks
    at one sample at a time. As layers × seeds: `deviation` of the convolutions'
    outputs, norm of the `gradient` there, `cosine` between the activations of two
    images.
    """
    digits, copies = data.digits(), len(seeds)
    net = convolutional(
        seeds,
        "none" if callable(kind) else kind,
        widths=[width] * depth,
        stride=1,
        activation=activation,
        gain=gain,
        each=images,
        groups=groups,
        native=True,
    ).train()
    x, y = digits.train.x[:images], digits.train.y[:images]
    h = side_by_side(x, copies)
    outputs, deviation, cosine = [], [], []
    hidden = list(net)[:-4]
    for convolve, normalize, activate in zip(
        hidden[0::3], hidden[1::3], hidden[2::3], strict=True
    ):
        z = convolve(h)
        x_hat = _each_copy(kind, z, copies) if callable(kind) else normalize(z)
        h = activate(x_hat)
        outputs.append(z)
        deviation.append(_each(z, copies).std((0, 2)).tolist())
        cosine.append(mean_cosine(_each(h.detach(), copies)).tolist())
    logits = h
    for layer in list(net)[-4:]:
        logits = layer(logits)
    loss = losses(logits, y[:, None].expand(-1, copies)).sum()
    gradients = torch.autograd.grad(loss, outputs)
    norms = [_each(g, copies).square().sum((0, 2)).sqrt().tolist() for g in gradients]
    return {"deviation": deviation, "gradient": norms, "cosine": cosine}


def _each_copy(function: Function, x: Tensor, copies: int) -> Tensor:
    """A function of each sample (N, C, H, W), on the channels of every copy."""
    samples = x.unflatten(1, (copies, -1)).flatten(0, 1)
    return function(samples).unflatten(0, (-1, copies)).flatten(1, 2)


def _each(x: Tensor, copies: int) -> Tensor:
    """(N, S·C, H, W) → (N, S, C·H·W), detached."""
    return x.detach().unflatten(1, (copies, -1)).flatten(2)


# ---------------------------------------------------------------- one task


def _trained(
    kind: str,
    seeds: Seeds,
    rates: Sequence[float],
    *,
    batch: int = BATCH,
    epochs: int = 6,
    **settings: Any,
) -> nn.Sequential:
    """`trained_on_mnist` with torch's layers, at rates times batch/32."""
    return trained_on_mnist(
        kind,
        tuple(seeds),
        tuple(rate * batch / BATCH for rate in rates),
        steps=epochs * (len(data.mnist().train.y) // batch),
        batch=batch,
        native=True,
        **settings,
    )


def task(
    kind: str,
    batch: int = BATCH,
    *,
    rates: Sequence[float] = RATES,
    seeds: Seeds = SEEDS,
    epochs: int = 6,
    **settings: Any,
) -> Record:
    """Test errors of one kind in %, one a seed, at the rate that validation prefers.

    The rates are those of batches of 32; others scale them. `settings` are those of
    `convolutional`: pooled, widths, activation, groups.
    """
    copies, per_copy = crossed(rates, seeds)
    net = _trained(
        kind,
        copies,
        per_copy,
        batch=batch,
        epochs=epochs,
        **settings,
    )
    chosen = errors_by_rate(net, data.mnist(), rates, seeds)
    shown = ("rate", "validation", "test")
    return {"kind": kind, "batch": batch} | {key: chosen[key] for key in shown}


def single_images(
    rates: Sequence[float] = (0.15,),
    *,
    seeds: Seeds = SEEDS,
    epochs: int = 6,
    **settings: Any,
) -> Record:
    """Test errors of nets trained on one image at a time, by the statistics they get.

    One stack of nets with batch norm, evaluated with `running` statistics, with those
    `recalibrated` on the training images in batches of 200, and with each test image's
    `own`, at the rate that validation with running statistics prefers. `settings` are
    those of `convolutional`.
    """
    mnist = data.mnist()
    copies, per_copy = crossed(rates, seeds)
    net = _trained("BN", copies, per_copy, batch=1, epochs=epochs, **settings)
    chosen = errors_by_rate(net, mnist, rates, seeds)
    best = rates.index(chosen["rate"])

    def test() -> list[float]:
        by_rate = errors(net, mnist.test, len(copies)).view(len(rates), -1)
        return by_rate[best].tolist()

    record: Record = {key: chosen[key] for key in ("rates", "rate", "validation")}
    record["running"] = chosen["test"]
    with recalibrated(net, mnist.train.x, len(copies)):
        record["recalibrated"] = test()
    with batch_statistics(net, each=1):
        record["own"] = test()
    return record


CONTRASTS = (0.125, 0.25, 0.5, 1.0, 2.0)
OFFSETS = (-0.5, -0.25, 0.0, 0.25, 0.5)


def shifted(
    kind: str,
    rate: float,
    *,
    contrasts: Sequence[float] = CONTRASTS,
    offsets: Sequence[float] = OFFSETS,
    batch: int = BATCH,
    seeds: Seeds = SEEDS,
    epochs: int = 6,
    **settings: Any,
) -> Record:
    """Test errors on images with another contrast or brightness.

    The nets of `task`, but the linear layer sees whole maps. Pixels, from 0 to 1, are
    multiplied by a contrast or moved by an offset and not clipped. `contrast` and
    `brightness` are values × seeds; `…_batch`, for BN, with the statistics of each
    batch of 500 test images.
    """
    mnist, copies = data.mnist(), len(seeds)
    settings = {"pooled": False} | settings
    net = _trained(kind, seeds, [rate] * copies, batch=batch, epochs=epochs, **settings)
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


# -------------------------------------------------------------------- cost


def parameters() -> list[dict[str, Any]]:
    """What torch's own layers learn and remember, for the inputs of `agreement`."""
    return [
        {
            "method": name.replace("_", " "),
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
    """Every recorded run by name; called, it gives its record. Most have five seeds."""
    seeds, fresh = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
    sizes = (1, 2, 4, 8, BATCH)

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

    @cache
    def whole_maps() -> Record:
        return {kind: task(kind, seeds=seeds, pooled=False) for kind in KINDS}

    def light() -> Record:
        rates = {kind: run["rate"] for kind, run in whole_maps().items()}
        return {kind: shifted(kind, rates[kind], seeds=seeds) for kind in KINDS}

    def single() -> Record:
        alike = task("IN", 1, rates=(0.15,), seeds=fresh)
        return single_images(seeds=fresh) | {"IN": alike["test"]}

    def larger(kinds: Sequence[str], batch: int, seeds: Seeds) -> Record:
        rates = (0.15, 0.45)
        return {kind: task(kind, batch, rates=rates, seeds=seeds) for kind in kinds}

    return {
        "batch_sizes": batch_sizes,
        "single_images": single,
        "single_images_whole_maps": lambda: single_images(
            (0.05, 0.15), seeds=fresh[:3], pooled=False
        ),
        "larger_rate": lambda: larger(KINDS, BATCH, seeds),
        "larger_rate_4_images": lambda: larger(KINDS[1:], 4, fresh[:3]),
        "whole_maps": whole_maps,
        "shifted": light,
    }


if __name__ == "__main__":
    record_long_runs("comparison")
