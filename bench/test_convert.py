"""Rows to low precision and back; the limit copies as many bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases
import limits
import numpy as np
import peers
import pytest
import targets
from arena import Entry
from rounds import OURS, Contender

import mpembed as mpe

DIM = 64
NAMES = {"int8": "byte", "int4": "4bit"}
OPERATIONS = ["quantize nearest", "quantize stochastic", "dequantize"]


def values(rows: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(2).standard_normal((rows, DIM), dtype=np.float32)


def entry(name: str, build: Callable[[], Callable[[int], Any]]) -> Entry:
    """Return an entry that shares no data with another."""
    return Entry(name, (name, build), build, lambda run: Contender(name, run))


def convert(operation: str, precision: str, rows: int) -> Entry:
    def build() -> Callable[[int], Any]:
        x = values(rows)
        packed = mpe.ops.quantize(x, precision)
        if operation == "dequantize":
            return lambda _: mpe.ops.dequantize(packed, precision, DIM, out=x)
        rounding = operation.split()[1]
        return lambda i: mpe.ops.quantize(x, precision, rounding=rounding, step=i, out=packed)

    return entry(OURS, build)


def torch_convert(operation: str, precision: str, rows: int) -> Entry:
    def build() -> Callable[[int], Any]:
        torch = peers.torch()
        name = f"embedding_bag_{NAMES[precision]}"
        pack = getattr(torch.ops.quantized, f"{name}_prepack")
        x = torch.from_numpy(values(rows))
        if operation != "dequantize":
            return lambda _: pack(x)
        unpack, packed = getattr(torch.ops.quantized, f"{name}_unpack"), pack(x)
        return lambda _: unpack(packed)

    return entry("torch", build)


@pytest.mark.parametrize("case", cases.product(NAMES, OPERATIONS, targets.THREADS), ids=cases.name)
def test_convert(benchmark: Any, arena: Any, case: tuple[str, str, int]) -> None:
    precision, operation, threads = case
    rows = 1 << (16 if arena.quick else 19)
    size = rows * (4 * DIM + mpe.registry.row_bytes(precision, DIM))
    entries = [
        convert(operation, precision, rows),
        torch_convert(operation, precision, rows),
        limits.copy(size, threads),
    ]
    what = {"operation": operation, "precision": precision, "threads": threads}
    arena.compare(benchmark, "convert", what, rows, entries)
