"""Lessons: what a page defines in its own cells is what the package has for its lab."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from torch import nn

from normbook.labs.instance_norm import Generator, TextureLoss
from normbook.training.sequences import Adam, Transformer, bits
from normbook.training.stacked import SGD, Linear, convolutional, losses

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def defined(stem: str, *cells: str) -> dict[str, Any]:
    """What these cells of a notebook define."""
    notebook = nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4)
    source = {cell.id: cell.source for cell in notebook.cells}
    names: dict[str, Any] = {}
    for cell in cells:
        exec(source[cell], names)
    return names


@pytest.fixture(scope="module")
def decoders() -> dict[str, Any]:
    """What chapter 3 defines, likewise."""
    return defined("03_layer_norm", "setup", "data", "block", "net", "loss", "layer")


@pytest.fixture(scope="module")
def places() -> dict[str, Any]:
    """What chapter 8 defines: its data, its decoder and its loss."""
    return defined("08_after", "setup", "data", "places", "block", "net", "loop")


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    """What chapter 2 defines: its data, its net, its loop and its layer."""
    return defined("02_batch_norm", "setup", "data", "net", "layer")


@pytest.fixture(scope="module")
def groups() -> dict[str, Any]:
    """The same of chapter 5, and its norms."""
    cells = ("setup", "data", "net", "per-device-layer", "layer", "groups-of")
    return defined("05_group_norm", *cells)


def stacked(net: nn.Sequential, kind: str, each: int | None = None) -> nn.Sequential:
    """The lab's net, one copy, with the weights of the lesson's."""
    one = convolutional([0], kind, widths=(16, 32, 64, 64), each=each)
    pairs = zip(
        [layer for layer in net if list(layer.parameters())],
        [layer for layer in one if list(layer.parameters())],
        strict=True,
    )
    for theirs, ours in pairs:
        weight = theirs.weight.data.clone()
        if isinstance(ours, Linear):  # (1, inputs, outputs) in a stack
            weight = weight.T[None].contiguous()
        ours.weight.data = weight
        if ours.bias is not None:
            ours.bias.data = theirs.bias.data.clone().view_as(ours.bias)
    return one


@pytest.mark.parametrize("kind", ["none", "BatchNorm", "nn.BatchNorm2d"])
def test_the_net_of_the_lesson_is_that_of_the_lab(
    lesson: dict[str, Any], kind: str
) -> None:
    norm = None if kind == "none" else eval(kind, lesson)
    net = lesson["make_net"](norm=norm).train()
    steps_alike(lesson, net, stacked(net, "none" if norm is None else "BN").train())


@pytest.mark.parametrize(
    ("norm", "kind", "each"),
    [
        ("PerDevice", "BN", 2),
        ("four_groups", "GN", None),
        ("groups_of(4)", "GN", None),
    ],
)
def test_the_net_of_chapter_5_is_that_of_its_lab(
    groups: dict[str, Any], norm: str, kind: str, each: int | None
) -> None:
    net = groups["make_net"](eval(norm, groups)).train()
    steps_alike(groups, net, stacked(net, kind, each).train())


@pytest.mark.parametrize("kind", ["none", "BN", "GN"])
def test_the_net_of_chapter_6_is_that_of_the_labs(kind: str) -> None:
    cells = ("setup", "norm", "data", "wrappers", "net")
    page = defined("06_comparison", *cells)
    net = page["make_net"](kind).train()
    steps_alike(page, net, stacked(net, kind).train())


def steps_alike(lesson: dict[str, Any], net: nn.Module, one: nn.Module) -> None:
    """The same losses before and after the same step, from the same weights."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    ours = SGD(one.parameters(), [0.1])
    x, y = lesson["x_train"][:32], lesson["y_train"][:32]
    for _ in range(2):
        loss = nn.functional.cross_entropy(net(x), y)
        (stack_loss,) = losses(one(x), y[:, None])
        assert loss.item() == pytest.approx(stack_loss.item(), abs=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ours.step(torch.autograd.grad(stack_loss, list(one.parameters())))


@pytest.mark.parametrize("kind", ["BN", "IN", "mine"])
def test_the_painter_of_the_lesson_is_the_labs_without_residual_blocks(
    kind: str,
) -> None:
    """The same losses before and after the same step, from the same weights."""
    cells = ("setup", "data", "losses", "both-losses", "painter", "layer")
    page = defined("04_instance_norm", *cells)
    layers = {
        "BN": nn.BatchNorm2d,
        "IN": lambda channels: nn.InstanceNorm2d(channels, affine=True),
        "mine": lambda channels: page["InstanceNorm"](channels, affine=True),
    }
    painter = page["make_painter"](layers[kind])
    net = Generator("BN" if kind == "BN" else "IN", blocks=0)
    for theirs, ours in zip(painter.parameters(), net.parameters(), strict=True):
        ours.data = theirs.data.clone()
    flower, photos = page["flower"], page["photos"]
    loss = TextureLoss(flower, filters=16, scales=3)
    loss.filters = page["filters"]
    loss.targets = loss.grams(flower[None])
    nets = (painter, net)
    optimizers = [torch.optim.Adam(each.parameters(), lr=0.01) for each in nets]
    for _ in range(2):
        y, z = painter(photos), net(photos)
        ours = (page["style_loss"](y) + 2 * page["content_loss"](y, photos)).mean()
        labs = loss(z, photos).mean()
        assert ours.item() == pytest.approx(labs.item(), rel=1e-4)
        for optimizer, value in zip(optimizers, (ours, labs), strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()


def stacked_decoder(
    net: nn.Module, kind: str, place: str, **options: Any
) -> Transformer:
    """The lab's decoder, one copy, with the weights of the lesson's."""
    one = Transformer([0], kind, place, **options)
    theirs = {name: p.data.clone() for name, p in net.named_parameters()}
    theirs |= {"embed": theirs["letter.weight"], "place": theirs["position"]}
    for at in range(len(one.blocks)):  # three maps side by side in a stack
        maps = (theirs[f"blocks.{at}.{m}.weight"] for m in ("query", "key", "value"))
        theirs[f"blocks.{at}.qkv.weight"] = torch.cat(list(maps))
    for name, ours in one.named_parameters():
        if "norm" not in name:  # γ is 1 and β is 0 in both
            value = theirs[name]
            if name.endswith("weight"):  # (1, inputs, outputs) in a stack
                value = value.T.contiguous()
            ours.data = value.view_as(ours)
    return one


@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        ("none", "nn.Identity"),
        ("LN", "LayerNorm"),
        ("LN", "nn.LayerNorm"),
        ("RMSNorm", "RMSNorm"),
    ],
)
def test_the_decoder_of_the_lesson_is_that_of_the_lab(
    decoders: dict[str, Any], kind: str, norm: str, place: str
) -> None:
    net = decoders["Decoder"](norm=eval(norm, decoders), place=place).cpu()
    decoders_alike(decoders, net, stacked_decoder(net, kind, place))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("place", ["pre", "post", "sandwich", "output", "deepnorm"])
