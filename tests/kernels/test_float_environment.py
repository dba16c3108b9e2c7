"""The caller's floating-point environment changes no byte: neither its own nor its threads'."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Prints one line of digests for each stage. Workers are created in the first stage, under the
# environment that is set there.
SCRIPT = """
import ctypes, hashlib, sys
import numpy as np
import mpembed as mpe

mode, threads = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(1)
small = rng.standard_normal((9000, 32)).astype(np.float32) * np.float32(2.0**-16)
tiny = (rng.integers(-999, 999, (9000, 32)).astype(np.float32)) * np.float32(2.0**-149)
large = rng.standard_normal((9000, 32)).astype(np.float32)
grad = rng.standard_normal((1500, 64)).astype(np.float32) * np.float32(2.0**-130)
indices, offsets = rng.integers(0, 9000, 60000), np.arange(0, 60001, 20)
tables = [mpe.TableConfig("a", 9000, 32, "fp16"), mpe.TableConfig("b", 9000, 32, "int8", "mean")]
cache = mpe.CacheConfig(load_factor=0.2, policy="lru", ways=8)
embs = [
    mpe.EmbeddingBagCollection(tables, cache=c, optimizer=mpe.SGD(0.5)) for c in (None, cache)
]
ids = np.arange(9000)


def set_mode(on):
    if mode == "flush":
        import torch
        torch.set_flush_denormal(on)
    elif mode != "none":
        ctypes.CDLL("libm.so.6").fesetround(int(mode) if on else 0)


def work():
    total = hashlib.sha256()
    for x in (small, tiny, large):
        for name in mpe.registry.FORMATS:
            rows = mpe.ops.quantize(x, name, seed=3)
            total.update(rows.tobytes())
            total.update(mpe.ops.dequantize(rows, name, 32).tobytes())
    total.update(mpe.ops.stochastic_round(small, "fp16").tobytes())
    total.update(mpe.ops.quantize(tiny[:2], "bf16", rounding="nearest").tobytes())
    for emb in embs:
        emb.set_rows("a", ids, small)
        emb.set_rows("b", ids, tiny)
        total.update(emb.forward(indices, offsets, training=False).tobytes())
        total.update(emb.forward(indices, offsets).tobytes())
        emb.backward(grad)
        emb.flush()
        for _, array in sorted(emb.state_arrays().items()):
            total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


mpe.set_num_threads(threads)
set_mode(True)
first = work()
set_mode(False)
print(first, work())
"""


def digests(mode: str, threads: int, where: Path) -> list[str]:
    """Digests of the same work under a mode and after it."""
    command = [sys.executable, "-c", SCRIPT, mode, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=where)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return digests("none", 1, tmp_path_factory.mktemp("expected"))


def check(mode: str, expected: list[str], where: Path) -> None:
    for threads in (1, 4):
        assert digests(mode, threads, where) == expected, f"{threads} threads"


@pytest.mark.torch
def test_flushing_subnormals(expected: list[str], tmp_path: Path) -> None:
    check("flush", expected, tmp_path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the C library's numbers")
@pytest.mark.parametrize("direction", ["upward", "downward", "to_zero"])
def test_rounding_modes(direction: str, expected: list[str], tmp_path: Path) -> None:
    x86 = {"upward": 0x800, "downward": 0x400, "to_zero": 0xC00}
    arm = {"upward": 0x400000, "downward": 0x800000, "to_zero": 0xC00000}
    mode = (arm if os.uname().machine == "aarch64" else x86)[direction]
    assert ctypes.CDLL("libm.so.6").fegetround() == 0
    check(str(mode), expected, tmp_path)
