"""Entries of the limit: what the machine's memory allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import limit
import numpy as np
from arena import AbsentError, Entry
from rounds import LIMIT
from workloads import Shape, Stream

from mpembed._bindings import kernels
from mpembed.registry import OPTIMIZERS, STATE_ELEMENT, row_bytes


def state_bytes(optimizer: str, dim: int) -> int:
    """Return the bytes that an optimizer keeps of a row, in FP32."""
    states = kernels.optimizer_states(OPTIMIZERS[optimizer])
    return sum(4 * (dim if shape == STATE_ELEMENT else 1) for _, shape, _ in states)


def _where_compiled(make: Callable[[], Any]) -> Callable[[], Any]:
    def build() -> Any:
        reason = limit.missing()
        if reason is not None:
            raise AbsentError(reason)
        return make()

    return build


def _rows(shape: Shape, precision: str, optimizer: str) -> tuple[int, int]:
    all_rows = shape.tables * shape.rows
    return all_rows * row_bytes(precision, shape.dim), all_rows * state_bytes(optimizer, shape.dim)


def gather(precision: str, batches: Stream, threads: int, optimizer: str = "sgd") -> Entry:
    """Read the rows, in memory that `modify` for that optimizer may share."""
    shape = batches.shape
    sizes = _rows(shape, precision, optimizer)
    each = row_bytes(precision, shape.dim)
    return Entry(
        LIMIT,
        (LIMIT, *sizes),
        _where_compiled(lambda: [limit.Memory(size) for size in sizes]),
        lambda memory: limit.gather(memory[0], each, batches.linear, threads),
    )


def modify(
    precision: str, optimizer: str, batches: Stream, threads: int, whole: bool = False
) -> Entry:
    """Read and write the rows and the optimizer's state once a lookup; `whole`: read first."""
    shape = batches.shape
    sizes = _rows(shape, precision, optimizer)
    each = row_bytes(precision, shape.dim), state_bytes(optimizer, shape.dim)
    return Entry(
        LIMIT,
        (LIMIT, *sizes),
        _where_compiled(lambda: [limit.Memory(size) for size in sizes]),
        lambda memory: limit.modify(
            *((memory[0], each[0]), (memory[1], each[1]), batches.linear, threads, whole)
        ),
    )


def sets(num_sets: int, set_bytes: int, n: int, threads: int) -> Entry:
    """Read n sets of a cache's tags at random."""
    rng = np.random.default_rng(3)
    batches = [rng.integers(0, num_sets, n) for _ in range(8)]
    return Entry(
        LIMIT,
        (LIMIT, "sets", num_sets, set_bytes),
        _where_compiled(lambda: limit.Memory(num_sets * set_bytes)),
        lambda memory: limit.gather(memory, set_bytes, batches, threads),
    )


def copy(size: int, threads: int) -> Entry:
    """Copy memory: `size` bytes in all are read or written."""
    return Entry(
        LIMIT,
        (LIMIT, "copy", size),
        _where_compiled(lambda: (limit.Memory(size // 2), limit.Memory(size // 2))),
        lambda memory: limit.copy(memory[0], memory[1], threads),
    )
