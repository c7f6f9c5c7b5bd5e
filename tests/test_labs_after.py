"""Chapter 8's nets are their equations, and every experiment gives its record."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import shape
from torch import Tensor

from normbook import data
from normbook.functional import InputError
from normbook.labs import after
from normbook.training import records, sequences
from normbook.training.sequences import PLACES, Transformer

pytestmark = pytest.mark.slow

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


def test_a_decoder_gives_its_curve_and_what_is_inside() -> None:
    settings = {"depth": 2, "width": 8, "names": 8, "steps": 4, "every": 2}
    run = after.decoder("sandwich", qk_norm=True, rate=0.01, seeds=(0, 1), **settings)
    assert run["steps"] == [0, 2, 4]
    assert shape(run["validation"]) == (3, 2)
    assert max(run["validation"][2]) < min(run["validation"][0])
    assert shape(run["stream"]) == (2, 2)
    assert shape(run["test"]) == shape(run["logit"]) == (2,)


# --------------------------------------------------------------- denoisers


@pytest.mark.parametrize("way", after.WAYS)
def test_an_adaptive_block_is_its_equation(way: str) -> None:
    torch.manual_seed(0)
    block = after.AdaptiveBlock(8, way)
    for p in block.parameters():
        p.data += torch.randn_like(p) / 4
    h, c = torch.randn(2, 5, 8)
    y, gate = F.layer_norm(h, (8,)), torch.ones(5, 8)
    if way.startswith("added"):
        y = y * block.norm.weight + block.norm.bias
    else:
        parts = block.from_condition(c).split(8, -1)
        y = y * (1 + parts[0]) + parts[1]
        gate = parts[2] if way == "adaLN-Zero" else gate
    want = h + gate * block.back(F.relu(block.hidden(y)))
    assert torch.allclose(block(h, c), want, atol=1e-6)


@pytest.mark.parametrize("way", after.WAYS)
def test_blocks_that_start_at_zero_are_the_identity(way: str) -> None:
    block = after.AdaptiveBlock(8, way)
    h, c = torch.randn(2, 5, 8)
    assert torch.equal(block(h, c), h) == way.endswith(("zero", "Zero"))


@pytest.mark.parametrize("way", after.WAYS)
def test_a_denoiser_hears_its_condition(way: str) -> None:
    net, _ = after.denoiser(way, steps=3, depth=2, width=8, batch=8)
    x, t = torch.randn(5, 64), torch.full((5,), 0.5)
    y = torch.arange(5)
    assert not torch.equal(net(x, t, y), net(x, t, y + 1))
    assert not torch.equal(net(x, t, y), net(x, t / 2, y))


def test_samples_follow_the_field_back_to_the_digits() -> None:
    class Straight(after.Denoiser):
        """The field that leads every noise to a picture of its class's number."""

        def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return (x - y[:, None]) / t[:, None]

    x, y = Straight("added", depth=1, width=8).samples(each=2)
    assert y.tolist() == [*range(10)] * 2
    assert torch.allclose(x, y[:, None].expand(20, 64).float(), atol=1e-5)


def test_denoisers_give_a_curve_a_rate_and_a_seed() -> None:
    small = {"depth": 1, "width": 8, "steps": 10, "every": 5, "batch": 16}
    run = after.denoisers("adaLN", rates=(1e-5, 0.01), seeds=(0, 1, 2), **small)
    curves = torch.tensor(run["validation"])
    assert curves.shape == (2, 3, 3)
    assert torch.equal(curves[0, 0], curves[1, 0])
    assert (curves[1, -1] < curves[0, -1]).all()
    assert shape(run["right"]) == (2, 3)


def test_there_is_no_fifth_way() -> None:
    with pytest.raises(InputError, match="adaLN; adaLN-Zero. Got 'concatenated'"):
        after.Denoiser("concatenated")


# ------------------------------------------------------------------- record


def test_the_record_holds_every_long_run() -> None:
    record = records.read_record("after")
    assert record["command"] == "python -m normbook.labs.after"
    assert record["threads"] == 1
    assert set(record["results"]) == set(after.long_runs())
    assert set(record["seconds"]) == set(record["results"])


def test_no_recorded_decoder_is_worse_than_guessing() -> None:
    results = records.read_record("after")["results"]
    nets = [*results["two_medicines"].values(), *results["places"].values()]
    for run in (run for by_rate in nets for run in by_rate):
        assert all(2 < loss < math.log2(27) for loss in run["test"])
