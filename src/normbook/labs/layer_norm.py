"""What layer norm does to sequences and to small batches: the runs of chapter 3.

Every function returns a plain record: lists with one number a seed, and the settings
that they belong to. Nets read first names letter by letter; their losses are in bits a
letter. Rates are chosen on the validation names, results are of the test names. The
nets are in `normbook.training.sequences`. `python -m normbook.labs.layer_norm` makes
the long runs and keeps them in `records/layer_norm.json`; with names of runs behind it,
only those.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbook import data
from normbook import nn as nb
from normbook.labs import record_long_runs
from normbook.training import stacked
from normbook.training.sequences import (
    Recurrent,
    StepNorm,
    Transformer,
    bits,
    evaluate,
    every_copy,
    fit,
    random_names,
    trained_on_names,
)
from normbook.training.stacked import SEEDS, Record, Seeds

BATCH = 64
RATES = (0.001, 0.003, 0.01)


# ----------------------------------------------------------- recurrent networks


def badly_scaled(
    kind: str,
    *,
    scales: Sequence[float] = (0.25, 1.0, 4.0, 16.0),
    cell: str = "RNN",
    width: int = 64,
    batch: int = BATCH,
    rates: Sequence[float] = RATES,
    seeds: Seeds = SEEDS,
    steps: int = 300,
) -> Record:
    """Recurrent nets on names, their initial W and U multiplied by a scale.

    `cell` is RNN (of tanh) or LSTM. Adam, gradients clipped to norm 1. `validation` is
    scales × rates × seeds; `test` (scales × seeds) is at the rate, one of `chosen`,
    that each scale's mean validation loss prefers.
    """
    settings = [(scale, rate) for scale in scales for rate in rates]
    copies = [seed for _ in settings for seed in seeds]
    net = Recurrent(
        copies,
        cell,
        kind,
        width=width,
        scales=[scale for scale, _ in settings for _ in seeds],
    )
    fit(
        net,
        random_names(data.names().train, copies, batch),
        steps=steps,
        rates=[rate for _, rate in settings for _ in seeds],
        clip=1.0,
    )
    size = (len(scales), len(rates), len(seeds))
    validation, test = (
        torch.tensor(evaluate(net, every_copy(part, len(copies)))).view(size)
        for part in (data.names().validation, data.names().test)
    )
    best = validation.mean(2).argmin(1)
    return {
        "kind": kind,
        "steps": steps,
        "scales": list(scales),
        "rates": list(rates),
        "validation": validation.tolist(),
        "chosen": [rates[place] for place in best],
        "test": test[torch.arange(len(scales)), best].tolist(),
    }


def learning_curves(
    kind: str,
    *,
    cell: str = "LSTM",
    width: int = 64,
    batch: int = BATCH,
    rates: Sequence[float] = (*RATES, 0.03),
    seeds: Seeds = SEEDS,
    steps: int = 300,
    every: int = 25,
) -> Record:
    """Recurrent nets on names: how the validation loss falls at each learning rate.

    `cell` is RNN (of tanh) or LSTM. Adam, gradients clipped to norm 1. `validation` is
    rates × points × seeds, a point at each of `steps`; `test` is rates × seeds at the
    end, `best` the place of the rate with the lowest last mean validation loss, and
    `chosen` its test losses.
    """
    copies, per_copy = stacked.crossed(rates, seeds)
    net = Recurrent(copies, cell, kind, width=width)
    watched = every_copy(data.names().validation, len(copies))
    curve = fit(
        net,
        random_names(data.names().train, copies, batch),
        steps=steps,
        rates=per_copy,
        clip=1.0,
        watch=lambda step: evaluate(net, watched),
        every=every,
    )
    validation = torch.tensor(curve).unflatten(1, (len(rates), -1)).transpose(0, 1)
    test = torch.tensor(evaluate(net, every_copy(data.names().test, len(copies))))
    test = test.view(len(rates), -1)
    best = int(validation[:, -1].mean(1).argmin())
    return {
        "kind": kind,
        "rates": list(rates),
        "steps": list(range(0, steps + 1, every)),
        "validation": validation.tolist(),
        "test": test.tolist(),
        "best": best,
        "chosen": test[best].tolist(),
    }


# ----------------------------------------------------------------- transformers


def gradient_norms(
    place: str,
    *,
    kind: str = "LN",
    depths: Sequence[int] = (6, 12, 24, 48),
    width: int = 32,
    batch: int = 32,
    seeds: Seeds = SEEDS,
) -> Record:
    """Gradients of a transformer's hidden layers at initialization.

    The norm of ∂L/∂W for the second matrix of every block's hidden layer, on `batch`
    names, loss in nats. `last` is that of the last block, depths × seeds; `blocks` has
    all of the deepest net, blocks × seeds. `exponents` has, for each seed, the slope of
    log `last` against log depth, fitted by least squares.
    """
    last, blocks = [], []
    for depth in depths:
        net = Transformer(seeds, kind, place, depth=depth, width=width)
        x, y, where = next(random_names(data.names().train, seeds, batch))
        loss = math.log(2) * bits(net(x, where), y, where).sum()
        weights = [
            p for name, p in net.named_parameters() if name.endswith("back.weight")
        ]
        gradients = torch.autograd.grad(loss, weights)
        blocks = [g.flatten(1).norm(dim=1).tolist() for g in gradients]
        last.append(blocks[-1])
    log_depth, log_norm = torch.tensor(depths).log(), torch.tensor(last).log()
    away = log_depth - log_depth.mean()
    return {
        "place": place,
        "kind": kind,
        "depths": list(depths),
        "last": last,
        "blocks": blocks,
        "exponents": (away @ log_norm / away.square().sum()).tolist(),
    }


def transformer(
    kind: str = "LN",
    place: str = "pre",
    *,
    warm_up: int = 0,
    rate: float = 0.003,
    depth: int = 8,
    width: int = 32,
    batch: int = 32,
    seeds: Seeds = SEEDS,
    steps: int = 150,
    every: int = 50,
) -> Record:
    """The decoder of chapter 3: its validation curve and its test loss.

    `depth` blocks, Adam at a constant rate after `warm_up` steps of linear rise.
    `validation` is points × seeds, a point at each of `steps`.
    """
    net = Transformer(seeds, kind, place, depth=depth, width=width)
    settings: Record = {"rate": rate, "warm_up": warm_up, "batch": batch}
    settings |= {"steps": steps, "every": every}
    losses = trained_on_names(net, seeds, **settings)
    return {"kind": kind, "place": place, **losses}


# ---------------------------------------------------------------- small batches


def small_batches(
    kind: str,
    batch: int,
    *,
    depth: int = 2,
    width: int = 64,
    activation: type[nn.Module] = nn.ReLU,
    rates: Sequence[float] = (0.003, 0.01, 0.03, 0.1),
    samples: int = 4200,
    seeds: Seeds = SEEDS,
) -> Record:
    """Fully connected nets on the digits, whose SGD batch itself is small.

    Plain SGD, constant rate, `samples` images seen at
    every size. `test` errors in %, at the rate that the validation error prefers. BN
    raises on a batch of 1: `raises` then holds its words, and `test` is None.
    """
    digits = data.digits()
    copies, per_copy = stacked.crossed(rates, seeds)
    record: Record = {"kind": kind, "batch": batch, "rates": list(rates)}
    net = stacked.dense(
        copies, kind, inputs=64, depth=depth, width=width, activation=activation
    )
    try:
        stacked.train(
            net,
            stacked.shuffled(digits.train, copies, batch),
            steps=samples // batch,
            rates=per_copy,
            momentum=0.0,
        )
    except ValueError as error:
        return {**record, "test": None, "raises": str(error)}
    chosen = stacked.errors_by_rate(net, digits, rates, seeds)
    return {**record, "rate": chosen["rate"], "test": chosen["test"]}


# ------------------------------------------------- statistics of every time step


def names_alive(
    *, batch: int = BATCH, draws: int = 200, seeds: Seeds = SEEDS
) -> Record:
    """How many names of a batch still have a letter at each step, and what that costs.

    `alive` is the mean number, steps × seeds, and `too_few` the share of batches, in %,
    with fewer than two. `masked` and `padded` are the error of a batch mean against the
    mean of all training names that reach the step, in their standard deviations (root
    mean square over 64 features and the batches with any): of the living names alone,
    and with the padding counted. Features are a random vector a letter, drawn by seed.
    """
    names = data.names().train
    live = names > 0
    result: dict[str, list[list[float]]] = {
        key: [] for key in ("alive", "too_few", "masked", "padded")
    }
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(data.LETTERS, 64, generator=generator)[names]
        mean, std = _over_names(x, live)
        chosen = torch.rand(draws, len(names), generator=generator).topk(batch).indices
        alive, masked, padded = [], [], []
        for rows in chosen:
            alive.append(live[rows].sum(0))
            masked.append(((_over_names(x[rows], live[rows])[0] - mean) / std) ** 2)
            padded.append(((x[rows].mean(0) - mean) / std) ** 2)
        counts = torch.stack(alive).float()
        result["alive"].append(counts.mean(0).tolist())
        result["too_few"].append((100 * (counts < 2).float().mean(0)).tolist())
        for key, squares in (("masked", masked), ("padded", padded)):
            rms = torch.stack(squares).nanmean((0, 2)).sqrt()
            result[key].append(rms.tolist())
    by_step = {key: torch.tensor(rows).T.tolist() for key, rows in result.items()}
    return {"batch": batch, "steps": list(range(1, live.shape[1] + 1)), **by_step}


def _over_names(x: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the living names: (N, T, C) → (T, C) each."""
    count = live.sum(0)[:, None]
    where = live[..., None]
    mean = (x * where).sum(0) / count
    return mean, ((x - mean).square() * where).sum(0).div(count).sqrt()


