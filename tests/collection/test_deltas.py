"""Deltas: a chain is the state that a whole save has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kinds
import numpy as np
import on_device
import pytest
import safetensors
from delta_chains import load, state
from drive import ROUNDINGS, make_cache
from helpers import collection, digest, set_lr
from helpers import train as train_small
from reference.pair import assert_same

import mpembed as mpe

POLICIES = [None, *mpe.registry.POLICIES]
CASES = [  # in every run, each optimizer with one of the policies
    pytest.param(
        f"{optimizer}-{policy}-{ROUNDINGS[(i + j) % len(ROUNDINGS)]}",
        marks=[] if (i + j) % len(POLICIES) == 0 else pytest.mark.exhaustive,
    )
    for i, optimizer in enumerate(kinds.NAMES)
    for j, policy in enumerate(POLICIES)
]
DECAYS = ("none", "l2", "decoupled")
BAGS, ROWS = 3, 70


def make(case: str) -> mpe.EmbeddingBagCollection:
    optimizer, policy, rounding = case.split("-")
    tables = [
        mpe.TableConfig(f"{name}.rows", ROWS + 9 * i, (5, 12)[i % 2], name)
        for i, name in enumerate(mpe.registry.FORMATS)
    ]
    tables += [
        mpe.TableConfig("own", ROWS, 12, "int8", optimizer=kinds.make("lamb", 0.02)),
        mpe.TableConfig("own.rate", ROWS, 12, lr=0.07),
        mpe.TableConfig("frozen", ROWS, 12, "int4", trainable=False),
        mpe.TableConfig("empty", 0, 12, "int4"),
    ]
    return mpe.EmbeddingBagCollection(
        tables,
        cache=make_cache(None if policy == "None" else policy, num_sets=2),
        optimizer=kinds.named(optimizer, 0.05, DECAYS[len(optimizer) % 3]),
        rounding=rounding,
        bounds="drop",
    )


def train(emb: mpe.EmbeddingBagCollection, start: int, stop: int) -> None:
    """Steps that depend on nothing but their number and use a few rows each."""
    for step in range(start, stop):
        rng = np.random.default_rng(step)
        offsets = np.arange(BAGS * len(emb.tables) + 1)
        indices = rng.integers(0, ROWS, offsets[-1])
        if step % 5 == 4:
            emb.prefetch(indices, offsets)
        if step % 7 == 6:
            emb.flush()
        set_lr(emb, 0.05 / (1 + step))
        out = emb.forward(indices, offsets)
        emb.backward(rng.standard_normal(out.shape).astype(np.float32))


@pytest.mark.parametrize("case", CASES)
def test_a_chain_is_the_whole_state_and_resumes_bit_for_bit(case: str, tmp_path: Path) -> None:
    emb = make(case)
    train(emb, 0, 4)
    emb.save(tmp_path / "base", track=True)
    base = emb.step
    train(emb, 4, 6)
    emb.save(tmp_path / "first", since=base)
    first = emb.step
    train(emb, 6, 8)
    emb.save(tmp_path / "second", since=first)
    emb.save(tmp_path / "both", since=base)
    chain, leap = load(tmp_path, "first", "second"), load(tmp_path, "both")
    assert_same(state(chain), state(emb), "two deltas")
    assert_same(state(leap), state(emb), "one over both")
    assert chain.stats() == emb.stats()
    assert repr(chain.optimizers) == repr(emb.optimizers)
    whole = make(case)
    train(whole, 0, 10)
    train(chain, 8, 10)
    assert_same(state(chain), state(whole), "resumed")


def test_a_delta_goes_on_after_it_was_loaded(tmp_path: Path) -> None:
    """Whoever loads a chain may continue it without a whole save."""
    emb = collection()
    train_small(emb)
    emb.save(tmp_path / "base", track=True)
    for name in ("first", "second"):
        emb = load(tmp_path, *(["first"] if name == "second" else []))
        emb.save(tmp_path / "empty", since=emb.step, track=True)
        since = emb.step
        train_small(emb, 1)
        emb.save(tmp_path / name, since=since)
    assert digest(load(tmp_path, "first", "second")) == digest(emb)
    assert digest(load(tmp_path, "first")) != digest(emb)


def test_on_a_device(each_device: str, tmp_path: Path) -> None:
    emb = collection()
    train_small(emb)
    emb.save(tmp_path / "base", track=True)
    server = mpe.EmbeddingBagCollection.load(tmp_path / "base")
    for number in range(2):
        since = emb.step
        train_small(emb, 2)
        emb.set_rows("b", np.array([4]), np.full((1, 6), 0.5, np.float32))
        states = emb.state("a", np.arange(9))
        emb.set_state("a", np.arange(9), {name: one + 0.5 for name, one in states.items()})
        emb.save(tmp_path / f"{number}", since=since)
        server.apply_delta(tmp_path / f"{number}")
    emb.save(tmp_path / "end")
    expected = state(mpe.EmbeddingBagCollection.load(tmp_path / "end", "cpu"))
    deltas = [tmp_path / "0", tmp_path / "1"]
    here = mpe.EmbeddingBagCollection.load(tmp_path / "base", "cpu", deltas=deltas)
    assert_same(state(here), expected, "loaded on the CPU")
    assert_same(on_device.fetch(server.state_arrays()), expected, "followed")


def test_of_tables_in_the_hosts_memory(each_device: str, tmp_path: Path) -> None:
    """Frozen ones have a cache beside a device, which the CPU does not know and leaves out."""
    there: dict[str, Any] = {} if each_device == "cpu" else {"placement": "host"}
    tables = [
        mpe.TableConfig("trained", 40, 6, "int8", **there),
        mpe.TableConfig("frozen", 30, 6, "int4", trainable=False, **there),
    ]
    emb = on_device.make(tables, cache=mpe.CacheConfig(num_sets=1), optimizer=mpe.Adam())
    emb.save(tmp_path / "base", track=True)
    indices, offsets = np.array([3, 9, 3, 20]), np.array([0, 2, 4])
    emb.backward(np.ones_like(emb.forward(indices, offsets)))
    emb.save(tmp_path / "delta", since=0)
    emb.save(tmp_path / "end")
    here = load(tmp_path, "delta", device="cpu")
    assert digest(here) == digest(mpe.EmbeddingBagCollection.load(tmp_path / "end", "cpu"))
    since = emb.step
    emb.set_rows("frozen", np.array([20]), np.ones((1, 6), np.float32))
    emb.save(tmp_path / "dirty", since=since)
    followed = load(tmp_path, "delta", "dirty")
    assert_same(
        on_device.fetch(followed.state_arrays()), on_device.fetch(emb.state_arrays()), "there"
    )
    if there:
        with pytest.raises(ValueError, match="dirty: its cache holds rows of frozen tables"):
            here.apply_delta(tmp_path / "dirty")


@pytest.mark.parametrize(
    "change",
    [
        lambda emb: emb.set_rows("a", np.array([17, 3]), np.ones((2, 6), np.float32)),
        lambda emb: emb.flush(),
        lambda emb: emb.prefetch(np.array([30, 5]), np.array([0, 1, 2])).drop(),
        lambda emb: set_lr(emb, 0.25),
    ],
)
def test_every_call_that_writes_is_in_the_delta(change: Any, tmp_path: Path) -> None:
    emb = collection()
    train_small(emb)
    emb.save(tmp_path / "base", track=True)
    step = emb.step
    change(emb)
    emb.save(tmp_path / "delta", since=step)
    loaded = load(tmp_path, "delta")
    assert digest(loaded) == digest(emb)
    assert repr(loaded.optimizer) == repr(emb.optimizer)


def test_saves_of_one_step_are_one_state(tmp_path: Path) -> None:
    """A delta continues any of them; nothing changes without a step but learning rates."""
    emb = collection()
    train_small(emb)
    emb.save(tmp_path / "base", track=True)
    since = emb.step
    set_lr(emb, 0.5)
    emb.save(tmp_path / "empty", since=since)
    train_small(emb)
    emb.save(tmp_path / "delta", since=since)
    assert digest(load(tmp_path, "delta")) == digest(emb)
    assert digest(load(tmp_path, "empty", "delta")) == digest(emb)


@pytest.mark.parametrize("background", [False, True])
def test_a_whole_save_at_the_step_of_a_delta_leaves_servers_on_their_chain(
    background: bool, tmp_path: Path
) -> None:
    """At another step it ends the chain."""
    emb = collection()
    emb.save(tmp_path / "base", track=True)
    server = load(tmp_path)
    for number in range(2):
        since = emb.step
        train_small(emb, 1)
        emb.save(tmp_path / f"delta{number}", since=since)
        if background:
            emb.save(tmp_path / f"recovery{number}", background=True).result()
        else:
            emb.save(tmp_path / f"recovery{number}")
        server.apply_delta(tmp_path / f"delta{number}")
        assert digest(server) == digest(emb)
    recovered = mpe.EmbeddingBagCollection.load(
        tmp_path / "recovery0", deltas=[tmp_path / "delta1"]
    )
    assert digest(recovered) == digest(emb)
    since = emb.step
    train_small(emb, 1)
    emb.save(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"since={since}: no save at this step is known"):
        emb.save(tmp_path / "delta", since=since)


def test_the_size_follows_what_changed(tmp_path: Path) -> None:
    """Row numbers, rows and states of what changed, and 12 bytes a slot with LFU's sketch."""
    rows, dim, used = 50_000, 32, 300
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig("t", rows, dim, "int8")],
        cache=mpe.CacheConfig(load_factor=0.02, policy="lfu"),
        optimizer=mpe.Adagrad(0.1),
    )
    emb.save(tmp_path / "base", track=True)
    indices = np.random.default_rng(0).integers(0, rows, used)
    emb.backward(np.ones_like(emb.forward(indices, np.array([0, used]))))
    emb.save(tmp_path / "delta", since=0)
    cache = emb.state_arrays()["cache.32.adagrad.tags"].size
    row, slot = 8 + (dim + 8) + 4 * dim, 8 + 8 * dim
    most = used * (row + slot) + (12 + 8) * cache + 4096
    assert (tmp_path / "delta").stat().st_size < most
    assert (tmp_path / "base").stat().st_size > 10 * most


