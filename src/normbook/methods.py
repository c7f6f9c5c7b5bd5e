"""The five methods, once: what tells them apart, by key.

Colours, names, style sheets, pictures, tables of axes, benchmarks and the layers of the
small nets are derived from `METHODS` where they are asked for. A sixth method is one
entry more, with its functions and its layer.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from normbook import functional
from normbook import nn as nb
from normbook.core import Axes
from normbook.functional import Sets


class Method(NamedTuple):
    """One normalization.

    key, name, color: how pages, figures and experiments call and draw it.
    function, vjp: those of `functional`, of (x, gamma, beta) and of (dy, x, ...).
    sets: of x's shape, and of G where it is `grouped`: which values share statistics.
    layer, native: ours and torch's, built for C channels (and G where `grouped`), with
        γ and β whatever torch's default.
    set_of: what one set belongs to, in words; {groups} is G.
    axis: the channel's, which γ and β index: 1 for maps (N, C, ...), -1 for rows.
    picture: the axes of an N × C × (H·W) block that S covers where `sets` would take
        others: layer norm of an image, as in Wu & He's figure.
    centered: whether the mean is subtracted; if not, there is no β.
    grouped: whether it takes a number of groups G.
    tracks: whether evaluation uses running statistics.
    """

    key: str
    name: str
    color: str
    function: Callable[..., Any]
    vjp: Callable[..., Any]
    sets: Callable[..., Sets]
    layer: Callable[..., nn.Module]
    native: Callable[..., nn.Module]
    set_of: str
    axis: int = 1
    picture: Axes | None = None
    centered: bool = True
    grouped: bool = False
    tracks: bool = False

    @property
    def of_whole_samples(self) -> bool:
        """Whether an image has one set, as in Wu & He's figure of layer norm."""
        return self.picture == (1, 2)

    def options(self, groups: int) -> dict[str, int]:
        """What `function` and `sets` take beside x: G, or nothing."""
        return {"groups": groups} if self.grouped else {}

    def sets_of(self, shape: tuple[int, ...], groups: int) -> Sets:
        """The sets of an x of this shape."""
        return self.sets(shape, **self.options(groups))

    def sets_in_picture(self, shape: tuple[int, int, int], groups: int) -> Sets:
        """The sets of an N × C × (H·W) block, as the figures draw it."""
        if self.picture is not None:
            return functional.layer_sets(shape, self.picture)
        return self.sets_of(shape, groups)

    def build(self, channels: int, groups: int, **settings: Any) -> nn.Module:
        """Our layer for so many channels."""
        return self.layer(*[groups] * self.grouped, channels, **settings)

    def build_native(self, channels: int, groups: int, **settings: Any) -> nn.Module:
        """torch.nn's own."""
        return self.native(*[groups] * self.grouped, channels, **settings)


def _affine(layer: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Instance norm with γ and β, which torch leaves out unless asked."""

    def build(channels: int, **settings: Any) -> nn.Module:
        return layer(channels, **{"affine": True} | settings)

    return build


METHODS: dict[str, Method] = {
    method.key: method
    for method in (
        Method(
            "BN",
            "batch norm",
            "#0072B2",
            functional.batch_norm,
            functional.batch_norm_vjp,
            functional.batch_sets,
            nb.BatchNorm,
            nn.BatchNorm2d,
            "one channel, over the whole batch",
            tracks=True,
        ),
        Method(
            "LN",
            "layer norm",
            "#D55E00",
            functional.layer_norm,
            functional.layer_norm_vjp,
            functional.layer_sets,
            nb.LayerNorm,
            nn.LayerNorm,
            "one sample, over all its channels",
            axis=-1,
            picture=(1, 2),
        ),
        Method(
            "IN",
            "instance norm",
            "#009E73",
            functional.instance_norm,
            functional.instance_norm_vjp,
            functional.instance_sets,
            _affine(nb.InstanceNorm),
            _affine(nn.InstanceNorm2d),
            "one sample and one channel",
        ),
        Method(
            "GN",
            "group norm",
            "#CC79A7",
            functional.group_norm,
            functional.group_norm_vjp,
            functional.group_sets,
            nb.GroupNorm,
            nn.GroupNorm,
            "one sample and one of {groups} groups of channels",
            grouped=True,
        ),
        Method(
            "RMSNorm",
            "RMSNorm",
            "#E69F00",
            functional.rms_norm,
            functional.rms_norm_vjp,
            functional.layer_sets,
            nb.RMSNorm,
            nn.RMSNorm,
            "one sample and one position, over its channels",
            axis=-1,
            picture=(1,),
            centered=False,
        ),
    )
}


def method_of(kind: str) -> Method | None:
    """The method that a kind of net names as one of its words: "noisy BN", "Post-LN".

    None for "none", and for kinds that name no method.
    """
    words = re.split(r"[\s,+-]+", kind)
    return next((METHODS[word] for word in words if word in METHODS), None)
