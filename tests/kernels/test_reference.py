"""The NumPy reference by itself: against exact fractions, known answers and simpler models."""

from __future__ import annotations

from fractions import Fraction
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import (
    FORMATS,
    RefCache,
    RefCollection,
    draws16,
    fmaf,
    lane_dot,
    philox4x32,
    splitmix64,
)
from reference.rounding import initial_values, log32, normal_from_draw

ANY_FLOAT = st.floats(width=32, allow_nan=False, allow_infinity=False)
LARGEST = Fraction(float(np.finfo(np.float32).max))


def float32_of(x: Fraction) -> np.float32:
    """Nearest float32 of an exact value, ties to even, in integer arithmetic."""
    sign, x = (-1.0, -x) if x < 0 else (1.0, x)
    exponent = -149
    while x >= Fraction(2) ** (exponent + 24):
        exponent += 1
    units = x / Fraction(2) ** exponent
    whole, rest = divmod(units.numerator, units.denominator)
    twice = 2 * rest - units.denominator
    whole += twice > 0 or (twice == 0 and whole % 2 == 1)
    value = whole * Fraction(2) ** exponent
    return np.float32(sign * (np.inf if value > LARGEST else float(value)))


@given(ANY_FLOAT, ANY_FLOAT, ANY_FLOAT)
@example(2.0**-75, 2.0**-75, 2.0**-126)
@example(1 + 2.0**-23, 1 + 2.0**-23, -1.0 - 2.0**-22)
@example(2.0**-149, 0.5, 2.0**-149)
@example(2.0**-126, 1 - 2.0**-24, 2.0**-149)
@example(-(2.0**64), 2.0**63, 2.0**102)
@example(2.0**127, 2.0, -(2.0**103))
@example(1 + 2.0**-12, 1 + 2.0**-12, 2.0**-80)
@settings(max_examples=400, deadline=None)
def test_fmaf_rounds_the_exact_value_once(a: float, b: float, c: float) -> None:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    got = fmaf(a, b, c)
    assert got == float32_of(exact)
    assert exact == 0 or np.signbit(got) == (exact < 0)


@given(
    st.integers(-(2**24) + 1, 2**24 - 1),
    st.integers(-(2**24) + 1, 2**24 - 1),
    st.integers(-60, 60),
    st.integers(-2, 2),
    st.integers(-140, 20),
)
@settings(max_examples=400, deadline=None)
def test_fmaf_near_halfway_and_cancellation(m: int, n: int, shift: int, near: int, e: int) -> None:
    a, b = np.ldexp(np.float32(m), e), np.float32(n)
    product = Fraction(float(a)) * n
    # An addend close to minus the product, to half a unit of it, or far below it.
    c = float32_of(-product * (1 + near * Fraction(1, 2**24)) * Fraction(2) ** min(shift, 0))
    if np.isfinite(c):
        assert fmaf(a, b, c) == float32_of(product + Fraction(float(c)))


def test_fmaf_of_special_values() -> None:
    inf, nan = np.inf, np.nan
    assert fmaf(inf, 1, 0) == inf
    assert np.isnan(fmaf(inf, 0, 1))
    assert np.isnan(fmaf(inf, 1, -inf))
    assert np.isnan(fmaf(nan, 1, 1))
    assert not np.signbit(fmaf(1, -0.0, 0.0))
    assert np.signbit(fmaf(1, -0.0, -0.0))
    assert not np.signbit(fmaf(3, 2, -6))


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 00000000 00000000 00000000", (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            (0xFFFFFFFF, 0xFFFFFFFF),
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter: str, key: tuple[int, int], answer: str) -> None:
    words = [np.array([int(w, 16)], np.uint64) for w in counter.split()]
    got = philox4x32((words[0], words[1], words[2], words[3]), key[0] | key[1] << 32)
    assert " ".join(f"{int(w[0]):08x}" for w in got) == answer


