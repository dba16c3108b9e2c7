"""The plan of mpembed.torch.distributed: which rank has which rows, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import mpembed as mpe
from mpembed.torch.distributed import RowWise, TableWise
from mpembed.torch.distributed._plan import shard_tables

pytestmark = pytest.mark.torch


def shards(how: Any, rows: int, ranks: int, **kind: Any) -> list[mpe.TableConfig]:
    (found,) = shard_tables([mpe.TableConfig("t", rows, 4, **kind)], {"t": how}, ranks)
    return [found.shard(rank) for rank in range(ranks)]


@pytest.mark.parametrize(
    ("rows", "ranks", "expected"),
    [
        (10, 2, [5, 5]),
        (10, 3, [4, 4, 2]),
        (5, 4, [2, 2, 1, 0]),
        (1, 3, [1, 0, 0]),
        (0, 2, [0, 0]),
    ],
)
def test_rows_are_in_contiguous_blocks(rows: int, ranks: int, expected: list[int]) -> None:
    parts = shards(RowWise(), rows, ranks)
    assert [part.num_embeddings for part in parts] == expected
    assert [part.first_row for part in parts] == [sum(expected[:r]) for r in range(ranks)]
    assert {(part.table_id, part.total_rows) for part in parts} == {(0, rows)}


def test_an_owner_has_all_rows_and_others_none() -> None:
    parts = shards(TableWise(1), 9, 3, pooling="mean")
    assert [part.num_embeddings for part in parts] == [0, 9, 0]
    assert parts[1].pooling == "mean"


def test_a_shard_of_a_shard_keeps_its_place_in_the_whole_table() -> None:
    parts = shards(RowWise(), 10, 2, table_id=7, first_row=20, total_rows=99)
    assert [(p.table_id, p.first_row, p.total_rows) for p in parts] == [(7, 20, 99), (7, 25, 99)]


@pytest.mark.parametrize(
    ("how", "pooling"),
    [
        (RowWise(), "none"),
        (RowWise(mean_length=4), "none"),
        (RowWise(mean_length=4.1), "sum"),
        (RowWise(mean_length=50, exchange="rows"), "none"),
        (RowWise(exchange="pooled"), "sum"),
    ],
)
def test_rows_travel_where_bags_are_at_most_as_long_as_there_are_ranks(
    how: RowWise, pooling: str
) -> None:
    assert {part.pooling for part in shards(how, 40, 4, pooling="mean")} == {pooling}


@pytest.mark.parametrize(
    ("plan", "kind", "text"),
    [
        ({}, ValueError, r"plan must have the tables \['t'\], got \[\]"),
        ({"t": RowWise(), "u": RowWise()}, ValueError, "plan must have the tables"),
        ({"t": "row_wise"}, TypeError, "TableWise"),
        ({"t": TableWise(2)}, ValueError, "rank of table 't' in plan"),
        ({"t": TableWise(-1)}, ValueError, "rank of table 't' in plan"),
        ({"t": RowWise(exchange="all")}, ValueError, "exchange of table 't' in plan"),
        ({"t": RowWise(mean_length=-1)}, ValueError, "mean_length of table 't' in plan"),
    ],
)
def test_a_wrong_plan_is_refused(plan: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        shard_tables([mpe.TableConfig("t", 9, 4)], plan, 2)


def test_no_tables_are_refused() -> None:
    with pytest.raises(TypeError, match="tables must be a non-empty sequence of TableConfig"):
        shard_tables([], {}, 2)
