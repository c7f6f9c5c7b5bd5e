"""What chapter 5 trains: small batches under batch norm and under group norm.

The nets A, B and C of `normbook.experiments.variants`. SGD with momentum 0.9 and weight
decay 1e-4, rate falling along half a cosine wave, batches of 32 and random shifts of up
to 2 pixels, unless a function says otherwise. Rates are chosen on validation images.
Every function returns a plain record, errors in %.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from normbook import data
from normbook.data import Part, Split
from normbook.experiments import batch_statistics as statistics
from normbook.experiments import run_and_record
from normbook.experiments.small_sets import (
    SIZES,
    first_gradients,
    values_that_count,
)
from normbook.experiments.stacked import (
    SEEDS,
    Record,
    Seeds,
    WorkerBatchNorm,
    errors,
    shuffled,
    train,
)
from normbook.experiments.variants import BATCH, RATE, build, upright

# What is shown, and by how many pixels it moves at random.
IMAGES = {
    "shifted": (data.mnist, 2),
    "unshifted": (data.mnist, 0),
    "digits": (data.digits, 0),
}
RATES = (0.05, 0.1, 0.2)


# ------------------------------------------------------------- small batches


def virtual_workers(
    net: str,
    kind: str,
    each: int | None = None,
    *,
    groups: int = 4,
    rates: Sequence[float] = (RATE,),
    seeds: Seeds = SEEDS,
    steps: int = 376,
    images: str = "shifted",
) -> Record:
    """Train with statistics of `each` images; every SGD batch has 32.

    `kind` is none, BN, GN or batch renorm, with " + WS" for standardized weights.
    `images` names MNIST, shifted or unshifted, or the digits. `validation` and
    `tests` are rates × seeds; `rate` is the one that validation prefers, and at this
    rate are `test` and `loss`, the training loss over the last 50 steps, one a seed.
    """
    load, shift = IMAGES[images]
    split = load()
    copies = [seed for _ in rates for seed in seeds]
    stack, watch = build(net, kind, copies, each, groups, steps)
    history = train(
        stack,
        shuffled(split.train, copies, BATCH, shift=shift),
        steps=steps,
        rates=[rate for rate in rates for _ in seeds],
        decay=1e-4,
        cosine=True,
        watch=watch,
    )
    chosen = _chosen(stack, split, rates, seeds)
    loss = history[-50:].mean(0).view(len(rates), -1)[rates.index(chosen["rate"])]
    return {
        "net": net,
        "kind": kind,
        "each": each,
        "groups": groups if kind.startswith("GN") else None,
        **chosen,
        "loss": loss.tolist(),
    }


def scaled_rates(
    net: str,
    kind: str,
    size: int,
    *,
    rate: float = RATE,
    seeds: Seeds = SEEDS,
    epochs: int = 8,
) -> Record:
    """The protocol of Wu & He: SGD batches of `size` images, rate · size/32.

    Every size sees the training images `epochs` times, so small batches take more,
    shorter steps.
    """
    mnist, copies = data.mnist(), len(seeds)
    steps = epochs * (len(mnist.train.y) // size)
    stack, watch = build(net, kind, seeds, size, 4, steps)
    scaled = rate * size / BATCH
    train(
        stack,
        shuffled(mnist.train, seeds, size, shift=2),
        steps=steps,
        rates=[scaled] * copies,
        decay=1e-4,
        cosine=True,
        watch=watch,
    )
    return {
        "net": net,
        "kind": kind,
        "size": size,
        "rate": scaled,
        "steps": steps,
        "test": errors(stack, mnist.test, copies).tolist(),
    }


def sorted_batches(
    kind: str,
    each: int | None,
    *,
    by_class: bool,
    rate: float = RATE,
    seeds: Seeds = SEEDS,
    steps: int = 300,
) -> Record:
    """Net A; batches of 120, twelve of each class, sorted by class or shuffled.

    The SGD step sees every class either way; batch norm's sub-batches of `each` do not.
    No shifts.
    """
    mnist, copies = data.mnist(), len(seeds)
    stack, watch = build("A", kind, seeds, each, 4, steps)
    train(
        stack,
        statistics._grouped(mnist.train, seeds, by_class),
        steps=steps,
        rates=[rate] * copies,
        decay=1e-4,
        cosine=True,
        watch=watch,
    )
    return {
        "kind": kind,
        "each": each,
        "by_class": by_class,
        "test": errors(stack, mnist.test, copies).tolist(),
    }


# --------------------------------------------------------------- fine-tuning


def fine_tuning(
    kind: str,
    each: int = BATCH,
    *,
    frozen: bool = False,
    net: str = "B",
    images: int = 300,
    rates: Sequence[float] = (0.01, 0.03, 0.1),
    seeds: Seeds = SEEDS,
    steps: int = 180,
    before: int = 376,
) -> Record:
    """A net trained upright, tuned on `images` images turned by 90 degrees.

    Trained for `before` steps with statistics of 32 images; tuned with those of `each`,
    or with the `frozen` running ones. `untuned` and `test` are errors on turned images
    before and after, at the rate that turned validation images prefer.
    """
    turned = _turned(data.mnist(), images)
    copies = [seed for _ in rates for seed in seeds]
    stack = copy.deepcopy(upright(net, kind, tuple(seeds), len(rates), before))
    untuned = errors(stack, turned.test, len(copies))[: len(seeds)]
    for layer in stack:
        if isinstance(layer, WorkerBatchNorm):
            layer.each = each
    train(
        stack,
        shuffled(turned.train, copies, BATCH, shift=2),
        steps=steps,
        rates=[rate for rate in rates for _ in seeds],
        decay=1e-4,
        cosine=True,
        frozen=frozen,
    )
    return {
        "net": net,
        "kind": kind,
        "each": None if frozen or kind == "GN" else each,
        "untuned": untuned.tolist(),
        **_chosen(stack, turned, rates, seeds),
    }


def _turned(split: Split, images: int) -> Split:
    """The same split turned by 90 degrees, with the first `images` to train on."""

    def turn(part: Part, first: int | None = None) -> Part:
        return Part(torch.rot90(part.x[:first], 1, (1, 2)), part.y[:first])

    return Split(
        turn(split.train, images),
        turn(split.validation),
        turn(split.test),
        split.mean,
        split.std,
    )


# -------------------------------------------------------------------- pieces


def _chosen(
    stack: nn.Module, split: Split, rates: Sequence[float], seeds: Seeds
) -> Record:
    """Errors of copies that are rates × seeds: the test's at validation's best rate."""
    copies = len(rates) * len(seeds)
    validation = errors(stack, split.validation, copies).view(len(rates), -1)
    best = int(validation.mean(1).argmin())
    tests = errors(stack, split.test, copies).view(len(rates), -1)
    return {
        "rates": list(rates),
        "validation": validation.tolist(),
        "tests": tests.tolist(),
        "rate": rates[best],
        "test": tests[best].tolist(),
    }


# ------------------------------------------------------------------- records


def long_runs(
    seeds: Seeds = (0, 1, 2, 3, 4), steps: int = 752
) -> dict[str, Callable[[], Record]]:
    """Every recorded run by name; called, it gives its record.

    In a record "BN 4" has statistics of 4 images. Rates are chosen where the statistics
    are compared, in `virtual_workers` and `fine_tuning`; all else is at 0.1.
    """
    alike: dict[str, Any] = {"seeds": seeds, "steps": steps, "rates": RATES}
    by_size = [f"BN {size}" for size in SIZES]

    def workers(net: str, *names: str, **settings: Any) -> Record:
        return {
            name: virtual_workers(net, *_parsed(name), **{**alike, **settings})
            for name in names
        }

    def small_batches() -> Record:
        cures = ("batch renorm 2", "BN + WS 2", "GN + WS")
        return {net: workers(net, *by_size, "GN", "none", *cures) for net in "AB"}

    def paper() -> Record:
        settings: dict[str, Any] = {"seeds": seeds, "epochs": max(1, steps // 188)}
        return {
            net: {
                f"{kind} {size}": scaled_rates(net, kind, size, **settings)
                for kind in ("BN", "GN")
                for size in SIZES
            }
            for net in "AB"
        }

    def longer() -> Record:
        names = ("BN 32", "BN 4", "BN 2", "GN")
        return workers("A", *names, rates=(RATE,), steps=3 * steps)

    def by_class() -> Record:
        return {
            name: {
                order: sorted_batches(
                    *_parsed(name),
                    by_class=order == "sorted",
                    seeds=seeds,
                    steps=steps // 3,
                )
                for order in ("shuffled", "sorted")
            }
            for name in ("BN 8", "BN 4", "batch renorm 8", "batch renorm 4", "GN")
        }

    def sweep() -> Record:
        settings: dict[str, Any] = {**alike, "rates": (RATE,), "steps": steps // 2}
        counts = {"A": (1, 2, 4, 8, 16, 64), "B": (1, 2, 4, 8, 16, 32)}
        return {
            net: {
                str(groups): virtual_workers(net, "GN", groups=groups, **settings)
                for groups in counts[net]
            }
            for net in counts
        }

    def tuned() -> Record:
        settings: dict[str, Any] = {"seeds": seeds, "before": steps // 2}
        return {
            "BN 32": fine_tuning("BN", **settings),
            "BN 2": fine_tuning("BN", 2, **settings),
            "BN frozen": fine_tuning("BN", frozen=True, **settings),
            "GN": fine_tuning("GN", **settings),
        }

    def elsewhere() -> Record:
        names = (*by_size, "GN")
        settings: dict[str, Any] = {"rates": (RATE,), "steps": steps // 2}
        return {
            "unshifted": workers("A", *names, images="unshifted", **settings),
            "digits": workers("C", *names, images="digits", **settings),
        }

    def gradients() -> Record:
        return {
            net: {
                name: first_gradients(net, *_parsed(name), seeds=seeds)
                for name in (*by_size, "GN")
            }
            for net in "AB"
        }

    return {
        "virtual_workers": small_batches,
        "scaled_rates": paper,
        "longer_training": longer,
        "sorted_batches": by_class,
        "groups": sweep,
        "fine_tuning": tuned,
        "where_it_does_not_show": elsewhere,
        "first_gradients": gradients,
        "values_that_count": lambda: {
            net: values_that_count(net, seeds=seeds, steps=steps // 2) for net in "AB"
        },
    }


def _parsed(name: str) -> tuple[str, int | None]:
    """Kind and size of sub-batches: "BN 4" is ("BN", 4), "GN" is ("GN", None)."""
    kind, _, size = name.rpartition(" ")
    return (kind, int(size)) if size.isdigit() else (name, None)


if __name__ == "__main__":
    torch.set_num_threads(1)
    command = "python -m normbook.experiments.group_norm"
    run_and_record("group_norm", long_runs(), command)
