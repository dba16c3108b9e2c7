"""Packed rows alone: a lookup in them has the bytes of a collection without a cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import on_device
import pytest
from on_device import fetch, send

import mpembed as mpe
from mpembed._arguments import captures
from mpembed._arguments.arrays import begin
from mpembed._collection.packed import PackedTables

TABLES = [
    mpe.TableConfig("a", 50, 4, precision="int4"),
    mpe.TableConfig("b", 30, 6, precision="int8", pooling="mean"),
    mpe.TableConfig("c", 20, 4, precision="fp16"),
]
UNPOOLED = [mpe.TableConfig("one", 50, 5, precision="int6", pooling="none")]
OFFSETS = np.array([0, 2, 2, 3, 5, 5, 8, 9, 9, 9, 12], np.int64)


def made(tables: list[mpe.TableConfig], **options: Any) -> Any:
    return on_device.make(tables, optimizer=mpe.SGD(lr=0.1), **options)


def packed(tables: list[mpe.TableConfig], emb: Any, *, drop: bool = False) -> PackedTables:
    rows = [send(fetch(emb.export(table.name))) for table in tables]
    on, _ = begin(rows[0], "rows", None, captures.waits("a lookup"))
    return PackedTables(tables, rows, on, drop=drop)


@pytest.mark.parametrize("weighted", [False, True])
def test_pooled_tables(each_device: str, weighted: bool) -> None:
    emb = made(TABLES)
    rng = np.random.default_rng(0)
    offsets = OFFSETS[:10]
    indices = rng.integers(0, 20, int(offsets[-1]))
    weights = rng.random(len(indices), np.float32) if weighted else None
    expected = emb.forward(indices, offsets, weights, training=False)
    tables = packed(TABLES, emb)
    given = send(indices), send(offsets), None if weights is None else send(weights)
    assert np.array_equal(fetch(tables.lookup(*given)), expected)
    assert np.array_equal(fetch(tables.lookup(*given)), expected)  # a second call


def test_an_unpooled_table(each_device: str) -> None:
    emb = made(UNPOOLED)
    indices = np.array([3, 49, 3], np.int32)
    expected = emb.forward(indices, np.array([0, 3]), training=False)["one"]
    got = packed(UNPOOLED, emb).lookup(send(indices), send(np.array([0, 3])), None)
    assert np.array_equal(fetch(got), expected)


def test_the_gradient_of_the_weights(each_device: str) -> None:
    emb = made(TABLES)
    rng = np.random.default_rng(1)
    offsets = OFFSETS[:10]
    indices, weights = rng.integers(0, 20, int(offsets[-1])), rng.random(9, np.float32)
    grad = rng.normal(size=(3, 14)).astype(np.float32)
    emb.forward(indices, offsets, weights)
    expected = emb.weight_grad(grad)
    got = packed(TABLES, emb).weight_grad(send(grad), send(indices), send(offsets))
    assert np.array_equal(fetch(got), expected)
    with pytest.raises(ValueError, match="grad"):
        packed(TABLES, emb).weight_grad(send(grad[:, 1:].copy()), send(indices), send(offsets))


def test_what_is_wrong_with_a_batch_is_said(each_device: str) -> None:
    emb = made(TABLES)
    tables = packed(TABLES, emb)
    offsets = send(np.array([0, 1, 2, 3]))
    with pytest.raises(IndexError, match=r"table 'b' \(num_embeddings=30\): index 30 .* 1 such"):
        tables.lookup(send(np.array([1, 30, 1])), offsets, None)
    with pytest.raises(ValueError, match="offsets must not decrease"):
        tables.lookup(send(np.array([1, 2, 1])), send(np.array([0, 2, 1, 3])), None)
    with pytest.raises(ValueError, match="3 x batch size"):
        tables.lookup(send(np.array([1])), send(np.array([0, 1])), None)
    dropping = made(TABLES, bounds="drop")
    indices = np.array([1, 30, 1])
    expected = dropping.forward(indices, np.array([0, 1, 2, 3]), training=False)
    got = packed(TABLES, dropping, drop=True).lookup(send(indices), offsets, None)
    assert np.array_equal(fetch(got), expected)


def test_rows_that_do_not_fit_are_refused() -> None:
    emb = made(TABLES)
    rows = [emb.export(table.name) for table in TABLES]
    on, _ = begin(rows[0], "rows", None, captures.waits("a lookup"))
    with pytest.raises(ValueError, match="rows of table 'a': expected 50 rows, got 49"):
        PackedTables(TABLES, [rows[0][:-1], *rows[1:]], on, drop=False)
    with pytest.raises(ValueError, match="several tables must all be pooled"):
        PackedTables(UNPOOLED * 2, rows, on, drop=False)
