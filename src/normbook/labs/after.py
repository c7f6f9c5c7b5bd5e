"""Where a norm stands, and what may take its place: the runs of chapter 8.

Every function returns a plain record: lists with one number a seed, and the settings
that they belong to. Decoders of names are those of `normbook.training.sequences`, and
their losses are in bits a letter, of test names; denoisers of digits stand here.
`python -m normbook.labs.after` makes the long runs and keeps them in
`records/after.json`; with names of runs behind it, only those.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from normbook import data
from normbook.functional import InputError
from normbook.labs import record_long_runs
from normbook.training.sequences import (
    Adam,
    Batch,
    Block,
    Transformer,
    every_copy,
    trained_on_names,
)
from normbook.training.stacked import SEEDS, Record, Seeds


def decoder(
    place: str = "pre",
    kind: str = "LN",
    *,
    qk_norm: bool = False,
    rate: float = 0.002,
    warm_up: int = 0,
    depth: int = 6,
    width: int = 64,
    batch: int = 32,
    names: int | None = None,
    seeds: Seeds = SEEDS,
    steps: int = 200,
    every: int = 50,
) -> Record:
    """A decoder, trained by Adam at a constant rate after `warm_up` steps of rise.

    It trains on the first `names` training names, by default on all. `validation` is
    points × seeds, a point at each of `steps`; `test` is at the end, and so are
    `stream`, the root mean square of the sum behind every block (blocks × seeds), and
    `logit`, each seed's largest attention logit.
    """
    net = Transformer(seeds, kind, place, qk_norm=qk_norm, depth=depth, width=width)
    settings: Record = {"rate": rate, "warm_up": warm_up, "batch": batch}
    settings |= {"names": names, "steps": steps, "every": every}
    losses = trained_on_names(net, seeds, **settings)
    inner = inside(net, every_copy(data.names().test, len(seeds)))
    return {"place": place, "kind": kind, "qk_norm": qk_norm, **losses, **inner}


@torch.no_grad()
def inside(net: Transformer, batch: Batch) -> dict[str, Any]:
    """How large the stream and the attention logits of a net are, at living letters.

    `stream`: the root mean square of what every block puts out, blocks × copies.
    `logit`: the largest |q·k|/√D of each copy, over blocks, heads and the pairs that
    the causal mask leaves.
    """
    x, _, live = batch
    samples, copies, steps = x.shape
    stream: list[Tensor] = []
    logits: list[Tensor] = []
    at_letters = live.transpose(1, 2).flatten(0, 1)[..., None]  # (N·T, S, 1)
    pairs = torch.ones(steps, steps, dtype=torch.bool).tril() & live[..., None]

    def keep_stream(h: Tensor) -> None:
        squares = h.unflatten(1, (copies, -1)).square().mean(2, keepdim=True)
        stream.append(((squares * at_letters).sum(0) / at_letters.sum(0)).sqrt()[:, 0])

    def keep_logits(block: Any, qkv: Tensor) -> None:
        q, k, _ = block.heads_of(qkv, samples)
        size = (q @ k.mT).abs() / q.shape[-1] ** 0.5
        logits.append(size.masked_fill(~pairs[:, :, None], 0).amax((0, 2, 3, 4)))

    hooks = []
    for block in net.modules():
        if not isinstance(block, Block):
            continue
        hooks += [
            block.register_forward_hook(lambda block, _, h: keep_stream(h)),
            block.qkv.register_forward_hook(
                lambda _, __, qkv, block=block: keep_logits(block, qkv)
            ),
        ]
    net(x, live)
    for hook in hooks:
        hook.remove()
    return {
        "stream": torch.stack(stream).tolist(),
        "logit": torch.stack(logits).amax(0).tolist(),
    }


# -------------------------------------------------------------------- denoisers

WAYS = ("added", "added, zero", "adaLN", "adaLN-Zero")


class AdaptiveBlock(nn.Module):
    """A residual block of features h (N, C) under a condition c (N, C), one of `WAYS`.

    added: the condition is part of h, γ and β are learned. adaLN: γ and β come from c,
    by a map that starts at 0. adaLN-Zero: so does a gate of the branch (Peebles & Xie
    2023). added, zero: the branch starts at 0 too, by its last map.
    """

    def __init__(self, width: int, way: str):
        super().__init__()
        self.parts = {"adaLN": 2, "adaLN-Zero": 3}.get(way, 0)
        self.norm = nn.LayerNorm(width, elementwise_affine=not self.parts)
        self.hidden = nn.Linear(width, 4 * width)
        self.back = nn.Linear(4 * width, width)
        starts_at_zero = [self.back] if way == "added, zero" else []
        if self.parts:
            self.from_condition = nn.Linear(width, self.parts * width)
            starts_at_zero.append(self.from_condition)
        for layer in starts_at_zero:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        y, gate = self.norm(h), 1.0
        if self.parts:
            gamma, beta, *gates = self.from_condition(c).chunk(self.parts, -1)
            y = (1 + gamma) * y + beta
            gate = gates[0] if gates else 1.0
        return h + gate * self.back(torch.relu(self.hidden(y)))


class Denoiser(nn.Module):
    """(N, 64) noisy digits, their noise t in 0 to 1 and class: what to subtract.

    For x = (1 - t) digit + t noise it learns noise - digit, the way from one to the
    other. The condition is a vector of the class plus one of t; the last map starts at
    0, whatever the way.
    """

    def __init__(self, way: str, *, depth: int = 6, width: int = 64, seed: int = 0):
        super().__init__()
        if way not in WAYS:
            raise InputError(f"way must be one of {'; '.join(WAYS)}. Got {way!r}.")
        torch.manual_seed(seed)
        self.added = way.startswith("added")
        self.enter = nn.Linear(64, width)
        self.of_class = nn.Embedding(data.CLASSES, width)
        self.of_noise = nn.Sequential(
            nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.blocks = nn.ModuleList(AdaptiveBlock(width, way) for _ in range(depth))
        self.last_norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, 64)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        angles = math.pi * t[:, None] * torch.arange(1, 9)
        waves = torch.cat([angles.sin(), angles.cos()], 1)
        c = nn.functional.silu(self.of_class(y) + self.of_noise(waves))
        h = self.enter(x)
        if self.added:
            h = h + c
        for block in self.blocks:
            h = block(h, c)
        return self.leave(self.last_norm(h))

    @torch.no_grad()
    def samples(self, each: int = 10, steps: int = 20) -> tuple[Tensor, Tensor]:
        """Digits out of noise, `each` of every class, (N, 64), and their classes."""
        y = torch.arange(data.CLASSES).repeat(each)
        x = torch.randn(len(y), 64, generator=torch.Generator().manual_seed(0))
        for step in range(steps, 0, -1):
            t = torch.full((len(y),), step / steps)
            x = x - self(x, t, y) / steps
        return x, y


def denoising_loss(
    net: Denoiser, x: Tensor, y: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean square error of a denoiser on digits (N, 64), with noise as drawn here."""
    t = torch.rand(len(x), generator=generator)
    noise = torch.randn(x.shape, generator=generator)
    noisy = torch.lerp(x, noise, t[:, None])
    return (net(noisy, t, y) - (noise - x)).square().mean()


