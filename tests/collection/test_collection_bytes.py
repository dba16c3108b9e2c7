"""Every byte of a collection equals the reference's, call by call."""

from __future__ import annotations

from typing import Any

import numpy as np
import on_device
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import RefCollection, splitmix64
from reference.pair import Batches, Pair, assert_same
from reference.scenario import OPERATIONS, Scenario

import mpembed as mpe
from mpembed.collection import collection_state

pytestmark = pytest.mark.usefixtures("each_device")
FORMATS = list(mpe.registry.FORMATS)
POOLINGS = list(mpe.registry.POOLINGS)
POLICIES = [None, *mpe.registry.POLICIES]
ROUNDINGS = ["stochastic", "nearest"]
DECAYS = [("none", 0.0), ("l2", 0.01), ("decoupled", 0.05)]
OPTIMIZERS: dict[str, Any] = {
    "sgd": mpe.SGD,
    "adagrad": mpe.Adagrad,
    "adagrad_bf16": lambda lr, **k: mpe.Adagrad(lr, state_precision="bf16", **k),
    "rowwise_adagrad": mpe.RowwiseAdagrad,
}


def make_optimizer(name: str, decay: tuple[str, float] = ("none", 0.0), lr: float = 0.1) -> Any:
    start = {} if name == "sgd" else {"eps": 1e-6, "initial_accumulator_value": 0.125}
    return OPTIMIZERS[name](lr, weight_decay_mode=decay[0], weight_decay=decay[1], **start)


def make_cache(policy: str | None, num_sets: int = 1, ways: int = 8) -> Any:
    return None if policy is None else mpe.CacheConfig(num_sets=num_sets, policy=policy, ways=ways)


def make_pair(tables: list[Any], cache: Any, optimizer: Any, **options: Any) -> Pair:
    options = {"on_nonfinite": "skip"} | options
    emb = on_device.make(tables, cache=cache, optimizer=optimizer, **options)
    return Pair(emb, RefCollection(tables, cache, optimizer, **options))


def train(pair: Pair, batches: Batches, steps: int, batch: int = 4, longest: int = 4) -> None:
    """Steps with and without weights, some non-finite gradients, an evaluation and a flush."""
    for step in range(steps):
        indices, offsets = batches.inputs(batch, longest)
        weights = batches.weights(len(indices)) if step % 2 else None
        out = pair.forward(indices, offsets, weights)
        pair.backward(batches.grad(out, nonfinite=0.01 if step == 2 else 0.0))
        if step == steps // 2:
            pair.forward(*batches.inputs(batch, longest), training=False)
            pair.flush()


@pytest.mark.pairwise
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("decay", DECAYS, ids=[mode for mode, _ in DECAYS])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_whole_registry(optimizer: str, policy: str, decay: Any, rounding: str) -> None:
    """One collection holds every format with every pooling, in four dimensions."""
    tables = []
    for i, precision in enumerate(FORMATS):
        for j, pooling in enumerate(POOLINGS):
            name, rows, dim = f"{precision}_{pooling}", 5 + 7 * ((3 * i + j) % 5), (3, 8, 21, 33)
            init = (None, ("normal", 0.3), "zeros", ("uniform", -0.5, 2.0))[(i + j) % 4]
            tables.append(mpe.TableConfig(name, rows, dim[(i + j) % 4], precision, pooling, init))
    pair = make_pair(tables, make_cache(policy), make_optimizer(optimizer, decay), seed=2**40 + 5,
                     rounding=rounding)  # fmt: skip
    train(pair, Batches(pair.ref, 1), 5)
    if policy is not None:
        stats = np.array([list(s.values()) for s in pair.ref.stats().values()]).sum(axis=0)
        assert dict(zip(mpe.STATS, stats, strict=True))["evictions"] > 0


def test_the_optimizers_of_the_registry_are_all_here() -> None:
    made = {make_optimizer(name).name for name in OPTIMIZERS}
    assert made == set(mpe.registry.OPTIMIZERS)


