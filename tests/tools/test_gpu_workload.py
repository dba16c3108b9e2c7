"""The batches of the whole step: their rows, and what a cache makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpembed_gpu import step, workload
from mpembed_gpu.workload import Counts, Setting

SMALL = Setting("int8", 0.05, "lru", {1: 20, 20: 4})


def test_tables_are_spaced_evenly_in_logarithm() -> None:
    rows = workload.table_rows()
    assert (len(rows), rows[0], rows[-1]) == (26, 1_000_000, 10_000_000)
    ratios = np.divide(rows[1:], rows[:-1])
    assert ratios.min() == pytest.approx(ratios.max(), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 10, 1000])
def test_rows_are_drawn_by_their_weights(rows: int) -> None:
    drawn = workload.draw(np.random.default_rng(1), rows, 200_000)
    edges = np.arange(1, rows + 2, dtype=float) ** (1 - workload.EXPONENT)
    chance = (edges[:-1] - edges[1:]) / (edges[0] - edges[-1])
    counts = np.bincount(drawn, minlength=rows) / len(drawn)
    assert len(counts) == rows
    # Whatever numbers the rows have.
    np.testing.assert_allclose(np.sort(counts)[::-1][:5], chance[:5], atol=0.005)


def test_the_unique_rows_are_as_many_as_expected() -> None:
    drawn = workload.draw(np.random.default_rng(1), 50_000, 100_000)
    expected = workload.expected_unique(50_000, 100_000)
    assert len(np.unique(drawn)) == pytest.approx(expected, rel=0.01)


def consistent(counts: Counts) -> None:
    """Whether the counts of a batch with a cache that is full agree."""
    assert counts.hits + counts.misses == counts.unique
    assert counts.admitted == counts.written <= counts.misses
    assert counts.cached == counts.hits + counts.admitted <= counts.slots
    assert counts.few + counts.many < counts.unique
    assert counts.once + counts.few_lookups + counts.many_lookups == counts.lookups
    assert counts.cached_many_lookups <= min(counts.cached_lookups, counts.many_lookups)
    assert counts.hits <= counts.hit_lookups <= counts.cached_lookups
    assert counts.admitted <= counts.cached_lookups - counts.hit_lookups
    assert counts.hit_many_lookups <= min(counts.hit_lookups, counts.cached_many_lookups)


@pytest.mark.parametrize("pool", workload.LOOKUPS)
def test_a_small_workload(pool: int) -> None:
    rows = [5_000, 20_000]
    counts = workload.simulate(SMALL, pool, rows, 512)
    consistent(counts)
    assert counts.lookups == 2 * 512 * pool
    expected = sum(workload.expected_unique(count, 512 * pool) for count in rows)
    assert counts.unique == pytest.approx(expected, rel=0.05)


def test_the_kept_counts() -> None:
    found = workload.read(step.WORKLOAD)
    assert set(found) == {(s.name, pool) for s in workload.SETTINGS for pool in workload.LOOKUPS}
    for (_, pool), counts in found.items():
        consistent(counts)
        n = workload.BATCH * pool
        assert counts.lookups == n * workload.TABLES
        expected = sum(workload.expected_unique(rows, n) for rows in workload.table_rows()[:1])
        assert counts.unique > expected


def test_counts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = workload.simulate(SMALL, 1, [500, 600], 64)
    monkeypatch.setattr(workload, "simulate", lambda setting, pool: made)
    workload.write(tmp_path / "workload.json")
    assert set(workload.read(tmp_path / "workload.json").values()) == {made}
