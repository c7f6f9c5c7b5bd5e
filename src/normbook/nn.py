"""Drop-in layers: the bookkeeping of torch.nn, the mathematics of this book.

Each class inherits its constructor, parameters, buffers, state dict and printed form
from torch.nn's own and replaces `forward`; so a state dict loads both ways, and a model
can swap one for the other. One class serves any number of dimensions, so x always has
its batch axis. Every `forward` but RMSNorm's takes the mask `where` of
`normbook.functional`.

Two errors are stricter than torch's: one value a group raises for every batch size (in
torch only for N = 1), and a wrong channel count raises with or without parameters.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from normbook import core, fast, functional
from normbook.core import Axes, Set
from normbook.fast import Kernel
from normbook.functional import InputError, Normalized, Sets
from normbook.moments import Moments, standardize
from normbook.workers import Workers


class Standardize(torch.autograd.Function):
    """`moments.standardize` with its hand-derived VJP: x_hat, rstd, m2, mean.

    rstd is an output too: so autograd sees how the VJP depends on x through it, and
    second and higher derivatives are exact with no further formula. The moments have no
    gradient; the mean is there where x is centered. torch.compile of torch 2.6 wants
    tensors alone, so m, a number without a mask, is none of the outputs.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, axes: Axes, eps: float, where: Tensor | None, centered: bool
    ) -> tuple[Any, ...]:
        x_hat, rstd, moments = standardize(x, Set(axes, where), eps, centered)
        return x_hat, rstd, moments.m2, *([moments.mean] if centered else [])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.axes, _, where, ctx.centered = inputs
        ctx.save_for_backward(*output[:2], where)
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Any, d_rstd: Any, *_: Any) -> tuple[Any, ...]:
        y, rstd, where = ctx.saved_tensors
        S = Set(ctx.axes, where)
        vjp = core.standardize_vjp if ctx.centered else core.rescale_vjp
        dx = None
        if dy is not None:
            dx = vjp(dy, y, rstd, S)
        if d_rstd is not None:
            through_rstd = core.rstd_vjp(d_rstd, y, rstd, S)
            dx = through_rstd if dx is None else dx + through_rstd
        return dx, None, None, None, None


class StandardizeTogether(torch.autograd.Function):
    """`Standardize` where sets are spread over workers: x_hat, rstd, count, mean, m2.

    One exchange forward, of a mean and an m2 a channel, and one backward, of two sums.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        axes: Axes,
        eps: float,
        where: Tensor | None,
        workers: Workers,
    ) -> tuple[Tensor, ...]:
        here = Moments.of(x, Set(axes, where))
        if where is not None:  # a part may have no real position
            mean = torch.where(here.count > 0, here.mean, 0.0)
            here = Moments(here.count, mean, here.m2)
        elif not x.numel():
            here = Moments(0, here.mean, here.m2)
        moments = workers.merge(here)
        S = Set(axes, where, workers)
        deviation = core.center(x, S, moments.mean)
        x_hat, rstd = core.rescale(deviation, S, eps, moments.var())
        ctx.axes, ctx.workers = axes, workers
        ctx.save_for_backward(x_hat, rstd, moments.count, where)
        ctx.mark_non_differentiable(*moments)
        ctx.set_materialize_grads(False)
        return x_hat, rstd, *moments

    @staticmethod
    def backward(ctx: Any, dy: Any, d_rstd: Any, *_: Any) -> tuple[Any, ...]:
        y, rstd, count, where = ctx.saved_tensors
        S, dx = Set(ctx.axes, where), None
        if dy is not None:
            dy = core.only(dy, S)
            sums = torch.stack([core.total(dy, S), core.total(dy * y, S)])
            of_dy, of_product = ctx.workers(sums) / count
            dx = core.only(dy - of_dy - y * of_product, S) * rstd
        if d_rstd is not None:  # rstd is everyone's, and so is its gradient
            through_rstd = y * rstd * rstd * ctx.workers(d_rstd) / -count
            dx = through_rstd if dx is None else dx + through_rstd
        return dx, None, None, None, None


class Affine(torch.autograd.Function):
    """`core.affine` with its VJP."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x_hat: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        return core.affine(x_hat, gamma, beta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        d_x_hat, d_gamma, d_beta = core.affine_vjp(dy, *ctx.saved_tensors)
        if d_beta is dy:  # of one sample: gradients add up in place, dy is the caller's
            d_beta = dy.clone()
        return d_x_hat, d_gamma, d_beta


