"""Collections that are saved in the background, and a gate that holds the thread."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from typing import Any

import kinds
import numpy as np
import pytest

import mpembed as mpe
from mpembed._files.replacement import ReplacementFile

ROWS = 200


def make(kind: str = "rowwise_adagrad", policy: str | None = "lru", **options: Any) -> Any:
    """Return tables of every format, of two dimensions, one of them frozen, and one empty."""
    tables = [
        mpe.TableConfig(f"{precision}.{dim}", ROWS + dim, dim, precision)
        for precision in mpe.registry.FORMATS
        for dim in (5, 12)
    ]
    tables += [
        mpe.TableConfig("frozen", ROWS, 12, "int4", trainable=False),
        mpe.TableConfig("empty", 0, 12, "int4"),
    ]
    cache = None if policy is None else mpe.CacheConfig(num_sets=2, ways=8, policy=policy)
    settings = {"optimizer": kinds.named(kind), "cache": cache, "seed": 5} | options
    return mpe.EmbeddingBagCollection(tables, **settings)


def step(emb: Any, seed: int) -> None:
    """Train on a batch that depends on the seed alone; sometimes write in other ways too."""
    rng = np.random.default_rng(seed)
    counts = [12 if table.num_embeddings else 0 for table in emb.tables]
    indices = [
        rng.integers(max(1, table.num_embeddings), size=count)
        for table, count in zip(emb.tables, counts, strict=True)
    ]
    offsets = np.concatenate(
        [[0], *(np.full(4, count // 4) for count in counts)],
    ).cumsum()
    out = emb.forward(np.concatenate(indices), offsets)
    emb.backward(rng.standard_normal(out.shape).astype(np.float32))
    if seed % 3 == 1:
        ids = rng.permutation(ROWS)[:40]
        emb.set_rows("int8.5", ids, rng.standard_normal((40, 5)).astype(np.float32))
    if seed % 3 == 2:
        emb.flush()


def join_writers() -> None:
    """Wait for the threads of all saves, whatever becomes of them."""
    for thread in threading.enumerate():
        if thread.name == "mpembed save":
            thread.join()


def fill_disk(patch: pytest.MonkeyPatch, path: object = "a") -> None:
    """Let each write of a save fail."""

    def full(self: ReplacementFile, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    patch.setattr(ReplacementFile, "write", full)


class Gate:
    """Lets the writer have one piece at a time."""

    def __init__(self) -> None:
        self.passes = threading.Semaphore(0)
        self.taken = threading.Semaphore(0)
        self.open = False

    def pieces(self, original: Any) -> Iterator[Any]:
        for piece in original:
            if not self.open:
                self.passes.acquire()
            yield piece
            self.taken.release()

    def let(self, count: int) -> None:
        """Wait until the writer has had so many more pieces."""
        for _ in range(count):
            self.passes.release()
            self.taken.acquire()

    def release(self) -> None:
        self.open = True
        self.passes.release()

    def holds(self, call: Callable[[], Any]) -> None:
        """Check that a call waits for the writer; then let both go on."""
        thread = threading.Thread(target=call)
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        self.release()
        thread.join()


def goes_on(call: Callable[[], Any]) -> bool:
    """Make a call in a thread; return whether it ends by itself."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(20)
    return not thread.is_alive()
