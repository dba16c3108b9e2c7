"""Every byte of a collection equals the reference's: batches that are unusual."""

from __future__ import annotations

import kinds
import numpy as np
import on_device
import pytest
from drive import FORMATS, POLICIES, POOLINGS, count, make_cache, make_pair, one_table, train
from reference import splitmix64
from reference.pair import Batches

import mpembed as mpe

pytestmark = pytest.mark.usefixtures("each_device")
each_format = pytest.mark.parametrize("precision", FORMATS)
each_policy = pytest.mark.parametrize("policy", POLICIES)


@pytest.mark.pairwise
@each_format
@each_policy
def test_one_row_taken_hundreds_of_times(precision: str, policy: str) -> None:
    pair = one_table(precision, policy, kinds.make("adagrad"))
    batches = Batches(pair.ref, 4)
    for times in (63, 64, 65, 128, 129, 200, 257):
        indices = np.concatenate([np.full(times, 7), batches.rng.integers(0, 300, 40)])
        batches.rng.shuffle(indices)
        offsets = np.array([0, times // 3, times // 3, len(indices)])
        out = pair.forward(indices, offsets, batches.weights(len(indices)))
        pair.backward(batches.grad(out))


@pytest.mark.pairwise
@each_format
@each_policy
def test_empty_bags_and_empty_batches(precision: str, policy: str) -> None:
    tables = [
        mpe.TableConfig(pooling, 6, 5, precision, pooling) for pooling in ("mean", "sum", "none")
    ]
    for some in (tables, tables[:2]):
        pair = make_pair(some, make_cache(policy), kinds.make("rowwise_adagrad"))
        batches = Batches(pair.ref, 3)
        for batch, longest in ((0, 0), (3, 0), (3, 2), (0, 0), (3, 1)):
            for weighted in (False, True):
                indices, offsets = batches.inputs(batch, longest)
                weights = batches.weights(len(indices)) if weighted else None
                pair.backward(batches.grad(pair.forward(indices, offsets, weights)))


@pytest.mark.pairwise
@each_format
@pytest.mark.parametrize("policy", mpe.registry.POLICIES)
def test_batches_larger_than_the_cache(precision: str, policy: str) -> None:
    pair = one_table(precision, policy, kinds.make("adagrad"))
    batches = Batches(pair.ref, 5)
    for _ in range(4):
        indices, offsets = batches.inputs(30, 6)
        pair.backward(batches.grad(pair.forward(indices, offsets)))
    counts = pair.emb.stats()["a"]
    assert counts["conflict_misses"] > 0
    assert counts["unique"] == counts["hits"] + counts["misses"]


@pytest.mark.pairwise
@each_format
@pytest.mark.parametrize("policy", mpe.registry.POLICIES)
def test_a_cache_larger_than_the_table(precision: str, policy: str) -> None:
    pair = one_table(precision, policy, kinds.make("adagrad"), rows=5)
    train(pair, Batches(pair.ref, 6), 4)
    counts = pair.emb.stats()["a"]
    assert counts["misses"] == 5
    assert counts["evictions"] == counts["conflict_misses"] == counts["rejected"] == 0


@pytest.mark.parametrize("policy", mpe.registry.POLICIES)
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_one_set_overflows_while_the_others_are_empty(policy: str, precision: str) -> None:
    same = [row for row in range(300) if ((splitmix64(row) >> 32) * 8) >> 32 == 5]
    assert len(same) > 20
    tables = [mpe.TableConfig("a", 300, 10, precision)]
    pair = make_pair(tables, make_cache(policy, 8), kinds.make("adagrad"))
    batches = Batches(pair.ref, 6)
    for start in (0, 3, 0, 9, 1):
        ids = np.array(same[start : start + 14])
        pair.backward(batches.grad(pair.forward(ids, np.array([0, 5, len(ids)]))))
    tags = pair.emb.state_arrays()["cache.10.adagrad.tags"]
    assert (tags != tags[0, 0]).sum() == 8
    assert pair.emb.stats()["a"]["conflict_misses"] > 0


@each_policy
def test_out_of_range_indices_are_dropped(policy: str) -> None:
    tables = [
        mpe.TableConfig(pooling, 9, 6, "int8", pooling) for pooling in ("mean", "sum", "none")
    ]
    pair = make_pair(tables, make_cache(policy), kinds.make("sgd"), bounds="drop")
    batches = Batches(pair.ref, 8, np.int32)
    for bad in (0.0, 0.3, 1.0):
        indices, offsets = batches.inputs(4, 4, bad)
        out = pair.forward(indices, offsets, batches.weights(len(indices)))
        pair.backward(batches.grad(out))
        pair.forward(indices, offsets, training=False)
    assert count(pair, "dropped") > 10


@pytest.mark.parametrize("policy", mpe.registry.POLICIES)
def test_many_tables_share_a_cache(policy: str) -> None:
    """More tables than a task counts at a time, and more misses than one task has."""
    tables = [mpe.TableConfig(f"t{i}", 90, 4, FORMATS[i % len(FORMATS)]) for i in range(60)]
    pair = make_pair(tables, make_cache(policy, 40), kinds.make("sgd"))
    batches = Batches(pair.ref, 8)
    for _ in range(3):
        pair.backward(batches.grad(pair.forward(*batches.inputs(20, 8))))
    assert count(pair, "misses") > 3 * 1024
    assert count(pair, "evictions") > 0


@each_policy
def test_bags_of_several_tasks(policy: str) -> None:
    """One bag holds most lookups; tables without any and empty bags lie between."""
    tables = [mpe.TableConfig(f"t{i}", 500, 6, "int8", POOLINGS[i % 3]) for i in range(7)]
    pair = make_pair(tables, make_cache(policy), kinds.make("sgd"), bounds="drop")
    batches = Batches(pair.ref, 8, np.int32)
    lengths = np.array([[0, 3], [0, 0], [0, 20_001], [0, 0], [0, 0], [9_000, 5], [0, 0]])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    indices = batches.rng.integers(0, 500, offsets[-1]).astype(np.int32)
    for bad in ([], [20_002, 8_500, 17_000, 25_000, 20_005]):
        indices[bad] = 500
        out = pair.forward(indices, offsets, batches.weights(len(indices)))
        pair.backward(batches.grad(out))
    assert [s["dropped"] for s in pair.emb.stats().values()] == [0, 0, 3, 0, 0, 2, 0]
    strict = on_device.make(tables, optimizer=mpe.SGD(0.1))
    with pytest.raises(IndexError, match=r"'?t2'?.*8500"):
        strict.forward(indices, offsets)


@each_policy
def test_an_out_of_range_index_changes_nothing(policy: str) -> None:
    pair = one_table("int4", policy, kinds.make("adagrad"))
    batches = Batches(pair.ref, 1)
    train(pair, batches, 2)
    for call in (pair.emb.forward, pair.emb.prefetch):
        with pytest.raises(IndexError, match=r"a.*300"):
            call(np.array([1, 300]), np.array([0, 2]))
        if on_device.used() == "cpu":  # a device's step and clock go on: test_device_calls.py
            pair.check("after a refused batch")
            train(pair, batches, 2)


@pytest.mark.pairwise
@each_policy
@pytest.mark.parametrize("optimizer", kinds.NAMES)
def test_rows_that_would_not_be_finite_keep_their_bytes(policy: str | None, optimizer: str) -> None:
    tables = [mpe.TableConfig(name, 12, 10, name) for name in FORMATS]
    pair = make_pair(
        tables, make_cache(policy), kinds.named(optimizer, lr=3.0), on_nonfinite="raise"
    )
    batches = Batches(pair.ref, 9)
    for nonfinite in (0.0, 0.05, 0.3):
        out = pair.forward(*batches.inputs(5, 3))
        pair.backward(batches.grad(out, nonfinite))
    assert all(stats["nonfinite"] > 0 for stats in pair.emb.stats().values())
    train(pair, batches, 2)
