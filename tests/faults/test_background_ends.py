"""`save(path, background=True)`: interrupts, forks, and ends of collections and programs."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from background_saves import Gate, join_writers, make, step
from exporters import Exporter
from folders import environment
from helpers import digest
from interrupts import AtPoint, Interrupt

import mpembed as mpe
from mpembed._checkpoint import deltas
from mpembed._checkpoint.manifest import identity


def test_an_interrupt_as_the_thread_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call has not happened: no file has appeared, and nothing is kept for it."""
    emb, start, threads = make(), threading.Thread.start, []

    def interrupted(self: threading.Thread) -> None:
        start(self)
        threads.append(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            emb.save(tmp_path / "a", background=True)
    threads[0].join()
    assert list(tmp_path.iterdir()) == []
    step(emb, 0)
    emb.save(tmp_path / "a", background=True).result()


def test_a_collection_that_is_dropped(gate: Gate, tmp_path: Path) -> None:
    emb = make()
    emb.save(tmp_path / "waits")
    saved = emb.save(tmp_path / "goes on", background=True)
    step(emb, 0)
    del emb
    gc.collect()
    gate.release()
    saved.result()
    assert (tmp_path / "goes on").read_bytes() == (tmp_path / "waits").read_bytes()


EXIT = """
import sys
import mpembed as mpe
emb = mpe.EmbeddingBagCollection([mpe.TableConfig("t", 200_000, 32)], optimizer=mpe.SGD(0.1))
emb.save(sys.argv[1])
emb.save(sys.argv[2], background=True)
"""


def test_the_interpreter_waits_before_it_exits(tmp_path: Path) -> None:
    paths = [tmp_path / "waits", tmp_path / "goes on"]
    command = [sys.executable, "-P", "-c", EXIT, *map(str, paths)]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment())
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_goes_on_without_it(gate: Gate, tmp_path: Path) -> None:
    emb = make()
    emb.save(tmp_path / "waits")
    saved = emb.save(tmp_path / "goes on", background=True)
    step(emb, 0)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert saved.done
            with pytest.raises(RuntimeError, match="forked this one"):
                saved.result()
            step(emb, 1)
            assert emb.memory_report()["background_save"] == 0
            gate.open = True
            emb.save(tmp_path / "child", background=True).result()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    step(emb, 1)
    emb.save(tmp_path / "parent")
    gate.release()
    saved.result()
    assert (tmp_path / "goes on").read_bytes() == (tmp_path / "waits").read_bytes()
    assert (tmp_path / "child").read_bytes() == (tmp_path / "parent").read_bytes()


IDS = np.arange(3)


@pytest.mark.parametrize("call", ["rows", "set_state", "forward"])
def test_one_that_is_waited_for_inside_a_call(call: str, tmp_path: Path) -> None:
    """As a signal's handler does: the thread needs no turn, which the call has."""
    emb = make()
    twin, saved = make(), []

    def act() -> None:
        saved.append(emb.save(tmp_path / "inside", background=True))
        saved[-1].result(timeout=20)

    calls: dict[str, Callable[[], object]] = {
        "rows": lambda: emb.rows("int8.5", Exporter(IDS, act)),
        "set_state": lambda: emb.set_state("int8.5", Exporter(IDS, act), {}),
        "forward": lambda: emb.forward(
            Exporter(IDS, act), np.arange(len(emb.tables) + 1).clip(0, 3), training=False
        ),
    }
    calls[call]()
    assert saved[0].done
    twin.save(tmp_path / "plain")
    assert (tmp_path / "inside").read_bytes() == (tmp_path / "plain").read_bytes()


def test_a_handler_of_a_signal_waits_for_it(tmp_path: Path) -> None:
    emb, saved = make(), []

    def handle(*_: object) -> None:
        saved.append(emb.save(tmp_path / "a", background=True))
        saved[-1].result(timeout=20)

    before = signal.signal(signal.SIGINT, handle)
    try:
        emb.rows("int8.5", Exporter(IDS, lambda: signal.raise_signal(signal.SIGINT)))
    finally:
        signal.signal(signal.SIGINT, before)
    assert saved[0].done


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_as_the_thread_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its last step: the child can use the collection, and save it."""
    last, go_on = threading.Event(), threading.Event()

    def held(manifest: dict[str, Any]) -> str:
        last.set()
        go_on.wait()
        return identity(manifest)

    emb = make()
    monkeypatch.setattr(deltas, "identity", held)
    saved = emb.save(tmp_path / "a", background=True)
    last.wait()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            step(emb, 0)
            go_on.set()
            emb.save(tmp_path / "child", background=True).result()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    go_on.set()
    saved.result()
    assert code == 0
    step(emb, 0)
    emb.save(tmp_path / "parent")
    assert (tmp_path / "child").read_bytes() == (tmp_path / "parent").read_bytes()


def test_a_second_one_from_a_handler_ends_only_itself(tmp_path: Path) -> None:
    """At each line, whichever of the two comes first; one of them is written at least."""
    number, reached, both, one = 1, True, 0, 0
    while reached:
        emb = mpe.EmbeddingBagCollection([mpe.TableConfig("t", 40, 4)], optimizer=mpe.SGD(0.1))
        emb.save(tmp_path / "before", background=True).result()
        started: dict[str, mpe.BackgroundSave] = {}

        def save(name: str, emb: Any = emb, started: Any = started) -> None:
            with contextlib.suppress(RuntimeError):
                started[name] = emb.save(tmp_path / name, background=True)

        def act(wait: bool = number % 4 == 1, started: Any = started, save: Any = save) -> None:
            save("inside")
            if wait and "inside" in started:
                started["inside"].result(timeout=20)

        handler = AtPoint(number, act)
        handler.run(partial(save, "outside"))
        reached = handler.happened
        for saved in started.values():
            saved.result(timeout=20)
        both, one = both + (len(started) == 2), one + (len(started) == 1)
        assert started
        out = emb.forward(np.array([1]), np.array([0, 1]))
        emb.backward(np.ones_like(out))
        assert emb.memory_report()["background_save"] == 0
        number += 5
    assert both > 0
    assert one > 1


def test_interrupts_of_its_start(tmp_path: Path) -> None:
    """At lines of the call: no file is left, a next save is written, and deltas continue it."""
    number, reached = 1, True
    while reached:
        emb = mpe.EmbeddingBagCollection([mpe.TableConfig("t", 40, 4)], optimizer=mpe.SGD(0.1))
        emb.save(tmp_path / "base", track=True)
        interrupt = Interrupt(number)
        saved = interrupt.run(partial(emb.save, tmp_path / "a", background=True))
        reached = interrupt.happened
        join_writers()
        if saved is not None:
            saved.result()
        emb.backward(np.ones_like(emb.forward(np.array([1]), np.array([0, 1]))))
        assert emb.memory_report()["background_save"] == 0
        emb.save(tmp_path / "b", background=True).result()
        since = emb.step
        emb.backward(np.ones_like(emb.forward(np.array([2]), np.array([0, 1]))))
        emb.save(tmp_path / "delta", since=since)
        again = mpe.EmbeddingBagCollection.load(tmp_path / "b", deltas=[tmp_path / "delta"])
        assert digest(again) == digest(emb)
        assert {path.name for path in tmp_path.iterdir()} <= {"a", "b", "base", "delta"}
        number += 11
    assert number > 200
