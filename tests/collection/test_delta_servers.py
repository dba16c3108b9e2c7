"""Servers that deltas are applied to: they follow, or say why not, in one change."""

from __future__ import annotations

import copy
import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from delta_chains import load
from helpers import batch, collection, digest, set_lr
from helpers import train as train_small
from interrupts import Interrupt

import mpembed as mpe
from mpembed._checkpoint import applying
from mpembed.collection import collection_state


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize("names", ["second", "first third", "first first"])
def test_a_wrong_order_or_a_gap_names_both(names: str, tmp_path: Path) -> None:
    deltas = names.split()
    with pytest.raises(ValueError, match="in the order in which they were saved") as error:
        load(tmp_path, *deltas)
    before = ["base", *deltas][-2]
    assert f"{tmp_path / deltas[-1]}: continues the save" in str(error.value)
    assert f"{tmp_path / before}, is at the save" in str(error.value)
    server = load(tmp_path, *deltas[:-1])
    kept = digest(server)
    with pytest.raises(ValueError, match="in the order in which they were saved"):
        server.apply_delta(tmp_path / deltas[-1])
    assert digest(server) == kept


@pytest.mark.usefixtures("chain")
def test_another_run_of_the_same_steps_is_not_continued(tmp_path: Path) -> None:
    other = collection()
    other.backward(np.full_like(other.forward(*batch()), 3))
    assert other.step == load(tmp_path).step
    other.save(tmp_path / "base")
    with pytest.raises(ValueError, match=rf"is at the save \w+ of step {other.step}:"):
        load(tmp_path, "first")
    with pytest.raises(ValueError, match="this collection is at the save"):
        load(tmp_path).apply_delta(tmp_path / "first")
    other = collection(seed=1)
    train_small(other, 1)
    with pytest.raises(ValueError, match="its seed is 0, and this collection's is 1"):
        other.apply_delta(tmp_path / "first")


@pytest.mark.usefixtures("chain")
def test_the_kinds_of_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a delta: load the checkpoint that it continues"):
        mpe.EmbeddingBagCollection.load(tmp_path / "first")
    for call in (load(tmp_path).apply_delta, lambda path: load(path.parent, path.name)):
        with pytest.raises(ValueError, match="is a whole checkpoint and not a delta"):
            call(tmp_path / "base")
    with pytest.raises(TypeError, match="deltas must be a sequence"):
        mpe.EmbeddingBagCollection.load(tmp_path / "base", deltas=str(tmp_path / "first"))
    with pytest.raises(FileNotFoundError, match="missing"):
        load(tmp_path, "missing")


def test_a_server_follows(chain: mpe.EmbeddingBagCollection, tmp_path: Path) -> None:
    server, applied = load(tmp_path), []
    for name in ("first", "second", "third"):
        server.apply_delta(tmp_path / name)
        applied.append(name)
        assert digest(server) == digest(load(tmp_path, *applied))
    assert digest(server) == digest(chain)
    assert server.step == chain.step


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize("changes", [{"cache": None}, {"bounds": "drop"}])
def test_deltas_and_other_settings_are_for_two_loads(changes: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="load with the deltas alone, save the result"):
        mpe.EmbeddingBagCollection.load(tmp_path / "base", deltas=[tmp_path / "first"], **changes)
    changed = mpe.EmbeddingBagCollection.load(tmp_path / "base", **changes)
    with pytest.raises(ValueError, match="continues the save|this collection's is"):
        changed.apply_delta(tmp_path / "first")


def test_a_load_that_asks_for_what_was_saved_is_at_the_save(
    chain: mpe.EmbeddingBagCollection, tmp_path: Path
) -> None:
    saved = collection_state(load(tmp_path)).settings
    tables = {table.name: table for table in saved.tables}
    same: dict[str, Any] = {
        "cache": dataclasses.replace(saved.cache) if saved.cache else None,
        "precision": {name: table.precision for name, table in tables.items()},
        "num_embeddings": {name: table.num_embeddings for name, table in tables.items()},
        "rounding": saved.rounding,
        "bounds": saved.bounds,
        "on_nonfinite": saved.on_nonfinite,
        "optimizer": copy.deepcopy(saved.optimizer),
    }
    for changes in [*({name: value} for name, value in same.items()), same]:
        server = mpe.EmbeddingBagCollection.load(tmp_path / "base", **changes)
        for name in ("first", "second", "third"):
            server.apply_delta(tmp_path / name)
        assert digest(server) == digest(chain)
    other = mpe.SGD(0.125)
    server = mpe.EmbeddingBagCollection.load(tmp_path / "base", optimizer=other)
    with pytest.raises(ValueError, match="this collection's is"):
        server.apply_delta(tmp_path / "first")


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize("call", ["train", "set_rows", "flush"])
def test_a_changed_server_does_not_follow(call: str, tmp_path: Path) -> None:
    server = load(tmp_path)
    server.forward(*batch(), training=False)  # changes nothing
    server.apply_delta(tmp_path / "first")
    if call == "train":
        train_small(server, 1)
    elif call == "flush":
        server.flush()
    else:
        server.set_rows("a", np.array([1]), np.ones((1, 6), np.float32))
    kept = digest(server)
    with pytest.raises(ValueError, match=rf"at step {server.step} and at no save"):
        server.apply_delta(tmp_path / "second")
    assert digest(server) == kept


