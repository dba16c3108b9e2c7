"""A forked child never hangs on a collection: it works, or says why it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, threading, warnings
import numpy as np
import mpembed as mpe

warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads, which is the point
emb = mpe.EmbeddingBagCollection(
    [mpe.TableConfig("t", 9, 4, "int8")], cache=mpe.CacheConfig(num_sets=1, ways=8),
    optimizer=mpe.SGD(0.1),
)
INDICES, OFFSETS = np.arange(4), np.arange(5)
_, ticket = emb.forward(INDICES, OFFSETS, ticket=True)
inside, leave = threading.Event(), threading.Event()

class Slow:  # an exporter that another thread waits in, inside a call
    def __dlpack_device__(self):
        inside.set()
        leave.wait()
        return 1, 0
    def __dlpack__(self, **_):
        raise BufferError("never")

def enter():
    try:
        emb.forward(Slow(), OFFSETS)
    except BufferError:
        pass

busy = sys.argv[1] == "busy"
if busy:
    thread = threading.Thread(target=enter)
    thread.start()
    inside.wait()
child = os.fork()
if child == 0:
    try:
        out = emb.forward(INDICES, OFFSETS)
        emb.backward(np.ones_like(out))
        emb.rows("t", INDICES)
        text = "works"
    except RuntimeError as error:
        text = str(error)
    del ticket
    print(text, flush=True)
    os._exit(0)
leave.set()
if busy:
    thread.join()
assert os.waitpid(child, 0)[1] == 0
emb.backward(np.ones((4, 4), np.float32), ticket)
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
@pytest.mark.parametrize(("state", "text"), [("idle", "works"), ("busy", "was forked while")])
def test_a_child_does_not_hang(state: str, text: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, state],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert text in done.stdout
    assert not done.stderr
