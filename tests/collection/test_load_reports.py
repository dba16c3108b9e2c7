"""What a load with other settings reports: what is kept, changed, started anew, dropped."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changed_loads import DIM, SMALL, Cache, load, make, saved, values
from reference.pair import assert_same

import mpembed as mpe


def test_a_smaller_table_drops_rows_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    emb = make()
    path = saved(emb, tmp_path)
    with caplog.at_level(logging.INFO, "mpembed"):
        loaded = load(path, num_embeddings={"a": 30})
    kept = {"a": 30, "b": 90}
    assert_same(values(loaded, kept), values(emb, kept), "rows that stay")
    report = loaded.load_report
    assert report is not None
    assert report.dropped == ["table 'a': 10 rows"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "10 rows" in caplog.text
    with pytest.raises(IndexError, match="num_embeddings=30"):
        loaded.rows("a", np.array([30]))


def test_a_report_says_why_states_start_anew(tmp_path: Path) -> None:
    path = saved(make(optimizer=mpe.Adam(0.1), rows={"a": 40}), tmp_path, steps=0)
    report = load(path, optimizer=mpe.RowwiseAdam(0.1)).load_report
    assert report is not None
    assert report.started == [
        "table 'a': state 'exp_avg', as the others of its optimizer do",
        "table 'a': state 'exp_avg_sq', whose shape has changed",
    ]
    assert report.dropped == []
    report = load(path, optimizer=mpe.Adagrad(0.1)).load_report
    assert report is not None
    assert report.started[:1] == ["table 'a': state 'sum', which is new"]
    assert report.dropped == ["table 'a': state 'exp_avg'", "table 'a': state 'exp_avg_sq'"]


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, []),
        ({"optimizer": mpe.Adam(0.1), "cache": SMALL, "rounding": "stochastic"}, []),
        (
            {"optimizer": mpe.Adam(0.5, (0.8, 0.999), weight_decay=0.1, weight_decay_mode="l2")},
            [
                "optimizer of 'a', 'b': lr from 0.1 to 0.5, betas from (0.9, 0.999) to (0.8, "
                "0.999), weight_decay from 0.0 to 0.1, weight_decay_mode from 'none' to 'l2'"
            ],
        ),
        ({"optimizer": {"b": mpe.Adam(0.1, eps=0.5)}}, ["optimizer of 'b': eps from 1e-08 to 0.5"]),
        (
            {"optimizer": mpe.SGD(0.1)},
            [f"optimizer of 'a', 'b': from {mpe.Adam(0.1)!r} to {mpe.SGD(0.1)!r}"],
        ),
        (
            {"bounds": "drop", "on_nonfinite": "skip"},
            ["bounds from 'raise' to 'drop'", "on_nonfinite from 'raise' to 'skip'"],
        ),
        (
            {"rounding": "nearest"},
            [
                "rounding from 'stochastic' to 'nearest'",
                "rounding is measured anew for 'a', 'b'",
            ],
        ),
        ({"cache": None}, [f"cache: from {SMALL!r} to None"]),
        (
            {"cache": Cache(load_factor=0.3, policy="lfu", ways=8)},
            ["cache: load_factor from 0.2 to 0.3, policy from 'lru' to 'lfu'"],
        ),
    ],
)
def test_every_setting_that_is_another_is_reported(
    changes: dict[str, Any], lines: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(make(), tmp_path)
    with caplog.at_level(logging.INFO, "mpembed"):
        report = load(path, **changes).load_report
    assert report is not None
    assert sorted(report.changed) == sorted(lines)
    assert len(caplog.records) == bool(lines)
    for line in lines:
        assert line in caplog.text
    assert (report.kept == ["everything"]) == (not lines)


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"precision": "int4"}, logging.INFO),  # though rounding is measured anew
        ({"rounding": "nearest"}, logging.INFO),
        ({"optimizer": mpe.Adam(0.2)}, logging.INFO),
        ({"num_embeddings": {"a": 41}}, logging.INFO),
        ({"num_embeddings": {"a": 39}}, logging.WARNING),
        ({"optimizer": mpe.Adagrad(0.1)}, logging.WARNING),
    ],
)
def test_only_what_is_lost_is_a_warning(
    changes: dict[str, Any], level: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(make("int8"), tmp_path)
    with caplog.at_level(logging.INFO, "mpembed"):
        load(path, **changes)
    assert [record.levelno for record in caplog.records] == [level]


def test_the_report_says_where_each_row_of_a_cache_is(tmp_path: Path) -> None:
    emb = make("int8")
    path = saved(emb, tmp_path)
    tags = emb.state_arrays()[f"cache.{DIM}.adam.tags"].reshape(-1)
    keys = tags & np.uint64(mpe._bindings.contract.ID_MASK)
    used = tags[keys != mpe._bindings.contract.EMPTY_TAG]
    dirty = int(((used & np.uint64(mpe._bindings.contract.DIRTY_BIT)) != 0).sum())
    name = f"cache {DIM}.adam: "

    def said(**changes: Any) -> list[str]:
        report = load(path, **changes).load_report
        assert report is not None
        return [line.removeprefix(name) for line in report.converted if line.startswith(name)]

    assert said(cache=None) == [f"no cache any more, {dirty} dirty rows written to their tables"]
    assert said(precision="int4") == []
    emb.flush()
    emb.set_rows("a", np.arange(20), emb.rows("a", np.arange(20)))
    emb.save(path)
    for rows in ({"a": 10, "b": 30}, {"a": 41}):
        for cache in (SMALL, Cache(num_sets=1, ways=8)):
            (line,) = said(num_embeddings=rows, cache=cache)
            held, *others = re.findall(r"\d+", line)
            total, parts = int(others[0]), [int(held), *map(int, others[1:])]
            assert total == len(used) == sum(parts), line
            assert ("dropped with" in line) == ("b" in rows)
            assert all(parts)
