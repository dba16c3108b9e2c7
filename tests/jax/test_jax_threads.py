"""Programs beside other threads, eager calls, interrupts, and the end of the interpreter."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
from interrupts import Interrupt
from jitted import (
    INDICES,
    OFFSETS,
    batches,
    jitted_step,
    one_table,
    same_bytes,
    sum_step,
    tables,
    weights,
)

import mpembed as mpe
from mpembed.jax import JitCollection


def test_eager_calls_of_other_threads_are_taken_in_turn(tmp_path: Path) -> None:
    """What reads changes nothing of the training; a save in the background keeps its moment."""
    jitted, alone = tables(), tables()
    errors: list[BaseException] = []
    stop = threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                jitted.stats()
                jitted.rows("t0", INDICES)
                jitted.memory_report()
        except BaseException as error:
            errors.append(error)

    def train(emb: JitCollection, **options: Any) -> Any:
        step, state, dense, save = jitted_step(emb), emb.state(), weights(), None
        for number, batch in enumerate(batches(30)):
            _, dense, state = step(dense, state, *batch)
            if number == 9:
                save = emb.collection(state).save(**options)
        emb.collection(state)
        return save

    thread = threading.Thread(target=read)
    thread.start()
    try:
        save = train(JitCollection(jitted), path=tmp_path / "emb", background=True)
        train(JitCollection(alone), path=tmp_path / "alone")
    finally:
        stop.set()
        thread.join()
    save.result()
    assert errors == []
    assert same_bytes(jitted, alone)
    load = mpe.EmbeddingBagCollection.load
    assert same_bytes(load(tmp_path / "emb"), load(tmp_path / "alone"))


ARRAYS_OF_PROGRAMS = """
import jax, jax.numpy as jnp, numpy as np
import mpembed as mpe
from mpembed.jax import JitCollection

emb = mpe.EmbeddingBagCollection([mpe.TableConfig("t", 9, 4)], optimizer=mpe.SGD(0.1))
jitted, ends = JitCollection(emb), np.array([0, 1, 2], np.int32)
heavy = jnp.full((200, 200), 1 / 200)

@jax.jit
def program(state, x):
    for _ in range(30):
        x = x @ x
    indices = (x[0, :2] > 2).astype(jnp.int32)
    pooled, ticket = jitted.forward(state, indices, ends)
    state, _ = jitted.backward(pooled, ticket)
    return state, indices + (pooled[:, 0] > 9).astype(jnp.int32), pooled

state = jitted.state()
for call in range(6):
    state, indices, pooled = program(state, heavy)
    if call == 0: emb.forward(indices, ends, training=False)
    if call == 1: emb.prefetch(indices, ends).drop()
    if call == 2: emb.rows("t", indices[:1])
    if call == 3: emb.set_rows("t", indices[:1], pooled[:1])
    if call == 4: emb.backward(pooled, emb.forward({"t": (indices, ends)}, ticket=True)[1])
    if call == 5: emb.state("t", indices[:1])
print(jitted.collection(state).updates)
program(state, heavy)  # the interpreter ends meanwhile
"""


def test_eager_calls_wait_for_the_arrays_of_programs_without_the_lock(tmp_path: Path) -> None:
    """With it, the program could not go on to compute them."""
    command = [sys.executable, "-W", "error", "-c", ARRAYS_OF_PROGRAMS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


def test_an_interrupt_leaves_each_call_done_or_not_done() -> None:
    """At any line: after it no update, a forward that is dropped, or the update."""
    jitted = one_table(cache=mpe.CacheConfig(load_factor=0.1))
    emb = JitCollection(jitted)
    step = sum_step(emb, OFFSETS)
    step(emb.state(), INDICES).block_until_ready()
    seen, point, happened = set(), 0, True
    while happened:
        point += 1
        before, twin = jitted.updates, copied(jitted)
        interrupt = Interrupt(point, returns=False)
        try:
            interrupt.run(lambda: step(emb.state(), INDICES).block_until_ready())
        except Exception as error:
            assert "KeyboardInterrupt" in str(error)
        happened = interrupt.happened
        emb.state()
        made = jitted.updates - before
        seen.add(made)
        if made:
            twin.backward(np.ones_like(twin.forward(INDICES, OFFSETS)))
        np.testing.assert_array_equal(jitted.rows("t", INDICES), twin.rows("t", INDICES))
    assert seen == {0, 1}
    assert point > 50
    assert emb.collection(step(emb.state(), INDICES)).updates > 1


ENDED_BY_A_SIGNAL = """
import atexit
import signal
import sys
import numpy as np
import jax
import mpembed as mpe
from mpembed.jax import JitCollection

atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
emb = JitCollection(mpe.EmbeddingBagCollection(
    [mpe.TableConfig("t", 100, 8)], optimizer=mpe.SGD(0.1)))
indices, offsets = np.arange(4, dtype=np.int32), np.arange(5, dtype=np.int32)
step = jax.jit(jax.grad(lambda state: emb.lookup(state, indices, offsets).sum()))
state = step(emb.state())
signal.signal(signal.SIGALRM, lambda *_: sys.exit(7))
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.5)  # one may come in a finalizer, which ends nothing
while True:
    try:
        state = step(state)
    except Exception:  # as careless loops have it
        state = emb.state()
"""


def test_a_signals_handler_ends_the_process(tmp_path: Path) -> None:
    for _ in range(3):  # mostly the signal comes while a handler of XLA's runs
        command = [sys.executable, "-c", ENDED_BY_A_SIGNAL]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 7, done.stderr


def copied(collection: Any) -> Any:
    """Return a collection with the same rows; SGD has no states, and rows of FP32 no noise."""
    twin = one_table()
    ids = np.arange(collection.tables[0].num_embeddings)
    twin.set_rows("t", ids, collection.rows("t", ids))
    return twin


def test_a_prefetch_is_taken_over_by_a_program() -> None:
    jitted, twin = tables(), tables()
    emb = JitCollection(jitted)
    indices, offsets, _ = next(batches(1))
    for one in (jitted, twin):
        one.prefetch(indices, offsets)
    pooled, ticket = jax.jit(emb.forward)(emb.state(), indices, offsets)
    state, _ = jax.jit(emb.backward)(pooled, ticket)
    twin.backward(twin.forward(indices, offsets))
    assert emb.collection(state).drop_prefetched() == 0
    assert same_bytes(jitted, twin)


def test_two_threads_with_one_state() -> None:
    """One of them has it; the other's error says so."""
    jitted = one_table()
    emb = JitCollection(jitted)
    step = sum_step(emb, OFFSETS)
    state = emb.state()
    compiled = step.lower(state, INDICES).compile()
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(jax.block_until_ready(compiled(state, jnp.asarray(INDICES))))
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [str(one) for one in results if isinstance(one, Exception)]
    assert len(failed) == 1
    assert "StaleStateError" in failed[0]
    assert jitted.updates == 1
