"""State of sharded tables in one process: what is in it, and what a load refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from reference.pair import assert_same
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

import mpembed as mpe
from mpembed.load_report import LoadReport
from mpembed.torch import sharded

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]
CACHE = mpe.CacheConfig(load_factor=0.25, policy="lfu", ways=8)
NAMES = {"a": "deep.tables.a"}


def make(steps: int = 0, **changes: Any) -> mpe.EmbeddingBagCollection:
    given = {"rows": 40, "dim": 6, "precision": "int4", "optimizer": mpe.Adam(0.05), **changes}
    table = mpe.TableConfig("a", given["rows"], given["dim"], given["precision"])
    other = mpe.TableConfig("b", 9, 3, "int8")
    emb = mpe.EmbeddingBagCollection(
        [table, other], optimizer=given["optimizer"], cache=changes.get("cache", CACHE), seed=3
    )
    for step in range(steps):
        rng = np.random.default_rng(step)
        out = emb.forward(
            np.r_[rng.integers(0, 40, 10), rng.integers(0, 9, 10)], np.arange(0, 21, 2)
        )
        emb.backward(rng.standard_normal(out.shape).astype(np.float32))
    return emb


def save(emb: mpe.EmbeddingBagCollection, path: Path, **more: Any) -> None:
    state = {"model": sharded.state_dict(emb, NAMES), **more}
    dcp_save(state, checkpoint_id=path, no_dist=True)


def load(emb: mpe.EmbeddingBagCollection, path: Path, **options: Any) -> LoadReport:
    state = {"model": sharded.state_dict(emb, NAMES)}
    planner = sharded.LoadPlanner(**options)
    dcp_load(state, checkpoint_id=path, planner=planner, no_dist=True)
    return sharded.load_state_dict(emb, state["model"], NAMES)


def test_a_checkpoint_resumes_bit_for_bit_beside_other_entries(tmp_path: Path) -> None:
    emb, again = make(5), make(2)
    save(emb, tmp_path, dense={"weight": torch.arange(3.0)}, epoch=7)
    state: dict[str, Any] = {
        "model": sharded.state_dict(again, NAMES),
        "dense": {"weight": torch.zeros(3)},
        "epoch": 0,
    }
    dcp_load(state, checkpoint_id=tmp_path, planner=sharded.LoadPlanner(), no_dist=True)
    assert state["dense"]["weight"].tolist() == [0.0, 1.0, 2.0]
    assert state["epoch"] == 7
    sharded.load_state_dict(again, state["model"], NAMES)
    assert_same(again.state_arrays(), emb.state_arrays(), "loaded")


def test_the_entries_have_packed_rows_and_no_weight() -> None:
    emb = make(5)
    state = sharded.state_dict(emb, NAMES)
    assert not any("weight" in key for key in state)
    rows = state["deep.tables.a.rows.int4"]
    assert rows.dtype == torch.uint8
    assert rows.data_ptr() == emb.state_arrays()["table.a.rows"].__array_interface__["data"][0] or (
        rows.tolist() == emb.state_arrays()["table.a.rows"].tolist()
    )
    ids = state["deep.tables.a.mpembed_shards.0-40.cached.ids"].numpy()
    values = state["deep.tables.a.mpembed_shards.0-40.cached.rows"].numpy()
    assert 0 < len(ids) <= 16
    assert values.tobytes() == emb.rows("a", ids).tobytes()


def test_a_copy_of_a_state_is_loaded_without_a_checkpoint() -> None:
    emb, again = make(5), make()
    state = copy.deepcopy(sharded.state_dict(emb))
    before = {name: array.copy() for name, array in emb.state_arrays().items()}
    make_more = np.arange(3)
    emb.set_rows("a", make_more, np.ones((3, 6), np.float32))
    sharded.load_state_dict(again, state)
    assert_same(again.state_arrays(), before, "loaded")


def test_rows_of_a_state_are_the_tables_own_memory() -> None:
    emb = make(cache=None)
    rows = sharded.state_dict(emb)["a.rows.int4"]
    before = rows.clone()
    emb.set_rows("a", np.arange(40), np.random.default_rng(0).random((40, 6), np.float32))
    assert not torch.equal(rows, before)


def test_another_cache_takes_the_cached_rows(tmp_path: Path) -> None:
    emb = make(5)
    save(emb, tmp_path)
    again = make(cache=mpe.CacheConfig(load_factor=4.0, policy="lfu"))
    load(again, tmp_path)
    for name, count in (("a", 40), ("b", 9)):
        ids = np.arange(count)
        assert_same(again.rows(name, ids), emb.rows(name, ids), name)
        assert_same(again.state(name, ids), emb.state(name, ids), name)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "precision": ({"precision": "int8"}, r"tables\.a: the checkpoint has .*rows\.int4.*rows\.int8"),
    "dimension": ({"dim": 5}, r"tables\.a: it has dimension 6 in the checkpoint, not 5"),
    "rows": ({"rows": 41}, r"tables\.a.* \[40, .*\] in the checkpoint, and .* \[41, .*\] here"),
    "optimizer": ({"optimizer": mpe.SGD(0.1)}, "exp_avg.*, and here it is"),
    "state_precision": (
        {"optimizer": mpe.Adam(0.1, state_precision="bf16")},
        "float32 .* in the checkpoint, and torch.bfloat16",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_tables_are_refused_before_anything_is_read(what: str, tmp_path: Path) -> None:
    settings, message = REFUSED[what]
    save(make(5), tmp_path)
    other = make(**settings)
    before = {name: array.copy() for name, array in other.state_arrays().items()}
    with pytest.raises((ValueError, CheckpointException), match=message):
        load(other, tmp_path)
    assert_same(other.state_arrays(), before, what)


def test_a_table_that_a_checkpoint_lacks_is_refused_or_stays(tmp_path: Path) -> None:
    dcp_save({"model": {"x": torch.ones(1)}}, checkpoint_id=tmp_path, no_dist=True)
    emb = make(3)
    before = {name: array.copy() for name, array in emb.state_arrays().items()}
    with pytest.raises((ValueError, CheckpointException), match="has no table 'model.deep"):
        load(emb, tmp_path)
    with pytest.raises(ValueError, match="the state has no table"):
        load(emb, tmp_path, allow_partial_load=True)
    assert_same(emb.state_arrays(), before, "left")


def test_a_new_table_stays_as_it_is_beside_one_of_the_checkpoint(tmp_path: Path) -> None:
    table = mpe.TableConfig("a", 40, 6, "int4")
    old = mpe.EmbeddingBagCollection([table], optimizer=mpe.Adam(0.05), cache=CACHE, seed=3)
    old.forward(np.arange(10), np.array([0, 10]))
    old.backward(np.ones((1, 6), np.float32))
    dcp_save({"model": sharded.state_dict(old, NAMES)}, checkpoint_id=tmp_path, no_dist=True)
    emb = make(3)
    before = emb.rows("b", np.arange(9)), emb.state("b", np.arange(9))
    state = {"model": sharded.state_dict(emb, NAMES)}
    planner = sharded.LoadPlanner(allow_partial_load=True)
    dcp_load(state, checkpoint_id=tmp_path, planner=planner, no_dist=True)
    sharded.load_state_dict(emb, state["model"], NAMES, strict=False)
    assert_same(emb.rows("b", np.arange(9)), before[0], "new rows")
    assert_same(emb.state("b", np.arange(9)), before[1], "new states")
    assert_same(emb.rows("a", np.arange(40)), old.rows("a", np.arange(40)), "rows")
    assert_same(emb.state("a", np.arange(40)), old.state("a", np.arange(40)), "states")


def test_the_default_planner_names_what_it_does_not_find(tmp_path: Path) -> None:
    save(make(5), tmp_path)
    state = {"model": sharded.state_dict(make(), NAMES)}
    with pytest.raises((ValueError, CheckpointException), match="mpembed_shards"):
        dcp_load(state, checkpoint_id=tmp_path, no_dist=True)


def test_names_are_of_tables_and_differ() -> None:
    emb = make()
    with pytest.raises(ValueError, match="no table 'c'"):
        sharded.state_dict(emb, {"c": "x"})
    with pytest.raises(ValueError, match="a table twice"):
        sharded.state_dict(emb, {"a": "b"})


def test_a_shard_needs_the_group_that_has_the_rest() -> None:
    table = mpe.TableConfig("a", 4, 3, first_row=2, total_rows=9)
    emb = mpe.EmbeddingBagCollection([table], optimizer=mpe.SGD(0.1))
    with pytest.raises(ValueError, match=r"rows 2 \.\. 6 of 9: pass the process group"):
        sharded.state_dict(emb)


@pytest.mark.parametrize("damage", ["about", "cached.ids"])
def test_damaged_entries_are_named(damage: str) -> None:
    emb = make(3)
    state = copy.deepcopy(sharded.state_dict(emb))
    key = f"a.mpembed_shards.0-40.{damage}"
    state[key] = torch.zeros(5, dtype=state[key].dtype)
    with pytest.raises(ValueError, match=r"'?a'?.*(about is damaged|cached rows)"):
        sharded.load_state_dict(emb, state)
    del state[key]
    with pytest.raises(ValueError, match=f"has no {key}"):
        sharded.load_state_dict(emb, state)
