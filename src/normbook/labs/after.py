"""Where a norm stands, and what may take its place: the runs of chapter 8.

Every function returns a plain record: lists with one number a seed, and the settings
that they belong to. The nets are the decoders of names of
`normbook.training.sequences`; losses are in bits a letter, of test names.
`python -m normbook.labs.after` makes the long runs and keeps them in
`records/after.json`; with names of runs behind it, only those.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normbook import data
from normbook.training.records import run_and_record
from normbook.training.sequences import (
    Batch,
    Transformer,
    evaluate,
    every_copy,
    fit,
    random_names,
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
    parts, copies = data.names(), len(seeds)
    net = Transformer(seeds, kind, place, qk_norm=qk_norm, depth=depth, width=width)
    validation, test = (
        every_copy(part, copies) for part in (parts.validation, parts.test)
    )
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
        "place": place,
        "kind": kind,
        "qk_norm": qk_norm,
        "rate": rate,
        "warm_up": warm_up,
        "steps": list(range(0, steps + 1, every)),
        "validation": curve,
        "test": evaluate(net, test),
        **inside(net, test),
    }


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
    for block in net.blocks:
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
        few = {"rate": 0.003, "depth": 8, "width": 32, "steps": 400}
        return {
            f"{kind}, {names} names": decoder(kind=kind, names=names, **few)
            for names in (128, 4131)
            for kind in ("LN", "DyT", "Derf")
        }

    return {
        "two_medicines": by_rate(MEDICINES, 0.002, 0.02, 0.05),
        "places": by_rate(OTHER_PLACES, 0.002, 0.02),
        "without_statistics": without_statistics,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    command = "python -m normbook.labs.after"
    run_and_record("after", long_runs(), command, only=sys.argv[1:])
