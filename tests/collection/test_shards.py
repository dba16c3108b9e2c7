"""Shards of a table are the table: the same bytes, row by row. Some shards are empty."""

from __future__ import annotations

from typing import Any

import kinds
import numpy as np
import on_device
import pytest
from drive import FORMATS, POLICIES, ROUNDINGS, make_cache, make_pair, train
from oracles import DECAYS
from reference.pair import Batches, assert_same

import mpembed as mpe

pytestmark = pytest.mark.usefixtures("each_device")
ROWS, DIM, CUT = 41, 10, 17


def halves(number: int, precision: str) -> list[mpe.TableConfig]:
    """Table `number` in two parts."""
    parts = (("low", 0, CUT), ("high", CUT, ROWS - CUT))
    return [
        mpe.TableConfig(
            f"{name} {precision}",
            rows,
            DIM,
            precision,
            table_id=number,
            first_row=first,
            total_rows=ROWS,
        )
        for name, first, rows in parts
    ]


def whole(number: int, precision: str) -> mpe.TableConfig:
    return mpe.TableConfig(precision, ROWS, DIM, precision, table_id=number)


class Batch:
    """A batch of all formats' tables, and what the shards get of it: their rows, the same bags."""

    def __init__(self, rng: np.random.Generator, tables: int) -> None:
        self.lengths = rng.integers(0, 7, (tables, 8))
        self.bags = np.repeat(np.arange(tables * 8), self.lengths.reshape(-1))
        self.rows = rng.integers(0, ROWS, len(self.bags))
        self.weights = rng.standard_normal(len(self.bags), np.float32)
        self.grad = rng.standard_normal((8, tables * DIM), np.float32)

    def part(self, low: int, high: int) -> tuple[Any, Any, Any]:
        """Rows low .. high of every table."""
        mine = (self.rows >= low) & (self.rows < high)
        counts = np.bincount(self.bags[mine], minlength=self.lengths.size)
        return self.rows[mine] - low, np.concatenate([[0], np.cumsum(counts)]), self.weights[mine]


def assert_same_tables(one: Any, parts: list[Any]) -> None:
    """Compare rows and states of whole tables with those of their halves."""
    expected = {k: a for k, a in one.state_arrays().items() if k.startswith("table.")}
    arrays = {k: a for part in parts for k, a in part.state_arrays().items()}
    assert expected
    for key, array in expected.items():
        got = [arrays[key.replace("table.", f"table.{name} ")] for name in ("low", "high")]
        assert_same(np.concatenate(got), array, key)


@pytest.mark.pairwise
@pytest.mark.parametrize("mode", DECAYS)
@pytest.mark.parametrize("optimizer", kinds.NAMES)
def test_two_halves_have_the_bytes_of_the_whole(optimizer: str, mode: str) -> None:
    assert_halves_equal_the_whole(optimizer, mode, mpe.registry.DEFAULT_ROUNDING)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_two_halves_are_rounded_as_the_whole(rounding: str) -> None:
    assert_halves_equal_the_whole("adagrad", "none", rounding)


def assert_halves_equal_the_whole(optimizer: str, mode: str, rounding: str) -> None:
    """In collections of their own, as on two machines; every format, rates that change."""
    rules = [kinds.named(optimizer, mode=mode) for _ in range(3)]
    tables = [whole(7 + i, precision) for i, precision in enumerate(FORMATS)]
    low, high = zip(*(halves(7 + i, name) for i, name in enumerate(FORMATS)), strict=True)
    options = {"seed": 2**50 + 1, "rounding": rounding}
    embs = [
        on_device.make(list(some), optimizer=rule, **options)
        for some, rule in zip((tables, low, high), rules, strict=True)
    ]
    rng = np.random.default_rng(4)
    for step in range(5):
        assert_same_tables(embs[0], embs[1:])
        batch, borders = Batch(rng, len(tables)), ((0, ROWS), (0, CUT), (CUT, ROWS))
        for emb, rule, (begin, end) in zip(embs, rules, borders, strict=True):
            rule.lr = 0.01 * (step + 1)
            emb.forward(*batch.part(begin, end))
            emb.backward(batch.grad)
    assert_same_tables(embs[0], embs[1:])