def plain(
    x: Tensor,
    sets: Sets,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    where: Tensor | None = None,
    centered: bool = True,
    workers: Workers | None = None,
) -> Normalized:
    """`functional.normalize` on the differentiable primitives."""

    # Any: torch.compile of torch 2.6 cannot trace a type like tuple[...] in here.
    def standardize(x: Tensor, S: Set, eps: float, centered: bool) -> Any:
        if workers is not None:
            x_hat, rstd, *moments = StandardizeTogether.apply(
                x, S.axes, eps, S.where, workers
            )
            return x_hat, rstd, Moments(*moments)
        settings = S.axes, eps, S.where, centered
        x_hat, rstd, m2, *mean = Standardize.apply(x, *settings)
        return x_hat, rstd, Moments(core.count(x, S), mean[0] if centered else 0.0, m2)

    def affine(x_hat: Tensor, gamma: Any, beta: Any) -> Tensor:
        if gamma is None and beta is None:
            return x_hat
        return Affine.apply(x_hat, gamma, beta)

    return functional.normalize(
        x,
        sets,
        gamma,
        beta,
        eps=eps,
        where=where,
        centered=centered,
        standardize=standardize,
        affine=affine,
    )


class Fused(torch.autograd.Function):
    """A kernel of `fast`: y, and mean and variance of every set, (2, sets).

    The moments have no gradient. A gradient that is differentiated itself goes through
    `plain`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        kernel: Kernel,
        sets: Sets,
    ) -> tuple[Tensor, Tensor]:
        y, moments = kernel.backend.forward(x, gamma, beta, kernel.task)
        ctx.save_for_backward(x, gamma, beta, moments)
        ctx.kernel, ctx.sets = kernel, sets
        return y, moments

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Any, ...]:
        *inputs, moments = ctx.saved_tensors
        x, gamma, beta = inputs
        _, eps, centered, _ = ctx.kernel.task
        again = torch.is_grad_enabled()  # then this gradient is differentiated, too
        # Hooks on saved tensors may give back another layout or dtype.
        if (
            not again
            and dy.dtype is x.dtype
            and fast.readable(dy)
            and fast.kernel_for(x, ctx.sets, gamma, beta, eps, centered) == ctx.kernel
        ):
            dx, sums = ctx.kernel.backward(dy, x, gamma, moments)
            return dx, *fast.of_parameters(sums, gamma, beta), None, None
        with torch.enable_grad():
            # Views: their gradients end here, where those of x would go on into what
            # x was made of, and call the hooks of γ.
            inputs = [v if v is None else v.view_as(v) for v in inputs]
            x, gamma, beta = inputs
            y = plain(x, ctx.sets, gamma, beta, eps, centered=centered).y
        wanted = [v for v in inputs if v is not None and v.requires_grad]
        dy = dy.to(y.dtype)
        gradients = iter(torch.autograd.grad(y, wanted, dy, create_graph=again))
        return *(
            next(gradients) if v is not None and v.requires_grad else None
            for v in inputs
        ), None, None  # fmt: skip


def direct_apply(function: Any) -> Any:
    """`function.apply` without its questions about torch.func, which take 2.5 µs.

    `kernel_for` has asked them. The usual one in a torch where nothing lies beneath it.
    """
    return getattr(super(torch.autograd.Function, function), "apply", function.apply)


_apply = direct_apply(Fused)


def _in_graph(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, kernel: Kernel
) -> tuple[Tensor, Tensor]:
    """The same while torch.compile traces."""
    from normbook.fast.compiled import operation  # which imports Triton

    work, *rest = kernel.task
    sizes = [*work[:4], *map(int, work[4:])]  # a list with a size of any batch: no bool
    return operation(x, gamma, beta, sizes, *rest)


# Running mean and variance, one a channel, and the weight of what is new.
Running = tuple[Tensor, Tensor, Any]


def track(running: Running, mean: Tensor, var: Tensor) -> None:
    """Move towards these, in place; where each sample has its own, to their mean.

    `moments.running` in one step.
    """
    running_mean, running_var, momentum = running
    for old, new in ((running_mean, mean), (running_var, var)):
        if new.shape != old.shape:
            new = new.reshape(-1, old.numel()).mean(0)
        old.lerp_(new.to(old.dtype), momentum)


def normalize(
    x: Tensor,
    sets: Sets,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    where: Tensor | None = None,
    centered: bool = True,
    running: Running | None = None,
    workers: Workers | None = None,
) -> Tensor:
    """y, by a kernel or by `plain`; running statistics move towards this batch's.

    The running variance is the unbiased one, though x is standardized with the biased;
    instance norm averages both over the batch; an empty batch moves nothing. So does
    torch.
    """
    if running is not None:
        full = x.shape[1:2]
        if running[0].shape != full or running[1].shape != full:
            raise InputError(
                "running_mean and running_var need one value a channel, shape "
                f"{tuple(full)}; got {tuple(running[0].shape)} and "
                f"{tuple(running[1].shape)}."
            )
    kernel = None
    if where is None and workers is None:
        kernel = fast.kernel_for(x, sets, gamma, beta, eps, centered)
    if kernel is None:
        y, moments = plain(x, sets, gamma, beta, eps, where, centered, workers)
        if running is not None and (x.numel() or workers is not None):
            track(running, moments.mean, moments.var(correction=1))
    else:
        if kernel.in_graph:
            y, of_sets = _in_graph(x, gamma, beta, kernel)
        elif torch.is_grad_enabled():
            y, of_sets = _apply(x, gamma, beta, kernel, sets)
        else:
            y, of_sets = kernel.backend.forward(x, gamma, beta, kernel.task)
        if running is not None:
            mean, var = of_sets.detach().unbind()
            track(running, mean, var * kernel.unbiased)
    return y


# Of torch's three classes the first: what they have in common has a private name.
class BatchNorm(nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, `2d` and `3d` in one. x: (N, C) or (N, C, ...)."""

    def forward(
        self,
        x: Tensor,
        where: Tensor | None = None,
        workers: Workers | None = None,
    ) -> Tensor:
        """workers: those who have the other parts of the batch."""
        mean, kind = self.running_mean, type(self).__name__
        if not self.training and mean is not None:
            _need_channels(x.shape, kind, self.num_features, 2)
            return _evaluate(self, x, where)
        sets = _sets(_batch_sets, x, kind, self.num_features)
        if workers is not None:  # how many values a set has is known after they met
            sets = sets._replace(least=0)
        running: Running | None = None
        if mean is not None:
            momentum: Any = self.momentum
            if momentum is None:  # the plain average
                momentum = 1 / (self.num_batches_tracked + 1).to(mean.dtype)
            running = mean, self.running_var, momentum
        y = normalize(
            x, sets, self.weight, self.bias, self.eps, where, True, running, workers
        )
        if running is not None:
            self.num_batches_tracked.add_(1)
        return y