def test_draws_fill_the_counter_as_written() -> None:
    seed, row, table, step, domain, column = (
        0x123456789ABCDEF0,
        0x23456789ABC,
        77,
        0xA5000001F,
        1,
        21,
    )
    counter = [
        (column // 8) | domain << 20 | (step >> 32) << 24,
        row & 0xFFFFFFFF,
        row >> 32 | table << 16,
        step & 0xFFFFFFFF,
    ]
    c = [np.array([word], np.uint64) for word in counter]
    word = int(philox4x32((c[0], c[1], c[2], c[3]), seed)[(column % 8) // 2][0])
    # Column 21 is odd: the high half.
    assert draws16(seed, domain, table, [row], 30, step)[0, column] == word >> 16
    assert draws16(seed, domain, table, [row], 30, step)[0, column - 1] == word & 0xFFFF


def test_splitmix64_known_answers() -> None:
    # First outputs of the generator with seeds 0 and 1234567.
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    assert splitmix64(1234567) == 6457827717110365317


def test_lane_dot_is_the_written_tree() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 3, 77)).astype(np.float32)
    lanes: list[list[Any]] = [[np.float32(0)] * 32 for _ in range(3)]
    for row in range(3):
        for column in range(77):
            old = lanes[row][column % 32]
            lanes[row][column % 32] = fmaf(a[row, column], b[row, column], old)
        for s in (16, 8, 4, 2, 1):
            for lane in range(s):
                lanes[row][lane] = lanes[row][lane] + lanes[row][lane + s]
    assert lane_dot(a, b).tolist() == [lane[0] for lane in lanes]


def test_logarithm_and_normal_variates_are_close_to_the_truth() -> None:
    u = np.exp(np.linspace(-16.6, 0, 20001)).astype(np.float32)
    assert np.abs(log32(u) - np.log(u.astype(np.float64))).max() < 2e-6
    k = np.concatenate([np.arange(50), np.arange(50, 2**24, 40009), 2**24 - 1 - np.arange(50)])
    truth = np.array([NormalDist().inv_cdf((i + 0.5) / 2**24) for i in k.tolist()])
    assert np.abs(normal_from_draw(k, 1.0) - truth).max() < 1e-5
    assert normal_from_draw(2**24 - 1 - k, 0.5).tolist() == (-normal_from_draw(k, 0.5)).tolist()


def test_initial_values_follow_their_law() -> None:
    x = initial_values(None, 3, 0, np.arange(400), 50, 400)
    assert np.abs(x).max() <= np.float32(0.05)
    assert abs(float(x.mean())) < 5 * 0.05 / np.sqrt(3 * x.size)
    y = initial_values(("normal", 0.01), 3, 1, np.arange(400), 50, 400)
    assert abs(float(y.std()) / 0.01 - 1) < 5 / np.sqrt(2 * y.size)
    assert not initial_values("zeros", 0, 0, np.arange(3), 2, 3).any()
    shard = initial_values(None, 3, 0, np.arange(100, 200), 50, 400)
    assert shard.tolist() == x[100:200].tolist()


def make_cache(sets: int, ways: int, policy: str, log: list[Any]) -> RefCache:
    return RefCache(
        sets,
        ways,
        1,
        1,
        policy,
        lambda rows: (np.array(rows, np.float32)[:, None], -np.array(rows, np.float32)[:, None]),
        lambda rows, x, y: log.extend(zip(rows, x[:, 0].tolist(), y[:, 0].tolist(), strict=True)),
        lambda row, name: log.append(name),
    )


def test_lru_evicts_the_oldest_and_keeps_pinned_rows() -> None:
    log: list[Any] = []
    cache = make_cache(1, 2, "lru", log)
    for row in (5, 6):
        cache.unpin(cache.admit([row]))
    cache.unpin(cache.admit([5]))
    pinned = cache.admit([7])
    assert [cache.find(row) is not None for row in (5, 6, 7)] == [True, False, True]
    other = cache.admit([8, 9])
    assert other == [8]
    assert log[-3:] == ["misses", "evictions", "conflict_misses"]
    cache.unpin(pinned)
    cache.unpin(other)
    assert all(tag >> 56 == 0 for tag in cache.tags)


def test_only_dirty_slots_are_written_back() -> None:
    log: list[Any] = []
    cache = make_cache(1, 1, "lru", log)
    cache.unpin(cache.admit([1]))
    cache.unpin(cache.admit([2]))
    cache.put(0, np.array([9], np.float32), np.array([4], np.float32))
    cache.unpin(cache.admit([3]))
    assert [entry for entry in log if isinstance(entry, tuple)] == [(2, 9.0, 4.0)]
    assert (cache.rows[0, 0], cache.values[0, 0]) == (3, -3)


def test_lfu_admits_only_what_is_more_frequent_than_the_victim() -> None:
    log: list[Any] = []
    cache = make_cache(1, 1, "lfu", log)
    for _ in range(3):
        cache.unpin(cache.admit([1]))
    # One slot, so one cell a sketch row, which row 1's own miss has raised to 1.
    for expected in (False, False, True):
        cache.unpin(cache.admit([2]))
        assert (cache.find(2) is not None) == expected
    assert log.count("rejected") == 2
    assert cache.meta == [4]
    # The row that left is remembered in the sketch.
    assert (cache.sketch[:, 0] >= 3).all()


def test_lfu_counts_the_misses_of_a_batch_at_once() -> None:
    cache = make_cache(1, 1, "lfu", [])
    for _ in range(4):
        cache.unpin(cache.admit([1]))
    cache.unpin(cache.admit([2, 3]))
    # Both read 1, which row 1 has left; so the cell that they share grows by one, not by two.
    assert (cache.sketch[:, 0] == 2).all()
    assert cache.find(1) is not None


def test_lfu_halves_its_counts() -> None:
    cache = make_cache(1, 1, "lfu", [])
    for _ in range(15):
        cache.unpin(cache.admit([1]))
    assert (cache.meta, cache.samples) == ([15], 15)
    cache.unpin(cache.admit([1]))
    assert (cache.meta, cache.samples) == ([8], 0)


def test_lfu_counts_saturate() -> None:
    cache = make_cache(4, 32, "lfu", [])
    for _ in range(300):
        cache.unpin(cache.admit([1]))
    assert max(cache.meta) == 255


def table(name: str, rows: int, dim: int, precision: str = "fp32", pooling: str = "sum") -> Any:
    return SimpleNamespace(
        name=name,
        num_embeddings=rows,
        embedding_dim=dim,
        precision=precision,
        pooling=pooling,
        init=None,
        optimizer=None,
        lr=None,
        trainable=True,
        table_id=None,
        first_row=0,
        total_rows=None,
        placement="device",
    )


def optimizer(kind: str, **values: Any) -> Any:
    start = {"weight_decay_mode": "none", "weight_decay": 0.0, "lr": 0.1, "eps": 1e-8}
    start |= {"lr_decay": 0.0}
    start |= {"initial_accumulator_value": 0.0}
    return type(kind, (), start | values)()


def train(emb: RefCollection, steps: int, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    outputs = []
    for _ in range(steps):
        lengths = rng.integers(0, 4, 2 * len(emb.tables))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        indices = rng.integers(0, 9, offsets[-1])
        outputs.append(emb.forward(indices, offsets))
        emb.backward(rng.standard_normal(outputs[-1].shape).astype(np.float32))
    return outputs


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["SGD", "Adagrad", "RowwiseAdagrad"])
def test_training_agrees_with_dense_double_precision(kind: str, pooling: str) -> None:
    emb = RefCollection([table("a", 9, 5, pooling=pooling)], None, optimizer(kind))
    w = emb.rows("a", range(9)).astype(np.float64)
    h = np.zeros_like(w)
    rng = np.random.default_rng(5)
    for _ in range(6):
        lengths = np.array([3, 0, 2])
        indices = rng.integers(0, 9, 5)
        grad = rng.standard_normal((3, 5)).astype(np.float32)
        out = emb.forward(indices, np.concatenate([[0], np.cumsum(lengths)]))
        bags = np.repeat(np.arange(3), lengths)
        mix = np.zeros((3, 9))
        np.add.at(mix, (bags, indices), 1 / lengths[bags] if pooling == "mean" else 1)
        np.testing.assert_allclose(out, mix @ w, rtol=1e-5, atol=1e-6)
        emb.backward(grad)
        g = mix.T @ grad
        if kind == "SGD":
            w -= 0.1 * g
        else:
            h += g**2 if kind == "Adagrad" else (g**2).mean(axis=1, keepdims=True)
            w -= 0.1 * g / (np.sqrt(h) + 1e-8)
        np.testing.assert_allclose(emb.rows("a", range(9)), w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["lru", "lfu"])
def test_a_cache_over_fp32_changes_no_byte(policy: str) -> None:
    tables = [table("a", 9, 5), table("b", 12, 5), table("c", 9, 3)]
    cache = SimpleNamespace(num_sets=1, load_factor=None, ways=4, policy=policy)
    plain = RefCollection(tables, None, optimizer("Adagrad"))
    cached = RefCollection(tables, cache, optimizer("Adagrad"))
    for a, b in zip(train(plain, 8, 2), train(cached, 8, 2), strict=True):
        assert a.tobytes() == b.tobytes()
    cached.flush()
    for name in ("a", "b", "c"):
        key = f"table.{name}.rows"
        assert plain.state_arrays()[key].tobytes() == cached.state_arrays()[key].tobytes()
    assert sum(s["evictions"] for s in cached.stats().values()) > 0


@pytest.mark.parametrize("precision", FORMATS)
def test_a_ticket_pins_until_it_is_used_or_dropped(precision: str) -> None:
    cache = SimpleNamespace(num_sets=1, load_factor=None, ways=8, policy="lru")
    emb = RefCollection([table("a", 9, 5, precision)], cache, optimizer("SGD"))

    def pins() -> int:
        return sum((tag >> 56) & 127 for tag in emb.caches["5.sgd"].tags)

    first = emb.prefetch([1, 2, 2], [0, 1, 3])
    assert pins() == 2
    _, second = emb.forward([1, 2, 2], [0, 1, 3], ticket=True)
    assert second is first
    assert pins() == 2
    emb.forward([2, 3], [0, 2])
    assert pins() == 4
    emb.backward(np.ones((2, 5)), second)
    assert pins() == 2
    emb.forward([4], [0, 1])
    assert pins() == 1
    emb.backward(np.ones((1, 5)))
    assert pins() == 0
    assert emb.stats()["a"]["accesses"] == 6


def test_out_of_range_indices_are_refused_or_dropped() -> None:
    strict = RefCollection([table("a", 4, 2)], None, optimizer("SGD"))
    with pytest.raises(IndexError):
        strict.forward([0, 4], [0, 2])
    assert strict.step == 0
    loose = RefCollection([table("a", 4, 2)], None, optimizer("SGD"), bounds="drop")
    before = loose.rows("a", range(4))
    out = loose.forward([-1, 2, 4], [0, 3])
    assert out.tolist() == before[2:3].tolist()
    loose.backward(np.ones((1, 2)))
    assert loose.stats()["a"]["dropped"] == 2
    changed = (loose.rows("a", range(4)) != before).any(axis=1)
    assert changed.tolist() == [False, False, True, False]
