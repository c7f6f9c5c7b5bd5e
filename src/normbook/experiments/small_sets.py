"""What batch norm does with few values: why one net of chapter 5 collapses.

Each function returns a plain record and takes a second or two.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from normbook import data, functional
from normbook.experiments.stacked import (
    SEEDS,
    Record,
    Seeds,
    WorkerBatchNorm,
    losses,
    shuffled,
    side_by_side,
)
from normbook.experiments.variants import BATCH, build, upright

SIZES = (32, 8, 4, 2)


def what_passes(
    samples: int, positions: int, alike: float = 0.0, *, channels: int = 4000
) -> Record:
    """What one batch norm puts out and passes back, for n·H·W random values.

    Two positions of a sample correlate by `alike`; the mean of the set then counts as
    `values` independent values, n·H·W/(1 + (H·W − 1)·alike). `size` is the mean of |x̂|;
    `gradient` the share of a random dy that reaches x, Σ(σ·dx)²/Σdy²; `pooled` the same
    for a dy that is equal at all positions of a sample, as a mean over the map sends it
    back; `of_few` the share of Σdx² that a hundredth of the channels carries.
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

    dy = draw(samples, channels, positions)
    sent = (functional.batch_norm_vjp(dy, x).x ** 2).sum((0, 2))
    most = sent.sort(descending=True).values[: channels // 100]
    return {
        "samples": samples,
        "positions": positions,
        "alike": alike,
        "values": samples * positions / (1 + (positions - 1) * alike),
        "size": functional.batch_norm(x).abs().mean().item(),
        "gradient": passed(dy),
        "pooled": passed(draw(samples, channels, 1).expand_as(x)),
        "of_few": (most.sum() / sent.sum()).item(),
    }


def first_gradients(
    net: str,
    kind: str,
    each: int | None = None,
    *,
    batches: int = 16,
    seeds: Seeds = SEEDS,
) -> Record:
    """Before training: do the gradients of different batches agree?

    Of each layer's weights, the last being the linear one: `norm` is the gradient's
    root mean square over `batches` batches of 32, `agreement` the share of it that is
    the same in every batch, |mean|²/mean(|·|²) without its bias (layers × seeds): 1
    where all agree, 0 where each is noise.
    """
    stack, _ = build(net, kind, seeds, each, 4, 1)
    stack.train()
    weights = [p for p in stack.parameters() if p.ndim > 2]
    drawn = shuffled(data.mnist().train, seeds, BATCH, shift=2)
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
    net: str, *, sizes: Sequence[int] = SIZES, seeds: Seeds = SEEDS, steps: int = 376
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
        stack = upright(net, "BN", tuple(seeds), 1, steps)
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
