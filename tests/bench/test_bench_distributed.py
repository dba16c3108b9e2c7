"""bench/distributed: the formula, what is counted on the wire, and the tables of the manual."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from distributed import formula, paper, report, wire
from distributed.cases import BATCHES, CONTENDERS, MODES, OURS, PLAIN, ROWS, TORCHREC, Setting
from distributed.cases import indices as indices_of
from folders import ROOT

PAGE = (ROOT / "docs/distributed.md").read_text(encoding="utf-8")
SETTING = Setting(2, 3, 16, 256, "int4", 0.05, 2, 3)


def pairs(world: int) -> Iterator[tuple[int, int]]:
    return ((one, other) for one, other in product(range(world), repeat=2) if one != other)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_tables_of_one_rank_send_what_each_pair_of_ranks_sends(world: int) -> None:
    bags, dim, length = 5, 8, 3
    inputs = outputs = 0
    for _, owner in pairs(world):
        for table in range(2 * world):
            if table % world == owner:
                inputs += bags * 4 + bags * length * 8  # to the table
                outputs += bags * dim * 4  # and back
    tables = 2 * world
    found = formula.torchrec("table-wise", world, world * bags, tables, tables * dim, length)
    assert found == pytest.approx((inputs, outputs, outputs))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_split_rows_send_what_each_pair_of_ranks_sends(world: int) -> None:
    bags, tables, dim, length = 6, 5, 8, 2
    inputs = outputs = 0.0
    for _ in pairs(world):
        inputs += tables * (bags * 4 + bags * length / world * 8)
        outputs += tables * bags * dim * 4
    given = world, world * bags, tables, tables * dim, length
    found = formula.torchrec("row-wise", *given)
    assert found == pytest.approx((inputs, 2 * outputs, outputs))
    found = formula.torchrec("row-wise", *given, scatter=formula.NCCL, value=2)
    assert found == pytest.approx((inputs, outputs / 2, outputs / 2))
    vectors = sum(bags * tables * length / world for _ in pairs(world))
    assert formula.exchanged_rows(*given) == pytest.approx(
        (vectors * 8, vectors * dim * 4, vectors * dim * 4)
    )


def test_bytes_of_connections_are_counted() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as there,
        server.accept()[0] as here,
    ):
        before = wire.received()
        there.sendall(bytes(12_345))
        here.settimeout(10)
        left = 12_345
        while left:
            left -= len(here.recv(left))
        assert wire.received() - before == 12_345


def test_batches_are_in_range_and_a_ranks_own() -> None:
    first, second = indices_of(SETTING, 0), indices_of(SETTING, 1)
    assert len(first) == BATCHES
    for batch in first:
        for rows, one in zip(ROWS, batch, strict=True):
            assert len(one) == SETTING.bags * SETTING.length
            assert one.min() >= 0
            assert one.max() < rows
    assert (first[0][0] != second[0][0]).any()
    of_largest = [int(row) for batch in first for row in batch[0]]
    assert len(set(of_largest)) < 0.9 * len(of_largest)  # some rows come often


def result(name: str, cpu: list[list[float]], received: float) -> dict[str, Any]:
    per_rank = [[received / 2] * len(cpu[0])] * 2
    more = {"wall": cpu, "received": per_rank, "held": [1e6, 2e6], "expected": [500.0, 500.0]}
    return {"name": name, "mode": MODES[0], "cpu": cpu, **more, **SETTING.as_dict()}


def test_the_table_compares_within_rounds() -> None:
    base = result(TORCHREC, [[0.001, 0.010, 0.002], [0.003, 0.010, 0.002]], 1000.0)
    ours = result(OURS, [[0.002, 0.015, 0.002], [0.004, 0.015, 0.002]], 1040.0)
    rows = report.table([base, ours]).splitlines()
    where = "| 2 | 16 | 3 | table-wise |"
    assert rows[2] == f"{where} TorchRec fp32 | 2.00 |  | 1 | 1 (+0.0%) | 3.0 |"
    assert rows[3] == f"{where} TorchRec + mpembed | 3.00 | 1.50 | 1 | 1 (+4.0%) | 3.0 |"
    alone = report.table([ours]).splitlines()[2]
    assert alone == rows[3].replace(" 1.50 ", "  ")


def test_the_manual_has_the_tables_on_paper() -> None:
    assert paper.memory_table() in PAGE
    assert paper.step_table() in PAGE


@pytest.mark.exhaustive
@pytest.mark.torch
@pytest.mark.torchrec
def test_bytes_on_the_wire_are_those_of_the_formula() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("torchrec", reason="TorchRec is not installed", exc_type=ImportError)
    from distributed import runner

    found = runner.run(SETTING, CONTENDERS, 240.0)
    assert {(one["name"], one["mode"]) for one in found} == set(product(CONTENDERS, MODES))
    for one in found:
        assert report.sent(one) == pytest.approx(sum(one["expected"]), rel=0.05)
    held = {one["name"]: sum(one["held"]) for one in found if one["mode"] == MODES[0]}
    assert held[TORCHREC] == sum(ROWS) * (4 * SETTING.dim + 4)
    assert held[OURS] < held[TORCHREC] / 3
    assert held[PLAIN] == pytest.approx(held[OURS], rel=0.01)
