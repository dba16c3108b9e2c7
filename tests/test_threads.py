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
