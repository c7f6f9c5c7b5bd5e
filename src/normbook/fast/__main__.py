"""Compile the kernels of this machine ahead of their first call.

python -m normbook.fast
"""

from time import perf_counter

import torch

from normbook import fast


def main() -> None:
    """Compile for every device that is here; say how long each took."""
    for device in ("cpu", "cuda"):
        if device == "cuda" and not torch.cuda.is_available():
            print("cuda: no such device here")
            continue
        kernels = fast._backend(torch.device(device), torch.float32)
        if kernels is None:
            reason = fast.why_plain(torch.device(device), torch.float32)
            print(f"{device}: the plain path answers, because {reason}")
        else:
            begin = perf_counter()
            kernels.compile_ahead()
            print(f"{device}: compiled in {perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    main()