@torch.no_grad()
def padding_moves(
    *, lengths: Sequence[int] = (11, 20, 40), seeds: Seeds = SEEDS
) -> Record:
    """The largest move of an output at a real letter when the same names are padded.

    64 names, a random vector of 64 features a letter; outputs at padding to each of
    `lengths` against those at the first. `BN` takes its statistics over names and
    steps, `masked BN` over real letters only, `LN` over the features of a letter. Each
    is lengths × seeds.
    """
    names = data.names().train[:64]
    live = names > 0
    kinds = ("BN", "masked BN", "LN")
    moves: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    bn, ln = nb.BatchNorm(64, track_running_stats=False), nb.LayerNorm(64)
    for length in lengths:
        extra = length - names.shape[1]
        padded, where = F.pad(names, (0, extra)), F.pad(live, (0, extra))[:, None]
        moved: dict[str, list[float]] = {kind: [] for kind in kinds}
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            table = torch.randn(data.LETTERS, 64, generator=generator)

            def outputs(names: Tensor, where: Tensor) -> dict[str, Tensor]:
                x = table[names]  # noqa: B023  # called in the same round
                return {
                    "BN": bn(x.mT).mT,
                    "masked BN": bn(x.mT, where).mT,
                    "LN": ln(x),
                }

            before, after = outputs(names, live[:, None]), outputs(padded, where)
            for kind in kinds:
                move = after[kind][:, : names.shape[1]] - before[kind]
                moved[kind].append(move[live].abs().max().item())
        for kind in kinds:
            moves[kind].append(moved[kind])
    return {"lengths": list(lengths), **moves}


