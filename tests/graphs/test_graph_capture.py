"""Calls captured in a CUDA graph: its launches do what the same calls do, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kinds
import numpy as np
import pytest
from helpers import set_lr
from oracles import DECAYS
from twins import BAGS, Twins, bytes_of, mixed

import mpembed as mpe

pytestmark = pytest.mark.gpu


@pytest.mark.pairwise
@pytest.mark.parametrize("mode", DECAYS)
@pytest.mark.parametrize("policy", ["lru", "lfu", None])
@pytest.mark.parametrize("optimizer", kinds.ONE_EACH)
def test_launches_are_steps(optimizer: str, policy: str | None, mode: str, runtime: Any) -> None:
    """Every format, two dimensions, a table in host memory; the batch and the rate change.

    So does what depends on the number of updates.
    """
    cache = None if policy is None else mpe.CacheConfig(num_sets=2, policy=policy, ways=8)
    twins = Twins(
        runtime,
        mixed("host"),
        cache=cache,
        optimizer=lambda lr: kinds.named(optimizer, lr, mode),
    )
    graph = twins.captured()
    assert twins.there.step == 0  # a capture does nothing yet
    for i in range(8):
        if i in (3, 6):
            set_lr(twins.there, 0.1 / i)
            set_lr(twins.here, 0.1 / i)
        twins.draw()
        graph.launch(twins.stream)
        out, _ = twins.step_here()
        np.testing.assert_array_equal(twins.out.numpy(), out)
    twins.assert_equal()


@pytest.mark.parametrize("policy", ["lfu", None])
def test_launches_of_one_batch_in_a_row(policy: str | None, runtime: Any) -> None:
    cache = None if policy is None else mpe.CacheConfig(num_sets=1, policy=policy, ways=8)
    twins = Twins(runtime, mixed(), cache=cache, optimizer=mpe.RowwiseAdagrad)
    twins.captured().launch(twins.stream, 20)
    for _ in range(20):
        twins.step_here()
    twins.assert_equal()


def test_launches_with_weights(runtime: Any) -> None:
    cache = mpe.CacheConfig(num_sets=1, policy="lru", ways=8)
    twins = Twins(runtime, mixed(), cache=cache, optimizer=mpe.Adagrad)
    graph = twins.captured(weighted=True)
    for _ in range(4):
        twins.draw()
        graph.launch(twins.stream)
        out, weight_grad = twins.step_here(weighted=True)
        np.testing.assert_array_equal(twins.out.numpy(), out)
        np.testing.assert_array_equal(twins.weight_grad.numpy(), weight_grad)
    twins.assert_equal()


def test_an_evaluation(runtime: Any) -> None:
    twins = Twins(runtime, mixed(), cache=mpe.CacheConfig(num_sets=1))
    twins.step()
    twins.step_here()
    with runtime.capture(twins.stream) as made:
        twins.forward(training=False)
    for _ in range(3):
        twins.draw()
        made[0].launch(twins.stream)
        twins.assert_evaluated()
    twins.assert_equal()


def test_several_steps_and_a_prefetch_in_one_graph(runtime: Any) -> None:
    cache = mpe.CacheConfig(num_sets=1, policy="lfu", ways=8)
    twins = Twins(runtime, mixed(), cache=cache)
    with runtime.capture(twins.stream) as made:
        twins.step()
        twins.there.prefetch(twins.indices, twins.offsets, stream=twins.stream)
        twins.step()
    for _ in range(3):
        twins.draw()
        made[0].launch(twins.stream)
        twins.step_here()
        twins.here.prefetch(*twins.batch[:2])
        twins.step_here()
    twins.assert_equal()


def test_tickets_in_a_graph(runtime: Any) -> None:
    """Several batches are open at once, one is dropped, one collected."""
    twins = Twins(runtime, mixed(), cache=mpe.CacheConfig(num_sets=1, policy="lru", ways=8))
    with runtime.capture(twins.stream) as made:
        tickets = [twins.forward(ticket=True)[1] for _ in range(4)]
        twins.there.backward(twins.grad, tickets[1], stream=twins.stream)
        tickets[0].drop()
        del tickets[2]  # the third
        twins.there.backward(twins.grad, tickets.pop(), stream=twins.stream)
    assert twins.there.memory_report()["workspace"] == 0
    for _ in range(3):
        made[0].launch(twins.stream)
        here = [twins.here.forward(*twins.batch[:2], ticket=True)[1] for _ in range(4)]
        twins.here.backward(twins.batch[3], here[1])
        here[0].drop()
        here[2].drop()
        twins.here.backward(twins.batch[3], here[3])
    twins.assert_equal()


@pytest.mark.parametrize("dim", [4, 300])
def test_a_single_table_without_bags(dim: int, runtime: Any) -> None:
    table = mpe.TableConfig("a", 9, dim, "int8", pooling="none")
    there, here = (
        mpe.EmbeddingBagCollection([table], optimizer=mpe.SGD(0.1), device=device)
        for device in ("cuda", "cpu")
    )
    indices, offsets = np.array([1, 8, 3, 1]), np.array([0, 2, 4])
    grad = np.random.default_rng(1).standard_normal((4, dim)).astype(np.float32)
    out = {"a": mpe.to_device(np.zeros((4, dim), np.float32), "cuda")}
    sent = [mpe.to_device(array, "cuda") for array in (indices, offsets, grad)]
    stream = runtime.stream()
    with runtime.capture(stream) as made:
        there.forward(sent[0], sent[1], out=out, stream=stream)
        there.backward({"a": sent[2]}, stream=stream)
    litter = [np.full(8, 0xFF, np.uint8) for _ in range(1000)]  # over what the capture has left
    for _ in range(3):
        made[0].launch(stream)
        expected = here.forward(indices, offsets)
        here.backward({"a": grad})
        np.testing.assert_array_equal(out["a"].numpy(), expected["a"])
    assert bytes_of(there) == bytes_of(here)
    assert litter


def test_launches_and_calls_take_turns(runtime: Any, tmp_path: Path) -> None:
    """Calls outside of the graph, on any stream; a checkpoint between launches resumes."""
    cache = mpe.CacheConfig(num_sets=1, policy="lfu", ways=8)
    twins = Twins(runtime, mixed(), cache=cache, optimizer=mpe.Adagrad)
    twins.step()  # on the stream that is captured
    twins.step_here()
    graph = twins.captured()
    other = runtime.stream()
    ids, values = np.array([1, 12]), np.ones((2, 5), np.float32)
    for i in range(4):
        twins.draw()
        graph.launch(other if i % 2 else twins.stream)
        twins.step_here()
        for emb, send in (
            (twins.there, lambda a: mpe.to_device(a, "cuda")),
            (twins.here, np.array),
        ):
            emb.set_rows("int85", send(ids), send(values * i))
            emb.flush()
            emb.prefetch(send(twins.batch[0]), send(twins.batch[1]))
            emb.drop_prefetched()
            out = emb.forward(send(twins.batch[0]), send(twins.batch[1]))
            emb.backward(send(np.ones(out.shape, np.float32)))
    twins.assert_equal()
    twins.there.save(tmp_path / "there")
    again = mpe.EmbeddingBagCollection.load(tmp_path / "there")
    graph.launch(twins.stream)
    twins.step_here()
    twins.assert_equal()
    indices, offsets, _, grad = (mpe.to_device(array, "cuda") for array in twins.batch)
    again.forward(indices, offsets)
    again.backward(grad)
    assert bytes_of(again) == bytes_of(twins.here)


def test_two_graphs_of_one_collection(runtime: Any) -> None:
    twins = Twins(runtime, mixed(), cache=mpe.CacheConfig(num_sets=1, policy="lru", ways=8))
    training = twins.captured()
    with runtime.capture(twins.stream) as made:
        twins.forward(training=False)
    for _ in range(3):
        twins.draw()
        training.launch(twins.stream)
        twins.step_here()
        made[0].launch(twins.stream)
        twins.assert_evaluated()
    twins.assert_equal()


def test_two_streams_of_one_capture(runtime: Any) -> None:
    twins = Twins(runtime, mixed(), cache=mpe.CacheConfig(num_sets=1, policy="lru", ways=8))
    other = runtime.stream()
    with runtime.capture(twins.stream) as made:
        runtime.follow(other, twins.stream)
        twins.forward(stream=other)
        twins.backward()  # waits for the forward: so its stream is joined as well
    made[0].launch(twins.stream, 2)
    for _ in range(2):
        twins.step_here()
    twins.assert_equal()


def test_an_error_in_a_launch_is_told(runtime: Any) -> None:
    twins = Twins(runtime, mixed(), cache=mpe.CacheConfig(num_sets=1, policy="lru", ways=8))
    graph = twins.captured()
    graph.launch(twins.stream)
    twins.step_here()
    before = bytes_of(twins.there)
    good = twins.batch
    twins.runtime.write(twins.indices, np.full(twins.indices.size, 13), twins.stream)
    graph.launch(twins.stream, 2)
    with pytest.raises(IndexError, match="index 13 at position 0"):
        twins.there.check()
    twins.there.check()
    after = bytes_of(twins.there)
    changed = {name for name in before if before[name] != after[name]}
    counters = {name for name in before if name.endswith(".counters")}
    assert len(counters) == 2
    assert changed <= {"step", "updates", *counters}
    assert not twins.out.numpy().any()
    twins.runtime.write(twins.indices, good[0], twins.stream)
    graph.launch(twins.stream)
    twins.there.check()


def test_updates_that_would_not_be_finite_in_a_launch(runtime: Any) -> None:
    twins = Twins(runtime, mixed(), cache=None)
    graph = twins.captured()
    twins.runtime.write(twins.grad, np.full((BAGS, twins.width), np.nan, np.float32), twins.stream)
    graph.launch(twins.stream)
    with pytest.raises(mpe.errors.NonFiniteUpdateError):
        twins.there.check()


def test_kernels_without_a_collection(runtime: Any) -> None:
    ops, stream = mpe.ops, runtime.stream()
    x = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    packed = ops.quantize(x, "int4")
    rows, codes = (
        mpe.to_device(np.zeros_like(packed), "cuda"),
        mpe.to_device(packed[:, :3].copy(), "cuda"),
    )
    values = mpe.to_device(np.zeros_like(x), "cuda")
    numbers = mpe.to_device(np.zeros((4, 6), np.uint8), "cuda")
    with runtime.capture(stream) as made:
        ops.dequantize(rows, "int4", 6, out=values, stream=stream)
        ops.unpack_int4(codes, 6, out=numbers, stream=stream)
    runtime.write(rows, packed, stream)
    made[0].launch(stream)
    np.testing.assert_array_equal(values.numpy(), ops.dequantize(packed, "int4", 6))
    expected = ops.unpack_int4(np.ascontiguousarray(packed[:, :3]), 6)
    np.testing.assert_array_equal(numbers.numpy(), expected)
