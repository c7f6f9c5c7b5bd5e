"""Compile the kernels of this machine ahead of their first call.

python -m normbook.fast
"""

from itertools import product
from time import perf_counter

import torch

from normbook import fast


def compile_ahead(kernels: fast.Backend, device: torch.device) -> None:
    """Call what models usually need, once: Triton and numba keep what they compile."""
    for work, dtype in product(kernels.shipped(), kernels.DTYPES):
        N, G, A, S, *_ = work
        x = torch.zeros(N * G * A * S, dtype=dtype, device=device)
        gamma = torch.ones(G * A, device=device)
        for centered in (True, False) if S == 1 else (True,):
            task = fast.Task(work, 1e-5, centered, affine=True)
            beta = gamma if centered else None
            _, moments = kernels.forward(x, gamma, beta, task)
            kernels.backward(x, x, gamma, moments, task)


def main() -> None:
    """Compile for every device that is here; say how long each took."""
    for device in map(torch.device, fast.MODULES):
        kernels = fast._backend(device, torch.float32)
        if kernels is None:
            reason = fast.why_plain(device, torch.float32)
            print(f"{device}: the plain path answers, because {reason}")
        else:
            begin = perf_counter()
            compile_ahead(kernels, device)
            print(f"{device}: compiled in {perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    main()
