"""`rounding_report`: what it says, of which time, and that it changes nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import on_device
import pytest

import mpembed as mpe
from mpembed import rounding

E, D = 3000, 16
each_device = pytest.mark.usefixtures("each_device")
pytestmark = pytest.mark.usefixtures("judges_few_rows")


@pytest.fixture
def judges_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge what tests can afford to measure."""
    monkeypatch.setattr(rounding, "LEAST_ROWS", 2)


def make(*precisions: str, **options: Any) -> Any:
    tables = [mpe.TableConfig(p, E, D, p, init=("normal", 0.1)) for p in precisions]
    return on_device.make(tables, **{"optimizer": mpe.SGD(1.0)} | options)


def train(emb: Any, updates: int, std: float, seed: int = 0) -> None:
    """Updates of every row, of this size."""
    rng = np.random.default_rng(seed)
    count = len(emb.tables)
    for _ in range(updates):
        indices = np.concatenate([rng.permutation(E) for _ in range(count)])
        emb.forward(indices, np.arange(count * E + 1))
        emb.backward((rng.standard_normal((E, count * D)) * std).astype(np.float32))


@each_device
def test_tiny_updates_are_lost_in_int4_and_not_in_int8() -> None:
    emb = make("fp32", "int8", "int4")
    train(emb, 2, 0.008)
    report = emb.rounding_report()
    assert [table.verdict for table in report.values()] == ["fine", "fine", "raise precision"]
    assert report["fp32"].ratio == 0.0
    assert 0 < report["int8"].ratio < 0.1 < 1 < report["int4"].ratio
    assert report["int4"].rows == pytest.approx(2 * E / 1024, abs=2)
    assert report.bad == (report["int4"],)
    assert "fp" in report["int4"].advice or "int8" in report["int4"].advice
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines] == ["table", "fp32", "int8", "int4"]
    assert lines[3].endswith(f"raise precision: {report['int4'].advice}")


@each_device
@pytest.mark.parametrize("load", [0.02, 0.5])
def test_a_small_cache_should_be_larger(load: float) -> None:
    emb = make("int2", cache=mpe.CacheConfig(load_factor=load))
    train(emb, 4, 0.005)
    table = emb.rounding_report()["int2"]
    assert table.verdict == ("larger cache" if load < 0.3 else "raise precision")
    assert ("cache" in table.advice) == (load < 0.3)


def test_a_cache_that_holds_everything_has_no_noise_until_it_is_flushed() -> None:
    emb = make("int4", cache=mpe.CacheConfig(load_factor=2.0))
    train(emb, 8, 0.001)
    state = emb.state_arrays()["noise"][0].copy()
    assert state[0] > 0
    assert state[1] == 0
    emb.flush()
    assert emb.state_arrays()["noise"][0, 1] > 0


@each_device
def test_it_covers_what_came_since_the_last_call_and_changes_no_byte() -> None:
    asked, silent = make("int4"), make("int4")
    parts = []
    for seed in range(3):
        for emb in (asked, silent):
            train(emb, 2, 0.01, seed)
        parts.append(asked.rounding_report()["int4"])
    for name, array in silent.state_arrays().items():
        assert asked.state_arrays()[name].tobytes() == array.tobytes(), name
    whole = silent.rounding_report()["int4"]
    assert whole.rows == sum(part.rows for part in parts)
    assert min(part.ratio for part in parts) <= whole.ratio <= max(part.ratio for part in parts)
    again = asked.rounding_report()["int4"]
    assert (again.rows, again.verdict) == (0, "too few updates")
    assert math.isnan(again.ratio)


def test_a_checkpoint_keeps_the_measurements(tmp_path: Path) -> None:
    emb = make("int4")
    train(emb, 2, 0.01)
    emb.save(tmp_path / "c")
    assert mpe.EmbeddingBagCollection.load(tmp_path / "c").rounding_report() == (
        emb.rounding_report()
    )


def test_the_sums_do_not_depend_on_the_threads() -> None:
    before, sums = mpe.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            mpe.set_num_threads(threads)
            emb = make("int4", "bf16", cache=mpe.CacheConfig(load_factor=0.1))
            train(emb, 2, 0.01)
            sums.append(emb.state_arrays()["noise"].tolist())
    finally:
        mpe.set_num_threads(before)
    assert sums[0] == sums[1] == sums[2]


@pytest.mark.parametrize("precision", mpe.registry.FORMATS)
def test_the_advice_names_a_finer_format(precision: str) -> None:
    bits = rounding.significant_bits(precision)
    unit = 1 << 30
    for ratio in (0.101, 0.5, 10.0, 1e4):
        sums = np.array([[100, int(ratio * unit), unit]])
        found = rounding.judge([mpe.TableConfig("t", 9, 4, precision)], [0.0], sums)["t"]
        name = found.advice.split()[0]
        assert rounding.significant_bits(name) > bits or name == "fp32"


def test_significant_bits_are_known_for_every_format() -> None:
    assert {name: rounding.significant_bits(name) for name in ("fp32", "fp16", "bf16")} == {
        "fp32": 24,
        "fp16": 11,
        "bf16": 8,
    }
    assert all(
        name.startswith(f"int{rounding.significant_bits(name)}")
        for name in mpe.registry.FORMATS
        if name.startswith("int")
    )
