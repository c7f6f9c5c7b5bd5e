"""What chapter 5 trains: small batches under batch norm and under group norm.

Convolutional nets for MNIST at 14×14, every layer halving the map: `A` has three
(widths 16-32-64, last map 2×2), `B` a fourth (64, last map 1×1); `C` has two (16-32)
for the 8×8 digits (last map 2×2). SGD with momentum 0.9 and weight decay 1e-4, rate
falling along half a cosine wave, batches of 32 and random shifts of up to 2 pixels,
unless a function says otherwise. Rates are chosen on validation images. What runs
returns a plain record, errors in %. `python -m normbook.labs.group_norm` makes the long
runs and keeps them in `records/group_norm.json`; with the names of some runs, these.

Two cures for small batches are each a small function: `batch_renorm` and
`standardized_weights` are the mathematics; `use_batch_renorm` and
`use_weight_standardization` put them into a stack of networks. A third, ghost batch
norm (Hoffer et al. 2017), needs no code: it is `WorkerBatchNorm` with sub-batches.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normbook import core, data, functional
from normbook import nn as nb
from normbook.data import Part, Split
from normbook.functional import InputError
from normbook.labs import record_long_runs
from normbook.training.norms import GROUPS
from normbook.training.stacked import (
    BATCH,
    SEEDS,
    Record,
    Seeds,
    WorkerBatchNorm,
    convolutional,
    crossed,
    errors,
    errors_by_rate,
    grouped,
    losses,
    recalibrated,
    shuffled,
    side_by_side,
    train,
    train_on_images,
    trained_on_mnist,
)

Net = str | Sequence[int]
NETS = {"A": (16, 32, 64), "B": (16, 32, 64, 64), "C": (16, 32)}
RATE = 0.1
SIZES = (32, 8, 4, 2)
# What is shown, and by how many pixels it moves at random.
IMAGES = {
    "shifted": (data.mnist, 2),
    "unshifted": (data.mnist, 0),
    "digits": (data.digits, 0),
}
RATES = (0.05, 0.1, 0.2)


# ------------------------------------------------------------------ variants


def batch_renorm(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    r_max: float,
    d_max: float,
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm, moved towards the running statistics `mean` and `var`.

    y = r·x̂ + d with r = σ_batch/σ and d = (μ_batch − μ)/σ, each held within
    [1/r_max, r_max] and [−d_max, d_max] and constant for the gradient. With no bounds
    y is what evaluation mode gives; with r_max = 1 and d_max = 0 it is batch norm. x:
    (N, C, ...); `mean` and `var` have shape (C,). Ioffe (2017).
    """
    sets = functional.batch_sets(x.shape)
    with torch.no_grad():
        batch = functional.moments(x, sets)
        ones = (1, -1) + (1,) * (x.ndim - 2)
        std = (var + eps).sqrt().view(ones)
        r = ((batch.var() + eps).sqrt() / std).clamp(1 / r_max, r_max)
        d = ((batch.mean - mean.view(ones)) / std).clamp(-d_max, d_max)
    return r * nb.plain(x, sets, None, None, eps).y + d


