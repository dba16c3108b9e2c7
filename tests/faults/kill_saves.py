"""A program that kills trainings while they save, and looks at what is left each time.

Every training resumes from the file, so that one damaged byte or a lost step would show in all that
follow. ``python tests/faults/kill_saves.py KILLS [SEED [WRITERS]]``, with ``tests/support`` on
Python's path, prints what it found as JSON; its exit status is 1 if anything was damaged or left.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import versions

import mpembed as mpe


@dataclass
class Found:
    """What a run has seen."""

    kills: int = 0
    interrupted_saves: int = 0  # kills that left a temporary file
    steps: int = 0
    damaged: int = 0
    leftovers: int = 0  # after the next save


def train_and_save(path: Path, started: int) -> None:
    """Train from the file on and save each step, for ever."""
    emb = mpe.EmbeddingBagCollection.load(path)
    os.write(started, b".")
    while True:
        versions.train(emb)
        emb.save(path)


def start(path: Path) -> int:
    """Fork a training; return its process once it has loaded the file."""
    end, started = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            train_and_save(path, started)
        finally:
            os._exit(1)  # with a traceback on standard error
    os.close(started)
    with os.fdopen(end, "rb") as pipe:
        assert pipe.read(1) == b".", "a training could not load the file"
    return child


def save_time(path: Path) -> float:
    """Return the seconds of a step and its save."""
    emb = mpe.EmbeddingBagCollection.load(path)
    begin = time.perf_counter()
    for _ in range(5):
        versions.train(emb)
        emb.save(path)
    return (time.perf_counter() - begin) / 5


def others(path: Path) -> list[str]:
    """Return the files beside the target."""
    return [entry.name for entry in path.parent.iterdir() if entry.name != path.name]


def look(path: Path, training: versions.Uninterrupted, found: Found) -> None:
    """Check the file that kills have left, and that the next save clears up."""
    found.interrupted_saves += bool(others(path))
    try:
        emb = mpe.EmbeddingBagCollection.load(path)
        found.damaged += not training.holds(emb)
        found.steps = max(found.steps, emb.step)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        found.damaged += 1
        emb = training.emb
    emb.save(path)
    found.leftovers += len(others(path))


def run(folder: Path, kills: int, seed: int = 0, writers: int = 1) -> Found:
    """Kill trainings that save to one path at random moments of a step or two."""
    mpe.set_num_threads(1)  # none that a fork would leave behind
    path, training, found = folder / "file", versions.Uninterrupted(), Found()
    training.emb.save(path)
    span, moments = 2 * save_time(path), random.Random(seed)
    while found.kills < kills:
        children = [start(path) for _ in range(writers)]
        for child in children:
            time.sleep(moments.uniform(0, span))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.WTERMSIG(status) == signal.SIGKILL, "a training ended by itself"
            found.kills += 1
        look(path, training, found)
    return found


def main() -> int:
    """Run with the arguments of the command line."""
    kills, *rest = map(int, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), kills, *rest)
    print(json.dumps(asdict(found)))
    return int(found.damaged > 0 or found.leftovers > 0)


if __name__ == "__main__":
    sys.exit(main())