class SyncBatchNorm(BatchNorm):
    """`torch.nn.SyncBatchNorm`, on a CPU too. x: (N, C) or (N, C, ...).

    In training, each channel is standardized over the parts of all processes of
    `process_group`, of any sizes; without an initialized group it is batch norm. It is
    no subclass of torch's, which DistributedDataParallel refuses on a CPU.
    Raises InputError where processes differ in channels, number of axes or dtype, and
    RuntimeError where one of them does not come.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        **more: Any,
    ) -> None:
        options = momentum, affine, track_running_stats, device, dtype
        super().__init__(num_features, eps, *options, **more)
        self.process_group = process_group

    def forward(
        self,
        x: Tensor,
        where: Tensor | None = None,
        workers: Workers | None = None,
    ) -> Tensor:
        """workers: all processes of `process_group`, unless others are given."""
        if self.training and dist.is_available() and dist.is_initialized():
            group = self.process_group or dist.group.WORLD
            if workers is None and dist.get_world_size(group) > 1:
                workers = Workers(group, x.shape, x.dtype)
        return super().forward(x, where, workers)

    @classmethod
    def convert_sync_batchnorm(
        cls, module: nn.Module, process_group: Any = None
    ) -> nn.Module:
        """The module with each batch norm, torch's or ours, as this layer."""
        convert = nn.SyncBatchNorm.convert_sync_batchnorm
        converted = convert(module, process_group)
        for layer in converted.modules():
            if type(layer) is nn.SyncBatchNorm:
                layer.__class__ = cls  # type: ignore[assignment]
        return converted