def test_the_memory_of_tracking_is_reported(tmp_path: Path) -> None:
    emb = collection()
    report = emb.memory_report()
    assert report["change_tracking"] == 0
    emb.save(tmp_path / "base", track=True)
    # A word for each 32 rows of two tables and for the 8 slots of a cache.
    words = 4 * (2 + 1 + 1)
    assert emb.memory_report()["change_tracking"] == words
    assert emb.memory_report()["total"] == report["total"] + words
    for number in range(3):
        since = emb.step
        train_small(emb, 1)
        emb.save(tmp_path / f"{number}", since=since)
    assert words < emb.memory_report()["change_tracking"] <= 4 * words
    emb.save(tmp_path / "base")  # a whole one: what came before it is forgotten
    assert emb.memory_report()["change_tracking"] == words
    emb.save(tmp_path / "base", track=False)
    assert emb.memory_report()["change_tracking"] == 0


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    emb = collection()
    emb.save(tmp_path / "base", track=True)
    train_small(emb, 1)
    emb.save(tmp_path / "delta", since=0)
    with safetensors.safe_open(tmp_path / "delta", "numpy") as file:
        manifest = json.loads(file.metadata()["mpembed"].partition(" ")[2])
        assert file.get_tensor("table.a.changed").dtype == np.int64
        assert set(file.keys()) == set(manifest["crc32"])
    assert (manifest["format"], manifest["version"]) == ("mpembed-delta", 1)
    assert manifest["since"]["step"] == 0
    assert manifest["step"] == emb.step
