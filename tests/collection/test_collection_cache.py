"""The cache of a collection: what it keeps exact, what it counts, and whom it lets in."""

from __future__ import annotations

from typing import Any

import kinds
import numpy as np
import on_device
import pytest
from drive import FORMATS, POLICIES, ROUNDINGS, make_cache, make_pair, one_table, train
from reference import RefCollection, splitmix64
from reference.pair import Batches, assert_same

import mpembed as mpe
from mpembed.collection import collection_state

pytestmark = pytest.mark.usefixtures("each_device")
each_policy = pytest.mark.parametrize("policy", POLICIES)


@pytest.mark.pairwise
@pytest.mark.parametrize("policy", mpe.registry.POLICIES)
@pytest.mark.parametrize("optimizer", kinds.KINDS)
def test_over_fp32_tables_the_cache_changes_no_byte(policy: str, optimizer: str) -> None:
    tables = [mpe.TableConfig("a", 40, 7), mpe.TableConfig("b", 25, 7, "fp32", "mean")]
    plain, cached = (
        on_device.make(tables, cache=cache, optimizer=kinds.make(optimizer), seed=3)
        for cache in (None, make_cache(policy))
    )
    batches = Batches(RefCollection(tables, None, kinds.make(optimizer)), 7)
    for _ in range(12):
        indices, offsets = batches.inputs(6, 4)
        weights = batches.weights(len(indices))
        outs = [np.array(emb.forward(indices, offsets, weights)) for emb in (plain, cached)]
        assert_same(outs[1], outs[0], "output")
        grad = batches.grad(outs[0])
        assert_same(cached.backward(grad), plain.backward(grad), "weight gradient")
        for table in tables:
            ids = np.arange(table.num_embeddings)
            assert_same(cached.rows(table.name, ids), plain.rows(table.name, ids), table.name)
    assert sum(s["evictions"] for s in cached.stats().values()) > 0
    cached.flush()
    for key, expected in plain.state_arrays().items():
        if key.startswith("table."):
            assert_same(cached.state_arrays()[key], expected, key)


@each_policy
def test_int32_int64_and_dict_inputs_are_one(policy: str) -> None:
    tables = [mpe.TableConfig("a", 20, 4, "int8"), mpe.TableConfig("b", 30, 6, "int4", "mean")]
    embs = [
        on_device.make(tables, cache=make_cache(policy), optimizer=kinds.make("adagrad"))
        for _ in range(3)
    ]
    batches = Batches(RefCollection(tables, None, kinds.make("adagrad")), 7)
    for _ in range(4):
        indices, offsets = batches.inputs(5, 4)
        cut = offsets[5]
        both = {"a": (indices[:cut], offsets[:6]), "b": (indices[cut:], offsets[5:] - cut)}
        outs = [
            np.array(embs[0].forward(indices, offsets)),
            np.array(embs[1].forward(indices.astype(np.int32), offsets.astype(np.int32))),
            np.array(embs[2].forward(both)),
        ]
        grad = batches.grad(outs[0])
        for emb, out in zip(embs, outs, strict=True):
            assert_same(out, outs[0], "output")
            emb.backward(grad)
            assert_same(emb.state_arrays(), embs[0].state_arrays(), "state")


@each_policy
def test_evaluation_and_reading_change_nothing(policy: str) -> None:
    pair = one_table("int2", policy, kinds.make("adagrad"))
    batches = Batches(pair.ref, 1)
    train(pair, batches, 3)
    before = {key: np.array(a) for key, a in pair.emb.state_arrays().items()}
    for _ in range(3):
        pair.emb.forward(*batches.inputs(9, 9), training=False)
        pair.emb.rows("a", np.arange(300))
        pair.emb.stats()
        assert_same(pair.emb.state_arrays(), before, "state")


@pytest.mark.parametrize("policy", mpe.registry.POLICIES)
@pytest.mark.parametrize("start", [2**32 - 3, 2**40 - 20])
def test_large_clocks_and_steps(policy: str, start: int) -> None:
    """Stamps wrap at 2^32; the random counter takes all 40 bits of the step."""
    pair = one_table("int4", policy, kinds.make("adagrad"))
    on_device.poke(pair.emb, "cache.10.adagrad.counters", [start, 0])
    pair.ref.caches["10.adagrad"].clock = start
    on_device.set_step(pair.emb, start)
    pair.ref.step = start
    train(pair, Batches(pair.ref, 3), 5)


