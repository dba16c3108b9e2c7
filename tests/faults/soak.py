"""Trains at random for a given time, and looks for what only time shows.

    python tests/faults/soak.py [--seconds 300] [--seed 0] [--first 0] [--every 60] [--margin 64]

A *life* is a collection of random tables, optimizers and cache. A few hundred random calls go to
it and to the NumPy reference, with tickets dropped, saves, loads, forks and other numbers of
threads in between; every byte of the state is compared after each. Then it must be gone, and with
it every byte it had allocated. Beside the lives, two large collections train the same batches, one
of them in one thread, and at times one is replaced by a copy from a checkpoint.

A line is printed every minute, and a verdict at the end. A fault ends the run with the number of
its life, with which ``--first`` begins. The process's memory, open files and threads must not grow
after the first fifth of the time.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
import traceback
import weakref
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

from lives import Large, Life

from mpembed._bindings import memory


def measured() -> dict[str, int]:
    """Return what must not grow: resident bytes, open files and threads of this process."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    folders = {"files": "fd", "threads": "task"}
    counts = {name: len(list(Path("/proc/self", of).iterdir())) for name, of in folders.items()}
    return {"resident": resident, **counts}


class Soak:
    """Lives, one after the other, and what they left behind."""

    def __init__(self, seed: int, first: int, folder: Path, margin: int = 64) -> None:
        self.seed, self.number, self.folder, self.margin = seed, first, folder, margin
        for name in ("lives", "large"):
            (folder / name).mkdir()
        self.large = Large(seed, folder / "large")
        self.lives = self.steps = 0
        self.calls = 200

    def one_life(self) -> None:
        """Run one, and look for what is left of it."""
        gc.collect()  # what others left may not go in between
        before = memory.allocated_bytes()
        life = Life(self.seed, self.number, self.folder / "lives")
        emb = weakref.ref(life.pair.emb)
        life.live(self.calls)
        del life
        gc.collect()
        assert emb() is None, "a collection that nobody holds is alive"
        left = memory.allocated_bytes() - before
        assert left == 0, f"{left} bytes of a collection's arrays are left"
        self.lives, self.number = self.lives + 1, self.number + 1
        for _ in range(4):
            self.large.step()
            self.steps += 1

    def run(self, seconds: float, every: float) -> str:
        """Run for a time; return the verdict."""
        begin = reported = time.monotonic()
        base = None
        while (now := time.monotonic()) - begin < seconds or self.lives == 0:
            self.one_life()
            if base is None and time.monotonic() - begin > seconds / 5:
                base = measured()
            if now - reported >= every:
                reported = now
                print(f"{now - begin:6.0f} s  {self.line()}", flush=True)
        assert_no_growth(base or measured(), measured(), self.margin)
        return f"ok, {time.monotonic() - begin:.0f} s, {self.line()}"

    def line(self) -> str:
        """Return what was done so far, and what the process has."""
        now = measured()
        calls = self.lives * self.calls
        return (
            f"{self.lives} lives, {calls} calls, {self.steps} large steps, "
            f"{now['resident'] >> 20} MiB, {now['files']} files, {now['threads']} threads"
        )


def assert_no_growth(base: dict[str, int], now: dict[str, int], margin: int) -> None:
    """Refuse more files, threads or, by so many MiB, memory than there was."""
    allowed = {"resident": margin << 20, "files": 0, "threads": 4}  # those of the pool
    for name, more in allowed.items():
        assert now[name] <= base[name] + more, f"{name} grew from {base[name]} to {now[name]}"


def main() -> int:
    """Run as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first life")
    parser.add_argument("--margin", type=int, default=64, help="MiB an allocator may keep more")
    parser.add_argument("--every", type=float, default=60, help="seconds between two lines")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(chosen.seed, chosen.first, Path(folder), chosen.margin)
        try:
            print(f"soak: {soak.run(chosen.seconds, chosen.every)}")
        except BaseException:
            traceback.print_exc()
            print(f"soak: a fault at life {soak.number} of seed {chosen.seed}, {soak.line()}")
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
