"""Recurrent nets and transformers that read names, many trained at once.

As in `stacked`: S networks stand side by side in the channel axis, each with its own
initial weights, batches and learning rate, and copies never mix. Names are (N, S, T)
integers; a net predicts every next letter, and the end of a name.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from normbook import data
from normbook import nn as nb
from normbook.data import LETTERS
from normbook.functional import InputError
from normbook.training.norms import norm
from normbook.training.stacked import Linear, Seeds

BETAS, ADAM_EPS = (0.9, 0.999), 1e-8
GATES = {"RNN": 1, "LSTM": 4}
# Where a norm may stand, f a branch and h the stream: h + f(norm(h)), norm(h + f(h)),
# h + norm(f(norm(h))), h + norm(f(h)), norm(α h + f(h)).
PLACES = ("pre", "post", "sandwich", "output", "deepnorm")
# What a net reads (N, S, T), what it is to say, and where that counts.
Batch = tuple[Tensor, Tensor, Tensor]


# -------------------------------------------------------------------- norms


class StepNorm(nn.Module):
    """The norm of time steps: shared BN, or a kind of `norm`.

    BN keeps running statistics for each of `steps` steps and takes those of the last
    beyond; shared BN keeps one set for all steps. Both count living names only, and
    where fewer than two live in a copy, all use what they remember. `gamma` is their
    initial γ; recurrent nets take 0.1 (Cooijmans et al. 2017).
    """

    def __init__(
        self, kind: str, copies: int, channels: int, steps: int, gamma: float = 0.1
    ):
        super().__init__()
        sets = {"BN": steps, "shared BN": 1}.get(kind, 0)
        self.plain = nn.Identity() if sets else norm(kind, copies, channels)
        width = copies * channels
        self.of_step = nn.ModuleList(
            nb.BatchNorm(width, affine=False) for _ in range(sets)
        )
        if sets:
            self.weight = nn.Parameter(torch.full((width,), gamma))
            self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, step: int, live: Tensor) -> Tensor:
        """x: (N, S·C), live: (N, S)."""
        if not self.of_step:
            return self.plain(x)
        layer = self.of_step[min(step, len(self.of_step) - 1)]
        layer.train(self.training and int(live.sum(0).min()) >= 2)
        where = live.repeat_interleave(x.shape[1] // live.shape[1], 1)
        return self.weight * layer(x, where) + self.bias


# ----------------------------------------------------------------- networks


class Recurrent(nn.Module):
    """Tanh RNNs or LSTMs, one a seed: (N, S, T) letters to (N, S, T, 27) logits.

    The norm acts on W x and on U h apart, and in an LSTM on the cell (Ba et al. 2016).
    `scales` multiplies the initial W and U of each copy.
    """

    def __init__(
        self,
        seeds: Seeds,
        cell: str,
        kind: str,
        *,
        width: int = 64,
        steps: int = 11,
        scales: Sequence[float] | None = None,
    ):
        super().__init__()
        if cell not in GATES:
            raise InputError(f"cell must be {' or '.join(GATES)}; got {cell!r}.")
        copies, gates = len(seeds), GATES[cell]
        self.copies, self.cell, self.width, self.gates = copies, cell, width, gates
        self.embed = Linear(copies, LETTERS, 32, bias=False)
        self.input = Linear(copies, 32, gates * width, bias=False)
        self.state = Linear(copies, width, gates * width, bias=False)
        self.bias = nn.Parameter(torch.zeros(copies, gates, width))
        self.head = Linear(copies, width, LETTERS)
        self.input_norm = StepNorm(kind, copies, gates * width, steps)
        self.state_norm = StepNorm(kind, copies, gates * width, steps)
        self.cell_norm = StepNorm(kind if gates == 4 else "none", copies, width, steps)
        self._initialize(seeds, scales or [1.0] * copies)

    @torch.no_grad()
    def _initialize(self, seeds: Seeds, scales: Sequence[float]) -> None:
        for copy, (seed, scale) in enumerate(zip(seeds, scales, strict=True)):
            g = torch.Generator().manual_seed(seed)
            self.embed.weight[copy].normal_(generator=g)
            for layer in (self.input, self.head):
                bound = 1 / math.sqrt(layer.weight.shape[1])
                layer.weight[copy].uniform_(-bound, bound, generator=g)
            for gate in self.state.weight[copy].split(self.width, dim=1):
                square = torch.empty(self.width, self.width)
                gate.copy_(nn.init.orthogonal_(square, generator=g))
            self.input.weight[copy] *= scale
            self.state.weight[copy] *= scale
        if self.gates == 4:
            self.bias[:, 1] = 1.0  # the forget gate starts open

    def forward(self, x: Tensor, live: Tensor) -> Tensor:
        samples, copies, steps = x.shape
        letters = F.one_hot(x.permute(2, 0, 1), LETTERS).to(self.bias.dtype)
        inputs = self.input(self.embed(letters.flatten(2).flatten(0, 1)))
        if not self.input_norm.of_step:  # one call serves all steps
            inputs = self.input_norm(inputs, 0, live)
        h = inputs.new_zeros(samples, copies * self.width)
        c, states = h, []
        for step, a in enumerate(inputs.unflatten(0, (steps, samples))):
            now = live[:, :, step]
            if self.input_norm.of_step:
                a = self.input_norm(a, step, now)
            a = a + self.state_norm(self.state(h), step, now)
            a = a.unflatten(1, (copies, self.gates, self.width)) + self.bias
            if self.cell == "RNN":
                h = torch.tanh(a).flatten(1)
            else:
                i, f, o = torch.sigmoid(a[:, :, :3]).flatten(3).unbind(2)
                new = f * c.unflatten(1, (copies, -1)) + i * torch.tanh(a[:, :, 3])
                c = new.flatten(1)
                h = o.flatten(1) * torch.tanh(self.cell_norm(c, step, now))
            states.append(h)
        logits = self.head(torch.cat(states)).unflatten(1, (copies, LETTERS))
        return logits.unflatten(0, (steps, samples)).permute(1, 2, 0, 3)


class Transformer(nn.Module):
    """Causal transformers, one a seed: (N, S, T) letters to (N, S, T, 27) logits.

    The decoder of chapters 3 and 8. `place`, one of `PLACES`: pre (the norm stands in
    the branch, Xiong et al. 2020), post (after each sum), sandwich (before and after
    the branch, inside the sum, Kim et al. 2025), output (only after it, as in OLMo 2),
    deepnorm (post, with h times α = (2L)^¼ and the maps of values and of the hidden
    layer initialized smaller by (8L)^-¼, L blocks, Wang et al. 2022). Where nothing
    normalizes the sums, one more norm stands before the head. `qk_norm` puts an RMSNorm
    with a scale for each channel of a head on queries and on keys.

    Initial weights are Gaussian after Glorot, as in Xiong et al. 2020; four heads,
    hidden layers of 4 × `width`. Batch norm takes its statistics from all living
    letters.
    """

    def __init__(
        self,
        seeds: Seeds,
        kind: str = "LN",
        place: str = "pre",
        *,
        qk_norm: bool = False,
        depth: int = 8,
        width: int = 32,
        length: int = 11,
    ):
        super().__init__()
        if place not in PLACES:
            raise InputError(
                f"place must be one of {', '.join(PLACES)}; got {place!r}."
            )
        copies = len(seeds)
        self.copies, self.width = copies, width
        self.embed = nn.Parameter(torch.empty(copies, LETTERS, width))
        self.place = nn.Parameter(torch.empty(copies, length, width))
        skip = (2 * depth) ** 0.25 if place == "deepnorm" else 1.0
        self.blocks = nn.ModuleList(
            Block(copies, width, kind, place, qk_norm=qk_norm, skip=skip)
            for _ in range(depth)
        )
        last = "none" if place in ("post", "deepnorm") else kind
        self.last_norm = StepNorm(last, copies, width, steps=1, gamma=1.0)
        self.head = Linear(copies, width, LETTERS)
        self._initialize(seeds)
        if place == "deepnorm":
            self._shrink_branches((8 * depth) ** -0.25)

    @torch.no_grad()
    def _initialize(self, seeds: Seeds) -> None:
        maps = [layer for layer in self.modules() if isinstance(layer, Linear)]
        for copy, seed in enumerate(seeds):
            g = torch.Generator().manual_seed(seed)
            self.embed[copy].normal_(0, 0.7, generator=g)
            self.place[copy].normal_(0, 0.7, generator=g)
            for layer in maps:
                _, inputs, outputs = layer.weight.shape
                # Query, key and value are three square maps side by side.
                outputs = inputs if outputs == 3 * inputs else outputs
                std = math.sqrt(2 / (inputs + outputs))
                if layer is self.head:
                    std = 1 / math.sqrt(inputs)
                layer.weight[copy].normal_(0, std, generator=g)

    @torch.no_grad()
    def _shrink_branches(self, factor: float) -> None:
        """DeepNorm's initialization: all maps of a branch but queries and keys."""
        for block in self.modules():
            if isinstance(block, Block):
                for layer in (block.out, block.hidden, block.back):
                    layer.weight.mul_(factor)
                block.qkv.weight[..., 2 * self.width :] *= factor

    def forward(self, x: Tensor, live: Tensor) -> Tensor:
        samples, copies, steps = x.shape
        copy = torch.arange(copies)[:, None]
        h = (self.embed[copy, x] + self.place[:, :steps]).transpose(1, 2)
        h = h.flatten(2).flatten(0, 1)
        live = live.transpose(1, 2).flatten(0, 1)
        for block in self.blocks:
            h = block(h, live, samples)
        last = self.last_norm(h, 0, live)
        logits = self.head(last).unflatten(1, (copies, LETTERS))
        return logits.unflatten(0, (samples, steps)).transpose(1, 2)


