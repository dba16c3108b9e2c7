"""Learning rates and graphs: set for all collections or for none."""

from __future__ import annotations

import ctypes
from typing import Any

import graphs
import numpy as np
import pytest
from helpers import set_lr
from twins import Twins, mixed

import mpembed as mpe

pytestmark = pytest.mark.gpu
UNSENT = r"call emb.check\(\) after setting lr and before capturing"


def several(runtime: graphs.Runtime, optimizer: mpe.optim.Optimizer, n: int = 3) -> list[Twins]:
    return [Twins(runtime, mixed()[:2], optimizer=lambda lr: optimizer) for _ in range(n)]


@pytest.mark.parametrize("captured", range(3))
def test_a_refused_rate_reaches_no_collection(captured: int, runtime: Any) -> None:
    optimizer = mpe.SGD(0.5)
    pairs = several(runtime, optimizer)
    made = [twins.captured() for twins in pairs]
    one = pairs[captured]
    with runtime.capture(one.stream) as last:
        one.step()
        with pytest.raises(RuntimeError, match="the learning rate cannot be set in a CUDA graph"):
            optimizer.lr = 0.25
    assert optimizer.lr == 0.5
    for twins, graph in zip(pairs, made, strict=True):
        graph.launch(twins.stream)
        twins.step_here()
        twins.assert_equal()
    optimizer.lr = 0.25
    last[0].launch(one.stream)
    one.step_here()
    one.assert_equal()


def test_before_the_first_capture(runtime: Any) -> None:
    """The next call sends the rate; a capture cannot."""
    twins = Twins(runtime, mixed(), cache=mpe.CacheConfig(num_sets=1, policy="lru", ways=8))
    set_lr(twins.there, 0.025)
    set_lr(twins.here, 0.025)
    runtime.begin(twins.stream)
    with pytest.raises(RuntimeError, match=UNSENT):
        twins.forward()
    with pytest.raises(RuntimeError, match=UNSENT):
        twins.there.prefetch(twins.indices, twins.offsets, stream=twins.stream)
    twins.forward(training=False)  # needs none
    with pytest.raises(RuntimeError, match="the learning rate cannot be set in a CUDA graph"):
        set_lr(twins.there, 1)
    runtime.end(twins.stream)
    twins.there.check()
    twins.captured().launch(twins.stream)
    twins.step_here()
    twins.assert_equal()


def test_a_new_collection_and_a_loaded_one_have_sent_it(runtime: Any, tmp_path: Any) -> None:
    twins = Twins(runtime, mixed(), lr=0.25)
    twins.there.save(tmp_path / "there")
    twins.there = mpe.EmbeddingBagCollection.load(tmp_path / "there", device="cuda")
    twins.captured().launch(twins.stream)
    twins.step_here()
    twins.assert_equal()


def test_a_capture_elsewhere(runtime: Any) -> None:
    """A collection that was never captured is none of the capture's business."""
    twins = Twins(runtime, mixed())
    blocking = runtime.stream(flags=0)  # the default stream may not be used meanwhile
    runtime.begin(blocking)
    set_lr(twins.there, 0.025)
    set_lr(twins.here, 0.025)
    assert runtime.end(blocking).nodes == 0
    twins.step()
    twins.step_here()
    twins.assert_equal()
    twins.captured().launch(twins.stream)
    twins.step_here()
    twins.assert_equal()


def test_a_stream_that_is_gone(runtime: Any) -> None:
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig("a", 9, 4)], optimizer=mpe.SGD(0.1), device="cuda"
    )
    stream = runtime.stream()
    indices, offsets = (mpe.to_device(np.array(a), "cuda") for a in ([1], [0, 1]))
    out = mpe.to_device(np.zeros((1, 4), np.float32), "cuda")
    emb.forward(indices, offsets, out=out, stream=stream, training=False)
    emb.check()
    del indices, offsets, out
    runtime("cudaStreamDestroy", ctypes.c_void_p(stream))
    set_lr(emb, 0.05)
    assert emb.optimizer is not None
    assert emb.optimizer.lr == 0.05


def test_a_rate_that_could_not_be_sent_is_sent_later(runtime: Any) -> None:
    """The default stream cannot be used while a blocking one is captured."""
    optimizer = mpe.SGD(0.5)
    pairs = several(runtime, optimizer, 2)
    made = [twins.captured() for twins in pairs]
    blocking = runtime.stream(flags=0)
    for twins in pairs:
        twins.there.check()
    pairs[1].there.forward(pairs[1].indices, pairs[1].offsets, training=False)
    runtime.begin(blocking)
    with pytest.raises(RuntimeError, match="using the default stream while another stream is"):
        optimizer.lr = 0.25
    runtime.end(blocking)
    assert optimizer.lr == 0.5
    for twins, graph in zip(pairs, made, strict=True):
        graph.launch(twins.stream)
        twins.step_here()
        twins.assert_equal()
