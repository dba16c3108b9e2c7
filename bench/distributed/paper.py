"""A terabyte of FP32 tables on other machines, on paper: memory, traffic, time of a step."""

from __future__ import annotations

from dataclasses import dataclass

from distributed import formula

import mpembed as mpe
from mpembed._collection.memory_plan import memory_plan
from mpembed._collection.settings import Settings

ROWS, DIM, TABLES = 2_000_000_000, 128, 26  # of all tables together; columns; tables, of a feature
BATCH, LENGTH = 65_536, 1
_GB = 1e9
_SAMPLE = 1_000_000  # rows whose memory is planned, of each table


@dataclass(frozen=True)
class Machines:
    """Ranks, and what each has by its data sheet.

    Attributes
    ----------
    name : str
        For the table.
    world : int
        Ranks.
    wire, memory : float
        Bytes a second that a rank sends, and that its memory moves.
    scatter : float
        As in `formula`.
    aligned : bool
        Whether rows are aligned as on a GPU.
    """

    name: str
    world: int
    wire: float
    memory: float
    scatter: float
    aligned: bool


GPUS = Machines("8 GPUs, NCCL", 8, 450 * _GB, 3350 * _GB, formula.NCCL, True)
HOSTS = Machines("16 hosts, gloo", 16, 12.5 * _GB, 200 * _GB, formula.GLOO, False)


def row_bytes(precision: str, cache: float, *, aligned: bool) -> float:
    """Return what a row takes with rowwise Adagrad's state and its part of an LFU cache."""
    table = mpe.TableConfig("t", _SAMPLE, DIM, precision=precision)
    cached = mpe.CacheConfig(load_factor=cache, policy="lfu") if cache else None
    optimizer = mpe.RowwiseAdagrad(lr=0.1)
    rounding = mpe.registry.DEFAULT_ROUNDING
    settings = Settings.checked([table], cached, optimizer, "cpu", 0, rounding, "raise", "raise")
    return float(memory_plan(settings, aligned=aligned)["total"]) / _SAMPLE


def moved_bytes(world: int) -> float:
    """Return what a rank's memory moves in a step, as if all rows were cached and different.

    A forward reads a row of FP32; a backward reads a gradient, and reads and writes the row with a
    state. The outputs of bags are written, and their gradients read.
    """
    lookups = BATCH * TABLES * LENGTH / world
    outputs = BATCH * TABLES * DIM * formula.FLOAT / world
    return lookups * (4 * DIM * formula.FLOAT + 2 * formula.FLOAT) + 2 * outputs


def memory_table() -> str:
    """Return the memory of a rank."""
    lines = [
        "| GB of each rank | FP32 | INT8 + 5 % | INT4 + 5 % | INT4 |",
        "|---|---|---|---|---|",
    ]
    kinds = [("fp32", 0.0), ("int8", 0.05), ("int4", 0.05), ("int4", 0.0)]
    for where in (GPUS, HOSTS):
        sizes = [ROWS * row_bytes(*kind, aligned=where.aligned) / where.world for kind in kinds]
        lines.append(f"| {where.name} | " + " | ".join(f"{one / _GB:.1f}" for one in sizes) + " |")
    return "\n".join(lines)


def step_table() -> str:
    """Return the traffic and times of a step."""
    lines = [
        "| | | MB sent by a rank | ms on the wire | ms in memory |",
        "|---|---|---|---|---|",
    ]
    columns = TABLES * DIM
    for where in (GPUS, HOSTS):
        given = where.world, BATCH, TABLES, columns, LENGTH
        steps = {
            "table-wise": formula.torchrec("table-wise", *given),
            "table-wise, FP16 sent": formula.torchrec("table-wise", *given, value=2),
            "row-wise": formula.torchrec("row-wise", *given, scatter=where.scatter),
            "row-wise, rows exchanged": formula.exchanged_rows(*given),
        }
        for name, step in steps.items():
            sent = step.total / where.world
            lines.append(
                f"| {where.name} | {name} | {sent / 1e6:,.0f} | {1e3 * sent / where.wire:.2f} "
                f"| {1e3 * moved_bytes(where.world) / where.memory:.2f} |"
            )
    return "\n".join(lines)
