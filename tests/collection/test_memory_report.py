"""Every byte is counted, and the ratios are what the formats allow."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpembed as mpe
from mpembed._bindings import memory

LARGE: dict[str, dict[str, Any]] = {
    "fp32 lru": {"precision": "fp32", "policy": "lru"},
    "int8 lfu": {"precision": "int8", "policy": "lfu"},
    "int4 none": {"precision": "int4", "policy": None},
}


def build(
    rows: int,
    dim: int,
    precision: str,
    policy: str | None,
    share: float,
    optimizer: Any = mpe.RowwiseAdagrad,
) -> Any:
    cache = None if policy is None else mpe.CacheConfig(load_factor=share, policy=policy)
    table = mpe.TableConfig("t", rows, dim, precision=precision, init="zeros")
    return mpe.EmbeddingBagCollection([table], cache=cache, optimizer=optimizer(lr=0.1))


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


def test_the_docstring_has_every_entry() -> None:
    emb = build(100, 8, "int8", "lfu", 0.1)
    report, text = emb.memory_report(), mpe.EmbeddingBagCollection.memory_report.__doc__ or ""
    inside = [one for each in ("tables", "caches") for one in report[each].values()]
    for name in {*report, *inside[0], *inside[1]}:
        assert f"``{name}``" in text, name


RESIDENT = """
import gc, sys
import numpy as np
import mpembed as mpe
from mpembed.collection import collection_state

def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096

precision, policy, optimizer = sys.argv[1:]
optimizer = {"rowwise": mpe.RowwiseAdagrad(0.1), "bf16": mpe.Adagrad(0.1, state_precision="bf16")}[
    optimizer
]
cache = None if policy == "None" else mpe.CacheConfig(load_factor=0.2, policy=policy)
tables = [
    mpe.TableConfig(name, 600_001, 64, precision=precision, init=("uniform", 0, 1)) for name in "ab"
]
small = mpe.EmbeddingBagCollection(tables[:1], cache=None, optimizer=mpe.SGD(0.1))
del small  # code and threads are loaded
before = resident()
emb = mpe.EmbeddingBagCollection(tables, cache=cache, optimizer=optimizer)
for array in collection_state(emb).arrays().values():
    array.memory.view(np.uint8)[...] |= np.uint8(0)  # touches every page, changes nothing
print(resident() - before, emb.memory_report()["total"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("precision", "policy", "optimizer"),
    [("fp32", "lru", "rowwise"), ("int8", "lfu", "rowwise"), ("int4", "None", "bf16")],
)
def test_report_is_what_is_resident(
    precision: str, policy: str, optimizer: str, tmp_path: Path
) -> None:
    """Hundreds of megabytes, every page touched, in a process of their own."""
    command = [sys.executable, "-c", RESIDENT, precision, policy, optimizer]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    resident, total = map(int, done.stdout.split())
    assert total > 100 << 20
    assert abs(resident - total) <= 0.02 * total


@pytest.mark.parametrize("policy", [None, *mpe.registry.POLICIES])
@pytest.mark.parametrize("precision", mpe.registry.FORMATS)
def test_report_is_what_the_allocator_gave(precision: str, policy: str | None) -> None:
    before = memory.allocated_bytes()
    emb = build(200_000, 32, precision, policy, 0.05)
    taken = memory.allocated_bytes() - before
    assert 0 <= taken - emb.memory_report()["total"] + 1024 <= 0.02 * taken


def test_report_adds_up() -> None:
    emb = build(10_000, 16, "int4", "lfu", 0.1)
    emb.forward(np.arange(100), np.arange(101))
    report = emb.memory_report()
    arrays = emb.state_arrays()
    parts = [
        b for group in ("tables", "caches") for p in report[group].values() for b in p.values()
    ]
    assert report["workspace"] > 0
    others = ("statistics", "workspace", "descriptors")
    assert report["total"] == sum(parts) + sum(report[name] for name in others)
    counters = ("step", "updates")
    assert report["total"] - report["workspace"] == report["descriptors"] + sum(
        a.nbytes for name, a in arrays.items() if name not in counters
    )
    assert report["tables"]["t"] == {
        "codes": 80_000,
        "row_parameters": 40_000,
        "optimizer_state": 40_000,
        "padding": 0,
    }
    assert report["fp32_total"] == 10_000 * (64 + 4)
    cache = report["caches"]["16.rowwise_adagrad"]
    slots = cache["cache_rows"] // 64
    assert slots == 32 * 32
    assert cache["optimizer_state"] == 4 * slots
    assert cache["tags"] + cache["policy_state"] <= 12 * slots + 16
    assert cache["sketch"] <= 8 * slots
    emb.backward(np.zeros((100, 16), np.float32))
    assert emb.memory_report()["workspace"] == 0


# Precision, load factor, and what FP32 takes at least times as much: of rows and cache alone, and
# with rowwise Adagrad's FP32 state on both sides.
RATIOS = [
    ("int8", 0.05, 2.95, 2.893),
    ("int8_fp16", 0.05, 3.1, 3.027),
    ("int4", 0.05, 4.9, 4.826),
    ("int4", 0.01, 6.5, 6.076),
]


@pytest.mark.parametrize("policy", mpe.registry.POLICIES)
@pytest.mark.parametrize(("precision", "share", "rows_alone", "with_state"), RATIOS)
def test_both_ratios_of_a_million_rows(
    precision: str, share: float, rows_alone: float, with_state: float, policy: str
) -> None:
    rows = 1_000_000
    report = build(rows, 64, precision, policy, share).memory_report()
    assert report["ratio_embeddings"] >= rows_alone
    assert report["ratio"] >= with_state
    slots = report["caches"]["64.rowwise_adagrad"]["cache_rows"] // 256
    state = 4 * (rows + slots)
    assert report["ratio"] == report["fp32_total"] / report["total"]
    assert report["fp32_total"] == 260 * rows
    assert report["ratio_embeddings"] == 256 * rows / (report["total"] - state)


@pytest.mark.parametrize("policy", mpe.registry.POLICIES)
@pytest.mark.parametrize(("precision", "share", "rows_alone", "with_state"), RATIOS)
def test_without_state_everything_counted_reaches_the_ratio(
    precision: str, share: float, rows_alone: float, with_state: float, policy: str
) -> None:
    report = build(1_000_000, 64, precision, policy, share, mpe.SGD).memory_report()
    assert report["ratio"] == report["ratio_embeddings"] >= rows_alone > with_state
