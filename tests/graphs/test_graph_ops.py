"""The kernels of `mpembed.ops` in a capture: what a graph cannot have adds nothing to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import graphs
import numpy as np
import pytest

import mpembed as mpe

pytestmark = pytest.mark.gpu
ops = mpe.ops


def device(array: Any) -> Any:
    return mpe.to_device(np.asarray(array), "cuda")


class Arrays:
    """What the calls read and write, made before the capture."""

    def __init__(self) -> None:
        values = np.ones((3, 4), np.float32)
        self.x, self.values = device(values), device(values)
        self.rows = device(ops.quantize(values, "int8"))
        self.codes, self.packed = device(np.ones((3, 4), np.uint8)), device(np.ones((3, 2), "u1"))
        self.ids, self.offsets, self.slots = device([1, 2, 0]), device([0, 3]), device([0, 0, 0])
        self.found = device(np.zeros(3, np.int32))
        self.tags = device(np.zeros((2, 8), np.uint64))
        self.bag = device(np.zeros((1, 4), np.float32))
        self.first, self.second = device(values), device(values)
        self.half, self.state = device(np.zeros((3, 4), np.float16)), device(np.zeros(3, "f4"))


WAITS: dict[str, Callable[[Arrays, dict[str, Any]], Any]] = {
    "quantize": lambda a, on: ops.quantize(a.x, "int8", out=a.rows, **on),
    "pack_int4": lambda a, on: ops.pack_int4(a.codes, out=a.packed, **on),
    "pack_int2": lambda a, on: ops.pack_int2(a.codes, **on),
    "stochastic_round": lambda a, on: ops.stochastic_round(a.x, "fp16", out=a.half, **on),
    "unique_rows": lambda a, on: ops.unique_rows(a.ids, **on),
    "cache_lookup": lambda a, on: ops.cache_lookup(a.tags, a.ids, out=a.found, **on),
    "embedding_bag": lambda a, on: ops.embedding_bag(
        a.rows, "int8", 4, a.ids, a.offsets, out=a.bag, **on
    ),
    "sgd_": lambda a, on: ops.sgd_(a.x, a.ids, a.values, lr=0.1, precision="fp32", **on),
    "adagrad_": lambda a, on: ops.adagrad_(
        a.x, a.ids, a.values, a.bag, lr=0.1, precision="fp32", **on
    ),
    "rowwise_adagrad_": lambda a, on: ops.rowwise_adagrad_(
        a.x, a.ids, a.values, a.state, lr=0.1, precision="fp32", **on
    ),
    "adam_": lambda a, on: ops.adam_(
        a.x, a.ids, a.values, a.first, a.second, lr=0.1, updates=1, **on
    ),
    "rowwise_adam_": lambda a, on: ops.rowwise_adam_(
        a.x, a.ids, a.values, a.first, a.state, lr=0.1, updates=1, **on
    ),
    "lamb_": lambda a, on: ops.lamb_(
        a.x, a.ids, a.values, a.first, a.second, lr=0.1, updates=1, **on
    ),
    "ftrl_": lambda a, on: ops.ftrl_(a.x, a.ids, a.values, a.first, a.second, lr=0.1, **on),
}
NEED_OUT: dict[str, Callable[[Arrays, dict[str, Any]], Any]] = {
    "dequantize": lambda a, on: ops.dequantize(a.rows, "int8", 4, **on),
    "unpack_int4": lambda a, on: ops.unpack_int4(a.packed, 4, **on),
    "unpack_int2": lambda a, on: ops.unpack_int2(a.packed, 8, **on),
}
MESSAGES = {
    **{name: f"^{name} waits for the device and cannot be captured" for name in WAITS},
    **{name: f"^{name} needs out= to be captured in a CUDA graph" for name in NEED_OUT},
}


@pytest.mark.parametrize("name", MESSAGES)
def test_refused(name: str, runtime: graphs.Runtime) -> None:
    arrays, stream = Arrays(), runtime.stream()
    before = {key: value.numpy().tobytes() for key, value in vars(arrays).items()}
    runtime.begin(stream)
    with pytest.raises(RuntimeError, match=MESSAGES[name]):
        (WAITS | NEED_OUT)[name](arrays, {"stream": stream})
    assert runtime.end(stream).nodes == 0
    assert {key: value.numpy().tobytes() for key, value in vars(arrays).items()} == before


def test_every_call_is_here() -> None:
    assert set(MESSAGES) == set(ops.__all__)


def test_the_default_stream_beside_a_blocking_one(runtime: graphs.Runtime) -> None:
    """It would wait for the captured one, which ends the capture."""
    arrays, blocking = Arrays(), runtime.stream(flags=0)
    runtime.begin(blocking)
    with pytest.raises(RuntimeError, match="using the default stream while another stream is"):
        ops.dequantize(arrays.rows, "int8", 4, out=arrays.values)
    assert runtime.end(blocking).nodes == 0
