"""The GPU's kernels without a GPU: what they compute, and what they compile to.

And whether `make gpu` would find all that it needs on a machine that has little else.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

import sm90

from normbook.fast import Work, gpu

pytestmark = pytest.mark.processes

HERE = Path(__file__).parent
LAST = {"channels_last": True}
GN, IN = Work(128, 32, 8, 3136), Work(128, 256, 1, 3136)
BN = IN._replace(batch=True)
SHAPES = {
    "1024": Work(32768, 1, 1024, 1),
    "8192": Work(16384, 1, 8192, 1),
    "16384": Work(8192, 1, 16384, 1),
    "GN": GN,
    "IN": IN,
    "BN": BN,
}
MORE = {
    "4096": Work(32768, 1, 4096, 1),
    "GN of 40960": Work(32, 32, 10, 4096),
    "GN of 2 samples": GN._replace(N=2),
    "GN channels_last": GN._replace(**LAST),
    "IN channels_last": IN._replace(**LAST),
    "IN of 49, channels_last": Work(512, 512, 1, 49, **LAST),
    "BN of 784": Work(256, 512, 1, 784, batch=True),
    "BN channels_last": BN._replace(**LAST),
    "BN of vectors": Work(4096, 1024, 1, 1, True, True),
}
ODD = {
    "999": Work(32768, 1, 999, 1),
    "GN of 49": Work(256, 32, 16, 49),
    "IN of 49": Work(512, 512, 1, 49),
    "BN of 49": Work(256, 512, 1, 49, batch=True),
}


def test_what_the_kernels_compute():
    """Triton reads TRITON_INTERPRET as it decorates: so a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts="]
    done = subprocess.run(
        [*command, str(HERE / "interpreted_kernels.py")],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


def check(work, dtype, wide=True, **options):
    """No launch spills; where rows divide by 16, tensors move 16 bytes at a time."""
    for launch in sm90.launches(work, dtype, **options):
        built = sm90.build(launch)
        told = (launch, built)
        assert built.stack == 0, told
        assert built.registers * 32 * launch.num_warps <= 65536, told
        if wide:
            read = built.loads.get(16, 0) + built.copies.get(16, 0)
            inputs = 2 if "dy_ptr" in dict(launch.signature) else 1
            vectors = tile_bytes(launch, dtype) / (16 * 32 * launch.num_warps)
            assert read >= inputs * vectors, told
            assert "y_ptr" not in launch.signature or built.stores[16] >= vectors, told


def tile_bytes(launch, dtype):
    sizes = [value for name, value in launch.constants if name in sm90.TILES]
    return torch.tensor(sizes).prod().item() * dtype.itemsize


@pytest.mark.parametrize("name", SHAPES)
def test_float32(name):
    check(SHAPES[name], torch.float32)


@pytest.mark.parametrize("name", SHAPES | MORE)
def test_bfloat16(name):
    check((SHAPES | MORE)[name], torch.bfloat16)


@pytest.mark.parametrize("name", ODD)
def test_sizes_that_divide_badly_do_not_spill(name):
    check(ODD[name], torch.bfloat16, wide=False)


# float16 has bfloat16's tiles and differs in conversions alone: every fourth is built.
@pytest.mark.parametrize(
    ("dtype", "step"),
    [(torch.float32, 1), (torch.bfloat16, 1), (torch.float16, 4)],
    ids=str,
)
def test_every_shipped_configuration(dtype, step):
    for work in gpu.shipped()[::step]:
        wide = work.S == 1 or work.S % 16 == 0
        check(work, dtype, wide=wide)
        if work.S == 1:
            check(work, dtype, affine=(True, False), centered=False)


@pytest.mark.parametrize(
    ("work", "kernels"),
    [
        (SHAPES["1024"], {"_forward", "_backward"}),
        (SHAPES["16384"], {"_forward", "_backward", "_sums"}),
        (GN, {"_forward", "_sums", "_apply_back"}),
        (MORE["GN of 40960"], {"_moments", "_apply", "_sums", "_apply_back"}),
        (BN, {"_moments", "_apply", "_sums", "_apply_back"}),
    ],
    ids=["row", "long row", "GN", "large GN", "BN"],
)
def test_which_kernels_answer(work, kernels):
    """A set that fits is read once, others twice."""
    assert {launch.kernel for launch in sm90.launches(work, torch.bfloat16)} == kernels


@pytest.mark.parametrize(("shared", "stages"), [(99, 1), (163, 2), (227, 2)])
def test_the_next_block_waits_where_there_is_room(shared, stages, monkeypatch):
    """dy and x of 16,384 values are 128 kB; a small GPU has 99 kB for a program."""
    values = {"shared_memory_per_block_optin": shared * 1024}
    device = SimpleNamespace(multi_processor_count=132, **values)
    monkeypatch.setattr(gpu, "_gpu", lambda index: device)
    launches = sm90.launches(Work(16, 32, 8, 1600), torch.float32)
    (backward,) = [launch for launch in launches if launch.kernel == "_backward"]
    assert dict(backward.constants)["STAGES"] == stages
    assert sm90.build(backward).shared <= shared * 1024


@pytest.mark.parametrize(
    ("major", "compiler", "answer"),
    [(9, "/usr/bin/gcc", True), (9, None, False), (7, "/usr/bin/gcc", False)],
)
def test_on_which_gpus_kernels_run(major, compiler, answer, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: compiler)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major)
    )
    assert gpu.runs(torch.device("cuda", 0)) == answer