def time_statistics(
    kind: str,
    *,
    cell: str = "LSTM",
    width: int = 64,
    batch: int = BATCH,
    rate: float = 0.003,
    seeds: Seeds = SEEDS,
    steps: int = 300,
) -> Record:
    """Recurrent nets, tested with what they remember and with the batch's own.

    `kind` is none, LN, BN (running statistics for each step) or shared BN (one set for
    all). Test losses: `evaluation` with running statistics, `batch` with those of the
    516 test names.
    """
    net = Recurrent(seeds, cell, kind, width=width)
    batches = random_names(data.names().train, seeds, batch)
    fit(net, batches, steps=steps, rates=[rate] * len(seeds), clip=1.0)
    test = every_copy(data.names().test, len(seeds))
    evaluation = evaluate(net, test)
    net.train()
    return {
        "kind": kind,
        "rate": rate,
        "evaluation": evaluation,
        "batch": evaluate(net, test),
    }


def longer_than_trained(
    kind: str,
    *,
    seen: int = 6,
    cell: str = "LSTM",
    width: int = 64,
    batch: int = BATCH,
    rate: float = 0.003,
    seeds: Seeds = SEEDS,
    steps: int = 300,
) -> Record:
    """Nets trained on the first `seen` letters of names, tested on whole names.

    `within` and `beyond` are test losses at letters 1 to `seen` and after. For BN
    `beyond` meets running statistics that no step of training has touched, and
    `beyond_last` takes those of the last step that was trained.
    """
    net = Recurrent(seeds, cell, kind, width=width)
    batches = (
        (x[..., :seen], y[..., :seen], where[..., :seen])
        for x, y, where in random_names(data.names().train, seeds, batch)
    )
    fit(net, batches, steps=steps, rates=[rate] * len(seeds), clip=1.0)
    x, y, where = every_copy(data.names().test, len(seeds))
    late = torch.arange(x.shape[2]) >= seen

    @torch.no_grad()
    def loss(counted: Tensor) -> list[float]:
        return bits(net(x, where), y, counted).tolist()

    record = {
        "kind": kind,
        "seen": seen,
        "within": loss(where & ~late),
        "beyond": loss(where & late),
    }
    for layer in net.modules():
        if isinstance(layer, StepNorm):
            layer.of_step = layer.of_step[:seen]
    return {**record, "beyond_last": loss(where & late)}