def standardized_weights(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Every filter with mean 0 and mean square 1/fan_in, whatever its size was.

    weight: (out, in, ...). A norm behind takes any common factor out again. Qiao et al.
    (2019).
    """
    fan_in = weight[0].numel()
    axes = tuple(range(1, weight.ndim))
    w_hat, _ = core.standardize(weight, axes, eps / fan_in)
    return w_hat / fan_in**0.5


class WorkerBatchRenorm(WorkerBatchNorm):
    """Batch renorm over consecutive sub-batches of `each` samples.

    `share` of the training that has passed sets the bounds: batch norm for its first
    quarter, then r_max up to 3 and d_max up to 5 by its half. The paper does this over
    fixed numbers of steps.
    """

    share = 0.0

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # no masks here
        if not self.training:
            return super().forward(x)
        folded = self.fold(x)
        workers = len(x) // self.each
        opened = min(max(4 * self.share - 1, 0.0), 1.0)
        y = batch_renorm(
            folded,
            self.running_mean.repeat(workers),
            self.running_var.repeat(workers),
            r_max=1 + 2 * opened,
            d_max=5 * opened,
            eps=self.eps,
        )
        with torch.no_grad():
            batch = functional.moments(folded, functional.batch_sets(folded.shape))
            for buffer, value in (
                (self.running_mean, batch.mean),
                (self.running_var, batch.var(correction=1)),
            ):
                buffer.lerp_(value.view(workers, -1).mean(0), self.momentum)
        fit = (-1,) + (1,) * (x.ndim - 2)
        return core.affine(self.unfold(y), self.weight.view(fit), self.bias.view(fit))


class _Standardized(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return standardized_weights(weight)


def use_batch_renorm(net: nn.Sequential) -> list[WorkerBatchRenorm]:
    """Put batch renorm wherever `net` has batch norm; return the new layers."""
    layers = []
    for place, layer in enumerate(net):
        if isinstance(layer, WorkerBatchNorm):
            net[place] = new = WorkerBatchRenorm(layer.num_features, layer.each)
            layers.append(new)
    return layers


def use_weight_standardization(net: nn.Sequential) -> None:
    """From now on every convolution of `net` uses its standardized weights."""
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            parametrize.register_parametrization(layer, "weight", _Standardized())


# ------------------------------------------------------------------ networks


def _widths(net: Net) -> tuple[int, ...]:
    if isinstance(net, str) and net not in NETS:
        raise InputError(
            f"net must be one of {', '.join(NETS)}, or a width for each layer; got "
            f"{net!r}."
        )
    return NETS[net] if isinstance(net, str) else tuple(net)


def build(
    net: Net,
    kind: str,
    seeds: Seeds,
    each: int | None,
    groups: int,
    steps: int,
    activation: type[nn.Module] = nn.ReLU,
) -> tuple[nn.Sequential, Callable[[int], None]]:
    """Networks of one kind, and what they want called after every training step.

    `net` names one of `NETS`, or has a width for each layer. `kind` is one of
    `training.norm` or batch renorm, with " + WS" for standardized weights.
    """
    base, *more = kind.split(" + ")
    of = "BN" if base == "batch renorm" else base
    if more not in ([], ["WS"]) or (base == "batch renorm" and each is None):
        raise InputError(
            "kind must be a norm, with + WS for standardized weights, and batch renorm "
            f"needs sub-batches; got {kind!r} and sub-batches of {each}."
        )
    stack = convolutional(
        seeds,
        of,
        widths=_widths(net),
        activation=activation,
        each=each,
        groups=groups,
    )
    if more:
        use_weight_standardization(stack)
    renorms = use_batch_renorm(stack) if base == "batch renorm" else []

    def watch(step: int) -> None:
        for layer in renorms:
            layer.share = (step + 1) / steps

    return stack, watch


def upright(net: Net, kind: str, seeds: Seeds, times: int, steps: int) -> nn.Sequential:
    """A new stack before tuning: each seed `times` times, for as many rates."""
    alone = trained_on_mnist(
        kind, tuple(seeds), (RATE,) * len(seeds), steps=steps, widths=_widths(net)
    )
    stack, _ = build(net, kind, tuple(seeds) * times, BATCH, GROUPS, steps)
    with torch.no_grad():
        for value, of_one in zip(
            stack.state_dict().values(), alone.state_dict().values(), strict=True
        ):
            # The first axis is split by copy; a counter has none.
            value.copy_(torch.cat([of_one] * times) if of_one.ndim else of_one)
    return stack.eval()


# ------------------------------------------------------------- small batches


def virtual_workers(
    net: Net,
    kind: str,
    each: int | None = None,
    *,
    activation: type[nn.Module] = nn.ReLU,
    batch: int = BATCH,
    groups: int = GROUPS,
    rates: Sequence[float] = (RATE,),
    seeds: Seeds = SEEDS,
    steps: int = 376,
    images: str = "shifted",
) -> Record:
    """Train with statistics of `each` images; every SGD batch has 32, or `batch`.

    `net` and `kind` as in `build`. `images` names MNIST, shifted or unshifted, or the
    digits. `validation` and `tests` are rates × seeds; `rate` is the one that
    validation prefers, and at this rate are `test` and `loss`, the training loss over
    the last 50 steps, one a seed. Batch norm has `recalibrated` as well: `tests` with
    statistics taken anew from all training images, as they are without shifts.
    """
    load, shift = IMAGES[images]
    split = load()
    copies, per_copy = crossed(rates, seeds)
    stack, watch = build(net, kind, copies, each, groups, steps, activation)
    history = train_on_images(
        stack,
        split.train,
        copies,
        steps=steps,
        rates=per_copy,
        batch=batch,
        shift=shift,
        watch=watch,
    )
    chosen = errors_by_rate(stack, split, rates, seeds)
    loss = history[-50:].mean(0).view(len(rates), -1)[rates.index(chosen["rate"])]
    if kind == "BN":
        with recalibrated(stack, split.train.x, len(copies)):
            anew = errors(stack, split.test, len(copies))
        chosen["recalibrated"] = anew.view(len(rates), -1).tolist()
    return {
        "net": net,
        "kind": kind,
        "each": each,
        "groups": groups if kind.startswith("GN") else None,
        **chosen,
        "loss": loss.tolist(),
    }


def scaled_rates(
    net: Net,
    kind: str,
    size: int,
    *,
    activation: type[nn.Module] = nn.ReLU,
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
    stack, watch = build(net, kind, seeds, size, GROUPS, steps, activation)
    scaled = rate * size / BATCH
    train_on_images(
        stack,
        mnist.train,
        seeds,
        steps=steps,
        rates=[scaled] * copies,
        batch=size,
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
    net: Net = "A",
    activation: type[nn.Module] = nn.ReLU,
    rate: float = RATE,
    seeds: Seeds = SEEDS,
    steps: int = 300,
) -> Record:
    """Batches of 120, twelve of each class, sorted by class or shuffled.

    The SGD step sees every class either way; batch norm's sub-batches of `each` do not.
    No shifts.
    """
    mnist, copies = data.mnist(), len(seeds)
    stack, watch = build(net, kind, seeds, each, GROUPS, steps, activation)
    train(
        stack,
        grouped(mnist.train, seeds, by_class),
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
    net: Net = "B",
    batch: int = BATCH,
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
    copies, per_copy = crossed(rates, seeds)
    stack = upright(net, kind, seeds, len(rates), before)
    untuned = errors(stack, turned.test, len(copies))[: len(seeds)]
    for layer in stack:
        if isinstance(layer, WorkerBatchNorm):
            layer.each = each
    train_on_images(
        stack,
        turned.train,
        copies,
        steps=steps,
        rates=per_copy,
        batch=batch,
        frozen=frozen,
    )
    return {
        "net": net,
        "kind": kind,
        "each": None if frozen or kind == "GN" else each,
        "untuned": untuned.tolist(),
        **errors_by_rate(stack, turned, rates, seeds),
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


# ---------------------------------------------------- few values: why B collapses


def what_passes(
    samples: int, positions: int, alike: float = 0.0, *, channels: int = 4000
) -> Record:
    """What one batch norm puts out and passes back, for n·H·W random values.

    Two positions of a sample correlate by `alike`; the mean of the set then counts as
    `values` independent values, n·H·W/(1 + (H·W − 1)·alike). `size` is the mean of |x̂|;
    `gradient` the share of a random dy that reaches x, Σ(σ·dx)²/Σdy²; `pooled` the same
    for a dy that is equal where x̂ > 0 in a sample, and 0 elsewhere, as a mean over the
    map behind a ReLU sends it back; `of_few` the share of Σdx² that a hundredth of the
    channels carries.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    own, shared = draw(samples, channels, positions), draw(samples, channels, 1)
    x = (1 - alike) ** 0.5 * own + alike**0.5 * shared
    std = x.var((0, 2), correction=0, keepdim=True).sqrt()

    def passed(dy: Tensor) -> float:
        dx = functional.batch_norm_vjp(dy, x).x
        return ((std * dx) ** 2).sum().item() / (dy**2).sum().item()

    x_hat = functional.batch_norm(x)
    dy = draw(samples, channels, positions)
    sent = (functional.batch_norm_vjp(dy, x).x ** 2).sum((0, 2))
    most = sent.sort(descending=True).values[: channels // 100]
    return {
        "samples": samples,
        "positions": positions,
        "alike": alike,
        "values": samples * positions / (1 + (positions - 1) * alike),
        "size": x_hat.abs().mean().item(),
        "gradient": passed(dy),
        "pooled": passed(draw(samples, channels, 1) * (x_hat > 0)),
        "of_few": (most.sum() / sent.sum()).item(),
    }


def first_gradients(
    net: Net,
    kind: str,
    each: int | None = None,
    *,
    activation: type[nn.Module] = nn.ReLU,
    batch: int = BATCH,
    batches: int = 16,
    seeds: Seeds = SEEDS,
) -> Record:
    """Before training: do the gradients of different batches agree?

    Of each layer's weights, the last being the linear one: `norm` is the gradient's
    root mean square over `batches` batches, `agreement` the share of it that is
    the same in every batch, |mean|²/mean(|·|²) without its bias (layers × seeds): 1
    where all agree, 0 where each is noise.
    """
    stack, _ = build(net, kind, seeds, each, GROUPS, 1, activation)
    stack.train()
    weights = [p for p in stack.parameters() if p.ndim > 2]
    drawn = shuffled(data.mnist().train, seeds, batch, shift=2)
    seen: list[list[Tensor]] = [[] for _ in weights]
    for _, (x, y) in zip(range(batches), drawn, strict=False):
        gradients = torch.autograd.grad(losses(stack(x), y).sum(), weights)
        for layer, gradient in zip(seen, gradients, strict=True):
            layer.append(gradient.view(len(seeds), -1))
    norm, agreement = [], []
    for layer in seen:
        every = torch.stack(layer)
        square = (every**2).sum(2).mean(0)
        of_mean = (every.mean(0) ** 2).sum(1)
        agreement.append(((batches * of_mean / square - 1) / (batches - 1)).tolist())
        norm.append(square.sqrt().tolist())
    return {
        "net": net,
        "kind": kind,
        "each": each,
        "norm": norm,
        "agreement": agreement,
    }


@torch.no_grad()
def values_that_count(
    net: Net, *, sizes: Sequence[int] = SIZES, seeds: Seeds = SEEDS, steps: int = 376
) -> Record:
    """As how many independent values does a batch's mean count, layer by layer?

    Of the input of each batch norm, trained with statistics of 32 images. `positions`
    is H·W; `effective` is σ²/σ_image², with σ_image² the variance of an image's mean:
    the mean over n images varies by σ²/(n·effective), so a sample counts as that many
    values (layers × seeds, the median channel's). `drawn` is the same from random
    batches of training images, by layer and size: σ²/Var(batch mean), over all
    channels.
    """
    with torch.enable_grad():
        stack = upright(net, "BN", seeds, 1, steps)
    maps: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
        for layer in stack
        if isinstance(layer, WorkerBatchNorm)
    ]
    x = data.mnist().train.x
    stack(side_by_side(x, len(seeds)))
    for hook in hooks:
        hook.remove()
    generator = torch.Generator().manual_seed(0)
    effective, positions = [], []
    drawn: list[list[list[float]]] = []
    for x in maps:
        total = x.var((0, 2, 3))
        of_image = x.mean((2, 3))
        share = (total / of_image.var(0)).view(len(seeds), -1)
        effective.append(share.median(1).values.tolist())
        positions.append(x.shape[2] * x.shape[3])
        drawn.append([])
        for size in sizes:
            picked = torch.randint(len(x), (500, size), generator=generator)
            noise = of_image[picked].mean(1).var(0) / total
            drawn[-1].append((1 / noise.view(len(seeds), -1).mean(1)).tolist())
    return {
        "net": net,
        "sizes": list(sizes),
        "positions": positions,
        "effective": effective,
        "drawn": drawn,
    }


# ------------------------------------------------------------------- records


def long_runs(
    seeds: Seeds = (0, 1, 2, 3, 4), steps: int = 752
) -> dict[str, Callable[[], Record]]:
    """Every recorded run by name; called, it gives its record.

    In a record "BN 4" has statistics of 4 images. Rates are chosen where the statistics
    are compared, in `virtual_workers`, `two_images` and `fine_tuning`; all else is at
    0.1. What looked fragile has `fresh` seeds, and rates beyond those preferred.
    """
    fresh = tuple(len(seeds) + seed for seed in seeds)
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

    def two_images() -> Record:
        names = ("BN 32", "BN 2", "GN")
        again = {"seeds": fresh[:3]}
        return {
            "A": workers("A", *names, "batch renorm 2", rates=(0.1, 0.2, 0.4), **again),
            "B": workers("B", *names, rates=(0.005, 0.05, 0.1), **again),
        }

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

    def longer_and_slower() -> Record:
        slow = {"rates": (0.002,), "seeds": fresh[:3]}
        return workers("B", "BN 2", steps=3 * steps, **slow)

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
        settings: dict[str, Any] = {"seeds": fresh, "before": steps // 2}
        settings["rates"] = (0.03, *RATES[1:], 0.4)
        return {
            net: {
                "BN 32": fine_tuning("BN", net=net, **settings),
                "BN 2": fine_tuning("BN", 2, net=net, **settings),
                "BN frozen": fine_tuning("BN", frozen=True, net=net, **settings),
                "GN": fine_tuning("GN", net=net, **settings),
            }
            for net in "AB"
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
        "two_images": two_images,
        "longer_and_slower": longer_and_slower,
    }


def _parsed(name: str) -> tuple[str, int | None]:
    """Kind and size of sub-batches: "BN 4" is ("BN", 4), "GN" is ("GN", None)."""
    kind, _, size = name.rpartition(" ")
    return (kind, int(size)) if size.isdigit() else (name, None)


if __name__ == "__main__":
    record_long_runs("group_norm")
