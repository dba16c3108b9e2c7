"""A checkpoint loaded with other settings: what fits is kept bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kinds
import numpy as np
import pytest
from changed_loads import DIM, ROWS, SMALL, Cache, load, make, saved, train, values
from reference.pair import assert_same

import mpembed as mpe

EXACT = [name for name in kinds.NAMES if name in kinds.KINDS]  # states in FP32
CACHES = {
    "none": None,
    "smaller": Cache(num_sets=1, policy="lru", ways=8),
    "larger": Cache(load_factor=0.7, policy="lru", ways=8),
    **{
        f"other-{name}": Cache(load_factor=0.3, policy=name, ways=16)
        for name in mpe.registry.POLICIES
    },
}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("kind", EXACT)
def test_fp32_rows_resume_with_the_bytes_of_a_run_that_was_not_interrupted(
    kind: str, cache: str, tmp_path: Path
) -> None:
    whole = make(optimizer=kinds.named(kind, 0.05, "decoupled"))
    path = saved(whole, tmp_path)
    grown = {"a": 70, "b": 91}
    resumed = load(path, cache=CACHES[cache], num_embeddings=grown)
    assert_same(values(resumed), values(whole), "loaded")
    assert_same(train(resumed, 6, 10), train(whole, 6, 10), "outputs")
    assert_same(values(resumed), values(whole), "trained on")
    assert resumed.updates == whole.updates
    assert {table.name: table.num_embeddings for table in resumed.tables} == grown


@pytest.mark.parametrize("rounding", mpe.registry.ROUNDINGS)
@pytest.mark.parametrize("precision", mpe.registry.FORMATS)
def test_new_rows_are_those_of_a_new_collection(
    precision: str, rounding: str, tmp_path: Path
) -> None:
    optimizer = mpe.Adagrad(0.1, initial_accumulator_value=0.25, state_precision="bf16")
    emb = make(precision, optimizer, rounding=rounding)
    grown = {"a": 59, "b": 200}
    loaded = load(saved(emb, tmp_path), num_embeddings=grown)
    new = make(precision, optimizer, rounding=rounding, rows=grown)
    for name, count in ROWS.items():
        ids = np.arange(count, grown[name])
        assert_same(loaded.rows(name, ids), new.rows(name, ids), name)
        assert_same(loaded.state(name, ids), new.state(name, ids), name)
        packed = f"table.{name}.rows"
        assert_same(loaded.state_arrays()[packed][:count], emb.state_arrays()[packed], name)
    assert_same(values(loaded), values(emb), "old rows")


def test_a_shard_at_the_end_of_a_table_grows_with_it(tmp_path: Path) -> None:
    table = mpe.TableConfig("t", 30, DIM, "int4", table_id=7, first_row=100, total_rows=130)
    emb = mpe.EmbeddingBagCollection([table], optimizer=mpe.SGD(0.1))
    emb.save(tmp_path / "saved")
    loaded = load(tmp_path / "saved", num_embeddings={"t": 50})
    assert loaded.tables[0].total_rows == 150
    whole = mpe.TableConfig("t", 150, DIM, "int4", table_id=7)
    expected = mpe.EmbeddingBagCollection([whole], optimizer=mpe.SGD(0.1))
    assert_same(
        loaded.rows("t", np.arange(30, 50)), expected.rows("t", np.arange(130, 150)), "new rows"
    )


@pytest.mark.parametrize("rounding", mpe.registry.ROUNDINGS_OF_NEW_ROWS)
@pytest.mark.parametrize("precision", [name for name in mpe.registry.FORMATS if name != "fp32"])
def test_another_precision_has_the_bytes_of_set_rows(
    precision: str, rounding: str, tmp_path: Path
) -> None:
    """All rows, those of dirty slots as they are there; the states stay."""
    emb = make(rounding=rounding)
    path = saved(emb, tmp_path)
    loaded = load(path, precision=precision, cache=None)
    expected = make(precision, cache=None, rounding=rounding)
    step = emb.step
    for name, count in ROWS.items():
        expected.set_updates(0)
        assert expected.step <= step
        while expected.step < step:
            expected.flush()
        expected.set_rows(name, np.arange(count), emb.rows(name, np.arange(count)))
        packed = f"table.{name}.rows"
        assert_same(loaded.state_arrays()[packed], expected.state_arrays()[packed], name)
        assert_same(loaded.state(name, np.arange(count)), emb.state(name, np.arange(count)), name)
        expected = make(precision, cache=None, rounding=rounding)
    assert loaded.step == step + 1


@pytest.mark.parametrize("precision", mpe.registry.FORMATS)
def test_fp32_tables_take_the_rows_of_every_format(precision: str, tmp_path: Path) -> None:
    emb = make(precision)
    path = saved(emb, tmp_path)
    for cache in (SMALL, None):
        assert_same(values(load(path, precision="fp32", cache=cache)), values(emb), "fp32")


def test_a_cache_stays_where_it_is_under_another_precision(tmp_path: Path) -> None:
    emb = make(cache=Cache(load_factor=0.2, policy="lfu", ways=8))
    path = saved(emb, tmp_path)
    loaded = load(path, precision={"b": "int8"})
    assert [table.precision for table in loaded.tables] == ["fp32", "int8"]
    old, new = emb.state_arrays(), loaded.state_arrays()
    for name in ("rows", "meta", "counters", "sketch"):
        assert_same(new[f"cache.{DIM}.adam.{name}"], old[f"cache.{DIM}.adam.{name}"], name)
    before = emb.rows("b", np.arange(90))
    differs = (loaded.rows("b", np.arange(90)) != before).any(1)
    assert 0 < differs.sum() < 90  # not the cached rows
    loaded.flush()
    exported = mpe.ops.dequantize(loaded.export("b"), "int8", DIM)
    step = np.ptp(before, axis=1) / 255
    assert (np.abs(exported - before) <= step[:, None] * 1.01).all()


def test_states_in_another_precision_leave_the_rows_of_clean_slots(tmp_path: Path) -> None:
    """A flush would round rows once more that nothing has changed."""
    emb = make("int4")
    train(emb, 0, 40)
    emb.flush()
    emb.save(tmp_path / "saved")
    loaded = load(tmp_path / "saved", optimizer=mpe.Adam(0.1, state_precision="bf16"))
    for _ in range(2):
        for name, count in ROWS.items():
            ids = np.arange(count)
            assert_same(loaded.rows(name, ids), emb.rows(name, ids), name)
            rows = f"table.{name}.rows"
            assert_same(loaded.state_arrays()[rows], emb.state_arrays()[rows], name)
        loaded.flush()
    assert_same(loaded.state_arrays()["noise"], emb.state_arrays()["noise"], "noise")
    assert emb.state_arrays()["noise"].any()
    assert loaded.load_report is not None
    assert loaded.load_report.started == []


@pytest.mark.parametrize("policy", mpe.registry.POLICIES)
def test_a_larger_cache_knows_its_rows_and_their_use(policy: str, tmp_path: Path) -> None:
    emb = make("int8", cache=Cache(load_factor=0.2, policy=policy, ways=8))
    path = saved(emb, tmp_path)
    loaded = load(path, cache=Cache(load_factor=0.9, policy=policy, ways=8))
    old, new = emb.state_arrays(), loaded.state_arrays()
    empty = np.uint64(mpe._bindings.contract.EMPTY_TAG)

    def held(arrays: Any) -> dict[int, tuple[int, bytes]]:
        label = f"cache.{DIM}.adam"
        tags, meta = (arrays[f"{label}.{name}"].reshape(-1) for name in ("tags", "meta"))
        rows = arrays[f"{label}.rows"].reshape(len(tags), -1)
        used = (tags & empty) != empty
        pairs = zip(meta[used], rows[used], strict=True)
        return {int(t): (int(m), r.tobytes()) for t, (m, r) in zip(tags[used], pairs, strict=True)}

    assert held(new) == held(old)
    assert len(held(old)) > 20
    loaded.save(tmp_path / "again")
    assert_same(load(tmp_path / "again").state_arrays(), loaded.state_arrays(), "again")


def test_dirty_rows_without_room_go_to_their_tables(tmp_path: Path) -> None:
    emb = make("int8")
    path = saved(emb, tmp_path)
    loaded, flushed = load(path, cache=None), load(path)
    flushed.flush()
    for name in ROWS:
        for array in ("rows", "exp_avg", "exp_avg_sq"):
            key = f"table.{name}.{array}"
            assert_same(loaded.state_arrays()[key], flushed.state_arrays()[key], key)
    assert loaded.step == flushed.step
    assert loaded.stats() == emb.stats()


@pytest.mark.parametrize("policy", mpe.registry.POLICIES)
def test_caches_are_split_and_joined_as_their_tables_are(policy: str, tmp_path: Path) -> None:
    cache = Cache(load_factor=0.4, policy=policy, ways=8)
    adagrad, empty = mpe.Adagrad(0.1), mpe.TableConfig("c", 0, DIM)
    tables = [mpe.TableConfig("a", 40, DIM), empty, mpe.TableConfig("b", 90, DIM)]
    joined = mpe.EmbeddingBagCollection(tables, optimizer=mpe.Adam(0.1), cache=cache)
    own = [tables[0], empty, mpe.TableConfig("b", 90, DIM, optimizer=adagrad)]
    split = mpe.EmbeddingBagCollection(own, optimizer=mpe.Adam(0.1), cache=cache)
    for emb, optimizer in ((joined, {"b": adagrad}), (split, {"b": mpe.Adam(0.1), "c": adagrad})):
        for step in range(4):
            rng = np.random.default_rng(step)
            ids = np.concatenate([rng.integers(0, rows, 24) for rows in ROWS.values()])
            out = emb.forward(ids, np.array([0, 12, 24, 24, 24, 36, 48]))
            emb.backward(out - np.float32(1))
        emb.save(tmp_path / "saved")
        loaded = load(tmp_path / "saved", optimizer=optimizer)
        for name, count in ROWS.items():
            ids = np.arange(count)
            assert_same(loaded.rows(name, ids), emb.rows(name, ids), name)
        assert_same(loaded.state("a", np.arange(40)), emb.state("a", np.arange(40)), "states")
        assert not any(array.any() for array in loaded.state("b", np.arange(90)).values())
        loaded.flush()
        loaded.save(tmp_path / "again")
        assert_same(load(tmp_path / "again").state_arrays(), loaded.state_arrays(), "again")


@pytest.mark.gpu
def test_a_device_loads_with_changes_as_the_cpu_does(cuda: str, tmp_path: Path) -> None:
    emb = make("int8", cache=Cache(load_factor=0.3, policy="lfu"))
    path = saved(emb, tmp_path)
    for changes in (
        {"cache": None},
        {"cache": Cache(load_factor=0.6, policy="lfu"), "precision": {"a": "int4"}},
        {"num_embeddings": {"a": 99, "b": 70}, "optimizer": mpe.Adam(0.1, state_precision="bf16")},
    ):
        here, there = load(path, **changes), load(path, device=cuda, **changes)
        found = {name: array.numpy() for name, array in there.state_arrays().items()}
        assert_same(found, dict(here.state_arrays()), str(changes))
