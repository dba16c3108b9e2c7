"""Every byte is counted, and the ratios are what the formats allow."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

import mpembed as mpe

LARGE: dict[str, dict[str, Any]] = {
    "fp32 lru": {"precision": "fp32", "policy": "lru"},
    "int8 lfu": {"precision": "int8", "policy": "lfu"},
    "int4 none": {"precision": "int4", "policy": None},
}


def build(rows: int, dim: int, precision: str, policy: str | None, share: float) -> Any:
    cache = None if policy is None else mpe.CacheConfig(load_factor=share, policy=policy)
    table = mpe.TableConfig("t", rows, dim, precision=precision, init="zeros")
    return mpe.EmbeddingBagCollection([table], cache=cache, optimizer=mpe.RowwiseAdagrad(lr=0.1))


@pytest.mark.parametrize("name", list(LARGE))
def test_report_is_what_was_allocated(name: str) -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        emb = build(1_000_000, 64, share=0.05, **LARGE[name])
        indices = np.arange(0, 1_000_000, 10)
        given = tracemalloc.get_traced_memory()[0]
        out = emb.forward(indices, np.arange(0, len(indices) + 1, 10))
        held = tracemalloc.get_traced_memory()[0] - before - indices.nbytes - out.nbytes
    finally:
        tracemalloc.stop()
    assert given > before
    total = emb.memory_report()["total"]
    assert abs(held - total) <= 0.02 * total


def test_report_adds_up() -> None:
    emb = build(10_000, 16, "int4", "lfu", 0.1)
    emb.forward(np.arange(100), np.arange(101))
    report = emb.memory_report()
    arrays = emb.state_arrays()
    parts = [
        b for group in ("tables", "caches") for p in report[group].values() for b in p.values()
    ]
    assert report["workspace"] > 0
    assert report["total"] == sum(parts) + report["statistics"] + report["workspace"]
    assert report["total"] - report["workspace"] == sum(
        a.nbytes for name, a in arrays.items() if name != "step"
    )
    assert report["tables"]["t"] == {
        "codes": 80_000,
        "row_parameters": 40_000,
        "optimizer_state": 40_000,
    }
    assert report["fp32_total"] == 10_000 * (64 + 4)
    cache = report["caches"]["dim16"]
    slots = cache["cache_rows"] // 64
    assert slots == 32 * 32
    assert cache["tags"] + cache["policy_state"] <= 12 * slots + 16
    assert cache["sketch"] <= 8 * slots
    emb.backward(np.zeros((100, 16), np.float32))
    assert emb.memory_report()["workspace"] == 0


@pytest.mark.parametrize("policy", mpe.registry.POLICIES)
@pytest.mark.parametrize(
    ("precision", "share", "least"),
    [("int8", 0.05, 2.95), ("int8_fp16", 0.05, 3.1), ("int4", 0.05, 4.9), ("int4", 0.01, 6.5)],
)
def test_ratios_of_a_large_table(precision: str, share: float, least: float, policy: str) -> None:
    rows = 300_000
    report = build(rows, 64, precision, policy, share).memory_report()
    assert report["ratio_embeddings"] >= least
    state = 4 * rows
    assert report["ratio"] == report["fp32_total"] / report["total"]
    assert report["ratio_embeddings"] == 256 * rows / (report["total"] - state)