@pytest.mark.parametrize("optimizer", ["sgd", "adam_bf16", "rowwise_adam_mixed"])
def test_two_halves_in_one_collection_have_the_bytes_of_the_whole(optimizer: str) -> None:
    one = on_device.make([whole(7, "int4")], optimizer=kinds.named(optimizer))
    both = on_device.make(halves(7, "int4"), optimizer=kinds.named(optimizer))
    rng = np.random.default_rng(4)
    for _ in range(5):
        batch = Batch(rng, 1)
        one.forward(*batch.part(0, ROWS))
        one.backward(batch.grad)
        low, high = batch.part(0, CUT), batch.part(CUT, ROWS)
        ends = np.concatenate([low[1], low[1][-1] + high[1][1:]])
        both.forward(np.concatenate([low[0], high[0]]), ends, np.concatenate([low[2], high[2]]))
        both.backward(np.concatenate([batch.grad, batch.grad], axis=1))
    assert_same_tables(one, [both])


def test_shards_of_one_table_may_not_overlap() -> None:
    tables = [mpe.TableConfig("a", 9, 4, table_id=3), mpe.TableConfig("b", 9, 4, table_id=3)]
    with pytest.raises(ValueError, match=r"'b'.*table_id"):
        on_device.make(tables, optimizer=mpe.SGD(0.1))
    tables[1] = mpe.TableConfig("b", 9, 4)  # whose place is 1
    on_device.make(tables, optimizer=mpe.SGD(0.1))
    tables[0] = mpe.TableConfig("a", 9, 4, table_id=1)
    with pytest.raises(ValueError, match=r"table_id"):
        on_device.make(tables, optimizer=mpe.SGD(0.1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_row": -1}, "first_row"),
        ({"first_row": 2**48}, "first_row"),
        (
            {"first_row": 5, "total_rows": 13},
            r"total_rows .* must be at least first_row \+ num_embeddings \(= 14\), got 13",
        ),
        ({"total_rows": 2**48}, "total_rows of table 'a' must be in 0 .."),
        ({"table_id": -1}, "table_id"),
        ({"table_id": 2**16}, "table_id"),
        ({"first_row": 1.5}, "first_row"),
    ],
)
def test_an_identity_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        mpe.TableConfig("a", 9, 4, **settings)


def test_numbers_of_rows_and_tables_at_their_limits() -> None:
    tables = [
        mpe.TableConfig("a", 9, 5, "int4", table_id=2**16 - 2, first_row=2**40, total_rows=2**41),
        mpe.TableConfig("b", 9, 5, "bf16", first_row=2**31 - 4),
    ]
    pair = make_pair(tables, make_cache("lru"), kinds.named("adam_bf16"), seed=9)
    train(pair, Batches(pair.ref, 1), 4)


# ---- no rows at all -----------------------------------------------------------------------------


@pytest.mark.pairwise
@pytest.mark.parametrize("bounds", ["raise", "drop"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("optimizer", kinds.KINDS)
def test_tables_without_rows(optimizer: str, policy: str | None, bounds: str) -> None:
    tables = [
        mpe.TableConfig("first", 0, 6, "int4"),
        mpe.TableConfig("some", 9, 6, "int8", "mean"),
        mpe.TableConfig("last", 0, 6, "fp32", "mean", first_row=9, total_rows=9),
        mpe.TableConfig("alone", 0, 3, "int2"),
    ]
    pair = make_pair(tables, make_cache(policy), kinds.make(optimizer), bounds=bounds)
    train(pair, Batches(pair.ref, 2), 4)
    if bounds == "drop":
        indices, offsets = np.array([0, 4, -1, 0]), np.array([0, 1, 2, 3, 4])
        pair.backward(np.ones_like(pair.forward(indices, offsets)))
        assert [s["dropped"] for s in pair.emb.stats().values()][1:] != [0, 0, 0]
    pair.rows("first", np.zeros(0, np.int64))
    pair.set_rows("last", np.zeros(0, np.int64), np.zeros((0, 6), np.float32))
    pair.flush()


def test_every_index_of_a_table_without_rows_is_out_of_range() -> None:
    tables = [mpe.TableConfig("a", 0, 6), mpe.TableConfig("b", 3, 6)]
    emb = on_device.make(tables, optimizer=mpe.SGD(0.1))
    with pytest.raises(IndexError, match=r"'a'.*0"):
        emb.forward(np.array([0]), np.array([0, 1, 1]))
    with pytest.raises(IndexError):
        emb.rows("a", np.array([0]))
    out = emb.forward(np.array([2]), np.array([0, 0, 1]))
    assert not out[:, :6].any()
