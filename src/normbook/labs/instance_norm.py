"""What instance norm erases, and what that buys and costs: the runs of chapter 4.

Every function returns a plain record: lists with one number a seed, and the settings
that they belong to. `python -m normbook.labs.instance_norm` makes the long runs and
keeps them in `records/instance_norm.json`, their pictures in
`records/instance_norm.png`; with names of runs behind it, only those.

The second half is a small stylization network, trained with one norm or another, and
AdaIN on pixels. After Ulyanov et al. (2016), at a size that a laptop trains in seconds.
Their loss network has learned to see; this one has random filters at four scales, as
nothing is downloaded. It knows colours and how rough a texture is, and no brush
strokes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from normbook import data, functional
from normbook import nn as nb
from normbook.data import Part
from normbook.functional import InputError
from normbook.labs import record_long_runs
from normbook.training import norm, stacked
from normbook.training.records import write_pictures
from normbook.training.stacked import SEEDS, Record, Seeds

CHANGES = {
    "contrast × 0.3": (0.3, 0.0),
    "brightness + 0.3": (1.0, 0.3),
    "both": (0.3, 0.3),
}
CONTRASTS = (1.0, 0.5, 0.25)  # of the photographs
TEXTURE_CONTRASTS = (1.0, 0.6, 0.35, 0.2)  # of the textures that are told apart
CROP, TEXTURE_CROP = 64, 32
KINDS = ("none", "BN", "LN", "GN", "IN")
RECORDED = (10, 11, 12)  # seeds of the long runs, others than those of short ones


# ---------------------------------------------------- one photograph, many looks


def convolution(padding: str, seed: int = 0) -> nn.Conv2d:
    """Sixteen random filters of 5×5 pixels; `padding` is none, zeros or reflect."""
    if padding not in ("none", "zeros", "reflect"):
        raise InputError(f"padding must be none, zeros or reflect; got {padding!r}.")
    layer = nn.Conv2d(
        3,
        16,
        5,
        padding=0 if padding == "none" else 2,
        padding_mode="reflect" if padding == "reflect" else "zeros",
    ).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.normal_(std=75**-0.5, generator=generator)
    return layer


@torch.no_grad()
def responses(
    kind: str,
    contrast: float = 1.0,
    brightness: float = 0.0,
    *,
    padding: str = "none",
    training: bool = False,
    seed: int = 0,
) -> Tensor:
    """One convolution and one norm of the astronaut at this contrast: (16, H, W).

    Five other photographs share the batch, unchanged. BN uses the statistics of the six
    as they were, or, in `training`, those of the batch with the changed one. All in
    float64: what is drawn of it is then the same picture on another processor.
    """
    pictures = data.photographs()
    names = (*reversed(data.HELD_OUT), *data.TRAINING[:4])
    x = torch.stack([pictures[name] for name in names]).double()
    place = names.index("astronaut")
    maps, layer = convolution(padding, seed).double(), norm(kind, 1, 16).double()
    if isinstance(layer, nb.BatchNorm):
        layer.momentum = None
        layer(maps(x))
    layer.train(training)
    x[place] = with_contrast(x[place], contrast, brightness)
    return layer(maps(x))[place]


def response_changes(
    kind: str,
    *,
    padding: str = "none",
    training: bool = False,
    changes: Mapping[str, tuple[float, float]] = CHANGES,
    seeds: Seeds = SEEDS,
) -> Record:
    """How far another contrast moves `responses`: ‖y' − y‖/‖y‖, changes × seeds."""
    settings: dict[str, Any] = {"padding": padding, "training": training}
    moved: list[list[float]] = []
    for contrast, brightness in changes.values():
        moved.append([])
        for seed in seeds:
            before = responses(kind, **settings, seed=seed)
            after = responses(kind, contrast, brightness, **settings, seed=seed)
            moved[-1].append(((after - before).norm() / before.norm()).item())
    return {"kind": kind, **settings, "changes": list(changes), "moved": moved}


# ----------------------------------------------------------- what is erased