class Block(nn.Module):
    """Attention and a hidden layer, each with a sum and norms where `place` says.

    From (N·T, S·C) features, (N·T, S) which of them live, and N. `skip` multiplies the
    stream of deepnorm.
    """

    def __init__(
        self,
        copies: int,
        width: int,
        kind: str,
        place: str,
        heads: int = 4,
        *,
        qk_norm: bool = False,
        skip: float = 1.0,
    ):
        super().__init__()
        self.copies, self.heads, self.place, self.skip = copies, heads, place, skip

        def norms(kind: str) -> nn.ModuleList:
            return nn.ModuleList(
                StepNorm(kind, copies, width, steps=1, gamma=1.0) for _ in range(2)
            )

        self.norms = norms("none" if place == "output" else kind)
        self.output_norms = norms(kind if place in ("sandwich", "output") else "none")
        self.qk_norms = nn.ModuleList(
            norm("RMSNorm" if qk_norm else "none", copies, width // heads)
            for _ in range(2)
        )
        self.qkv = Linear(copies, width, 3 * width, bias=False)
        self.out = Linear(copies, width, width, bias=False)
        self.hidden = Linear(copies, width, 4 * width)
        self.back = Linear(copies, 4 * width, width)

    def forward(self, h: Tensor, live: Tensor, samples: int) -> Tensor:
        branches = (lambda x: self.attend(x, samples), self.feed)
        for branch, before, after in zip(
            branches, self.norms, self.output_norms, strict=True
        ):
            if self.place in ("post", "deepnorm"):
                h = before(self.skip * h + branch(h), 0, live)
            else:
                h = h + after(branch(before(h, 0, live)), 0, live)
        return h

    def attend(self, x: Tensor, samples: int) -> Tensor:
        q, k, v = (z.flatten(0, 1) for z in self.heads_of(self.qkv(x), samples))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.unflatten(0, (samples, self.copies)).permute(0, 3, 1, 2, 4)
        return self.out(mixed.flatten(2).flatten(0, 1))

    def heads_of(self, qkv: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values by head, normalized where they are: (N, S, H, T, D).

        From what `qkv` puts out, (N·T, S·3·H·D).
        """
        split = (samples, len(qkv) // samples, self.copies, 3, self.heads, -1)
        q, k, v = qkv.view(split).permute(3, 0, 2, 5, 4, 1)  # (N, S, D, H, T) each
        q, k = (
            normalize(z.flatten(1, 2)).unflatten(1, (self.copies, -1))
            for normalize, z in zip(self.qk_norms, (q, k), strict=True)
        )
        return q.movedim(2, -1), k.movedim(2, -1), v.movedim(2, -1)

    def feed(self, x: Tensor) -> Tensor:
        return self.back(F.relu(self.hidden(x)))


# ------------------------------------------------------------------ batches


def every_copy(names: Tensor, copies: int) -> Batch:
    """The same names for all copies: what they read, say, and where."""
    return _next_letters(names[:, None].expand(-1, copies, -1))


def random_names(names: Tensor, seeds: Seeds, batch: int) -> Iterator[Batch]:
    """Endless batches of names, each copy its own, cut after the longest."""
    generators = [torch.Generator().manual_seed(1000 + seed) for seed in seeds]
    while True:
        chosen = [torch.randint(len(names), (batch,), generator=g) for g in generators]
        drawn = names[torch.stack(chosen, 1)]
        yield _next_letters(drawn[:, :, : int((drawn > 0).sum(2).max())])


def _next_letters(names: Tensor) -> Batch:
    return names, F.pad(names[:, :, 1:], (0, 1)), names > 0


# ----------------------------------------------------------------- training


class Adam:
    """Adam with a rate for each copy; `clip` bounds each copy's gradient norm.

    Source: Kingma & Ba 2015; no weight decay.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        rates: Sequence[float],
        clip: float | None = None,
    ):
        self.parameters = list(parameters)
        self.rates, self.clip, self.steps = torch.tensor(rates)[:, None], clip, 0
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], factor: float = 1.0) -> None:
        """One update, with every rate multiplied by `factor`."""
        copies = len(self.rates)
        self.steps += 1
        by_copy = [g.reshape(copies, -1) for g in gradients]
        if self.clip is not None:
            norms = torch.stack([g.square().sum(1) for g in by_copy]).sum(0).sqrt()
            shrink = (self.clip / (norms + 1e-6)).clamp(max=1)[:, None]
            by_copy = [g * shrink for g in by_copy]
        correct1, correct2 = (1 - beta**self.steps for beta in BETAS)
        for p, g, m, v in zip(
            self.parameters, by_copy, self.first, self.second, strict=True
        ):
            m, v = m.view(copies, -1), v.view(copies, -1)
            m.lerp_(g, 1 - BETAS[0])
            v.lerp_(g.square(), 1 - BETAS[1])
            root = (v / correct2).sqrt_().add_(ADAM_EPS)
            p.view(copies, -1).sub_(factor * self.rates / correct1 * m / root)