# -------------------------------------------------------------------- recording


def long_runs() -> dict[str, Callable[[], Record]]:
    """Every recorded run by name; called, it gives its record.

    With five seeds, six for trained transformers and twenty for their gradients.
    """
    five, six, twenty = range(5), range(6), range(20)

    def by_kind(
        run: Callable[..., Record], *kinds: str, **settings: Any
    ) -> Callable[[], Record]:
        return lambda: {kind: run(kind, **settings) for kind in kinds}

    def warm_up() -> Record:
        post = partial(transformer, "LN", "post", seeds=six)
        return {
            "Pre-LN": transformer("LN", "pre", seeds=six),
            "Post-LN, a quarter of the rate": post(rate=0.00075),
            **{f"Post-LN, {n} steps": post(warm_up=n) for n in (0, 3, 10, 30, 100)},
        }

    def digits() -> Record:
        return {
            f"{kind} {batch}": small_batches(kind, batch, seeds=five)
            for kind in ("LN", "BN")
            for batch in (1, 2, 4, 32)
        }

    return {
        "names_alive": lambda: names_alive(seeds=five),
        "padding_moves": lambda: padding_moves(seeds=five),
        "gradient_norms": by_kind(gradient_norms, "post", "pre", seeds=twenty),
        "badly_scaled": by_kind(badly_scaled, "none", "LN", seeds=five),
        "learning_curves": by_kind(learning_curves, "none", "LN", seeds=five),
        "small_batches": digits,
        "longer_than_trained": by_kind(
            longer_than_trained, "none", "LN", "BN", "shared BN", seeds=five
        ),
        "time_statistics": by_kind(
            time_statistics, "none", "LN", "BN", "shared BN", seeds=five
        ),
        "warm_up": warm_up,
        "norms_in_a_transformer": by_kind(
            transformer, "none", "BN", "RMSNorm", "DyT", seeds=six
        ),
    }


if __name__ == "__main__":
    record_long_runs("layer_norm")
