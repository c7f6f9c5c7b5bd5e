"""What the chapters run, a module a chapter. Labs return plain records, draw nothing.

Long runs are made by hand and kept in `records/`, with what they ran on: all of them by
`python -m normbook.labs.batch_norm`, some with their names behind it, two at a time
with `--jobs 2`. Short ones run live in the notebooks.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module

import torch

from normbook.training.records import run_and_record


def record_long_runs(lab: str, arguments: Sequence[str] | None = None) -> None:
    """Make the long runs of a lab as the command line says, on one thread each.

    Raises InputError for a run that the lab lacks.
    """
    torch.set_num_threads(1)
    # By its name: what belongs to `__main__` no other process could find.
    runs = import_module(f"normbook.labs.{lab}").long_runs()
    command = f"python -m normbook.labs.{lab}"
    parser = argparse.ArgumentParser(
        command, description=f"Make the long runs of records/{lab}.json."
    )
    parser.add_argument("only", nargs="*", metavar="RUN", help=f"of {', '.join(runs)}")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, -1 for one a core"
    )
    given = parser.parse_args(arguments)
    run_and_record(lab, runs, command, given.only, given.jobs)
