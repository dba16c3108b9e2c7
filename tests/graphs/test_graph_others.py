"""Captures of others: collections come and go meanwhile, and do them no harm."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import emulated
import graphs
import numpy as np
import pytest
from twins import Twins, mixed

import mpembed as mpe

pytestmark = pytest.mark.gpu


def make() -> mpe.EmbeddingBagCollection:
    tables = [mpe.TableConfig("a", 40, 4), mpe.TableConfig("b", 40, 8, placement="host")]
    cache = mpe.CacheConfig(num_sets=2)
    return mpe.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.5), cache=cache, device="cuda")


@emulated.alone
@pytest.mark.parametrize("mode", [graphs.GLOBAL, graphs.RELAXED])
def test_a_collection_dies(mode: int, runtime: Any) -> None:
    gc.collect()  # what a failed test before this one has left
    before = emulated.live_bytes()
    kept, stream, buffer = make(), runtime.stream(), mpe.to_device(np.ones(4, np.int32), "cuda")
    runtime.begin(stream, mode)
    del kept
    gc.collect()
    place = ctypes.c_void_p(buffer.address)
    runtime("cudaMemsetAsync", place, 0, ctypes.c_size_t(16), ctypes.c_void_p(stream))
    graph = runtime.end(stream)
    graph.launch(stream)
    assert not buffer.numpy().any()
    del buffer
    assert emulated.live_bytes() == before


@emulated.alone
def test_a_collection_is_made(runtime: Any) -> None:
    gc.collect()
    before, stream = emulated.live_bytes(), runtime.stream()
    runtime.begin(stream)
    made = make()
    assert runtime.end(stream).nodes == 0
    indices, offsets = (mpe.to_device(np.array(a), "cuda") for a in ([1, 2], [0, 1, 2]))
    assert made.forward(indices, offsets).numpy().any()
    del made, indices, offsets
    gc.collect()
    assert emulated.live_bytes() == before


def test_a_stream_goes_that_was_captured(runtime: Any) -> None:
    """Nobody asks for it any more once what was captured on it is gone."""
    twins, other, stream = Twins(runtime, mixed()), make(), runtime.stream()
    rows = mpe.to_device(mpe.ops.quantize(np.ones((3, 4), np.float32), "int8"), "cuda")
    out = mpe.to_device(np.zeros((3, 4), np.float32), "cuda")
    with runtime.capture(stream) as made:
        mpe.ops.dequantize(rows, "int8", 4, out=out, stream=stream)
    made[0].launch(stream)
    assert out.numpy().all()
    del rows, out
    runtime("cudaStreamDestroy", ctypes.c_void_p(stream))
    del other
    gc.collect()
    twins.step()
    twins.step_here()
    twins.assert_equal()
