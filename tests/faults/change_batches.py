"""One thread calls mpembed, another writes to the arguments: ``python change_batches.py SECONDS``.

All ways of changing them take so many seconds together. The program ends by "right" if no call has
crashed and the collections are as they were.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import mpembed as mpe
from mpembed import ops

N, ROWS, DIM, BAGS = 40_000, 100, 4, 20_000
Change = Callable[[], None]
REFUSALS = ValueError, IndexError


def offsets_of(dtype: Any) -> Any:
    return np.linspace(0, N, 2 * BAGS + 1).astype(dtype)


def another_border(offsets: Any) -> Any:
    """Return right offsets whose first table has all indices."""
    result = offsets.copy()
    result[BAGS:] = N
    return result


def far(offsets: Any) -> Any:
    result = offsets.copy()
    result[1:-1] = 2**30
    return result


def below_zero(offsets: Any) -> Any:
    result = offsets.copy()
    result[1:-1] = -(2**30)
    return result


def run(seconds: float, change: Change, call: Callable[[], Any]) -> tuple[int, int]:
    """Call as long as that, beside a thread that changes; return how many succeeded and failed."""
    stop, done, failed = threading.Event(), 0, 0

    def keep_changing() -> None:
        while not stop.is_set():
            change()

    thread = threading.Thread(target=keep_changing)
    thread.start()
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                call()
                done += 1
            except REFUSALS:
                failed += 1
    finally:
        stop.set()
        thread.join()
    return done, failed


def trainer(emb: mpe.EmbeddingBagCollection, indices: Any, offsets: Any) -> Callable[[], Any]:
    def call() -> None:
        out, ticket = emb.forward(indices, offsets, ticket=True)
        if isinstance(out, dict):
            zeros: Any = {name: np.zeros_like(one) for name, one in out.items()}
        else:
            zeros = np.zeros_like(out)
        emb.backward(zeros, ticket)

    return call


def collection(pooling: str, bounds: str) -> mpe.EmbeddingBagCollection:
    tables = [mpe.TableConfig(name, ROWS, DIM, pooling=pooling) for name in "ab"]
    cache = mpe.CacheConfig(load_factor=0.2)
    return mpe.EmbeddingBagCollection(tables, cache=cache, optimizer=mpe.SGD(0.1), bounds=bounds)


def change_batches(seconds: float, dtype: Any, pooling: str, bounds: str) -> None:
    """Train beside a thread that changes offsets, then indices; then check the rows."""
    emb = collection(pooling, bounds)
    before = [emb.rows(name, np.arange(ROWS)) for name in "ab"]
    offsets, indices = offsets_of(dtype), np.zeros(N, dtype)
    right = offsets.copy()
    table, zeros = np.zeros((ROWS, 4 * DIM), np.uint8), np.zeros((N, DIM), np.float32)
    one_table = [
        lambda: ops.embedding_bag(table, "fp32", DIM, indices, offsets),
        lambda: ops.unique_rows(indices),
        lambda: ops.sgd_(np.zeros((ROWS, DIM), np.float32), indices, zeros, lr=1.0),
    ]
    for wrong in (another_border(right), far(right), below_zero(right)):

        def change_offsets(wrong: Any = wrong) -> None:
            offsets[:] = wrong
            offsets[:] = right

        for call in (trainer(emb, indices, offsets), one_table[0]):
            print(dtype.__name__, pooling, bounds, run(seconds, change_offsets, call))
    offsets[:] = right

    def change_indices() -> None:
        indices[:] = 2**30
        indices[:] = -(2**30)
        indices[:] = ROWS - 1
        indices[:] = 0

    for call in (trainer(emb, indices, offsets), *one_table):
        print(dtype.__name__, pooling, bounds, run(seconds, change_indices, call))
    indices[:] = 0
    for name, rows in zip("ab", before, strict=True):
        assert np.array_equal(emb.rows(name, np.arange(ROWS)), rows)
    trainer(emb, indices, offsets)()


if __name__ == "__main__":
    each = float(sys.argv[1]) / 30
    change_batches(each, np.int64, "sum", "raise")
    change_batches(each, np.int32, "sum", "drop")
    change_batches(each, np.int64, "none", "drop")
    print("right")