def bits(logits: Tensor, y: Tensor, where: Tensor) -> Tensor:
    """Mean cross-entropy of each copy in bits, over the places that count: (S)."""
    each = F.cross_entropy(
        logits.reshape(-1, LETTERS), y.flatten(), reduction="none"
    ).view(y.shape)
    live = where.to(each.dtype)
    return (each * live).sum((0, 2)) / live.sum((0, 2)) / math.log(2)


def fit(
    net: nn.Module,
    batches: Iterator[Batch],
    *,
    steps: int,
    rates: Sequence[float],
    warm_up: int = 0,
    clip: float | None = None,
    watch: Callable[[int], Any] | None = None,
    every: int = 25,
) -> list[Any]:
    """Train every copy with Adam; return what `watch(step)` gave.

    `watch` is called before the first step and after each `every`-th, in evaluation
    mode. The rate rises linearly for `warm_up` steps, then stays.
    """
    optimizer = Adam(net.parameters(), rates, clip)
    seen: list[Any] = []
    bar = tqdm(range(steps + 1), leave=False, disable=None)
    for step, batch in zip(bar, batches, strict=False):
        if watch and step % every == 0:
            net.eval()
            seen.append(watch(step))
        if step == steps:
            break
        net.train()
        x, y, where = batch
        loss = bits(net(x, where), y, where)
        gradients = torch.autograd.grad(loss.sum(), optimizer.parameters)
        optimizer.step(gradients, min(1.0, (step + 1) / warm_up) if warm_up else 1.0)
    net.eval()
    return seen


