"""Where the norms of a transformer stand, against its equations and torch's layers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from normbook import data
from normbook.labs import after
from normbook.training import sequences
from normbook.training.sequences import PLACES, Transformer

NAMES = data.names().train[:6]


def living_logits(net: Transformer) -> Tensor:
    x, _, live = sequences.every_copy(NAMES, net.copies)
    return net(x, live)[live]


def rms_norm(x: Tensor, gamma: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], gamma, eps=1e-5)


def by_hand(net: Transformer, place: str, qk_norm: bool) -> tuple[Tensor, Tensor]:
    """The logits of the only copy, equation by equation, and its largest q·k/√D."""
    h = net.embed[0][NAMES] + net.place[0]
    alpha = (2 * len(net.blocks)) ** 0.25
    causal = torch.ones(11, 11, dtype=torch.bool).tril()
    largest = torch.tensor(0.0)

    def layer_norm(layer: sequences.StepNorm, x: Tensor) -> Tensor:
        weight, bias = layer.plain.weight, layer.plain.bias
        return F.layer_norm(x, x.shape[-1:], weight, bias)

    for block in net.blocks:

        def attend(x: Tensor, block: sequences.Block = block) -> Tensor:
            nonlocal largest
            q, k, v = (
                z.unflatten(-1, (4, -1)).transpose(1, 2)
                for z in (x @ block.qkv.weight[0]).chunk(3, -1)
            )
            if qk_norm:
                gammas = [layer.weight.flatten() for layer in block.qk_norms]
                q, k = rms_norm(q, gammas[0]), rms_norm(k, gammas[1])
            scores = q @ k.mT / q.shape[-1] ** 0.5
            seen = causal & (NAMES > 0)[:, None, :, None]
            largest = torch.maximum(
                largest, scores.abs()[seen.expand(scores.shape)].max()
            )
            weights = scores.masked_fill(~causal, -math.inf).softmax(-1)
            return (weights @ v).transpose(1, 2).flatten(2) @ block.out.weight[0]

        def feed(x: Tensor, block: sequences.Block = block) -> Tensor:
            hidden = F.relu(x @ block.hidden.weight[0] + block.hidden.bias[0])
            return hidden @ block.back.weight[0] + block.back.bias[0]

        for branch, before, behind in zip(
            (attend, feed), block.norms, block.output_norms, strict=True
        ):
            if place == "pre":
                h = h + branch(layer_norm(before, h))
            elif place == "post":
                h = layer_norm(before, h + branch(h))
            elif place == "sandwich":
                h = h + layer_norm(behind, branch(layer_norm(before, h)))
            elif place == "output":
                h = h + layer_norm(behind, branch(h))
            else:
                h = layer_norm(before, alpha * h + branch(h))
    if place not in ("post", "deepnorm"):
        h = layer_norm(net.last_norm, h)
    return (h @ net.head.weight[0] + net.head.bias[0])[NAMES > 0], largest


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_a_transformer_is_its_equations(place: str, qk_norm: bool) -> None:
    net = Transformer((3,), "LN", place, qk_norm=qk_norm, depth=3, width=16)
    torch.manual_seed(0)
    for name, p in net.named_parameters():
        if "norm" in name or "bias" in name:
            p.data += torch.randn_like(p) / 4
    want, largest = by_hand(net, place, qk_norm)
    assert torch.allclose(living_logits(net), want, atol=1e-4)
    (logit,) = after.inside(net, sequences.every_copy(NAMES, 1))["logit"]
    assert logit == pytest.approx(largest.item(), rel=1e-4)


def test_deepnorm_shrinks_values_and_the_hidden_layer_but_no_queries() -> None:
    post, deep = (Transformer((3,), "LN", p, depth=2) for p in ("post", "deepnorm"))
    for theirs, ours in zip(post.blocks, deep.blocks, strict=True):
        factors = [
            (b.weight / a.weight).mean((0, 1))
            for a, b in (
                (theirs.qkv, ours.qkv),
                (theirs.out, ours.out),
                (theirs.hidden, ours.hidden),
                (theirs.back, ours.back),
            )
        ]
        assert torch.allclose(factors[0][:64], torch.ones(64))
        for smaller in (factors[0][64:], *factors[1:]):
            assert torch.allclose(smaller, torch.full_like(smaller, 0.5))


def test_what_is_inside_belongs_to_living_letters_of_its_copy() -> None:
    net = Transformer((3, 4), "LN", "sandwich", depth=2, width=16)
    x, y, live = sequences.every_copy(NAMES, 2)
    both = after.inside(net, (x, y, live))
    junk = after.inside(net, (torch.where(live, x, 5), y, live))
    alone = after.inside(
        Transformer((4,), "LN", "sandwich", depth=2, width=16),
        sequences.every_copy(NAMES, 1),
    )
    for key, want in alone.items():
        assert torch.tensor(both[key])[..., 1:] == pytest.approx(torch.tensor(want))
        assert torch.tensor(junk[key]) == pytest.approx(torch.tensor(both[key]))


@pytest.mark.parametrize("place", PLACES)
def test_stacked_transformers_are_as_each_alone(place: str) -> None:
    settings = {"kind": "LN", "place": place, "qk_norm": True, "depth": 2, "width": 8}
    stack = Transformer((3, 1), **settings).double()
    x, _, live = sequences.every_copy(NAMES, 2)
    together = stack(x, live)
    for copy, seed in enumerate((3, 1)):
        alone = Transformer((seed,), **settings).double()
        logits = alone(x[:, :1], live[:, :1])
        assert torch.allclose(logits[:, 0], together[:, copy], atol=1e-9)
