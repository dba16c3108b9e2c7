"""What a save in the background costs training: the longest step, memory, time.

    python -P bench/background_save.py [--rows 12000000] [--rounds 3] [--threads 2] [--folder DIR]

Four tables in int8 with rowwise Adagrad and a cache of 5 %, by default 1.1 GB in all, are trained
on batches of skewed indices without pause: forward and backward, nothing else. Steps are timed
without a save, then during one, round after round: by the clock, and by the processor's time of the
calling thread, which other programs disturb less. With ``--threads 1`` that is all of a step. The
file goes to a temporary folder of ``--folder``, or of the system.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

import mpembed as mpe

Times = npt.NDArray[np.float64]
TABLES, DIM, LOOKUPS, BAG = 4, 64, 65_536, 16
PAUSE = 3  # medians that the longest step may take


def make(rows: int) -> mpe.EmbeddingBagCollection:
    tables = [mpe.TableConfig(f"t{i}", rows // TABLES, DIM, "int8") for i in range(TABLES)]
    cache = mpe.CacheConfig(load_factor=0.05, policy="lfu")
    return mpe.EmbeddingBagCollection(tables, cache=cache, optimizer=mpe.RowwiseAdagrad(0.05))


class Training:
    """Steps on batches that are drawn ahead."""

    def __init__(self, emb: mpe.EmbeddingBagCollection, rows: int) -> None:
        rng = np.random.default_rng(0)
        size = rows // TABLES
        draws = rng.random((16, LOOKUPS))
        skewed = (size * draws**4).astype(np.int64)
        self.emb = emb
        self.batches = [(one * 7919) % size for one in skewed]  # hot rows lie everywhere
        self.offsets = np.arange(0, LOOKUPS + 1, BAG)
        self.grad = np.full((LOOKUPS // BAG // TABLES, TABLES * DIM), 1e-3, np.float32)
        self.taken = 0

    def step(self) -> tuple[float, float]:
        """Return a step's seconds, by the clock and of the thread."""
        indices = self.batches[self.taken % len(self.batches)]
        self.taken += 1
        begin = time.perf_counter(), time.thread_time()
        self.emb.forward(indices, self.offsets)
        self.emb.backward(self.grad)
        return time.perf_counter() - begin[0], time.thread_time() - begin[1]

    def steps(self, goes_on: Callable[[], bool]) -> Times:
        """Return the milliseconds (2, n) of steps, by the clock and of the thread."""
        times = []
        while goes_on():
            times.append(self.step())
        return 1e3 * np.array(times).T


def show(name: str, times: Times) -> None:
    for clock, one in zip(("clock", "thread"), times, strict=True):
        longest = ", ".join(f"{t:.1f}" for t in np.sort(one)[:-4:-1])
        print(
            f"{name:7} by the {clock:6}: {len(one):4} steps, median {np.median(one):6.1f} ms, "
            f"longest {longest} ms, longest / median {one.max() / np.median(one):.2f}"
        )


def measure(training: Training, path: Path) -> bool:
    """One round; return whether the longest step is short enough."""
    emb, until = training.emb, time.perf_counter() + 5
    plain = training.steps(lambda: time.perf_counter() < until)
    show("without", plain)
    begin = time.perf_counter()
    emb.save(path)
    print(f"a save that waits: {time.perf_counter() - begin:.2f} s")
    begin = time.perf_counter()
    saved = emb.save(path, background=True)
    call, kept = time.perf_counter() - begin, 0

    def goes_on() -> bool:
        nonlocal kept
        kept = max(kept, emb.memory_report()["background_save"])
        return not saved.done

    during = training.steps(goes_on)
    duration = time.perf_counter() - begin
    saved.result()
    show("during", during)
    print(f"the call: {1e3 * call:.1f} ms; the save: {duration:.2f} s; kept: {kept / 1e6:.1f} MB")
    return bool(during[0].max() <= PAUSE * np.median(plain[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=12_000_000, help="of all tables")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    if options.threads is not None:
        mpe.set_num_threads(options.threads)
    emb = make(options.rows)
    training = Training(emb, options.rows)
    print(f"{emb.memory_report()['total'] / 1e9:.2f} GB, {mpe.get_num_threads()} threads")
    for _ in range(20):
        training.step()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        good = [measure(training, Path(folder) / "saved") for _ in range(options.rounds)]
    print(f"the longest step is at most {PAUSE} medians in {sum(good)} of {len(good)} rounds")


if __name__ == "__main__":
    main()