@pytest.mark.parametrize("name", ["1024", "8192", "16384"])
def test_rms_norm(name):
    work = (SHAPES | MORE)[name]
    check(work, torch.bfloat16, affine=(True, False), centered=False)


@pytest.mark.parametrize("name", ["8192", "GN", "BN"])
def test_no_parameters(name):
    check(SHAPES[name], torch.bfloat16, affine=(False, False))


def test_the_gate_sees_a_spill_and_a_narrow_load():
    """Twice the largest tile does not fit; rows of 999 values are not whole vectors."""
    launch = next(iter(sm90.launches(SHAPES["16384"], torch.float32)))
    constants = {**dict(launch.constants), "AS": 65536, "A": 65536}
    assert sm90.build(launch._replace(constants=tuple(constants.items()))).stack > 0
    launch = next(iter(sm90.launches(ODD["999"], torch.float32)))
    assert 16 not in sm90.build(launch).stores


# A Python that sees a GPU and has next to nothing: it imports what it would run.
BARE = """
import sys
for name in ("PIL hypothesis matplotlib mlxtend names nbformat nbval numba "
             "pandas playwright scipy skimage sklearn tqdm triton").split():
    sys.modules[name] = None
import pytest, torch
torch.cuda.is_available = lambda: True
match sys.argv[1:]:
    case ["-c", code]:
        exec(code)
    case ["-m", "pytest", *options]:
        sys.exit(pytest.main([*options, "--collect-only", "-q"]))
    case ["-m", name, *options]:
        print("imported", __import__(name, fromlist=["main"]).main.__module__)
"""


@pytest.mark.skipif(not shutil.which("make"), reason="make is missing")
def test_make_gpu_needs_little_and_leaves_out_no_test(tmp_path):
    (tmp_path / "bare.py").write_text(BARE)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/bare.py" "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "gpu", f"PYTHON={python}"],
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert "skipped" not in done.stdout
    modules = re.findall("^imported (.*)$", done.stdout, re.MULTILINE)
    assert modules == ["normbook.measure.agreement", "normbook.bench"]
    found = set(re.findall("^tests/(test_.*)::", done.stdout, re.MULTILINE))
    on_a_gpu = re.compile(r"mark\.gpu|^def test_.*\blibrary\b", re.MULTILINE)
    texts = {path.name: path.read_text() for path in HERE.glob("test_*.py")}
    assert found == {name for name, text in texts.items() if on_a_gpu.search(text)}
