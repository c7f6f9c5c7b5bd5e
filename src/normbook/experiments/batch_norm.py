"""What batch norm does to training: the runs of chapter 2.

Every function returns a plain record: lists with one number a seed, and the settings
that they belong to. Errors are shares of the test images in %, losses are in nats.
Rates are chosen on the validation images. What happens on the way is in `dynamics`,
what comes of statistics that a batch shares in `batch_statistics`. `python -m
normbook.experiments.batch_norm` makes the long runs of all and keeps them in
`records/batch_norm.json`.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from normbook import data
from normbook.experiments import batch_statistics as statistics
from normbook.experiments import dynamics, run_and_record
from normbook.experiments.stacked import (
    SEEDS,
    Linear,
    Record,
    Seeds,
    batch_statistics,
    dense,
    errors,
    shuffled,
    thinned,
    train,
)

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


# ------------------------------------------------- deep nets, rates, scales


def rates_that_train(
    kind: str,
    *,
    depth: int = 8,
    gain: float = 2.0,
    rates: Sequence[float] = RATES,
    seeds: Seeds = SEEDS,
    steps: int = 300,
) -> Record:
    """Errors of fully connected nets on the digits, one row a learning rate.

    `depth` layers of 64 ReLU units, batches of 64, momentum 0.9, constant rate. The
    record has `validation` and `test` errors and the last `loss`, each as rates ×
    seeds, the place `best` of the rate with the lowest mean validation error, and that
    rate's test errors `chosen`.
    """
    digits = data.digits()
    copies = [seed for _ in rates for seed in seeds]
    net = dense(copies, kind, inputs=64, depth=depth, width=64, gain=gain)
    per_copy = [rate for rate in rates for _ in seeds]
    history = train(
        net, shuffled(digits.train, copies, 64), steps=steps, rates=per_copy
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
) -> Record:
    """Test errors at each multiple of He's initial standard deviation.

    The nets of `rates_that_train`, 8 layers deep; each scale at the rate that its
    validation error prefers. `test` is scales × seeds.
    """
    runs = [
        rates_that_train(kind, gain=2 * scale**2, rates=rates, seeds=seeds, steps=steps)
        for scale in scales
    ]
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
) -> Record:
    """Test errors by depth, each at the rate that its validation error prefers.

    The nets of `rates_that_train`. `test` is depths × seeds.
    """
    runs = [
        rates_that_train(kind, depth=depth, rates=rates, seeds=seeds, steps=steps)
        for depth in depths
    ]
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
    rates: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0),
    seeds: Seeds = SEEDS,
    steps: int = 300,
    every: int = 10,
) -> Record:
    """Six layers of 100 sigmoid units on the digits: losses, errors, moving inputs.

    After Santurkar et al. 2018, who add noise after batch norm so that the
    distributions move more, and see training stay good. `loss` and `drift` are curves,
    one row for `every` steps and one column a seed, at the rate that the validation
    error prefers. Drift is that of the inputs of layer 5: how far the mean of a unit
    moves from one batch to the next, in its standard deviations, averaged over units.
    `test` uses running statistics, `test_batch` those of test batches of 500.
    """
    digits = data.digits()
    copies = [seed for _ in rates for seed in seeds]
    net = dense(
        copies,
        kind,
        inputs=64,
        depth=6,
        width=100,
        activation=nn.Sigmoid,
        gain=1.0,
    )
    moments: list[tuple[Tensor, Tensor]] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].detach().unflatten(1, (len(copies), -1))
        moments.append((x.mean(0), x.std(0)))

    fifth = [layer for layer in net if isinstance(layer, Linear)][4]
    hook = fifth.register_forward_pre_hook(keep)
    per_copy = [rate for rate in rates for _ in seeds]
    history = train(
        net, shuffled(digits.train, copies, 64), steps=steps, rates=per_copy
    )
    hook.remove()
    moves = [
        ((mean - before).abs() / std.clamp(min=1e-6)).mean(1)
        for (before, _), (mean, std) in pairwise(moments)
    ]
    drift = torch.stack([moves[0], *moves])

    validation = _grid(errors(net, digits.validation, len(copies)), seeds)
    test = _grid(errors(net, digits.test, len(copies)), seeds)
    with batch_statistics(net):
        test_batch = _grid(errors(net, digits.test, len(copies)), seeds)
    best = min(range(len(rates)), key=lambda row: sum(validation[row]))
    columns = slice(best * len(seeds), (best + 1) * len(seeds))
    return {
        "kind": kind,
        "steps": list(range(0, steps, every)),
        "rate": rates[best],
        "loss": thinned(history[:, columns], every),
        "drift": thinned(drift[:, columns], every),
        "test": test[best],
        "test_batch": test_batch[best],
    }


def _grid(values: Tensor, seeds: Seeds) -> list[list[float]]:
    """One value a copy as rows of one value a seed."""
    return values.view(-1, len(seeds)).tolist()


def long_runs() -> dict[str, Callable[[], Record]]:
    """Every recorded run by name, with five seeds; called, it gives its record."""
    seeds = (0, 1, 2, 3, 4)

    def by_kind(
        run: Callable[..., Record], *kinds: str, **settings: Any
    ) -> Callable[[], Record]:
        return lambda: {kind: run(kind, seeds=seeds, **settings) for kind in kinds}

    def one_class() -> Record:
        run = statistics.one_class_workers
        by_class = by_kind(run, "BN", "GN")
        return {
            "by class": by_class(),
            "shuffled": by_kind(run, "BN", by_class=False)(),
        }

    def small_batches() -> Record:
        run = statistics.small_batches
        sizes = (2, 3, 4, 8, 32)
        bn = {f"BN {size}": run("BN", size, seeds=seeds) for size in sizes}
        return {**bn, "LN": run("LN", 96, seeds=seeds)}

    def gradient_growth() -> Record:
        run = dynamics.gradient_growth
        residual = run("BN", residual=True, seeds=seeds)
        return {**by_kind(run, "none", "LN", "BN")(), "BN, residual": residual}

    def weight_norm() -> Record:
        settings = ((0.5, 0.0), (0.5, 0.02), (0.5, 0.01), (0.2, 0.02))
        return {
            f"rate {rate}, decay {decay}": dynamics.weight_norm(
                decay, rate=rate, seeds=seeds
            )
            for rate, decay in settings
        }

    return {
        "deep_sigmoid": by_kind(deep_sigmoid, "none", "BN", "noisy BN"),
        "rates_that_train": by_kind(rates_that_train, "none", "LN", "BN"),
        "scales_that_train": by_kind(scales_that_train, "none", "LN", "BN"),
        "depths_that_train": by_kind(depths_that_train, "none", "LN", "BN"),
        "gradient_growth": gradient_growth,
        "landscape": by_kind(dynamics.landscape, "none", "BN"),
        "distributions": by_kind(dynamics.distributions, "none", "BN", steps=1000),
        "weight_norm": weight_norm,
        "batch_mates": by_kind(statistics.batch_mates, "BN", "GN"),
        "mates_class": by_kind(statistics.mates_class, "BN", "GN"),
        "one_class_workers": one_class,
        "small_batches": small_batches,
        "shifted_images": by_kind(statistics.shifted_images, "BN", "GN"),
        "running_statistics": lambda: statistics.running_statistics(seeds=seeds),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    command = "python -m normbook.experiments.batch_norm"
    run_and_record("batch_norm", long_runs(), command)
