"""Calls that a signal handler makes at a line of another call: states are whole, or refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import batch, collection, digest, train
from interrupts import AtPoint, Interrupt

import mpembed as mpe
from mpembed._collection.state import Counters
from mpembed.collection import collection_state

Emb = mpe.EmbeddingBagCollection
Values = tuple[dict[str, Any], Counters, int]
STILL = "call of the collection is still running"


class Handler(AtPoint):
    """Makes a call at the n-th line of another one; whether it was refused, or its result."""

    def __init__(self, n: int, call: Callable[[], Any]) -> None:
        super().__init__(n, self._try)
        self._call = call
        self.result: Any = None
        self.refused = False

    def _try(self) -> None:
        try:
            self.result = self._call()
        except RuntimeError as error:
            assert STILL in str(error)
            self.refused = True


def prepared(folder: Path) -> Values:
    """Write a save and a delta that continues it; return the state of the delta."""
    emb = collection(optimizer=mpe.Adam(0.1))
    train(emb)
    emb.save(folder / "base", track=True)
    step = emb.step
    train(emb, 2)
    emb.set_rows("a", np.arange(20), np.ones((20, 6), np.float32))
    emb.save(folder / "delta", since=step)
    state = collection_state(emb)
    with state.reading() as on:
        found = {name: np.array(one.whole(on)) for name, one in state.arrays().items()}
        return found, state.counters(on), 3


def set_states(emb: Emb) -> None:
    moments = np.full((20, 6), 0.5, np.float32)
    emb.set_state("a", np.arange(20), {"exp_avg": moments, "exp_avg_sq": moments})


HALF_CHANGED: dict[str, Callable[[Emb, Path, Values], Any]] = {
    "set_state": lambda emb, *_: set_states(emb),
    "apply_delta": lambda emb, folder, _: emb.apply_delta(folder / "delta"),
    "restore": lambda emb, _, values: collection_state(emb).restore(*values),
    "set_updates": lambda emb, *_: emb.set_updates(77),
}
INNER: dict[str, tuple[int, Callable[[Emb, Path], Any]]] = {  # and how many lines are left out
    "state_arrays": (41, lambda emb, _: digest(emb)),
    "save": (83, lambda emb, folder: emb.save(folder / "saved")),
    "background": (89, lambda emb, folder: emb.save(folder / "saved", background=True)),
}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("outer", HALF_CHANGED)
def test_what_is_read_inside_is_the_state_before_or_after(
    outer: str, inner: str, tmp_path: Path
) -> None:
    values = prepared(tmp_path)
    emb = Emb.load(tmp_path / "base")
    before = digest(emb)
    HALF_CHANGED[outer](emb, tmp_path, values)
    after, refused, n = digest(emb), 0, 1
    every, call = INNER[inner]
    while True:
        emb = Emb.load(tmp_path / "base")
        at = Handler(n, partial(call, emb, tmp_path))
        at.run(partial(HALF_CHANGED[outer], emb, tmp_path, values))
        if not at.happened:
            break
        if at.refused:
            refused += 1
        elif inner == "state_arrays":
            assert at.result in (before, after)
        else:
            if at.result is not None:
                at.result.result()
            assert digest(Emb.load(tmp_path / "saved")) in (before, after)
        assert digest(emb) == after
        n += every
    assert refused or n < 3 * every  # a call of few lines


def read_states(emb: Emb, _: Path) -> Any:
    return emb.state("a", np.arange(9))["exp_avg"].tobytes()


def save(emb: Emb, folder: Path) -> Any:
    emb.save(folder / "saved")
    return digest(Emb.load(folder / "saved"))


def save_in_background(emb: Emb, folder: Path) -> Any:
    emb.save(folder / "saved", background=True).result()
    return digest(Emb.load(folder / "saved"))


READING: dict[str, tuple[int, Callable[[Emb, Path], Any]]] = {
    "save": (131, save),
    "background": (131, save_in_background),
    "state_arrays": (5, lambda emb, _: digest(emb)),
    "export": (11, lambda emb, _: emb.export("b").tobytes()),
    "state": (5, read_states),
}


def change(emb: Emb) -> None:
    out = emb.forward(*batch())
    emb.backward(np.ones_like(out))


@pytest.mark.parametrize("outer", READING)
def test_a_change_inside_what_reads_in_pieces_is_refused(outer: str, tmp_path: Path) -> None:
    prepared(tmp_path)
    every, call = READING[outer]
    emb, changed = Emb.load(tmp_path / "base"), Emb.load(tmp_path / "base")
    change(changed)
    forward = Emb.load(tmp_path / "base")
    forward.forward(*batch())
    wholes = [call(one, tmp_path) for one in (emb, forward, changed)]
    refused, n = 0, 1
    while True:
        emb = Emb.load(tmp_path / "base")
        at = Handler(n, partial(change, emb))
        found = at.run(partial(call, emb, tmp_path))
        if not at.happened:
            break
        refused += at.refused
        assert found in wholes
        n += every
    assert refused


# ---- what an interrupt leaves half done ----------------------------------------------------------

CALLS: dict[str, Callable[[Emb, Path], Any]] = {
    "forward": lambda emb, _: emb.forward(*batch()),
    "evaluation": lambda emb, _: emb.forward(*batch(), training=False),
    "set_rows": lambda emb, _: emb.set_rows("a", np.array([1]), np.ones((1, 6), np.float32)),
    "rows": lambda emb, _: emb.rows("a", np.array([1])),
    "save": lambda emb, folder: emb.save(folder / "saved"),
    "background": lambda emb, folder: emb.save(folder / "saved", background=True),
    "apply_delta": lambda emb, folder: emb.apply_delta(folder / "delta"),
    "step": lambda emb, _: emb.step,
}


def test_a_state_that_was_half_loaded_is_neither_trained_nor_saved(tmp_path: Path) -> None:
    values = prepared(tmp_path)
    emb = Emb.load(tmp_path / "base")
    whole = Emb.load(tmp_path / "base")
    collection_state(whole).restore(*values)
    after, refused, n = digest(whole), 0, 1
    emb.forward(*batch(), ticket=True)[1].drop()
    dropped = digest(emb)  # open batches are, first of all
    while True:
        emb = Emb.load(tmp_path / "base")
        ticket = emb.forward(*batch(), ticket=True)[1]
        opened = digest(emb)
        interrupt = Interrupt(n)
        interrupt.run(partial(collection_state(emb).restore, *values))
        if not interrupt.happened:
            break
        del ticket  # its finalizer raises nothing
        n += 11
        try:
            found = digest(emb)
        except RuntimeError:
            refused += 1
        else:
            assert found in (opened, dropped, after)
            continue
        for call in CALLS.values():
            with pytest.raises(RuntimeError, match="^load_state_dict was interrupted .*: load a"):
                call(emb, tmp_path)
        collection_state(emb).restore(*values)
        assert digest(emb) == after
    assert refused > 3
    assert not (tmp_path / "saved").exists()


def test_a_background_save_ends_beside_a_state_that_was_half_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = prepared(tmp_path)
    emb = Emb.load(tmp_path / "base")
    state, before = collection_state(emb), digest(emb)
    handle = emb.save(tmp_path / "saved", background=True)
    monkeypatch.setattr(state, "set_counters", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        state.restore(*values)
    handle.result()
    assert digest(Emb.load(tmp_path / "saved")) == before
    with pytest.raises(RuntimeError, match="^load_state_dict was interrupted"):
        emb.check()


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("what", ["set_state", "apply_delta", "set_updates"])
def test_a_change_that_cannot_be_undone_leaves_nothing_to_be_used(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted once, it is undone; again while it is undone, only a load helps."""
    values = prepared(tmp_path)
    emb = Emb.load(tmp_path / "base")
    state, before = collection_state(emb), digest(emb)
    owner: Any = state.engine.steps if what == "set_state" else state
    name = "set" if what == "set_state" else "set_counters"
    real, left = getattr(owner, name), [1]

    def fail(*arguments: Any) -> None:
        if left[0]:
            left[0] -= 1
            raise KeyboardInterrupt
        real(*arguments)

    if what == "set_state":  # of the extension's own type
        steps = SimpleNamespace(set=fail, read=owner.read, taken=owner.taken)
        monkeypatch.setattr(state.engine, "steps", steps)
    else:
        monkeypatch.setattr(state, name, fail)
    for times in (1, 2):
        left[0] = times
        with pytest.raises(KeyboardInterrupt):
            HALF_CHANGED[what](emb, tmp_path, values)
        if times == 1:
            assert digest(emb) == before
    with pytest.raises(RuntimeError, match=f"^{what} was interrupted .*: load a state again"):
        digest(emb)
    monkeypatch.undo()
    state.restore(*values)
    emb.check()