class InstanceNorm(nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d`, `2d` and `3d` in one. x: (N, C, ...)."""

    def forward(self, x: Tensor, where: Tensor | None = None) -> Tensor:
        kind, channels = type(self).__name__, self.num_features
        if not self.training and self.track_running_stats:
            _need_channels(x.shape, kind, channels, 3)
            return _evaluate(self, x, where)
        sets = _sets(_instance_sets, x, kind, channels)
        running: Running | None = None
        if self.track_running_stats:
            running = self.running_mean, self.running_var, self.momentum or 0.0
        return normalize(
            x, sets, self.weight, self.bias, self.eps, where, running=running
        )


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm`. x: (..., *normalized_shape)."""

    def forward(self, x: Tensor, where: Tensor | None = None) -> Tensor:
        sets = _sets(_last_sets, x, type(self).__name__, self.normalized_shape)
        return normalize(x, sets, self.weight, self.bias, self.eps, where)


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm`. x: (..., *normalized_shape)."""

    def forward(self, x: Tensor) -> Tensor:
        functional.need_real(x)
        summed_in = torch.promote_types(x.dtype, torch.float32)
        eps = torch.finfo(summed_in).eps if self.eps is None else self.eps
        sets = _sets(_last_sets, x, type(self).__name__, self.normalized_shape)
        return normalize(x, sets, self.weight, None, eps, centered=False)


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm`. x: (N, C) or (N, C, ...)."""

    def forward(self, x: Tensor, where: Tensor | None = None) -> Tensor:
        kind, channels = type(self).__name__, self.num_channels
        sets = _sets(_group_sets, x, kind, channels, self.num_groups)
        return normalize(x, sets, self.weight, self.bias, self.eps, where)


def _evaluate(
    layer: BatchNorm | InstanceNorm, x: Tensor, where: Tensor | None
) -> Tensor:
    """Evaluation mode: the affine map of the running statistics."""
    return functional.batch_norm_eval(
        x,
        layer.running_mean,
        layer.running_var,
        layer.weight,
        layer.bias,
        eps=layer.eps,
        where=where,
    )


def _need_channels(
    shape: tuple[int, ...], layer: str, channels: int, rank: int
) -> None:
    if len(shape) < rank or shape[1] != channels:
        layout = "(N, C) or (N, C, ...)" if rank == 2 else "(N, C, ...)"
        raise InputError(
            f"{layer} needs x of shape {layout} with C = {channels} on axis 1; got "
            f"{tuple(shape)}. Build the layer for that many channels, or move the "
            "channel axis to 1."
        )


def _batch_sets(shape: tuple[int, ...], layer: str, channels: int) -> Sets:
    _need_channels(shape, layer, channels, 2)
    return functional.batch_sets(shape)


def _instance_sets(shape: tuple[int, ...], layer: str, channels: int) -> Sets:
    _need_channels(shape, layer, channels, 3)
    return functional.instance_sets(shape)


def _group_sets(shape: tuple[int, ...], layer: str, channels: int, groups: int) -> Sets:
    _need_channels(shape, layer, channels, 2)
    return functional.group_sets(shape, groups)


def _last_sets(shape: tuple[int, ...], layer: str, normalized: tuple[int, ...]) -> Sets:
    """The sets of the last axes, which must have the shape the layer was built for."""
    if shape[-len(normalized) :] != normalized:
        raise InputError(
            f"{layer} needs x of shape (..., {', '.join(map(str, normalized))}); got "
            f"{tuple(shape)}. Build the layer for x's trailing axes, or move the axes "
            "to normalize to the end."
        )
    return functional.layer_sets(shape, tuple(range(-len(normalized), 0)))


def _sets(of: Callable[..., Sets], x: Tensor, *arguments: Any) -> Sets:
    """The sets of x, from a cache where its shape is one of plain numbers."""
    if type(x) is not Tensor or is_dynamo_compiling():
        return of(x.shape, *arguments)
    return _cached_sets(of, x.shape, *arguments)


@lru_cache(1024)
def _cached_sets(
    of: Callable[..., Sets], shape: tuple[int, ...], *arguments: Any
) -> Sets:
    return of(shape, *arguments)