def denoiser(
    way: str = "adaLN-Zero",
    *,
    rate: float = 0.01,
    depth: int = 6,
    width: int = 64,
    batch: int = 128,
    steps: int = 200,
    every: int = 50,
    seed: int = 0,
) -> tuple[Denoiser, Record]:
    """A class-conditional denoiser of digits, trained by Adam, and its record.

    `validation` has a mean square error for each of `steps`, always with the same
    noise. `right` is how many of 100 samples, in %, a linear classifier of digits, 97 %
    right on test digits, takes for the class they were asked for.
    """
    digits = data.digits()
    train, watched = digits.train, digits.validation
    net = Denoiser(way, depth=depth, width=width, seed=seed)
    optimizer = Adam(net.parameters(), [rate])
    draws = torch.Generator().manual_seed(1000 + seed)
    curve = []
    for step in range(steps + 1):
        if step % every == 0:
            curve.append(_validation_loss(net, watched))
        chosen = torch.randint(len(train.x), (batch,), generator=draws)
        x, y = train.x[chosen].flatten(1), train.y[chosen]
        loss = denoising_loss(net, x, y, draws)
        if step < steps:
            optimizer.step(torch.autograd.grad(loss, optimizer.parameters))
    x, y = net.samples()
    right = 100 * (_linear_classifier().predict(x.numpy()) == y.numpy()).mean()
    points = list(range(0, steps + 1, every))
    return net, {"steps": points, "validation": curve, "right": float(right)}