def test_large_counts_saturate() -> None:
    """Counts and cells near 255, which short runs do not reach."""
    pair = one_table("int4", "lfu", kinds.make("adagrad"))
    batches = Batches(pair.ref, 3)
    train(pair, batches, 4)
    cache = pair.ref.caches["10.adagrad"]
    for low in (20, 253):
        counts = batches.rng.choice([low, 100, 253, 254, 255], len(cache.meta))
        cells = batches.rng.integers(248, 256, cache.sketch.shape)
        on_device.poke(pair.emb, "cache.10.adagrad.meta", counts)
        on_device.poke(pair.emb, "cache.10.adagrad.sketch", cells)
        cache.meta, cache.sketch[...] = counts.tolist(), cells
        before = pair.emb.stats()["a"]["evictions"]
        train(pair, batches, 4)
        assert pair.emb.stats()["a"]["evictions"] > before
    assert (cache.sketch == 255).any()
    assert max(cache.meta) == 255


def test_lfu_follows_a_new_hot_set_within_a_halving_period() -> None:
    """Rows that were hot for long give way to those that are hot now."""
    sets, ways = 8, 8
    same_set = [row for row in range(2000) if ((splitmix64(row) >> 32) * sets) >> 32 == 5]
    old, new = np.array(same_set[:8]), np.array(same_set[8:16])
    tables = [mpe.TableConfig("a", 2000, 4, "int4")]
    emb = on_device.make(tables, cache=make_cache("lfu", sets, ways), optimizer=mpe.SGD(0.1))
    steps = 16 * sets * ways // 8  # a period: 16 unique rows a slot, of which a step has 8

    def run(rows: Any, count: int) -> int:
        before = emb.stats()["a"]["hits"]
        for _ in range(count):
            emb.forward(rows, np.array([0, 8]))
        return int(emb.stats()["a"]["hits"] - before)

    assert run(old, 3 * steps) > 0
    run(new, steps + 10)
    assert run(new, 10) == 80


def test_the_oldest_of_equal_prefetches_is_consumed_first() -> None:
    pair = one_table("int8", "lru", kinds.make("adagrad"))
    batch = np.array([1, 2, 3]), np.array([0, 3])
    first, second = pair.prefetch(*batch), pair.prefetch(*batch)
    out = pair.forward(*batch)
    pair.backward(np.ones_like(out))
    pair.drop(second)
    assert pair.emb.stats()["a"]["accesses"] == 6
    with pytest.raises(RuntimeError, match="used"):
        pair.emb.backward(np.ones_like(out), first[0])


@each_policy
def test_a_prefetch_knows_its_batch_whatever_was_dropped(policy: str) -> None:
    """Two indices out of range are one to `bounds="drop"`; another row or bag is not."""
    tables = [mpe.TableConfig("a", 9, 6, "int8"), mpe.TableConfig("b", 9, 4)]
    pair = make_pair(tables, make_cache(policy), kinds.make("sgd"), bounds="drop")
    offsets = np.array([0, 2, 3])
    pair.prefetch(np.array([0, 99, 5]), offsets)
    for other in ([99, 0, 5], [0, 8, 5], [0, 99, 99]):
        pair.forward(np.array(other), offsets)
        assert collection_state(pair.emb).engine.num_prefetched == 1
    pair.forward(np.array([0, 99, 5]), np.array([0, 3, 3]))
    assert collection_state(pair.emb).engine.num_prefetched == 1
    out = pair.forward(np.array([0, -5, 5], np.int32), offsets)
    assert collection_state(pair.emb).engine.num_prefetched == 0
    pair.backward(np.ones_like(out))


def test_initial_rows_of_large_tables() -> None:
    tables = [
        mpe.TableConfig(f"{precision}{i}", 700, 17, precision, "sum", init)
        for i, init in enumerate([None, ("normal", 0.01), ("uniform", -1.0, 3.0), "zeros"])
        for precision in FORMATS
    ]
    for seed in (0, 2**64 - 1):
        for rounding in ROUNDINGS:
            make_pair(tables, None, kinds.make("sgd"), seed=seed, rounding=rounding)
