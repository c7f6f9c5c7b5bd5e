"""Every method as the tests call it, derived from METHODS; and how layers are compared.

A table of tests is one of these, or one with the variants added that cover more: a
sixth method is tested by its entry in METHODS. Needs NumPy and torch alone.
"""

import copy
from inspect import signature
from typing import Any, NamedTuple

import torch

from normbook.functional import InputError
from normbook.methods import METHODS, Method


class Variant(NamedTuple):
    """A method with all that is chosen before x comes: its formula and both layers.

    groups: G, where the method is grouped.
    span: the axes of x that one set covers, where they are not the method's own.
    tracking: whether a layer keeps running statistics that it does not keep by default.
    """

    method: Method
    groups: int = 2
    span: slice | None = None
    tracking: bool = False

    @property
    def tracks(self) -> bool:
        """Whether its layers have running statistics."""
        return self.tracking or self.method.tracks

    @property
    def centered(self) -> bool:
        return self.method.centered

    @property
    def takes_mask(self) -> bool:
        return "where" in signature(self.method.function).parameters

    def options(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """What the formula takes beside x, γ and β."""
        options = dict(self.method.options(self.groups))
        if self.span is not None:
            options["axes"] = tuple(range(len(shape))[self.span])
        return options

    def sets(self, shape):
        return self.method.sets(shape, **self.options(shape))

    def function(self, x, *parameters, **settings):
        named = dict(zip(("gamma", "beta"), parameters, strict=False))
        return self.method.function(x, **self.options(x.shape), **named, **settings)

    def vjp(self, dy, x, *parameters, **settings):
        named = dict(zip(("gamma", "beta"), parameters, strict=False))
        return self.method.vjp(dy, x, **self.options(x.shape), **named, **settings)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether x of this shape has such sets, of enough values each."""
        try:
            sets = self.sets(shape)
        except InputError:
            return False
        return sets.size >= sets.least

    def build(self, shape: tuple[int, ...], **settings: Any) -> torch.nn.Module:
        """Our layer for x of this shape."""
        return self.method.build(*self._arguments(shape), **self._settings(settings))

    def build_native(self, shape: tuple[int, ...], **settings: Any) -> torch.nn.Module:
        """torch.nn's own, for maps (N, C, H, W) and rows."""
        settings = self._settings(settings)
        return self.method.build_native(*self._arguments(shape), **settings)

    def _arguments(self, shape):
        axis = self.method.axis if self.span is None else self.span
        return shape[axis], self.groups

    def _settings(self, settings):
        return {"track_running_stats": True} | settings if self.tracking else settings


LAYERS = {key: Variant(method) for key, method in METHODS.items()}
# Those whose channel is axis 1, and those that take it last.
MAPS = [key for key, method in METHODS.items() if method.axis == 1]
ROWS = [key for key in METHODS if key not in MAPS]
MASKABLE = [key for key, layer in LAYERS.items() if layer.takes_mask]
CENTERED = [key for key, method in METHODS.items() if method.centered]

# Every method once, over all of a sample where it can be told its axes.
OF_A_SAMPLE = LAYERS | {
    key: layer._replace(span=slice(1, None))
    for key, layer in LAYERS.items()
    if "axes" in signature(layer.method.sets).parameters
}
# What covers more than a method's own layer does.
VARIANTS = {
    "IN that tracks": LAYERS["IN"]._replace(tracking=True),
    "GN of one group": LAYERS["GN"]._replace(groups=1),
    "LN of two axes": LAYERS["LN"]._replace(span=slice(-2, None)),
    "RMSNorm of two axes": LAYERS["RMSNorm"]._replace(span=slice(-2, None)),
}
# Every method once, with running statistics or sets of several axes where it may.
WIDE = OF_A_SAMPLE | {
    "IN": VARIANTS["IN that tracks"],
    "RMSNorm": VARIANTS["RMSNorm of two axes"],
}
TRACKING = {key: layer for key, layer in WIDE.items() if layer.tracks}


def randomized(layer, seed=0):
    """The layer, with γ and β that no test can mistake for 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 2.0, generator=generator)
    return layer


def outputs_and_gradients(layer, x, dy, where=None):
    """y, dx and the gradients of γ and β."""
    x = x.detach().requires_grad_()
    y = layer(x) if where is None else layer(x, where)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], dy)]


def results(layer, x, dy, where=None):
    """The same, and the layer's buffers after it."""
    return outputs_and_gradients(layer, x, dy, where) + list(layer.buffers())


def beside_float64(layer, x, dy, where=None, device=None):
    """`results` of a layer and of a copy in float64, on this device or on x's own."""
    device = x.device if device is None else device
    exact = copy.deepcopy(layer).to(device, torch.float64)
    mask = None if where is None else where.to(device)
    want = results(exact, *(value.to(device, torch.float64) for value in (x, dy)), mask)
    return results(layer, x, dy, where), want


def second_derivatives(layer, x, dy):
    """The gradients of Σ dx² with respect to x and γ, dx that of Σ dy·y."""
    x = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad((layer(x) * dy).sum(), x, create_graph=True)
    return torch.autograd.grad((dx**2).sum(), [x, layer.weight])