def classifier(
    kind: str,
    seeds: Seeds,
    inputs: int,
    classes: int,
    place: str = "hidden",
    *,
    widths: tuple[int, int] = (16, 32),
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Two convolutions and a mean over the map, one net a seed, (N, S, C, H, W) in.

    `place` has the norm after each convolution ("hidden"), or once, of the input, where
    GN takes all its channels as one group.
    """
    if place not in ("hidden", "input"):
        raise InputError(f"place must be hidden or input; got {place!r}.")
    copies = len(seeds)
    hidden = kind if place == "hidden" else "none"
    layers: list[nn.Module] = [nn.Flatten(1, 2)]
    if place == "input":
        layers.append(norm("LN" if kind == "GN" else kind, copies, inputs))
    first, last = widths
    for fan_in, width, size in ((inputs, first, 5), (first, last, 3)):
        layers += [
            nn.Conv2d(copies * fan_in, copies * width, size, stride=2, groups=copies),
            norm(hidden, copies, width),
            activation(),
        ]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers += [
        stacked.Linear(copies, last, classes),
        nn.Unflatten(1, (copies, classes)),
    ]
    return stacked.initialize(nn.Sequential(*layers), seeds, 2.0)


def texture_crops(
    count: int,
    seed: int,
    part: str,
    contrasts: Sequence[float] = TEXTURE_CONTRASTS,
    *,
    channels: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Crops (count, channels, 32, 32), their textures, and which contrasts they have.

    From the left half of the textures ("train"), or from the upper or lower right
    quarter ("validation", "test"). The contrast is around the crop's own mean; every
    channel has a crop of its own, of the same texture. Grey is 0.
    """
    top, left, rows = {
        "train": (0, 0, 256),
        "validation": (0, 128, 128),
        "test": (128, 128, 128),
    }[part]
    generator = torch.Generator().manual_seed(seed)

    def drawn(below: int, *more: int) -> Tensor:
        return torch.randint(below, (count, *more), generator=generator)

    pictures = torch.stack(list(data.textures().values()))
    texture, contrast = drawn(len(pictures)), drawn(len(contrasts))
    spread = torch.arange(TEXTURE_CROP)
    first = top + drawn(rows - TEXTURE_CROP + 1, channels)
    y = first[..., None, None] + spread[:, None]
    x = (left + drawn(128 - TEXTURE_CROP + 1, channels))[..., None, None] + spread
    crops = pictures[texture.view(-1, 1, 1, 1), y, x]
    mean = crops.mean((2, 3), keepdim=True)
    factor = torch.tensor(contrasts)[contrast].view(-1, 1, 1, 1)
    return (crops - mean) * factor + mean - 0.5, texture, contrast


def contrast_as_label(kind: str, **settings: Any) -> Record:
    """Nets that are to say which of four contrasts a crop of a texture has."""

    def part(name: str, count: int, seed: int) -> Part:
        x, _, contrast = texture_crops(count, seed, name)
        return Part(x, contrast)

    return _fitted(kind, part, [("mixed", part("test", 1000, 3))], 4, **settings)


def contrast_as_nuisance(kind: str, **settings: Any) -> Record:
    """Nets that name the texture of crops at full contrast, and at lower ones."""

    def part(name: str, count: int, seed: int, contrast: float = 1.0) -> Part:
        x, texture, _ = texture_crops(count, seed, name, [contrast])
        return Part(x, texture)

    tests = [(str(c), part("test", 1000, 3, c)) for c in TEXTURE_CONTRASTS]
    return _fitted(kind, part, tests, 3, **settings)


def relative_contrast(kind: str, *, place: str = "input", **settings: Any) -> Record:
    """Nets that say which of two channels has the higher contrast, or that none has.

    Two crops of one texture; the first channel's contrast is ½, 1 or 2 times the
    second's, and both vary together. `place` is that of the norm in `classifier`.
    """

    def part(name: str, count: int, seed: int) -> Part:
        x, _, _ = texture_crops(
            count, seed, name, channels=2, contrasts=TEXTURE_CONTRASTS[:3]
        )
        generator = torch.Generator().manual_seed(4000 + seed)
        ratio = torch.randint(3, (count,), generator=generator)
        mean = x.mean((2, 3), keepdim=True)
        share = torch.stack([0.5 * 2.0**ratio, 2.0 / 2.0**ratio], 1) ** 0.5
        return Part((x - mean) * share[..., None, None] + mean, ratio)

    tests = [("mixed", part("test", 1000, 3))]
    return _fitted(kind, part, tests, 3, inputs=2, place=place, **settings)


def _fitted(
    kind: str,
    part: Callable[[str, int, int], Part],
    tests: Sequence[tuple[str, Part]],
    classes: int,
    *,
    inputs: int = 1,
    place: str = "hidden",
    batch: int = 32,
    rates: Sequence[float] = (0.02, 0.1),
    seeds: Seeds = SEEDS,
    steps: int = 200,
    **settings: Any,
) -> Record:
    """Train on 2,000 crops; accuracies in %, tests × seeds.

    SGD with momentum 0.9, the rate falling to 0 along half a cosine wave; its first
    value is the one of `rates` that the mean validation accuracy prefers.
    `settings` are those of `classifier`: widths, activation.
    """
    copies, per_copy = stacked.crossed(rates, seeds)
    net = classifier(kind, copies, inputs, classes, place, **settings)
    stacked.train(
        net,
        stacked.shuffled(part("train", 2000, 1), copies, batch),
        steps=steps,
        rates=per_copy,
        cosine=True,
    )

    def grid(part: Part) -> Tensor:
        return _accuracy(net, part, len(copies)).view(len(rates), len(seeds))

    best = int(grid(part("validation", 1000, 2)).mean(1).argmax())
    return {
        "kind": kind,
        "place": place,
        "chance": 100 / classes,
        "tests": [name for name, _ in tests],
        "rate": rates[best],
        "test": [grid(test)[best].tolist() for _, test in tests],
    }


@torch.no_grad()
def _accuracy(net: nn.Module, part: Part, copies: int) -> Tensor:
    """Share of `part` that each copy gets right, in %; an overflow gets none right."""
    right = torch.zeros(copies)
    for x, y in zip(part.x.split(250), part.y.split(250), strict=True):
        logits = net(x[:, None].expand(-1, copies, -1, -1, -1))
        finite = logits.isfinite().all(2)
        right += ((logits.argmax(2) == y[:, None]) & finite).sum(0)
    return 100 * right / len(part.y)


# ------------------------------------------------------------------- pictures


def with_contrast(x: Tensor, contrast: float, brightness: float = 0.0) -> Tensor:
    """Pictures (..., 3, H, W) at a contrast around their own mean, and made brighter.

    y = contrast·(x − mean) + mean + brightness, one mean a picture.
    """
    mean = x.mean((-3, -2, -1), keepdim=True)
    return contrast * (x - mean) + mean + brightness


def contrast_of(x: Tensor) -> Tensor:
    """The standard deviation of each picture in grey: (N, 3, H, W) → (N)."""
    return x.mean(1).flatten(1).std(1, unbiased=False)


def adain(content: Tensor, style: Tensor, eps: float = 0.0) -> Tensor:
    """Give each channel of `content` the mean and standard deviation of `style`'s.

    y = σ(style)·(content − μ(content))/σ(content) + μ(style), both (3, H, W) but for
    the size. Exact at ε = 0. Huang & Belongie (2017), equation 8.
    """
    gamma, beta = style.std((1, 2), unbiased=False), style.mean((1, 2))
    return functional.instance_norm(content[None], gamma, beta, eps=eps)[0]


# --------------------------------------------------------------- loss network


class TextureLoss:
    """How far pictures are from a style and from their own content.

    Style: random filters of 7×7 pixels, each with mean 0 and norm 1, and ReLU, at some
    scales, each half the last; ‖G − T‖²/‖T‖² between the Gram matrices of picture and
    style, summed over the scales. Content: the squared difference of the pictures in
    grey less their means, by 0.05. It compares contrasts too: a loss blind to them
    would decide the result.
    """

    def __init__(
        self, style: Tensor, seed: int = 0, filters: int = 24, scales: int = 4
    ):
        generator = torch.Generator().manual_seed(1000 + seed)
        drawn = torch.randn(filters, 3, 7, 7, generator=generator)
        drawn -= drawn.mean((1, 2, 3), keepdim=True)
        self.filters = drawn / drawn.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        self.scales = scales
        self.targets = self.grams(style[None])

    def grams(self, x: Tensor) -> list[Tensor]:
        """Mean products of pairs of responses, one (N, filters, filters) a scale."""
        matrices = []
        for scale in range(self.scales):
            if scale:
                x = F.avg_pool2d(x, 2)
            padded = F.pad(x, (3,) * 4, mode="reflect")
            flat = F.relu(F.conv2d(padded, self.filters)).flatten(2)
            matrices.append(flat @ flat.mT / flat.shape[2])
        return matrices

    def style(self, y: Tensor) -> Tensor:
        """The style loss of each picture y (N, 3, H, W)."""
        pairs = zip(self.grams(y), self.targets, strict=True)
        apart = [((g - t) ** 2).sum((1, 2)) / (t * t).sum() for g, t in pairs]
        return torch.stack(apart).sum(0)

    def content(self, y: Tensor, x: Tensor) -> Tensor:
        """The content loss of each picture y made from x."""
        apart = (y - x).mean(1)
        return apart.flatten(1).var(1, unbiased=False) / 0.05

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        return self.style(y) + 2 * self.content(y, x)


# ------------------------------------------------------------------ generator


class Generator(nn.Module):
    """A picture to a stylized picture of the same size, even on each side.

    16 channels at full size, 32 at half with residual blocks, 16 again; the norm after
    every convolution but the last, reflected edges throughout. Torch's own layers, for
    their speed.
    """

    def __init__(self, kind: str, seed: int = 0, *, blocks: int = 2):
        super().__init__()

        def block(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> list:
            edge = nn.ReflectionPad2d(size // 2)
            maps = nn.Conv2d(inputs, outputs, size, stride, bias=kind == "none")
            return [edge, maps, norm(kind, 1, outputs, native=True)]

        self.down = nn.Sequential(
            *block(3, 16, 5), nn.ReLU(), *block(16, 32, 3, 2), nn.ReLU()
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*block(32, 32), nn.ReLU(), *block(32, 32))
            for _ in range(blocks)
        )
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2),
            *block(32, 16),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(16, 3, 3),
        )
        generator = torch.Generator().manual_seed(seed)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                spread = math.sqrt(2 / layer.weight[0].numel())
                nn.init.normal_(layer.weight, std=spread, generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x)
        for block in self.blocks:
            y = y + block(y)
        return torch.sigmoid(self.up(y))


