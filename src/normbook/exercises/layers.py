"""Exercises that ask for a layer: the reader's own torch.nn.Module class.

A class is used as a training script uses a layer: constructed, given the state dict of
torch.nn's layer, evaluated, trained for a step. What comes out is compared part by
part, and a mistake is a class gone wrong. What is no layer with that state (a plain
attribute for a buffer, say) is refused before anything is compared.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normbook.exercises.grading import (
    IN_PLACE,
    Case,
    Exercise,
    Refused,
    normal,
    small,
)

PARAMETERS = ("weight", "bias")
# torch.nn's own counter, which a layer may do without.
OPTIONAL = {"num_batches_tracked"}
DEFAULT_EPS = "the default of ε is wrong: it is 10⁻⁵, and stands inside the root"
CANCELS = (
    "far from zero it loses all digits: no mean(x²) − mean(x)²; average (x − mean)²"
)


def use_layer(
    like: Callable[..., nn.Module],
    attempt: Any,
    args: tuple[int, ...],
    settings: dict[str, float],
    x: Any,
    dy: Any,
) -> Any:
    """What the layer `attempt(*args, **settings)` gives, part by part.

    like: the class of torch.nn whose state it takes. x and dy: float64 arrays of one
    shape. Raises Refused for what is no layer with that state.
    """
    if attempt is ...:
        return attempt
    if not (isinstance(attempt, type) and issubclass(attempt, nn.Module)):
        raise Refused(
            "it asks for a class, a torch.nn.Module: hand over the class itself, "
            "neither a function nor a layer made from it"
        )

    def construct() -> nn.Module:
        return _construct(attempt, args, settings)

    if _is_blank(construct(), torch.tensor(x)):
        return ...
    reference = like(*args, **settings).state_dict()
    state = _drawn({n: v for n, v in reference.items() if n not in OPTIONAL})
    parameters = [name for name in state if name in PARAMETERS]
    buffers = [name for name in state if name not in PARAMETERS]
    layer = construct()
    _need_state(layer, state)
    parts = {f"{name} of a new layer": getattr(layer, name).clone() for name in state}

    layer.load_state_dict(state, strict=False)
    layer.eval()
    # The tensor shares x's memory, so that a layer that writes into x is found out.
    before = x.copy()
    parts["y in evaluation"] = _forward(layer, torch.from_numpy(x))
    if not np.array_equal(x, before):
        raise Refused(IN_PLACE)
    parts |= {f"{name} after evaluation": getattr(layer, name) for name in buffers}

    layer = construct()
    layer.load_state_dict(state, strict=False)
    leaf = torch.tensor(x, requires_grad=True)
    y = parts["y in training"] = _forward(layer, leaf.clone())
    if not y.requires_grad:
        raise Refused(
            "y has no gradient: nothing of x may pass no_grad, detach or data"
        )
    inputs = {"x": leaf} | {name: getattr(layer, name) for name in parameters}
    gradients = torch.autograd.grad(
        y, list(inputs.values()), torch.tensor(dy, dtype=y.dtype), allow_unused=True
    )
    for (name, value), gradient in zip(inputs.items(), gradients, strict=True):
        used = torch.zeros_like(value) if gradient is None else gradient
        parts[f"the gradient of {name}"] = used
    for name in buffers:
        parts[f"{name} after a step"] = getattr(layer, name)
        in_graph = getattr(layer, name).requires_grad
        parts[f"the graph behind {name}"] = torch.tensor(in_graph)
    return {name: value.detach().numpy() for name, value in parts.items()}


def _construct(
    attempt: type, args: tuple[int, ...], settings: dict[str, float]
) -> nn.Module:
    """A layer in float64."""
    try:
        layer: nn.Module = attempt(*args, **settings)
        return layer.double()
    except Exception as error:
        values = [str(arg) for arg in args]
        values += [f"{name}={value}" for name, value in settings.items()]
        call = f"{attempt.__name__}({', '.join(values)})"
        raise Refused(f"{call} raised {type(error).__name__}: {error}") from error


def _is_blank(layer: nn.Module, x: Tensor) -> bool:
    """Whether forward gives nothing yet. An error is left to the comparison."""
    try:
        y = layer(x)
    except Exception:
        return False
    return y is None or y is ...


def _forward(layer: nn.Module, x: Tensor) -> Tensor:
    if type(layer).forward is nn.Module.forward:
        raise Refused("it has no forward: write def forward(self, x)")
    mode = "training" if layer.training else "evaluation"
    at = f"in {mode}, for x of shape {tuple(x.shape)}"
    try:
        y = layer(x)
    except Exception as error:
        raise Refused(f"{at}, it raised {type(error).__name__}: {error}") from error
    if not isinstance(y, Tensor) or y.shape != x.shape:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise Refused(f"{at}, forward gives {got}: y is a tensor of x's shape")
    return y


def _drawn(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state of the same names and shapes, as after some training."""
    rng = np.random.default_rng(2)
    return {
        name: torch.tensor(0.5 + abs(rng.standard_normal(value.shape)))
        for name, value in state.items()
    }


