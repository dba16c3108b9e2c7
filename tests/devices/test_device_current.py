"""Kernels are launched on the device of their arrays, whichever one the thread has set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cuda_backend
import pytest
from folders import environment

pytestmark = pytest.mark.gpu

# The emulation counts launches by the device that was set.
PROGRAM = """
import cuda_backend
cuda_backend.missing()
import ctypes
import sys
import numpy as np
import mpembed as mpe
from emulated import launches, library
from mpembed import ops

def send(array):
    return mpe.to_device(array, "cuda:1")

def step(name, call):
    before = launches(1)
    result = call()
    device = ctypes.c_int(7)
    library().cudaGetDevice(ctypes.byref(device))
    print(name, launches(0), launches(1) > before, device.value)
    return result

if sys.argv[1] == "chosen":
    library().cudaSetDevice(0)
f32, i64 = np.float32, np.int64
x, codes = send(np.ones((3, 8), f32)), send(np.ones((3, 8), np.uint8))
ids, offsets = send(np.array([1, 2])), send(np.array([0, 2]))
tags, grads = send(np.zeros((1, 8), np.uint64)), send(np.ones((2, 8), f32))
packed = step("quantize", lambda: ops.quantize(x, "int8"))
step("dequantize", lambda: ops.dequantize(packed, "int8", 8))
nibbles = step("pack", lambda: ops.pack_int4(codes))
step("unpack", lambda: ops.unpack_int4(nibbles, 8))
step("round", lambda: ops.stochastic_round(x, "fp16"))
step("unique", lambda: ops.unique_rows(ids))
step("cache", lambda: ops.cache_lookup(tags, ids))
step("bag", lambda: ops.embedding_bag(packed, "int8", 8, ids, offsets))
step("sgd", lambda: ops.sgd_(x, ids, grads, lr=0.1))
emb = step("new", lambda: mpe.EmbeddingBagCollection(
    [mpe.TableConfig("a", 100, 8, "int8")], optimizer=mpe.SGD(0.1), device="cuda:1",
    cache=mpe.CacheConfig(num_sets=1)))
ticket = step("prefetch", lambda: emb.prefetch(ids, offsets))
step("forward", lambda: emb.forward(ids, offsets))
step("backward", lambda: emb.backward(send(np.ones((1, 8), f32))))
ticket = emb.prefetch(ids, offsets)
step("drop", ticket.drop)
step("rows", lambda: emb.rows("a", ids))
step("set_rows", lambda: emb.set_rows("a", ids, grads))
step("flush", emb.flush)
"""


@pytest.mark.skipif(cuda_backend.choice() != "emulation", reason="needs two emulated devices")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("chosen", "0", id="the thread's device stays"),
        # To set device 0 again would make a context there, of hundreds of megabytes.
        pytest.param("nothing", "1", id="a device that nobody used is left alone"),
    ],
)
def test_every_kernel_is_launched_on_its_device(
    before: str, after: str, cuda: str, tmp_path: Path
) -> None:
    # A program of its own: the number of devices is read once.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, before],
        cwd=tmp_path,  # the package under test, not the folder's
        env={**environment(), "SIMT_DEVICES": "2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 17
    assert [line for line in lines if line[1:] != ["0", "True", after]] == []
