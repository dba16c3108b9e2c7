"""Rows at the ends of a format's range are written, read, set again and trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from reference import FORMATS, RefCollection, encode
from reference.pair import Pair, assert_same

import mpembed as mpe

INTEGER = [name for name, fmt in FORMATS.items() if fmt.header is not None]
F32 = npt.NDArray[np.float32]

formats = pytest.mark.parametrize("precision", FORMATS)
integers = pytest.mark.parametrize("precision", INTEGER)
roundings = pytest.mark.parametrize("rounding", mpe.registry.ROUNDINGS)
of_new_rows = pytest.mark.parametrize("rounding", mpe.registry.ROUNDINGS_OF_NEW_ROWS)


def extremes(precision: str) -> F32:
    """Rows that reach the limits of a format in every way."""
    top, limit = FORMATS[precision].max_abs, FORMATS[precision].limit
    rows = [[-top, top, 0, top], [top] * 4, [-top] * 4, [limit] * 4, [-limit] * 4]
    rows += [[-limit, limit, 1, -1], [0, 0, 0, limit], [-limit, 0, 0, 0], [top, limit, top, top]]
    inside = np.nextafter(np.float32(top), np.float32(0))
    rows += [[inside, limit, top, top], [-inside, -limit, -limit, -inside]]
    rows += [[top / 2, limit, limit, 0.99 * limit]]
    rng = np.random.default_rng(0)
    near = rng.choice([-1, 1], (500, 4)) * rng.choice([limit, top, top / 2], (500, 4))
    return np.concatenate([rows, near * rng.uniform(0.98, 1, (500, 4))]).astype(np.float32)


@formats
@of_new_rows
def test_rows_survive_a_hundred_writes(precision: str, rounding: str) -> None:
    x, limit = extremes(precision), np.float32(FORMATS[precision].limit)
    for step in range(100):
        rows = mpe.ops.quantize(x, precision, rounding=rounding, step=step)
        assert_same(rows, encode(x, precision, rounding, step=step), f"write {step}")
        x = np.array(mpe.ops.dequantize(rows, precision, 4))
        assert (np.abs(x) <= limit).all()


@integers
@of_new_rows
def test_values_beyond_the_stored_range_take_the_end_codes(precision: str, rounding: str) -> None:
    limit, top = FORMATS[precision].limit, np.float32(FORMATS[precision].max_abs)
    x = np.array([[-limit, limit, -limit, limit]], np.float32)
    ends = mpe.ops.dequantize(mpe.ops.quantize(x, precision, rounding=rounding), precision, 4)
    assert ends[0, 0] == ends[0, 2] == -top
    assert ends[0, 1] == ends[0, 3] >= top


@integers
def test_no_range_decodes_to_more_than_may_be_stored(precision: str) -> None:
    limit = FORMATS[precision].limit
    rng = np.random.default_rng(1)
    x = rng.uniform(0.9, 1, (200_000, 2)) * [-limit, limit]
    x[::2] *= rng.uniform(0, 1, (100_000, 1)) ** 4 * [1, 0] + [0, 1]
    data = mpe.ops.quantize(x.astype(np.float32), precision, rounding="nearest")
    values = mpe.ops.dequantize(data, precision, 2)
    assert np.abs(values).max() <= np.float32(limit)


@pytest.mark.pairwise
@formats
@roundings
@pytest.mark.parametrize("policy", [None, "lru", "lfu"])
def test_such_rows_go_on_training(precision: str, rounding: str, policy: Any) -> None:
    x = extremes(precision)[:12]
    tables = [mpe.TableConfig("t", len(x), 4, precision)]
    cache = None if policy is None else mpe.CacheConfig(num_sets=1, policy=policy, ways=8)
    options: Any = {"rounding": rounding, "on_nonfinite": "raise"}
    emb = mpe.EmbeddingBagCollection(tables, cache=cache, optimizer=mpe.SGD(0.5), **options)
    pair = Pair(emb, RefCollection(tables, cache, mpe.SGD(0.5), **options))
    ids = np.arange(len(x))
    pair.set_rows("t", ids, x)
    for _ in range(5):
        before = pair.ref.rows("t", ids)
        pair.forward(ids, np.arange(len(x) + 1))
        # Each value goes down by a quarter.
        pair.backward(np.where(before == 0, np.float32(0), before / np.float32(2)))
        moved = pair.ref.rows("t", ids)
        old, new = (np.abs(x.astype(np.float64)).sum(axis=1) for x in (before, moved))
        assert (new < old).all()
        pair.flush()
        pair.set_rows("t", ids, pair.ref.rows("t", ids))
    assert emb.stats()["t"]["nonfinite"] == 0


@formats
def test_one_float_beyond_the_limit_is_refused(precision: str) -> None:
    limit = FORMATS[precision].limit
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig("t", 1, 2, precision)], optimizer=mpe.SGD(1.0), on_nonfinite="skip"
    )
    ids = np.array([0])
    emb.set_rows("t", ids, np.array([[limit, 0]], np.float32))
    before = np.array(emb.rows("t", ids))
    beyond = np.array([np.float32(limit).view(np.int32) + 1, 0], np.int32).view(np.float32)
    with pytest.raises(ValueError, match="range"):
        emb.set_rows("t", ids, beyond[None])
    emb.forward(ids, np.array([0, 1]))
    emb.backward(np.array([[-limit / 8, 0]], np.float32))
    assert emb.stats()["t"]["nonfinite"] == 1
    assert emb.rows("t", ids).tolist() == before.tolist()
