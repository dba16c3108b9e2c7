"""`save(path, background=True)`: calls wait where more would be written than can be kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from background_saves import ROWS, Gate, goes_on, make, step
from helpers import digest

import mpembed as mpe
from mpembed._collection import snapshot


def test_a_log_that_is_full_loses_the_save_and_nothing_else(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would be if calls did not wait."""
    monkeypatch.setattr(snapshot, "_LEAST", 500)
    monkeypatch.setattr(snapshot, "_SHARE", 10**9)
    monkeypatch.setattr(snapshot.Snapshot, "make_room", lambda self, rows, find=None: None)
    emb, twin = make(), make()
    saved = emb.save(tmp_path / "a", background=True)
    step(emb, 0)
    step(twin, 0)
    gate.release()
    with pytest.raises(RuntimeError, match="more rows were written than could be kept"):
        saved.result()
    assert list(tmp_path.iterdir()) == []
    assert digest(emb) == digest(twin)


@pytest.mark.parametrize("call", ["step", "flush", "restore"])
def test_calls_wait_where_too_much_would_be_kept(
    call: str, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those that write the arrays without the kernels always."""
    if call != "restore":
        monkeypatch.setattr(snapshot, "_LEAST", 0)
        monkeypatch.setattr(snapshot, "_SHARE", 10**9)
    emb = make()
    for seed in range(3):
        step(emb, seed)
    emb.save(tmp_path / "waits")
    state = mpe.collection.collection_state(emb)
    arrays = {name: np.copy(array) for name, array in make().state_arrays().items()}
    with state.reading() as on:
        counters = state.counters(on)
    saved = emb.save(tmp_path / "goes on", background=True)
    calls = {
        "step": lambda: step(emb, 3),
        "flush": emb.flush,
        "restore": lambda: state.restore(arrays, counters, 0),
    }
    gate.holds(calls[call])
    saved.result()
    assert (tmp_path / "goes on").read_bytes() == (tmp_path / "waits").read_bytes()


CACHES = {"none": None, "lru": mpe.CacheConfig(num_sets=4, ways=8, policy="lru")}


@pytest.mark.parametrize("tickets", [1, 2])
@pytest.mark.parametrize("cache", CACHES)
def test_a_batch_that_repeats_its_rows_does_not_wait(
    cache: str, tickets: int, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it writes counts, once: not its size. The file has the bytes of the call."""
    monkeypatch.setattr(snapshot, "_LEAST", 0)
    configs = [mpe.TableConfig(name, 4_000, 8) for name in ("a", "b")]
    emb, twin = (
        mpe.EmbeddingBagCollection(configs, cache=CACHES[cache], optimizer=mpe.Adagrad(0.1))
        for _ in range(2)
    )
    rng = np.random.default_rng(0)

    def train(trained: Any, rows: np.ndarray[Any, Any]) -> None:
        """On some rows of the first table and some of the second, each a thousand times."""
        used = []
        for part in np.array_split(rows, tickets):
            indices = np.concatenate([np.repeat(part, 1_000), np.repeat(part[:3], 1_000)])
            offsets = np.array([0, 0, len(part), len(part), len(part) + 3]) * 1_000
            out, ticket = trained.forward(indices, offsets, ticket=True)
            used.append((np.ones_like(out), ticket))
        trained.backward(used)

    emb.save(tmp_path / "waits")
    saved = emb.save(tmp_path / "goes on", background=True)
    rows = rng.permutation(4_000)[:40]
    steps = [rows, rows, rng.permutation(rows), rng.permutation(4_000)[:60]]

    def steps_of(trained: Any) -> None:
        for each in steps:
            train(trained, each)

    assert goes_on(lambda: steps_of(emb))
    gate.release()
    saved.result()
    steps_of(twin)
    assert (tmp_path / "goes on").read_bytes() == (tmp_path / "waits").read_bytes()
    assert digest(emb) == digest(twin)


def test_an_admission_without_a_cache_never_waits(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes no row; a backward does, and waits where its rows have no room."""
    monkeypatch.setattr(snapshot, "_LEAST", 0)
    monkeypatch.setattr(snapshot, "_SHARE", 10**9)
    emb = mpe.EmbeddingBagCollection([mpe.TableConfig("t", 500, 4)], optimizer=mpe.SGD(0.1))
    saved = emb.save(tmp_path / "a", background=True)
    emb.prefetch(np.arange(9), np.array([0, 9]))
    out = emb.forward(np.arange(9), np.array([0, 9]))
    gate.holds(lambda: emb.backward(np.ones_like(out)))
    saved.result()


def test_what_is_left_bounds_what_is_kept(gate: Gate, tmp_path: Path) -> None:
    """Rows that are kept or read, and rows beyond a small table, need no room."""
    tables = [mpe.TableConfig("t", 96, 4), mpe.TableConfig("u", 33, 4)]
    emb = mpe.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1))
    saved = emb.save(tmp_path / "a", background=True)
    kept = emb._storage.snapshot
    assert kept is not None
    images = kept._images["table.t"]
    assert images.left == 96
    emb.backward(np.ones_like(emb.forward(np.array([5, 5, 70]), np.array([0, 3, 3]))))
    assert images.left == 94
    assert images.count_left(np.array([4, 5, 6, 69, 70, 71])) == 4
    gate.release()
    saved.result()
    assert images.left == 0
    assert images.count_left(np.arange(96)) == 0


@pytest.mark.parametrize("policy", [None, "lru"])
@pytest.mark.parametrize("kind", ["adagrad", "rowwise_adagrad_bf16", "adam_mixed", "ftrl"])
def test_states_are_set_meanwhile(
    kind: str, policy: str | None, gate: Gate, tmp_path: Path
) -> None:
    """`set_state` of rows and slots goes on, and the file has the states of the call."""
    emb, twin = (make(kind, policy) for _ in range(2))
    for trained in (emb, twin):
        for seed in range(3):
            step(trained, seed)

    def set_states(trained: Any) -> None:
        rng = np.random.default_rng(1)
        for config in trained.tables:
            ids = rng.permutation(config.num_embeddings)[:120]
            states = trained.state(config.name, ids) if config.trainable else {}
            new = {name: one + np.float32(0.5) for name, one in states.items()}
            trained.set_state(config.name, ids, new)

    emb.save(tmp_path / "waits")
    saved = emb.save(tmp_path / "goes on", background=True)
    gate.let(7)
    assert goes_on(lambda: set_states(emb))
    gate.let(9)
    step(emb, 3)
    gate.release()
    saved.result()
    set_states(twin)
    step(twin, 3)
    assert (tmp_path / "goes on").read_bytes() == (tmp_path / "waits").read_bytes()
    assert digest(emb) == digest(twin)


def test_states_of_more_rows_than_can_be_kept_wait(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_LEAST", 0)
    emb = make()
    ids = np.arange(ROWS)
    emb.save(tmp_path / "waits")
    monkeypatch.setattr(snapshot, "_SHARE", 10**9)
    saved = emb.save(tmp_path / "goes on", background=True)
    states = emb.state("int8.5", ids + 1)
    gate.holds(lambda: emb.set_state("int8.5", ids, states))
    saved.result()
    assert (tmp_path / "goes on").read_bytes() == (tmp_path / "waits").read_bytes()