def test_the_decoder_of_chapter_8_is_that_of_its_lab(
    places: dict[str, Any], place: str, qk_norm: bool
) -> None:
    net = places["Decoder"](place, qk_norm).cpu()
    one = stacked_decoder(net, "RMSNorm", place, qk_norm=qk_norm, depth=4)
    decoders_alike(places, net, one)


def decoders_alike(lesson: dict[str, Any], net: nn.Module, one: Transformer) -> None:
    """The same losses before and after the same steps, from the same weights.

    In float64: without a norm one step magnifies what a processor rounds in float32.
    """
    net, one = net.double(), one.double()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.003)
    ours = Adam(one.parameters(), [0.003])
    names = lesson["train_names"][:32].cpu()
    for _ in range(2):
        loss = lesson["bits"](net, names)
        following = nn.functional.pad(names[:, 1:], (0, 1))
        x, y = names[:, None], following[:, None]
        (stack_loss,) = bits(one(x, x > 0), y, x > 0)
        assert loss.item() == pytest.approx(stack_loss.item(), rel=1e-6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ours.step(torch.autograd.grad(stack_loss, list(one.parameters())))


@pytest.fixture(scope="module")
def debugging() -> dict[str, Any]:
    """The net and the block that the page on debugging defines."""
    return defined("06_debugging", "setup", "net", "padding-block")


def test_the_net_of_the_debugging_page_is_that_of_chapter_2(
    lesson: dict[str, Any], debugging: dict[str, Any]
) -> None:
    x = lesson["x_train"][:32].cpu()
    ours, theirs = (
        page["make_net"](norm=nn.BatchNorm2d).cpu() for page in (debugging, lesson)
    )
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert torch.equal(ours(x), theirs(x))


def test_the_block_of_the_debugging_page_is_that_of_chapter_3(
    decoders: dict[str, Any], debugging: dict[str, Any]
) -> None:
    theirs = decoders["Block"](32, 4, nn.LayerNorm, "pre")
    ours = debugging["Block"](nn.LayerNorm)
    state = theirs.state_dict()
    maps = [state.pop(f"{name}.weight") for name in ("query", "key", "value")]
    ours.load_state_dict(state | {"qkv.weight": torch.cat(maps)})
    x = torch.randn(2, 5, 32)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
