"""Python threads, forks and the thread count."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from helpers import batch, collection, digest, train

import mpembed as mpe


def test_set_num_threads() -> None:
    before = mpe.get_num_threads()
    try:
        mpe.set_num_threads(3)
        assert mpe.get_num_threads() == 3
        assert mpe.info()["threads"] == 3
    finally:
        mpe.set_num_threads(before)


def test_calls_from_several_threads_are_taken_in_turn() -> None:
    """Evaluations run beside a trainer; what the trainer leaves is what it leaves alone."""
    emb, alone = collection(), collection()
    train(alone, 40)
    errors: list[BaseException] = []
    stop = threading.Event()

    def evaluate() -> None:
        try:
            while not stop.is_set():
                assert np.isfinite(emb.forward(*batch(), training=False)).all()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=evaluate) for _ in range(3)]
    for thread in threads:
        thread.start()
    train(emb, 40)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert digest(emb) == digest(alone)


def test_collections_of_their_own_run_side_by_side() -> None:
    alone = collection()
    train(alone, 30)
    many = [collection() for _ in range(4)]
    threads = [threading.Thread(target=train, args=(emb, 30)) for emb in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {digest(emb) for emb in many} == {digest(alone)}


def test_one_collection_is_trained_by_several_threads() -> None:
    """Each thread has its own rows and tickets: whoever comes first, the rows end the same."""
    table = mpe.TableConfig("t", 400, 8)
    embs = [
        mpe.EmbeddingBagCollection([table], cache=cache, optimizer=mpe.SGD(0.1))
        for cache in (None, mpe.CacheConfig(num_sets=2, ways=8), None)
    ]

    def work(emb: mpe.EmbeddingBagCollection, part: int) -> None:
        rng = np.random.default_rng(part)
        for step in range(25):
            ids = rng.integers(100 * part, 100 * (part + 1), 30)
            if step % 3 == 0:
                emb.prefetch(ids, np.arange(0, 31, 5))
            out, ticket = emb.forward(ids, np.arange(0, 31, 5), ticket=True)
            if step % 7 == 6:
                ticket.drop()
            else:
                emb.backward(np.ones_like(out), ticket)

    for part in range(4):
        work(embs[2], part)
    for emb in embs[:2]:
        threads = [threading.Thread(target=work, args=(emb, part)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert emb.step == embs[2].step
        assert emb.stats()["t"]["accesses"] == embs[2].stats()["t"]["accesses"]
        every = np.arange(400)
        np.testing.assert_array_equal(emb.rows("t", every), embs[2].rows("t", every))


def test_stateless_kernels_run_side_by_side() -> None:
    x = np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32)
    expected = {name: mpe.ops.quantize(x, name, seed=1) for name in mpe.registry.FORMATS}
    wrong: list[str] = []

    def work(name: str) -> None:
        for _ in range(10):
            if not np.array_equal(mpe.ops.quantize(x, name, seed=1), expected[name]):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_thread_count_may_change_while_kernels_run() -> None:
    before, stop = mpe.get_num_threads(), threading.Event()

    def change() -> None:
        while not stop.is_set():
            for n in (1, 3, 2, 5):
                mpe.set_num_threads(n)

    emb, alone = collection(), collection()
    train(alone, 60)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        train(emb, 60)
        x = np.ones((5000, 64), np.float32)
        rows = mpe.ops.quantize(x, "int8")
        assert all(np.array_equal(mpe.ops.quantize(x, "int8"), rows) for _ in range(20))
    finally:
        stop.set()
        thread.join()
        mpe.set_num_threads(before)
    assert digest(emb) == digest(alone)


def test_kernels_release_the_gil() -> None:
    """A Python thread makes progress while one long kernel runs."""
    table = mpe.TableConfig("t", 1000, 256)
    emb = mpe.EmbeddingBagCollection([table], optimizer=mpe.SGD(lr=0.1))
    indices = np.zeros(400_000, np.int64)
    offsets = np.array([0, len(indices)])
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1
            time.sleep(1e-4)  # gives the GIL back of its own accord

    thread = threading.Thread(target=count)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # the GIL changes hands only where it is released
    thread.start()
    try:
        for _ in range(5):
            before = counted[0]
            emb.forward(indices, offsets, training=False)
            if counted[0] > before:
                break
        assert counted[0] > before
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        thread.join()


FORK = """
import os, numpy as np, mpembed as mpe
mpe.set_num_threads(4)
x = np.ones((20000, 64), np.float32)
rows = mpe.ops.quantize(x, "int8")
child = os.fork()
if child == 0:
    same = np.array_equal(mpe.ops.quantize(x, "int8"), rows) and mpe.get_num_threads() == 1
    os._exit(0 if same else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert np.array_equal(mpe.ops.quantize(x, "int8"), rows) and mpe.get_num_threads() == 4
"""


def test_a_forked_child_works_on_one_thread(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
