"""State of TorchRec's sharded collections through ``torch.distributed.checkpoint``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed", exc_type=ImportError)

import ranks
import sharded_models as models
import sharded_torchrec_saves as saves
import torch
from folders import ROOT
from sharded_torchrec_saves import Seen

import mpembed as mpe

pytestmark = [pytest.mark.torch, pytest.mark.torchrec, pytest.mark.filterwarnings("ignore")]
OPTIONS: dict[str, Any] = {
    "precision": "int4",
    "cache": mpe.CacheConfig(load_factor=0.2, policy="lfu", ways=8),
}
LARGE = {**OPTIONS, "cache": mpe.CacheConfig(load_factor=4.0, policy="lfu")}
MIXED: dict[str, Any] = {"t0": ("rw", {}), "t1": ("tw", {"rank": 0}), "t2": ("rw", {})}
COLUMNS: dict[str, Any] = {
    "t0": ("cw", {"ranks": [0, 1]}),
    "t1": ("tw", {"rank": 1}),
    "t2": ("cw", {"ranks": [1, 0]}),
}


def saved(tmp_path: Path, world: int, plan: Any, options: Any, optimizer: str) -> list[Seen]:
    given = (plan, optimizer, options, tmp_path / "saved")
    return list(ranks.succeed(ranks.run(saves.save, world, tmp_path, *given)))


def loaded(tmp_path: Path, world: int, plan: Any, options: Any, optimizer: str) -> list[Seen]:
    given = (plan, optimizer, options, tmp_path / "saved")
    return list(ranks.succeed(ranks.run(saves.load, world, tmp_path, *given)))


def assert_same_values(before: list[Seen], after: list[Seen], tables: Any = models.TABLES) -> None:
    """Compare the values of all rows, cached ones in FP32, and their states."""
    for one in tables:
        old = models.joined([seen.held for seen in before], one.name)
        new = models.joined([seen.held for seen in after], one.name)
        assert old.values.tobytes() == new.values.tobytes()
        assert len(old.values) == one.rows
        assert set(old.states) == set(new.states) != set()
        for name, values in old.states.items():
            assert values.tobytes() == new.states[name].tobytes()


@pytest.mark.parametrize(
    ("world", "plan", "then", "other"),
    [
        (2, MIXED, 1, models.table_wise(1)),
        (1, models.table_wise(1), 2, MIXED),
        (2, models.table_wise(2), 2, models.row_wise()),
    ],
    ids=["mixed-alone", "alone-mixed", "tables-rows"],
)
def test_rows_states_and_rates_are_those_of_the_save(
    world: int, plan: Any, then: int, other: Any, tmp_path: Path
) -> None:
    before = saved(tmp_path, world, plan, OPTIONS, "adam")
    after = loaded(tmp_path, then, other, LARGE, "adam")
    assert_same_values(before, after)
    for seen in after:
        assert set(seen.rates.values()) <= {saves.RATE}
    assert any(seen.rates for seen in after)


@pytest.mark.parametrize("plan", [MIXED, COLUMNS], ids=["mixed", "columns"])
def test_the_same_plan_goes_on_bit_for_bit(plan: Any, tmp_path: Path) -> None:
    before = saved(tmp_path, 2, plan, OPTIONS, "adagrad")
    after = loaded(tmp_path, 2, plan, OPTIONS, "adagrad")
    for one, other in zip(before, after, strict=True):
        assert len(one.outputs) == saves.AFTER
        for expected, found in zip(one.outputs, other.outputs, strict=True):
            assert all(torch.equal(found[name], value) for name, value in expected.items())


def assert_moves(tmp_path: Path, world: int, kind: str, plans: Any, hosts: int = 1) -> None:
    """Save with the first plan and load with each."""
    arguments = (kind, plans, tmp_path / "saved", world // hosts)
    results = ranks.succeed(ranks.run(saves.move, world, tmp_path, *arguments, timeout=120))
    before, *after = ([one[number] for one in results] for number in range(len(plans) + 1))
    tables = models.TABLES if kind == "pooled" else saves.OF_ONE_DIM
    for seen in after:
        assert_same_values(before, seen, tables)


def test_tables_without_pooling_move(tmp_path: Path) -> None:
    mixed = {name: MIXED[name] for name in ("t0", "t1")}
    assert_moves(tmp_path, 2, "sequences", [mixed, models.table_wise(2, saves.OF_ONE_DIM)])


@pytest.mark.exhaustive
def test_rows_shared_by_the_ranks_of_a_host_move(tmp_path: Path) -> None:
    of_hosts: Any = {"t0": ("twrw", {"host_index": 1}), "t1": ("rw", {}), "t2": ("tw", {"rank": 3})}
    plans = [of_hosts, models.row_wise(), models.table_wise(4), of_hosts]
    for number, some in enumerate((plans, plans[1:])):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert_moves(folder, 4, "pooled", some, hosts=2)


def test_the_functions_of_the_manual_save_and_load(tmp_path: Path) -> None:
    text = (ROOT / "docs/distributed_state.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(code) == 2
    results = ranks.succeed(ranks.run(saves.by_the_page, 2, tmp_path, code, tmp_path))
    before, *after = ([one[number] for one in results] for number in range(3))
    for seen in after:
        assert_same_values(before, seen)


def test_other_columns_are_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path, 2, COLUMNS, OPTIONS, "adagrad")
    given = (models.table_wise(2), "adagrad", OPTIONS, tmp_path / "saved")
    for one in ranks.run(saves.load, 2, tmp_path, *given):
        assert isinstance(one, ranks.Failed)
        assert "t0: the checkpoint has its columns as" in one.trace
        assert "cannot be split or joined by columns" in one.trace
