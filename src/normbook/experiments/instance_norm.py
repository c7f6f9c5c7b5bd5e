"""What instance norm erases, and what that buys and costs: the runs of chapter 4.

Every function returns a plain record: lists with one number a seed, and the settings
that they belong to. The generators of pictures are in `stylization`.
`python -m normbook.experiments.instance_norm` makes the long runs of both and keeps
them in `records/instance_norm.json`, their pictures in `records/instance_norm.png`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normbook import data
from normbook import nn as nb
from normbook.data import Part
from normbook.experiments import run_and_record, stacked, stylization, write_pictures
from normbook.experiments.stacked import SEEDS, Record, Seeds
from normbook.experiments.stylization import norm, with_contrast

CHANGES = {
    "contrast × 0.3": (0.3, 0.0),
    "brightness + 0.3": (1.0, 0.3),
    "both": (0.3, 0.3),
}
CONTRASTS = (1.0, 0.6, 0.35, 0.2)  # of the textures that are told apart
CROP = 32


# ---------------------------------------------------- one photograph, many looks


def convolution(padding: str, seed: int = 0) -> nn.Conv2d:
    """Sixteen random filters of 5×5 pixels; `padding` is none, zeros or reflect."""
    if padding not in ("none", "zeros", "reflect"):
        raise ValueError(f"padding must be none, zeros or reflect, got {padding!r}")
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
    as they were, or, in `training`, those of the batch with the changed one.
    """
    pictures = data.photographs()
    names = (*reversed(data.HELD_OUT), *data.TRAINING[:4])
    x = torch.stack([pictures[name] for name in names])
    place = names.index("astronaut")
    maps, layer = convolution(padding, seed), norm(kind, 1, 16)
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
    kind: str, seeds: Seeds, inputs: int, classes: int, place: str = "hidden"
) -> nn.Sequential:
    """Two convolutions and a mean over the map, one net a seed, (N, S, C, H, W) in.

    `place` has the norm after each convolution ("hidden"), or once, of the input, where
    GN takes all its channels as one group.
    """
    copies = len(seeds)
    hidden = kind if place == "hidden" else "none"
    layers: list[nn.Module] = [nn.Flatten(1, 2)]
    if place == "input":
        layers.append(norm("LN" if kind == "GN" else kind, copies, inputs))
    for fan_in, width, size in ((inputs, 16, 5), (16, 32, 3)):
        layers += [
            nn.Conv2d(copies * fan_in, copies * width, size, stride=2, groups=copies),
            norm(hidden, copies, width),
            nn.ReLU(),
        ]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers += [stacked.Linear(copies, 32, classes), nn.Unflatten(1, (copies, classes))]
    return stacked.initialize(nn.Sequential(*layers), seeds, 2.0)


def texture_crops(
    count: int,
    seed: int,
    part: str,
    contrasts: Sequence[float] = CONTRASTS,
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
    spread = torch.arange(CROP)
    y = (top + drawn(rows - CROP + 1, channels))[..., None, None] + spread[:, None]
    x = (left + drawn(128 - CROP + 1, channels))[..., None, None] + spread
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

    tests = [(str(c), part("test", 1000, 3, c)) for c in CONTRASTS]
    return _fitted(kind, part, tests, 3, **settings)


def relative_contrast(kind: str, *, place: str = "input", **settings: Any) -> Record:
    """Nets that say which of two channels has the higher contrast, or that none has.

    Two crops of one texture; the first channel's contrast is ½, 1 or 2 times the
    second's, and both vary together. `place` is that of the norm in `classifier`.
    """

    def part(name: str, count: int, seed: int) -> Part:
        x, _, _ = texture_crops(count, seed, name, channels=2, contrasts=CONTRASTS[:3])
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
    rates: Sequence[float] = (0.02, 0.1),
    seeds: Seeds = SEEDS,
    steps: int = 200,
) -> Record:
    """Train on 2,000 crops in batches of 32; accuracies in %, tests × seeds.

    SGD with momentum 0.9, the rate falling to 0 along half a cosine wave; its first
    value is the one of `rates` that the mean validation accuracy prefers.
    """
    copies = [seed for _ in rates for seed in seeds]
    net = classifier(kind, copies, inputs, classes, place)
    stacked.train(
        net,
        stacked.shuffled(part("train", 2000, 1), copies, 32),
        steps=steps,
        rates=[rate for rate in rates for _ in seeds],
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


# -------------------------------------------------------------------- recording


def long_runs() -> dict[str, Callable[[], Record]]:
    """Every recorded run by name; called, it gives its record.

    Three seeds. The stylization keeps its pictures too: the first seed's of each kind,
    a row for each contrast.
    """
    kinds = ("none", "BN", "LN", "GN", "IN")

    def by_kind(run: Callable[..., Record], **settings: Any) -> Callable[[], Record]:
        return lambda: {kind: run(kind, **settings) for kind in kinds}

    def generators() -> Record:
        runs = {
            kind: stylization.stylization(kind, steps=300)
            for kind in ("BN", "IN", "LN", "none")
        }
        write_pictures("instance_norm", torch.cat([runs["BN"][1], runs["IN"][1]]))
        return {kind: record for kind, (record, _) in runs.items()}

    return {
        "contrast_as_label": by_kind(contrast_as_label),
        "contrast_as_nuisance": by_kind(
            contrast_as_nuisance, steps=400, rates=(0.02, 0.1, 0.3)
        ),
        "relative_contrast": by_kind(relative_contrast),
        "relative_contrast_hidden": by_kind(relative_contrast, place="hidden"),
        "stylization": generators,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    command = "python -m normbook.experiments.instance_norm"
    run_and_record("instance_norm", long_runs(), command)