def crops(pictures: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` random squares of 64 pixels, half of them mirrored."""

    def drawn(below: int) -> list[int]:
        return torch.randint(below, (count,), generator=generator).tolist()

    room = pictures.shape[-1] - CROP + 1
    taken = [
        pictures[place, :, top : top + CROP, left : left + CROP]
        for place, top, left in zip(
            drawn(len(pictures)), drawn(room), drawn(room), strict=True
        )
    ]
    mirrored = torch.tensor(drawn(2), dtype=torch.bool).view(-1, 1, 1, 1)
    x = torch.stack(taken)
    return torch.where(mirrored, x.flip(-1), x)


def style_loss(seed: int = 0) -> TextureLoss:
    """The loss towards the style of this book: the flower, at 128 pixels."""
    return TextureLoss(data.photographs(128)["flower"], seed)


def trained(
    kind: str,
    seed: int = 0,
    *,
    batch: int = 4,
    steps: int = 100,
    rate: float = 0.003,
    blocks: int = 2,
) -> tuple[Generator, list[float]]:
    """A generator trained on crops of six photographs, and its loss at every step.

    Adam, the rate falling to 0 along half a cosine wave. Photographs of
    96 pixels, never at another contrast than their own.
    """
    loss, net = style_loss(seed), Generator(kind, seed, blocks=blocks)
    squares = data.photographs(96)
    pictures = torch.stack([squares[name] for name in data.TRAINING])
    optimizer = torch.optim.Adam(net.parameters(), rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(2000 + seed)
    history = []
    for _ in tqdm(range(steps), leave=False, disable=None):
        x = crops(pictures, batch, generator)
        value = loss(net(x), x).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        falling.step()
        history.append(value.item())
    return net.eval(), history


# ----------------------------------------------------------------- experiment


def held_out(size: int = 128) -> Tensor:
    """The photographs that no generator is trained on: (2, 3, size, size)."""
    return torch.stack([data.photographs(size)[name] for name in data.HELD_OUT])


def stylization(
    kind: str,
    *,
    batch: int = 4,
    blocks: int = 2,
    rates: Sequence[float] = (0.003,),
    seeds: Seeds = SEEDS,
    steps: int = 100,
    every: int = 10,
) -> tuple[Record, Tensor]:
    """Train a generator a seed; show it held-out photographs at lower contrasts.

    Of `rates` the one whose last tenth of steps has the lowest mean training loss
    counts; `ends` has these means, rates × seeds. The record: `loss` (points × seeds),
    the training loss as means of `every` steps that begin at `steps`; `style` and
    `output` (contrasts × seeds), the style loss and the output's contrast over 16
    held-out crops at each of `contrasts`, whose own contrast is `input`. BN there uses
    running statistics; in `…_batch` those of one batch of all crops at all contrasts,
    in `…_alone` those of each crop by itself. In `…_darker` the crops' mean is scaled
    along with their contrast. The tensor (contrasts, 2, 3, 128, 128) has the first
    seed's pictures of both photographs.
    """
    grid = [
        [
            trained(kind, seed, batch=batch, steps=steps, rate=rate, blocks=blocks)
            for seed in seeds
        ]
        for rate in rates
    ]
    histories = torch.tensor([[losses for _, losses in runs] for runs in grid])
    ends = histories[..., -max(1, steps // 10) :].mean(2).nan_to_num(math.inf)
    best = int(ends.mean(1).argmin())
    nets = [net for net, _ in grid[best]]
    x = crops(held_out(96), 16, torch.Generator().manual_seed(3000))
    inputs = torch.cat([with_contrast(x, contrast) for contrast in CONTRASTS])
    darker = torch.cat([contrast * x for contrast in CONTRASTS])
    measured: dict[str, list[Tensor]] = {}
    for seed, net in zip(seeds, nets, strict=True):
        for way, y in _outputs(net, inputs, darker).items():
            values = {"style": style_loss(seed).style(y), "output": contrast_of(y)}
            for name, each in values.items():
                mean = each.view(len(CONTRASTS), -1).mean(1)
                measured.setdefault(name + way, []).append(mean)
    record = {
        "kind": kind,
        "rates": list(rates),
        "ends": ends.tolist(),
        "rate": rates[best],
        "steps": list(range(0, steps, every)),
        "loss": stacked.thinned(histories[best].T, every),
        "contrasts": list(CONTRASTS),
        "input": contrast_of(inputs).view(len(CONTRASTS), -1).mean(1).tolist(),
        **{name: torch.stack(rows, 1).tolist() for name, rows in measured.items()},
    }
    return record, stylized(nets[0], CONTRASTS)


@torch.no_grad()
def _outputs(net: Generator, x: Tensor, darker: Tensor) -> dict[str, Tensor]:
    """Pictures from x by what batch norm takes its statistics of, and from `darker`."""
    running, dark = net(x), net(darker)
    with stacked.batch_statistics(net):
        return {
            "": running,
            "_darker": dark,
            "_batch": net(x),
            "_alone": torch.cat([net(picture) for picture in x.split(1)]),
        }


@torch.no_grad()
def stylized(net: Generator, contrasts: Sequence[float]) -> Tensor:
    """What `net` makes of the held-out photographs: (contrasts, 2, 3, 128, 128)."""
    return torch.stack([net(with_contrast(held_out(), a)) for a in contrasts])


# -------------------------------------------------------------------- recording


def long_runs() -> dict[str, Callable[[], Record]]:
    """Every recorded run by name; called, it gives its record.

    Three seeds; two learning rates, five where contrast is label or nuisance, three
    for the stylization. It keeps its pictures too: the first seed's of batch and
    instance norm, a row for each contrast.
    """
    tuned: dict[str, Any] = {
        "seeds": RECORDED,
        "rates": (0.01, 0.03, 0.1, 0.3, 1.0),
    }

    def by_kind(run: Callable[..., Record], **settings: Any) -> Callable[[], Record]:
        return lambda: {kind: run(kind, **settings) for kind in KINDS}

    def generators() -> Record:
        settings: dict[str, Any] = {
            "seeds": RECORDED,
            "rates": (0.001, 0.003, 0.01),
            "steps": 200,
        }
        runs = {
            kind: stylization(kind, **settings) for kind in ("BN", "IN", "LN", "none")
        }
        write_pictures("instance_norm", torch.cat([runs["BN"][1], runs["IN"][1]]))
        return {kind: record for kind, (record, _) in runs.items()}

    return {
        "contrast_as_label": by_kind(contrast_as_label, **tuned),
        "contrast_as_nuisance": by_kind(contrast_as_nuisance, steps=400, **tuned),
        "relative_contrast": by_kind(relative_contrast),
        "relative_contrast_hidden": by_kind(relative_contrast, place="hidden"),
        "stylization": generators,
    }


if __name__ == "__main__":
    record_long_runs("instance_norm")
