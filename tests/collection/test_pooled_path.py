"""The pooled path: what runs in Python does not grow with the number of tables."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import mpembed as mpe


def lines_run(call: Callable[[], Any]) -> int:
    """Return the number of lines of Python that a call runs."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    old = sys.gettrace()
    gc.disable()  # its callbacks would be counted
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(old)
        gc.enable()
    return count


def lines_of_a_step(tables: int) -> tuple[int, int]:
    """Return the lines that a pooled forward and its backward run."""
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig(f"t{i}", 9, 4) for i in range(tables)],
        cache=mpe.CacheConfig(num_sets=1),
        optimizer=mpe.SGD(0.1),
    )
    indices, offsets = np.arange(tables) % 9, np.arange(tables + 1)
    grad, out = np.ones((1, 4 * tables), np.float32), np.empty((1, 4 * tables), np.float32)
    emb.forward(indices, offsets)
    emb.backward(grad)  # what is done once is done
    forward = lines_run(lambda: emb.forward(indices, offsets, out=out))
    return forward, lines_run(lambda: emb.backward(grad))


def test_a_pooled_step_runs_no_python_for_each_table() -> None:
    few, many = lines_of_a_step(2), lines_of_a_step(60)
    # A finalizer more or less may run meanwhile; one line a table would be 58 lines.
    assert all(abs(more - less) < 20 for more, less in zip(many, few, strict=True))