@torch.no_grad()
def evaluate(net: nn.Module, batch: Batch) -> list[float]:
    """Bits a letter of each copy; an overflow counts as log₂ 27, guessing."""
    x, y, where = batch
    guessing = math.log2(LETTERS)
    found = bits(net(x, where), y, where)
    return found.nan_to_num(guessing, posinf=guessing).tolist()


def trained_on_names(
    net: nn.Module,
    seeds: Seeds,
    *,
    rate: float,
    warm_up: int,
    batch: int,
    steps: int,
    every: int,
    names: int | None = None,
) -> dict[str, Any]:
    """Train copies on the first `names` training names; losses in bits a letter.

    `validation` is points × seeds, a point at each of `steps`; `test` is at the end.
    """
    parts, copies = data.names(), len(seeds)
    validation = every_copy(parts.validation, copies)
    curve = fit(
        net,
        random_names(parts.train[:names], seeds, batch),
        steps=steps,
        rates=[rate] * copies,
        warm_up=warm_up,
        watch=lambda step: evaluate(net, validation),
        every=every,
    )
    return {
        "rate": rate,
        "warm_up": warm_up,
        "steps": list(range(0, steps + 1, every)),
        "validation": curve,
        "test": evaluate(net, every_copy(parts.test, copies)),
    }