@pytest.mark.pairwise
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_dimensions(optimizer: str, policy: str, pooling: str) -> None:
    dims = [1, 2, 5, 7, 8, 9, 16, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257, 300]
    tables = [
        mpe.TableConfig(f"t{dim}", 11, dim, FORMATS[i % len(FORMATS)], pooling)
        for i, dim in enumerate(dims)
    ]
    tables += [
        mpe.TableConfig(f"{name}{dim}", 9, dim, name, pooling)
        for name in FORMATS
        for dim in (1, 12, 67)
    ]
    pair = make_pair(tables, make_cache(policy), make_optimizer(optimizer))
    train(pair, Batches(pair.ref, 2), 3)


@st.composite
def collections(draw: st.DrawFn) -> tuple[list[Any], Any]:
    dims = draw(st.lists(st.integers(1, 300) | st.integers(1, 20), min_size=1, max_size=2))
    tables = [
        mpe.TableConfig(
            f"t{i}",
            draw(st.integers(1, 60)),
            draw(st.sampled_from(dims)),
            draw(st.sampled_from(FORMATS)),
            draw(st.sampled_from(POOLINGS)),
            draw(st.sampled_from([None, "zeros", ("uniform", -2.0, 1.0), ("normal", 0.5)])),
        )
        for i in range(draw(st.integers(1, 4)))
    ]
    policy, ways = draw(st.sampled_from(POLICIES)), draw(st.sampled_from([8, 16, 32]))
    if policy is None:
        return tables, None
    if draw(st.booleans()):
        load = draw(st.sampled_from([0.01, 0.2, 0.9, 3.0]))
        return tables, mpe.CacheConfig(load_factor=load, policy=policy, ways=ways)
    return tables, make_cache(policy, draw(st.integers(1, 3)), ways)


@given(
    made=collections(),
    optimizer=st.sampled_from(list(OPTIMIZERS)),
    decay=st.sampled_from(DECAYS),
    rounding=st.sampled_from(ROUNDINGS),
    index_type=st.sampled_from([np.int32, np.int64]),
    batch=st.integers(0, 6),
    longest=st.integers(0, 8),
    bad=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 2**64 - 1),
    operations=st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=14),
)
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_operations(
    made: tuple[list[Any], Any],
    optimizer: str,
    decay: tuple[str, float],
    rounding: str,
    index_type: Any,
    batch: int,
    longest: int,
    bad: float,
    seed: int,
    operations: list[str],
) -> None:
    bounds = "drop" if bad else "raise"
    rule = make_optimizer(optimizer, decay)
    pair = make_pair(*made, rule, seed=seed, rounding=rounding, bounds=bounds)
    batches = Batches(pair.ref, seed % 2**32, index_type)
    scenario = Scenario(pair, batches, {"batch": batch, "longest": longest, "bad": bad})
    for operation in operations:
        scenario.run(operation)


@pytest.mark.pairwise
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("policy", mpe.registry.POLICIES)
def test_a_long_scenario_in_a_small_cache(policy: str, seed: int) -> None:
    """Enough batches that the sketch is halved and tickets hold most of the cache."""
    tables = [
        mpe.TableConfig(f"t{i}", 50, (4, 4, 9)[i % 3], FORMATS[(seed + i) % len(FORMATS)], "mean")
        for i in range(3)
    ]
    name = list(OPTIMIZERS)[seed % len(OPTIMIZERS)]
    pair = make_pair(tables, make_cache(policy, 2), make_optimizer(name), seed=seed)
    batches = Batches(pair.ref, seed)
    scenario = Scenario(pair, batches, {"batch": 3, "longest": 3})
    for operation in batches.rng.choice(OPERATIONS, 80):
        scenario.run(operation)
    stats = pair.ref.stats().values()
    assert sum(s["evictions"] for s in stats) > 0
    assert sum(s["write_backs"] for s in stats) > 0