def _need_state(layer: nn.Module, state: dict[str, Tensor]) -> None:
    """Raise Refused unless a state dict of torch.nn's layer loads into this one."""
    own, parameters = layer.state_dict(), dict(layer.named_parameters())
    if others := own.keys() - state.keys() - OPTIONAL:
        raise Refused(
            f"its state dict holds {', '.join(sorted(others))}; that of torch.nn holds "
            f"{', '.join(state)}: the names must be the same"
        )
    for name, value in state.items():
        if not isinstance(getattr(layer, name, None), Tensor):
            raise Refused(f"it has no tensor named {name}, as torch.nn's layer has")
        if name in PARAMETERS and name not in parameters:
            raise Refused(f"{name} is no parameter and cannot learn: nn.Parameter")
        if name not in PARAMETERS and name in parameters:
            raise Refused(
                f"{name} is a parameter, which an optimizer would move: register_buffer"
            )
        if name not in own:
            raise Refused(
                f"{name} is a plain attribute, which no state dict holds and .to() "
                "leaves behind: register_buffer"
            )
        if own[name].shape != value.shape:
            raise Refused(
                f"{name} has shape {tuple(own[name].shape)}; that of torch.nn has "
                f"{tuple(value.shape)}: keep this shape, reshape in forward"
            )


class Standardized(nn.Module, ABC):
    """A layer as a reader would write it, each step a method that can go wrong."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def view(self, x: Tensor) -> Tensor:
        return x

    @abstractmethod
    def axes(self, view: Tensor) -> tuple[int, ...]:
        """S of the view."""

    def moments(self, view: Tensor) -> tuple[Tensor, Tensor]:
        axes = self.axes(view)
        mean = view.mean(axes, keepdim=True)
        return mean, ((view - mean) ** 2).mean(axes, keepdim=True)

    def rstd(self, var: Tensor) -> Tensor:
        return (var + self.eps) ** -0.5

    def standardize(self, view: Tensor) -> Tensor:
        mean, var = self.moments(view)
        return (view - mean) * self.rstd(var)

    def affine(self, x_hat: Tensor) -> Tensor:
        return _wide(self.weight, x_hat) * x_hat + _wide(self.bias, x_hat)

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(self.standardize(self.view(x)).reshape(x.shape))


class LayerNorm(Standardized):
    """Sets along the last axis, which γ and β index."""

    def axes(self, view: Tensor) -> tuple[int, ...]:
        return (-1,)

    def affine(self, x_hat: Tensor) -> Tensor:
        return self.weight * x_hat + self.bias


class RMSNorm(LayerNorm):
    """Without a mean and without β."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps)
        del self.bias

    def moments(self, view: Tensor) -> tuple[Tensor, Tensor]:
        square = (view**2).mean(self.axes(view), keepdim=True)
        return torch.zeros_like(square), square

    def affine(self, x_hat: Tensor) -> Tensor:
        return self.weight * x_hat


