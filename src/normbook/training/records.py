"""Long runs as measured: `records/`, with what they ran on."""

import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normbook.functional import InputError

# At the root of the checkout; where pip has installed the package, inside it.
_CHECKOUT, _PACKAGE = (Path(__file__).parents[up] / "records" for up in (3, 1))
RECORDS = _PACKAGE if _PACKAGE.is_dir() else _CHECKOUT


def write_record(
    name: str, results: Any, *, command: str, seconds: float | dict[str, float]
) -> Path:
    """Keep `results` as `records/name.json`, with what is needed to repeat them."""
    record = {"command": command, **_made_here()}
    return _keep(name, record | {"seconds": seconds, "results": results})


def _made_here() -> dict[str, Any]:
    """What a result depends on beside its code: the day, the processor, versions."""
    return {
        "date": date.today().isoformat(),
        "device": processor(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _keep(name: str, record: dict[str, Any]) -> Path:
    text = json.dumps(_rounded(record), indent=1, allow_nan=False)
    path = RECORDS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(_brief(text) + "\n")
    return path


def read_record(name: str) -> dict[str, Any]:
    """The record that `write_record` kept under this name."""
    return json.loads((RECORDS / f"{name}.json").read_text())


def write_pictures(name: str, pictures: Tensor) -> Path:
    """Keep pictures (rows, columns, 3, H, W), 0 black and 1 white, as one PNG sheet."""
    sheet = pictures.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    pixels = (255 * sheet.clamp(0, 1)).round().byte().numpy()
    path = RECORDS / f"{name}.png"
    from PIL import Image  # a machine that measures kernels need not have it

    Image.fromarray(pixels).save(path, optimize=True)
    return path


def read_pictures(name: str, size: int) -> Tensor:
    """The pictures that `write_pictures` kept, squares of `size` pixels."""
    from PIL import Image

    with Image.open(RECORDS / f"{name}.png") as sheet:
        pixels = torch.from_numpy(np.array(sheet, dtype=np.float32)) / 255
    rows, columns = pixels.unflatten(1, (-1, size)).unflatten(0, (-1, size)).shape[:3:2]
    tiled = pixels.view(rows, size, columns, size, 3)
    return tiled.permute(0, 2, 4, 1, 3)


def run_and_record(
    name: str,
    runs: dict[str, Callable[[], Any]],
    command: str,
    only: Sequence[str] = (),
    jobs: int = 1,
) -> Path:
    """Run every experiment, `jobs` at a time, say how long each took, keep the results.

    More jobs are more processes, each with as many threads as this one: the results are
    the same, digit for digit. `only` names the experiments to run. The others stay as
    recorded, and `again` says of each of these where and when it ran. Raises InputError
    for a name that is not in `runs`.
    """
    from joblib import Parallel, delayed, parallel_config

    if not only:
        record: dict[str, Any] = {"command": command, **_made_here()}
        record |= {"seconds": {}, "results": {}}
    elif unknown := set(only) - set(runs):
        raise InputError(
            f"no experiment is called {', '.join(sorted(unknown))}. "
            f"Choose from {', '.join(runs)}."
        )
    else:
        record = {"again": {}, **read_record(name)}
        record["again"] |= {title: _made_here() for title in only}
    chosen, threads = only or list(runs), torch.get_num_threads()
    tasks = [delayed(_timed)(title, runs[title], threads) for title in chosen]
    with parallel_config("loky", n_jobs=jobs, inner_max_num_threads=threads):
        done = Parallel(return_as="generator_unordered")(tasks)
        for number, (title, result, seconds) in enumerate(done, start=1):
            record["results"][title], record["seconds"][title] = result, seconds
            print(f"{number}/{len(chosen)} {title}: {seconds:.1f} s", file=sys.stderr)
    for part in ("results", "seconds"):  # in their order, whichever came first
        kept = record[part]
        record[part] = {title: kept[title] for title in [*runs, *kept] if title in kept}
    return _keep(name, record)


def _timed(title: str, run: Callable[[], Any], threads: int) -> tuple[str, Any, float]:
    torch.set_num_threads(threads)
    began = time.perf_counter()
    result = run()
    return title, result, time.perf_counter() - began


def processor() -> str:
    """The name of the processor, as the operating system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return platform.processor() or platform.machine()


def _rounded(value: Any) -> Any:
    """The same record with every number to five significant digits."""
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _brief(text: str) -> str:
    """JSON with every list of numbers on one line, so that a change is a small diff."""
    flat = re.compile(r"\[\s*([^][{}]*?)\s*\]")
    return flat.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
