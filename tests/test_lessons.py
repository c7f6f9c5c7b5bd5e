"""Lessons: what a page defines in its own cells is what the package has for its lab."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from torch import nn

from normbook.training.stacked import SGD, Linear, convolutional, losses

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    """What chapter 2 defines: its data, its net, its loop and its layer."""
    notebook = nbformat.read(NOTEBOOKS / "02_batch_norm.ipynb", as_version=4)
    source = {cell.id: cell.source for cell in notebook.cells}
    names: dict[str, Any] = {}
    for cell in ("setup", "data", "net", "layer"):
        exec(source[cell], names)
    return names


def stacked(net: nn.Sequential) -> nn.Sequential:
    """The lab's net, one copy, with the weights of the lesson's."""
    kind = "BN" if any(hasattr(layer, "running_mean") for layer in net) else "none"
    one = convolutional([0], kind, widths=(16, 32, 64, 64))
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
    """The same losses before and after the same step, from the same weights."""
    norm = None if kind == "none" else eval(kind, lesson)
    net = lesson["make_net"](norm=norm).train()
    one = stacked(net).train()
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