@torch.no_grad()
def _validation_loss(net: Denoiser, part: data.Part) -> float:
    draws = torch.Generator().manual_seed(0)
    x = part.x.flatten(1)
    losses = [denoising_loss(net, x, part.y, draws) for _ in range(4)]
    return torch.stack(losses).mean().item()


@cache
def _linear_classifier() -> Any:
    from sklearn.linear_model import LogisticRegression

    train = data.digits().train
    return LogisticRegression(max_iter=500).fit(train.x.flatten(1), train.y)


def denoisers(
    way: str,
    *,
    rates: Sequence[float] = (0.0025, 0.005, 0.01, 0.02),
    seeds: Seeds = SEEDS,
    **settings: Any,
) -> Record:
    """Denoisers at several rates: `validation` is rates × points × seeds.

    `right` is rates × seeds.
    """
    validation, right = [], []
    for rate in rates:
        runs = [denoiser(way, rate=rate, seed=seed, **settings)[1] for seed in seeds]
        curves = torch.tensor([run["validation"] for run in runs])
        validation.append(curves.T.tolist())
        right.append([run["right"] for run in runs])
    return {
        "way": way,
        "rates": list(rates),
        "steps": runs[0]["steps"],
        "validation": validation,
        "right": right,
    }


# -------------------------------------------------------------------- recording

MEDICINES = {
    "Pre-LN": {"place": "pre"},
    "QK-norm": {"place": "pre", "qk_norm": True},
    "sandwich": {"place": "sandwich"},
    "both": {"place": "sandwich", "qk_norm": True},
}
OTHER_PLACES = {
    "Post-LN": {"place": "post"},
    "Post-LN, warm-up": {"place": "post", "warm_up": 100},
    "DeepNorm": {"place": "deepnorm"},
    "output": {"place": "output"},
    "output, QK-norm": {"place": "output", "qk_norm": True},
}


def long_runs() -> dict[str, Callable[[], Record]]:
    """Every recorded run by name; called, it gives its record.

    With three seeds; two_medicines and places have a decoder for each rate.
    """

    def by_rate(nets: dict[str, Any], *rates: float) -> Callable[[], Record]:
        return lambda: {
            name: [decoder(**net, rate=rate) for rate in rates]
            for name, net in nets.items()
        }

    def without_statistics() -> Record:
        run = partial(decoder, rate=0.003, depth=8, width=32, steps=400)
        return {
            f"{kind}, {names} names": run(kind=kind, names=names)
            for names in (128, 4131)
            for kind in ("LN", "DyT", "Derf")
        }

    def by_heart() -> Record:
        run = partial(decoder, rate=0.003, depth=8, width=32, steps=100, every=10)
        return {kind: run(kind=kind, names=128) for kind in ("LN", "DyT", "Derf")}

    return {
        "two_medicines": by_rate(MEDICINES, 0.002, 0.02, 0.05),
        "places": by_rate(OTHER_PLACES, 0.002, 0.02),
        "without_statistics": without_statistics,
        "by_heart": by_heart,
        "denoisers": lambda: {way: denoisers(way) for way in WAYS},
    }


if __name__ == "__main__":
    record_long_runs("after")
