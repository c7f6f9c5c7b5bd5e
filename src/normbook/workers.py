"""A set that is spread over processes: what `workers` of S is on torch.distributed.

One function, `Workers.gather`, exchanges numbers; `merge` and the sum are made of what
it brings. All that is sent first is one frame of fixed size, which begins with what the
sender normalizes: torch.distributed itself compares no sizes, and of parts that do not
fit together gives a wrong number, a crash or nothing.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normbook.functional import InputError
from normbook.moments import Moments

NUMBERS = 7  # of 64 bits each, at the head of a frame
ROOM = 2**14  # bytes after them: two numbers of 32 bits for each of 2,048 channels
STEPS = ("forward", "backward")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Workers:
    """The processes of a group, each with its part of x.

    Called with an array, it adds it up over all of them, which is what `core` asks of
    `workers`; the sum can be differentiated. Each process has to make the same calls.
    Raises InputError where they differ in what they normalize, and RuntimeError where
    one does not come within the group's time-out, on every process that is left.
    """

    group: Any
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __call__(self, here: Tensor) -> Tensor:
        return Sum.apply(here, self)

    def merge(self, here: Moments) -> Moments:
        """The moments of all parts together; some may be empty.

        `Moments.merge` of all at once: m2 = Σm2ᵢ + Σmᵢ(meanᵢ − mean)².
        """
        arrays = [torch.as_tensor(here.mean), torch.as_tensor(here.m2)]
        masked = isinstance(here.count, Tensor)  # then each channel has its own count
        if masked:
            arrays.append(here.count)
        counts, parts = self.gather("forward", arrays, 0 if masked else here.count)
        mean, m2 = parts[:, 0], parts[:, 1]
        if masked:
            count = parts[:, 2]
        else:
            count = counts.to(parts).view(-1, *[1] * (mean.dim() - 1))
        total = count.sum(0)
        if (total < 2).any():
            raise InputError(
                "a mean and a variance need more than 1 value in each channel, over "
                f"all processes; got {int(total.min())}. Use a larger batch or map, or "
                "evaluation mode."
            )
        together = (mean * (count / total)).sum(0)
        between = (count * (mean - together) ** 2).sum(0)
        return Moments(total, together, m2.sum(0) + between)

    def gather(
        self, step: str, arrays: list[Tensor], count: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Every process's count, (workers,), and arrays, (workers, arrays, *shape).

        One exchange, and a second one for what a frame has no room for.
        """
        stacked = torch.stack(arrays)
        sent = stacked.reshape(-1).view(torch.uint8)
        kind = STEPS.index(step), len(arrays), self.shape[1], len(self.shape)
        head = torch.tensor([*kind, DTYPES.index(self.dtype), count, sent.numel()])
        frame = sent.new_zeros(8 * NUMBERS + ROOM)
        first = min(sent.numel(), ROOM)
        frame[: 8 * NUMBERS] = head.view(torch.uint8)
        frame[8 * NUMBERS : 8 * NUMBERS + first] = sent[:first]
        frames = self._exchange(frame)
        heads = frames[:, : 8 * NUMBERS].contiguous().view(torch.int64).cpu()
        self._need_agreement(heads)
        parts = frames[:, 8 * NUMBERS : 8 * NUMBERS + first]
        if first < sent.numel():
            parts = torch.cat([parts, self._exchange(sent[first:])], 1)
        parts = parts.contiguous().view(stacked.dtype)
        return heads[:, 5], parts.view(-1, *stacked.shape)

    def _exchange(self, bytes_: Tensor) -> Tensor:
        """The same number of bytes from every process, (workers, bytes)."""
        size = dist.get_world_size(self.group)
        everyone = bytes_.new_empty(size, bytes_.numel())
        try:
            dist.all_gather(list(everyone.unbind()), bytes_, group=self.group)
        except RuntimeError as error:
            raise RuntimeError(
                f"SyncBatchNorm needs all {size} processes of its group at every layer "
                "and step; one has ended, or did not come within the group's time-out. "
                "Look for its error first; give all processes equally many batches, or "
                "a longer `timeout` to init_process_group."
            ) from error
        return everyone

    def _need_agreement(self, heads: Tensor) -> None:
        """Raise where one process normalizes something else than the others."""
        alike = heads[:, [0, 1, 2, 3, 4, 6]]
        if (alike != alike[0]).any():
            does = [
                f"rank {rank}: {channels} channels, {axes} axes, {DTYPES[dtype]}, "
                f"{STEPS[step]}{', a mask' * (arrays == 3)}"
                for rank, (step, arrays, channels, axes, dtype, *_) in enumerate(
                    heads.tolist()
                )
            ]
            raise InputError(
                "SyncBatchNorm needs the same channels, number of axes, dtype and step "
                f"of every process; got {'; '.join(does)}. Give every process the same "
                "net, a part of the same kind of batch, and as many steps."
            )


class Sum(torch.autograd.Function):
    """Σ over all processes. Each has the sum, so its VJP adds up their gradients."""

    @staticmethod
    def forward(ctx: Any, here: Tensor, workers: Workers) -> Tensor:
        ctx.workers = workers
        return workers.gather("backward", [here])[1].sum((0, 1))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        return ctx.workers(dy), None