@pytest.mark.usefixtures("chain")
def test_a_collection_without_a_save_does_not_follow(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at no save: it was neither saved nor loaded as it was"):
        collection().apply_delta(tmp_path / "first")


def test_a_collection_with_fewer_rows_does_not_follow(tmp_path: Path) -> None:
    tables = [mpe.TableConfig("t", 50, 4)]
    emb = mpe.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1))
    emb.save(tmp_path / "base", track=True)
    emb.save(tmp_path / "delta", since=0)
    fewer = mpe.EmbeddingBagCollection(
        [dataclasses.replace(tables[0], num_embeddings=40)], optimizer=mpe.SGD(0.1)
    )
    fewer.save(tmp_path / "fewer")
    match = "num_embeddings of table 't' is 50, and in this collection 40: rows are never removed"
    with pytest.raises(ValueError, match=match):
        fewer.apply_delta(tmp_path / "delta")


@pytest.mark.usefixtures("chain")
def test_a_server_may_track_and_pass_on(tmp_path: Path) -> None:
    """What a delta has written is marked as what kernels have."""
    relay, end = load(tmp_path), load(tmp_path)
    since = relay.step
    relay.save(tmp_path / "empty", since=since, track=True)
    for name in ("first", "second"):
        relay.apply_delta(tmp_path / name)
    relay.save(tmp_path / "both", since=since)
    end.apply_delta(tmp_path / "both")
    assert digest(end) == digest(relay)
    since = relay.step
    train_small(relay, 1)
    relay.save(tmp_path / "trained", since=since)
    other = load(tmp_path, "first", "second", "trained")
    end.apply_delta(tmp_path / "trained")
    assert digest(end) == digest(other) == digest(relay)


def test_a_delta_is_applied_during_a_save_in_the_background(chain: Any, tmp_path: Path) -> None:
    """The file has the state of the call."""
    server = load(tmp_path)
    saved = server.save(tmp_path / "copy", background=True)
    server.apply_delta(tmp_path / "first")
    saved.result()
    copy = mpe.EmbeddingBagCollection.load(tmp_path / "copy")
    assert digest(copy) == digest(load(tmp_path))
    server.apply_delta(tmp_path / "second")
    assert digest(server) == digest(load(tmp_path, "first", "second"))


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize("stride", [23, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_an_interrupt_at_any_line_leaves_the_old_state_or_the_new_one(
    stride: int, tmp_path: Path
) -> None:
    first, rate = applying.read(tmp_path / "first"), 0.125
    server = load(tmp_path)
    set_lr(server, rate)
    held = collection_state(server)
    old, new, seen, at = digest(server), digest(load(tmp_path, "first")), set(), 1

    def apply() -> None:
        with held.writing() as on:
            applying.apply(held, first, on)

    while True:
        interrupt = Interrupt(at)
        interrupt.run(apply)
        if not interrupt.happened:
            break
        found = digest(server)
        assert found in (old, new), at
        assert (server.optimizer.lr == rate) == (found == old)
        seen.add(found)
        if found == new:
            server = load(tmp_path)
            set_lr(server, rate)
            held = collection_state(server)
        at += stride
    assert old in seen
    assert digest(server) == new
    server.apply_delta(tmp_path / "second")


def test_other_threads_see_the_old_state_or_the_new_one(
    chain: mpe.EmbeddingBagCollection, tmp_path: Path
) -> None:
    server = load(tmp_path)
    names = ["first", "second", "third"]
    states = [load(tmp_path, *names[:count]) for count in range(4)]
    expected = [one.forward(*batch(), training=False).tobytes() for one in states]
    assert len(set(expected)) == 4
    seen, done, served = [], threading.Event(), threading.Event()

    def serve() -> None:
        while not done.is_set():
            seen.append(server.forward(*batch(), training=False).tobytes())
            served.set()

    def served_since() -> bool:
        """Wait for a call that began after this one."""
        for _ in range(2):
            served.clear()
            if not served.wait(30):
                return False
        return True

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert served_since()
        for name in names:
            server.apply_delta(tmp_path / name)
            assert served_since()
    finally:
        done.set()
        thread.join()
    order = [expected.index(one) for one in seen]
    assert order == sorted(order)
    assert set(order) == {0, 1, 2, 3}
    assert server.forward(*batch(), training=False).tobytes() == expected[-1]