def one_table(precision: str, policy: str | None, rows: int = 300, **options: Any) -> Pair:
    tables = [mpe.TableConfig("a", rows, 10, precision)]
    return make_pair(tables, make_cache(policy, 2), make_optimizer("adagrad"), **options)


each_format = pytest.mark.parametrize("precision", FORMATS)
each_policy = pytest.mark.parametrize("policy", POLICIES)


@pytest.mark.pairwise
@each_format
@each_policy
def test_one_row_taken_hundreds_of_times(precision: str, policy: str) -> None:
    pair = one_table(precision, policy)
    batches = Batches(pair.ref, 4)
    for count in (63, 64, 65, 128, 129, 200, 257):
        indices = np.concatenate([np.full(count, 7), batches.rng.integers(0, 300, 40)])
        batches.rng.shuffle(indices)
        offsets = np.array([0, count // 3, count // 3, len(indices)])
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
        pair = make_pair(some, make_cache(policy), make_optimizer("rowwise_adagrad"))
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
    pair = one_table(precision, policy)
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
    pair = one_table(precision, policy, rows=5)
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
    pair = make_pair(tables, make_cache(policy, 8), make_optimizer("adagrad"))
    batches = Batches(pair.ref, 6)
    for start in (0, 3, 0, 9, 1):
        ids = np.array(same[start : start + 14])
        pair.backward(batches.grad(pair.forward(ids, np.array([0, 5, len(ids)]))))
    tags = pair.emb.state_arrays()["cache.10.tags"]
    assert (tags != tags[0, 0]).sum() == 8
    assert pair.emb.stats()["a"]["conflict_misses"] > 0


@each_policy
def test_out_of_range_indices_are_dropped(policy: str) -> None:
    tables = [
        mpe.TableConfig(pooling, 9, 6, "int8", pooling) for pooling in ("mean", "sum", "none")
    ]
    pair = make_pair(tables, make_cache(policy), make_optimizer("sgd"), bounds="drop")
    batches = Batches(pair.ref, 8, np.int32)
    for bad in (0.0, 0.3, 1.0):
        indices, offsets = batches.inputs(4, 4, bad)
        out = pair.forward(indices, offsets, batches.weights(len(indices)))
        pair.backward(batches.grad(out))
        pair.forward(indices, offsets, training=False)
    assert sum(s["dropped"] for s in pair.emb.stats().values()) > 10


@pytest.mark.parametrize("policy", mpe.registry.POLICIES)
def test_many_tables_share_a_cache(policy: str) -> None:
    """More tables than a task counts at a time, and more misses than one task has."""
    tables = [mpe.TableConfig(f"t{i}", 90, 4, FORMATS[i % len(FORMATS)]) for i in range(60)]
    pair = make_pair(tables, make_cache(policy, 40), make_optimizer("sgd"))
    batches = Batches(pair.ref, 8)
    for _ in range(3):
        pair.backward(batches.grad(pair.forward(*batches.inputs(20, 8))))
    assert sum(s["misses"] for s in pair.emb.stats().values()) > 3 * 1024
    assert sum(s["evictions"] for s in pair.emb.stats().values()) > 0


@each_policy
def test_bags_of_several_tasks(policy: str) -> None:
    """One bag holds most lookups; tables without any and empty bags lie between."""
    tables = [mpe.TableConfig(f"t{i}", 500, 6, "int8", POOLINGS[i % 3]) for i in range(7)]
    pair = make_pair(tables, make_cache(policy), make_optimizer("sgd"), bounds="drop")
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
    pair = one_table("int4", policy)
    batches = Batches(pair.ref, 1)
    train(pair, batches, 2)
    for call in (pair.emb.forward, pair.emb.prefetch):
        with pytest.raises(IndexError, match=r"a.*300"):
            call(np.array([1, 300]), np.array([0, 2]))
        if on_device.used() == "cpu":  # a device's step and clock go on: test_device_calls.py
            pair.check("after a refused batch")
            train(pair, batches, 2)


@pytest.mark.pairwise
@each_format
@each_policy
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rows_that_would_not_be_finite_keep_their_bytes(
    precision: str, policy: str, optimizer: str
) -> None:
    tables = [mpe.TableConfig("a", 12, 10, precision)]
    pair = make_pair(
        tables, make_cache(policy), make_optimizer(optimizer, lr=3.0), on_nonfinite="raise"
    )
    batches = Batches(pair.ref, 9)
    for nonfinite in (0.0, 0.05, 0.3):
        out = pair.forward(*batches.inputs(5, 3))
        pair.backward(batches.grad(out, nonfinite))
    assert pair.emb.stats()["a"]["nonfinite"] > 0
    train(pair, batches, 2)


@pytest.mark.pairwise
@pytest.mark.parametrize("policy", mpe.registry.POLICIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_over_fp32_tables_the_cache_changes_no_byte(policy: str, optimizer: str) -> None:
    tables = [mpe.TableConfig("a", 40, 7), mpe.TableConfig("b", 25, 7, "fp32", "mean")]
    plain, cached = (
        on_device.make(tables, cache=cache, optimizer=make_optimizer(optimizer), seed=3)
        for cache in (None, make_cache(policy))
    )
    batches = Batches(RefCollection(tables, None, make_optimizer(optimizer)), 7)
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
        on_device.make(tables, cache=make_cache(policy), optimizer=make_optimizer("adagrad"))
        for _ in range(3)
    ]
    batches = Batches(RefCollection(tables, None, make_optimizer("adagrad")), 7)
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
    pair = one_table("int2", policy)
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
    pair = one_table("int4", policy)
    on_device.poke(pair.emb, "cache.10.counters", [start, 0])
    pair.ref.caches[10].clock = start
    collection_state(pair.emb).set_step(start)
    pair.ref.step = start
    train(pair, Batches(pair.ref, 3), 5)


def test_large_counts_saturate() -> None:
    """Counts and cells near 255, which short runs do not reach."""
    pair = one_table("int4", "lfu")
    batches = Batches(pair.ref, 3)
    train(pair, batches, 4)
    cache = pair.ref.caches[10]
    for low in (20, 253):
        counts = batches.rng.choice([low, 100, 253, 254, 255], len(cache.meta))
        cells = batches.rng.integers(248, 256, cache.sketch.shape)
        on_device.poke(pair.emb, "cache.10.meta", counts)
        on_device.poke(pair.emb, "cache.10.sketch", cells)
        cache.meta, cache.sketch[...] = counts.tolist(), cells
        before = pair.emb.stats()["a"]["evictions"]
        train(pair, batches, 4)
        assert pair.emb.stats()["a"]["evictions"] > before
    assert (cache.sketch == 255).any()
    assert max(cache.meta) == 255


def test_lfu_follows_a_new_hot_set_within_a_halving_period() -> None:
    """Rows that were hot for long give way to those that are hot now."""
    same_set = [row for row in range(2000) if ((splitmix64(row) >> 32) * 32) >> 32 == 5]
    old, new = np.array(same_set[:8]), np.array(same_set[8:16])
    tables = [mpe.TableConfig("a", 2000, 4, "int4")]
    emb = on_device.make(tables, cache=make_cache("lfu", num_sets=32), optimizer=mpe.SGD(0.1))
    steps = 16 * 32 * 8 // 8  # a period: 16 unique rows a slot, of which a step has 8

    def run(rows: Any, count: int) -> int:
        before = emb.stats()["a"]["hits"]
        for _ in range(count):
            emb.forward(rows, np.array([0, 8]))
        return int(emb.stats()["a"]["hits"] - before)

    assert run(old, 3 * steps) > 0
    run(new, steps + 10)
    assert run(new, 10) == 80


def test_the_oldest_of_equal_prefetches_is_consumed_first() -> None:
    pair = one_table("int8", "lru")
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
    pair = make_pair(tables, make_cache(policy), make_optimizer("sgd"), bounds="drop")
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
            make_pair(tables, None, make_optimizer("sgd"), seed=seed, rounding=rounding)