class QKNorm(RMSNorm):
    """Sets along the features of a head, one γ for all heads."""

    def __init__(self, heads: int, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels // heads, eps)
        self.heads = heads

    def view(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(self.standardize(self.view(x))).reshape(x.shape)


class EveryHeadQKNorm(QKNorm):
    """Gone wrong: a head takes every `heads`-th channel."""

    def view(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.heads)).mT

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(self.standardize(self.view(x))).mT.reshape(x.shape)


class InstanceNorm(Standardized):
    """Sets along the positions."""

    def axes(self, view: Tensor) -> tuple[int, ...]:
        return tuple(range(2, view.dim()))


class GroupNorm(InstanceNorm):
    """Sets along the positions and the channels of a group."""

    def __init__(self, groups: int, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps)
        self.groups = groups

    def view(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.groups, -1, *x.shape[2:])


class EveryGroupNorm(GroupNorm):
    """Gone wrong: a group takes every G-th channel."""

    def axes(self, view: Tensor) -> tuple[int, ...]:
        return (1, *range(3, view.dim()))

    def view(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, self.groups, *x.shape[2:])


class BatchNorm(Standardized):
    """Sets along the batch and the positions, and running statistics."""

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(channels, eps)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def axes(self, view: Tensor) -> tuple[int, ...]:
        return (0, *range(2, view.dim()))

    def unbiased(self, var: Tensor, m: int) -> Tensor:
        return var * m / (m - 1)

    def track(self, mean: Tensor, var: Tensor, m: int) -> None:
        new = (mean.detach().flatten(), self.unbiased(var.detach().flatten(), m))
        for running, batch in zip(self.remembered(), new, strict=True):
            running += self.momentum * (batch - running)

    def remembered(self) -> tuple[Tensor, Tensor]:
        return self.get_buffer("running_mean"), self.get_buffer("running_var")

    def standardize(self, view: Tensor) -> Tensor:
        if self.training:
            mean, var = self.moments(view)
            self.track(mean, var, view.numel() // view.shape[1])
        else:
            mean, var = (_wide(value, view) for value in self.remembered())
        return (view - mean) * self.rstd(var)


def _wide(value: Tensor, x: Tensor) -> Tensor:
    """A value for each channel, ready to meet (N, C, ...)."""
    return value.reshape(-1, *(1 for _ in x.shape[2:]))


def _gone_wrong(layer: type, **methods: Callable[..., Any]) -> type:
    return type(layer.__name__, (layer,), methods)


def _slips(
    layer: type[Any], square: str = "σ²", y: str = "weight·x̂ + bias"
) -> dict[str, type]:
    """The mistakes that every layer invites, by what to say of them."""

    def detached(self: Any, view: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = layer.moments(self, view)
        return mean.detach(), var.detach()

    return {
        "its gradient is wrong: no_grad or detach cuts the statistics off from x": (
            _gone_wrong(layer, moments=detached)
        ),
        f"ε is outside the root: divide by √({square} + ε)": _gone_wrong(
            layer, rstd=lambda self, var: 1 / (var**0.5 + self.eps)
        ),
        f"eps is ignored or missing: divide by √({square} + self.eps)": _gone_wrong(
            layer, rstd=lambda self, var: (var + 1e-5) ** -0.5
        ),
        "the root is missing": _gone_wrong(
            layer, rstd=lambda self, var: 1 / (var + self.eps)
        ),
        f"the parameters are not used: y = {y}": _gone_wrong(
            layer, affine=lambda self, x_hat: x_hat
        ),
    }


def _centered_slips(layer: type[Any]) -> dict[str, type]:
    """Those of the layers with a mean and a β."""

    def unbiased(self: Any, view: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = layer.moments(self, view)
        m = view.numel() // var.numel()
        return mean, var * m / (m - 1)

    def uncentered(self: Any, view: Tensor) -> tuple[Tensor, Tensor]:
        square = (view**2).mean(self.axes(view), keepdim=True)
        return torch.zeros_like(square), square

    def deviation_detached(self: Any, view: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = layer.moments(self, view)
        return mean, var.detach()

    def without_bias(self: Any, x_hat: Tensor) -> Tensor:
        return layer.affine(self, x_hat) - layer.affine(self, torch.zeros_like(x_hat))

    return _slips(layer) | {
        "you divided by the unbiased deviation: normalizing takes the biased one": (
            _gone_wrong(layer, moments=unbiased)
        ),
        "you did not center: subtract the mean first": (
            _gone_wrong(layer, moments=uncentered)
        ),
        "its gradient is wrong: no_grad or detach cuts the deviation off from x": (
            _gone_wrong(layer, moments=deviation_detached)
        ),
        "bias is not used: y = weight·x̂ + bias": _gone_wrong(
            layer, affine=without_bias
        ),
    }


def _over(layer: type[Any], axes: Callable[[Tensor], tuple[int, ...]]) -> type[Any]:
    return _gone_wrong(layer, axes=lambda self, view: axes(view))


def _with_momentum(own: Callable[[float], float]) -> type[Any]:
    def construct(
        self: Any, channels: int, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        BatchNorm.__init__(self, channels, eps, own(momentum))

    return _gone_wrong(BatchNorm, __init__=construct)


def _always_of_the_batch(self: Any, view: Tensor) -> Tensor:
    if self.training:
        return BatchNorm.standardize(self, view)
    mean, var = self.moments(view)
    return (view - mean) * self.rstd(var)


def _always_running(self: Any, view: Tensor) -> Tensor:
    mean, var = (_wide(value.clone(), view) for value in self.remembered())
    if self.training:
        BatchNorm.standardize(self, view)
    return (view - mean) * self.rstd(var)


def _running_once_moved(self: Any, view: Tensor) -> Tensor:
    if self.training:
        BatchNorm.standardize(self, view)
    mean, var = (_wide(value, view) for value in self.remembered())
    return (view - mean) * self.rstd(var)


def _moving_in_evaluation(self: Any, view: Tensor) -> Tensor:
    x_hat = BatchNorm.standardize(self, view)
    if not self.training:
        self.track(*self.moments(view), view.numel() // view.shape[1])
    return x_hat


def _unbiased_moments(self: Any, view: Tensor) -> tuple[Tensor, Tensor]:
    mean, var = BatchNorm.moments(self, view)
    m = view.numel() // var.numel()
    return mean, var * m / (m - 1)


def _track_the_graph(self: Any, mean: Tensor, var: Tensor, m: int) -> None:
    new = (mean.flatten(), self.unbiased(var.flatten(), m))
    names = ("running_mean", "running_var")
    for name, running, batch in zip(names, self.remembered(), new, strict=True):
        setattr(self, name, running + self.momentum * (batch - running))


BATCH_MISTAKES = _centered_slips(BatchNorm) | {
    "you normalize by the unbiased variance: store that one, divide by the biased": (
        _gone_wrong(
            BatchNorm, moments=_unbiased_moments, unbiased=lambda self, var, m: var
        )
    ),
    "running_var holds the unbiased variance: store σ²·m/(m − 1)": _gone_wrong(
        BatchNorm, unbiased=lambda self, var, m: var
    ),
    "running_var holds a variance; you stored deviations": _gone_wrong(
        BatchNorm, unbiased=lambda self, var, m: BatchNorm.unbiased(self, var, m) ** 0.5
    ),
    "momentum is the weight of the new value; you gave it to the old": (
        _with_momentum(lambda momentum: 1 - momentum)
    ),
    "momentum is ignored: the constructor's is the weight of the new value": (
        _with_momentum(lambda momentum: 0.1)
    ),
    "you stored this batch's statistics: blend them into the old ones": (
        _with_momentum(lambda momentum: 1.0)
    ),
    "the running statistics stay as they were: training moves them": _gone_wrong(
        BatchNorm, track=lambda self, mean, var, m: None
    ),
    "evaluation takes the batch's statistics: there, the running ones count": (
        _gone_wrong(BatchNorm, standardize=_always_of_the_batch)
    ),
    "training takes the running statistics: there, those of the batch count": (
        _gone_wrong(BatchNorm, standardize=_always_running)
    ),
    "training takes the running statistics, once moved: there, the batch's count": (
        _gone_wrong(BatchNorm, standardize=_running_once_moved)
    ),
    "evaluation moves the running statistics: only training does": _gone_wrong(
        BatchNorm, standardize=_moving_in_evaluation
    ),
    "the running statistics keep the graph of every batch: detach what you store": (
        _gone_wrong(BatchNorm, track=_track_the_graph)
    ),
    "one mean for all channels: each has its own": _over(
        BatchNorm, lambda view: tuple(range(view.dim()))
    ),
}


class TorchBatchNorm(nn.BatchNorm1d):
    """torch.nn's batch norm, of any number of positions."""

    def _check_input_dim(self, input: Tensor) -> None: ...


class TorchInstanceNorm(nn.InstanceNorm2d):
    """torch.nn's instance norm with γ and β."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps, affine=True)


class TorchRMSNorm(nn.RMSNorm):
    """torch.nn's RMSNorm with the ε of the others."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps)


class TorchQKNorm(nn.RMSNorm):
    """torch.nn's RMSNorm of each head by itself."""

    def __init__(self, heads: int, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels // heads, eps)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unflatten(-1, (self.heads, -1))).flatten(-2)


def _layer(
    solution: type[nn.Module],
    mistakes: dict[str, type],
    args: tuple[int, ...],
    *shapes: tuple[int, ...],
    **settings: float,
) -> Exercise:
    """An exercise on x of two shapes, where σ² is small too, and far from zero."""
    first, second = shapes
    cases = (
        Case((args, {"eps": 0.5, **settings}, normal(*first), normal(*first))),
        Case((args, {"eps": 0.1}, normal(*second), normal(*second))),
        Case((args, {}, small(*second), normal(*second)), DEFAULT_EPS),
        Case((args, {}, 1e8 + normal(*second), normal(*second)), CANCELS),
    )
    return Exercise(solution, mistakes, cases, use=partial(use_layer, solution))


EXERCISES = {
    "batch-norm-class": _layer(
        TorchBatchNorm, BATCH_MISTAKES, (4,), (6, 4), (3, 4, 2, 5), momentum=0.3
    ),
    "layer-norm-class": _layer(
        nn.LayerNorm,
        _centered_slips(LayerNorm)
        | {
            "your sets span the tokens of a sequence: a set is one token, along C": (
                _over(LayerNorm, lambda view: (-2, -1))
            ),
            "you averaged along axis 1, the tokens: a set runs along C, the last": (
                _over(LayerNorm, lambda view: (1,))
            ),
            "you averaged over the batch: a set is one token, along C": (
                _over(LayerNorm, lambda view: tuple(range(view.dim() - 1)))
            ),
        },
        (4,),
        (2, 3, 4),
        (3, 2, 5, 4),
    ),
    "rms-norm-class": _layer(
        TorchRMSNorm,
        _slips(RMSNorm, "mean(x²)", "weight·x̂")
        | {
            "you centered: RMSNorm subtracts no mean": _gone_wrong(
                RMSNorm, moments=LayerNorm.moments
            ),
            "you averaged along axis 1, the tokens: a set runs along C, the last": (
                _over(RMSNorm, lambda view: (1,))
            ),
        },
        (4,),
        (2, 3, 4),
        (3, 2, 5, 4),
    ),
    "qk-norm-class": _layer(
        TorchQKNorm,
        _slips(QKNorm, "mean(q²)", "weight·x̂")
        | {
            "you centered: QK-norm subtracts no mean": _gone_wrong(
                QKNorm, moments=LayerNorm.moments
            ),
            "all heads share your mean square: each head has its own": _over(
                QKNorm, lambda view: (-2, -1)
            ),
            "you averaged over the heads: a set is the features of one head": _over(
                QKNorm, lambda view: (-2,)
            ),
            "you divided by the length: an RMSNorm takes the mean of the squares": (
                _gone_wrong(
                    QKNorm,
                    moments=lambda self, view: (
                        torch.zeros_like(view[..., :1]),
                        (view**2).sum(-1, keepdim=True),
                    ),
                )
            ),
            "your heads take every H-th feature: a head is d neighbours": (
                EveryHeadQKNorm
            ),
        },
        (2, 6),
        (2, 3, 6),
        (3, 4, 6),
    ),
    "instance-norm-class": _layer(
        TorchInstanceNorm,
        _centered_slips(InstanceNorm)
        | {
            "your sets span the batch: this is batch norm; leave N alone": (
                _over(InstanceNorm, lambda view: (0, 2, 3))
            ),
            "your sets span the channels: this is layer norm over C, H and W": (
                _over(InstanceNorm, lambda view: (1, 2, 3))
            ),
        },
        (3,),
        (4, 3, 2, 5),
        (2, 3, 4, 2),
    ),
    "group-norm-class": _layer(
        nn.GroupNorm,
        _centered_slips(GroupNorm)
        | {
            "your groups take every G-th channel: a group is C/G neighbours": (
                EveryGroupNorm
            ),
            "all channels share your mean: keep the axis of the groups": (
                _over(GroupNorm, lambda view: tuple(range(1, view.dim())))
            ),
            "you left the channels out of the set: this is instance norm": (
                _over(GroupNorm, lambda view: tuple(range(3, view.dim())))
            ),
            "you averaged over the batch as well: a set is of one sample": (
                _over(GroupNorm, lambda view: (0, *range(2, view.dim())))
            ),
        },
        (2, 6),
        (3, 6, 5),
        (2, 6, 3, 2),
    ),
}
