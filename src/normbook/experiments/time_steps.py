"""Statistics of every time step: what batch norm needs of names, and layer norm not.

Each function returns a plain record, as in `normbook.experiments.layer_norm`. LSTMs
have 64 units and see batches of 64 first names, with Adam and gradients clipped to norm
1.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from normbook import data
from normbook import nn as nb
from normbook.experiments.sequences import (
    Recurrent,
    StepNorm,
    bits,
    evaluate,
    every_copy,
    fit,
    random_names,
)
from normbook.experiments.stacked import SEEDS, Record, Seeds

BATCH = 64


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
    kind: str, *, rate: float = 0.003, seeds: Seeds = SEEDS, steps: int = 300
) -> Record:
    """LSTMs on first names, tested with what they remember and with the batch's own.

    `kind` is none, LN, BN (running statistics for each step) or shared BN (one set for
    all). Test losses: `evaluation` with running statistics, `batch` with those of the
    516 test names.
    """
    net = Recurrent(seeds, "LSTM", kind)
    batches = random_names(data.names().train, seeds, BATCH)
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
    rate: float = 0.003,
    seeds: Seeds = SEEDS,
    steps: int = 300,
) -> Record:
    """LSTMs trained on the first `seen` letters of names, tested on whole names.

    `within` and `beyond` are test losses at letters 1 to `seen` and after. For BN
    `beyond` meets running statistics that no step of training has touched, and
    `beyond_last` takes those of the last step that was trained.
    """
    net = Recurrent(seeds, "LSTM", kind)
    batches = (
        (x[..., :seen], y[..., :seen], where[..., :seen])
        for x, y, where in random_names(data.names().train, seeds, BATCH)
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
