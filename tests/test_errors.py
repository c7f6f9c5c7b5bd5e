"""Bad input: each error names the invariant, the value received and the fix."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from normbook import functional as F
from normbook import nn as nb
from normbook.functional import InputError

X = np.ones((4, 6, 5))


def ones(*shape):
    return np.ones(shape)


def real(*shape):
    return np.ones(shape, dtype=bool)


META = torch.ones(6, device="meta")

# What is called, and what its message must hold: invariant, value, fix.
FUNCTIONAL = {
    "BN of one axis": (
        lambda: F.batch_norm(ones(4)),
        "batch norm needs at least 2 axes; got shape (4,); Add the missing axis",
    ),
    "IN of two axes": (
        lambda: F.instance_norm(ones(4, 6)),
        "instance norm needs at least 3 axes, (N, C, ...); got shape (4, 6); Add",
    ),
    "GN of one axis": (
        lambda: F.group_norm(ones(6), 2),
        "group norm needs at least 2 axes; got shape (6,); Add",
    ),
    "LN of no axis": (
        lambda: F.layer_norm(np.float64(1.0)),
        "needs at least 1 axes; got shape (); Add",
    ),
    "BN eval of one axis": (
        lambda: F.batch_norm_eval(ones(4), ones(4), ones(4)),
        "batch norm needs at least 2 axes; got shape (4,); Add",
    ),
    "groups that do not divide": (
        lambda: F.group_norm(X, 4),
        "channels divisible by groups; got 6 channels and 4 groups; Use one of "
        "[1, 2, 3, 6]",
    ),
    "no groups": (
        lambda: F.group_norm(X, 0),
        "channels divisible by groups; 6 channels and 0 groups; Use one of",
    ),
    "an axis x has not": (
        lambda: F.layer_norm(X, axes=(3,)),
        "axes must name one or more different axes of x; got axes=(3,); from -3 to 2",
    ),
    "an axis twice": (
        lambda: F.rms_norm(X, axes=(-1, 2)),
        "different axes of x; got axes=(-1, 2); (4, 6, 5)",
    ),
    "no axes": (lambda: F.layer_norm(X, axes=()), "one or more; got axes=()"),
    "one value a channel": (
        lambda: F.batch_norm(ones(1, 6)),
        "need more than 1 value in each set; got 1; Use a larger batch",
    ),
    "one position": (
        lambda: F.instance_norm(ones(4, 6, 1)),
        "need more than 1 value in each set; got 1; larger batch or map",
    ),
    "one value a group": (
        lambda: F.group_norm(ones(4, 6), 6),
        "need more than 1 value in each set; got 1; fewer groups",
    ),
    "integers": (
        lambda: F.batch_norm(np.ones((4, 6), dtype=int)),
        "real floating-point numbers; got x of dtype int64; Convert it first",
    ),
    "complex": (
        lambda: F.layer_norm(torch.ones(4, 6, dtype=torch.complex64)),
        "real floating-point numbers; got x of dtype torch.complex64; Convert",
    ),
    "booleans": (
        lambda: F.rms_norm(real(4, 6)),
        "real floating-point numbers; got x of dtype bool; Convert",
    ),
    "γ per group": (
        lambda: F.group_norm(X, 2, ones(2)),
        "gamma must have shape (6,); got (2,) for x of shape (4, 6, 5); one value",
    ),
    "β of another length": (
        lambda: F.batch_norm(X, ones(6), ones(5)),
        "beta must have shape (6,); got (5,); one value for each",
    ),
    "γ of two values": (
        lambda: F.layer_norm(X, ones(2)),
        "gamma must have shape (5,), x's shape along axes (2,), or 1 in place of",
    ),
    "γ with too few axes": (
        lambda: F.layer_norm(X, ones(6), axes=(1, 2)),
        "gamma must have shape (6, 5); got (6,)",
    ),
    "running mean of another length": (
        lambda: F.batch_norm_eval(X, ones(5), ones(6)),
        "mean must have shape (6,); got (5,)",
    ),
    "running variance of another length": (
        lambda: F.batch_norm_eval(X, ones(6), ones(5)),
        "var must have shape (6,); got (5,)",
    ),
    "a mask that empties a set": (
        lambda: F.layer_norm(X, where=np.arange(4)[:, None, None] > 0),
        "need more than 0 values in each set; got 0; a mask that leaves more",
    ),
    "a mask that leaves one": (
        lambda: F.instance_norm(X, where=np.arange(5) < 1),
        "need more than 1 value in each set; got 1; a mask that leaves more",
    ),
    "a mask of numbers": (
        lambda: F.batch_norm(X, where=ones(4, 6, 5)),
        "where must be boolean; got dtype float64; Compare it first: where != 0",
    ),
    "a mask that does not fit": (
        lambda: F.batch_norm(X, where=real(4, 5)),
        "where must broadcast to x's shape; got (4, 5) for x of shape (4, 6, 5); "
        "Give it as many axes as x",
    ),
    "a mask larger than x": (
        lambda: F.batch_norm(X, where=real(2, 4, 6, 5)),
        "where must broadcast to x's shape; got (2, 4, 6, 5)",
    ),
    "γ on another device": (
        lambda: F.batch_norm(torch.ones(4, 6), META),
        "x and gamma must be on one device; x on cpu and gamma on meta; Move one",
    ),
    "β on another device": (
        lambda: F.batch_norm(torch.ones(4, 6), None, META),
        "x and beta must be on one device; beta on meta; Move one",
    ),
    "a mask on another device": (
        lambda: F.batch_norm(torch.ones(4, 6), where=META > 0),
        "x and where must be on one device; where on meta; Move one",
    ),
    "statistics on another device": (
        lambda: F.batch_norm_eval(torch.ones(4, 6), META, torch.ones(6)),
        "x and mean must be on one device; mean on meta; Move one",
    ),
    "dy of another shape": (
        lambda: F.batch_norm_vjp(ones(4, 6, 4), X),
        "dy must have the shape of x; got (4, 6, 4) for x of shape (4, 6, 5); Pass",
    ),
    "dy of another shape, RMS": (
        lambda: F.rms_norm_vjp(ones(6, 5), X),
        "dy must have the shape of x; got (6, 5)",
    ),
    "dy on another device": (
        lambda: F.batch_norm_vjp(torch.ones(4, 6, device="meta"), torch.ones(4, 6)),
        "x and dy must be on one device; dy on meta; Move one",
    ),
    "a tensor with an array": (
        lambda: F.batch_norm(torch.ones(4, 6), np.ones(6)),
        "x and gamma must be on one device; Move one",
    ),
}


def check(call, message, kinds=(InputError,)):
    with pytest.raises(InputError) as caught:
        call()
    for kind in kinds:
        assert isinstance(caught.value, kind)
    text = str(caught.value)
    for part in message.split("; "):
        assert part in text
    assert re.search(r"; got .*\. [A-Z]", text), "invariant; got value. Fix"
    assert text.endswith(".")


@pytest.mark.parametrize("case", FUNCTIONAL)
def test_functional(case):
    check(*FUNCTIONAL[case])


@pytest.mark.parametrize(
    "vjp",
    [
        lambda: F.batch_norm_vjp(ones(1, 6), ones(1, 6)),
        lambda: F.instance_norm_vjp(ones(4, 6, 1), ones(4, 6, 1)),
        lambda: F.group_norm_vjp(X, X, 4),
        lambda: F.layer_norm_vjp(X, X, ones(4)),
        lambda: F.rms_norm_vjp(X, X, ones(4)),
    ],
)
def test_gradients_check_the_same(vjp):
    with pytest.raises(InputError, match="got"):
        vjp()


def tensor(*shape, **options):
    return torch.ones(shape, **options)


# ours, torch.nn's own or None where torch takes the input, x, and the message.
LAYERS = {
    "BN rank": (
        nb.BatchNorm(6),
        nn.BatchNorm2d(6),
        tensor(6),
        "BatchNorm needs x of shape (N, C) or (N, C, ...) with C = 6; got (6,); Build",
    ),
    "BN channels": (
        nb.BatchNorm(6),
        nn.BatchNorm1d(6),
        tensor(4, 5),
        "C = 6 on axis 1; got (4, 5); Build the layer for that many channels",
    ),
    "BN channels, no parameters": (
        nb.BatchNorm(6, affine=False, track_running_stats=False),
        None,
        tensor(4, 5, 6),
        "C = 6 on axis 1; got (4, 5, 6); move the channel axis to 1",
    ),
    "BN channels in evaluation": (
        nb.BatchNorm(6).eval(),
        nn.BatchNorm1d(6).eval(),
        tensor(4, 5),
        "C = 6 on axis 1; got (4, 5)",
    ),
    "BN of one value": (
        nb.BatchNorm(6),
        nn.BatchNorm1d(6),
        tensor(1, 6),
        "need more than 1 value in each set; got 1; evaluation mode",
    ),
    "IN rank": (
        nb.InstanceNorm(6),
        nn.InstanceNorm2d(6),
        tensor(4, 6),
        "InstanceNorm needs x of shape (N, C, ...) with C = 6; got (4, 6)",
    ),
    "IN channels": (
        nb.InstanceNorm(6, affine=True),
        nn.InstanceNorm2d(6, affine=True),
        tensor(4, 5, 3, 3),
        "C = 6 on axis 1; got (4, 5, 3, 3)",
    ),
    "IN of one position": (
        nb.InstanceNorm(6),
        nn.InstanceNorm2d(6),
        tensor(4, 6, 1, 1),
        "need more than 1 value in each set; got 1",
    ),
    "IN of one position in evaluation": (
        nb.InstanceNorm(6).eval(),
        nn.InstanceNorm2d(6).eval(),
        tensor(4, 6, 1, 1),
        "need more than 1 value in each set; got 1",
    ),
    "GN rank": (
        nb.GroupNorm(2, 6),
        nn.GroupNorm(2, 6),
        tensor(6),
        "GroupNorm needs x of shape (N, C) or (N, C, ...) with C = 6; got (6,)",
    ),
    "GN channels": (
        nb.GroupNorm(2, 6),
        nn.GroupNorm(2, 6),
        tensor(4, 8, 3),
        "C = 6 on axis 1; got (4, 8, 3)",
    ),
    "GN of one value": (
        nb.GroupNorm(6, 6),
        nn.GroupNorm(6, 6),
        tensor(1, 6),
        "need more than 1 value in each set; got 1; fewer groups",
    ),
    "GN of one value, many samples": (
        nb.GroupNorm(6, 6),
        None,
        tensor(4, 6),
        "need more than 1 value in each set; got 1; fewer groups",
    ),
    "LN shape": (
        nb.LayerNorm([6, 5]),
        nn.LayerNorm([6, 5]),
        tensor(4, 5, 6),
        "LayerNorm needs x of shape (..., 6, 5); got (4, 5, 6); Build",
    ),
    "LN rank": (
        nb.LayerNorm([6, 5]),
        nn.LayerNorm([6, 5]),
        tensor(5),
        "LayerNorm needs x of shape (..., 6, 5); got (5,)",
    ),
    "RMS shape": (
        nb.RMSNorm(6),
        nn.RMSNorm(6),
        tensor(4, 5),
        "RMSNorm needs x of shape (..., 6); got (4, 5); Build the layer",
    ),
    "LN of integers": (
        nb.LayerNorm(6),
        nn.LayerNorm(6),
        tensor(4, 6, dtype=torch.int64),
        "real floating-point numbers; got x of dtype torch.int64; Convert",
    ),
    "RMS of integers": (
        nb.RMSNorm(6),
        None,
        tensor(4, 6, dtype=torch.int64),
        "real floating-point numbers; got x of dtype torch.int64; Convert",
    ),
    "RMS of integers, ε given": (
        nb.RMSNorm(6, eps=0.1),
        None,
        tensor(4, 6, dtype=torch.int64),
        "real floating-point numbers; got x of dtype torch.int64; Convert",
    ),
    "BN of complex numbers": (
        nb.BatchNorm(6),
        nn.BatchNorm1d(6),
        tensor(4, 6, dtype=torch.complex64),
        "real floating-point numbers; got x of dtype torch.complex64; Convert",
    ),
    "BN of complex numbers in evaluation": (
        nb.BatchNorm(6).eval(),
        None,
        tensor(4, 6, dtype=torch.complex64),
        "real floating-point numbers; got x of dtype torch.complex64; Convert",
    ),
    "a layer on another device": (
        nb.GroupNorm(2, 6, device="meta"),
        None,
        tensor(4, 6),
        "x and gamma must be on one device; gamma on meta; Move one",
    ),
    "statistics on another device": (
        nb.BatchNorm(6, affine=False, device="meta").eval(),
        None,
        tensor(4, 6),
        "x and mean must be on one device; mean on meta; Move one",
    ),
}


@pytest.mark.parametrize("case", LAYERS)
def test_layers_raise_the_kind_of_error_that_torch_raises(case):
    ours, native, x, message = LAYERS[case]
    kinds = [InputError]
    if native is not None:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            native(x)
        # NotImplementedError, for complex numbers, is a RuntimeError.
        kinds += {ValueError, RuntimeError} & set(type(caught.value).__mro__)
        assert len(kinds) == 2
    check(lambda: ours(x), message, kinds)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nb.BatchNorm(6), tensor(4, 6, 5)),
        (nb.InstanceNorm(6), tensor(4, 6, 5)),
        (nb.GroupNorm(2, 6), tensor(4, 6, 5)),
        (nb.LayerNorm(5), tensor(4, 6, 5)),
    ],
)
def test_masks_of_layers_are_checked(layer, x):
    check(lambda: layer(x, tensor(4, 6, 5)), "where must be boolean; got dtype")
    check(lambda: layer(x, tensor(4, 6, 5, 1) > 0), "where must broadcast; got (4, 6")
    check(lambda: layer(x, tensor(4, 6, 5) < 0), "in each set; got 0")


@pytest.mark.parametrize(
    ("layer", "arguments"),
    [
        ("GroupNorm", (4, 6)),
        ("BatchNorm", ()),
        ("LayerNorm", (5, "no number")),
    ],
)
def test_constructors_refuse_what_torch_s_refuse(layer, arguments):
    native = getattr(nn, layer if layer != "BatchNorm" else "BatchNorm2d")
    raised = []
    for build in (getattr(nb, layer), native):
        try:
            build(*arguments)(tensor(2, 5))
        except (ValueError, TypeError, RuntimeError) as caught:
            raised.append(type(caught))
    assert len(raised) == 2
    assert raised[0] is raised[1]
