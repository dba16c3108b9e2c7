"""A checkpoint that others rewrite, cut or replace while it is loaded: an error, or one version."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import programs
import pytest
from checkpoint_files import refused_by_cpp
from folders import environment

import mpembed as mpe

TABLES = 50
NAMES = [f"table.t{number}.rows" for number in range(TABLES)]


def make(seed: int) -> mpe.EmbeddingBagCollection:
    return mpe.EmbeddingBagCollection(
        [mpe.TableConfig(f"t{number}", 200, 16) for number in range(TABLES)],
        optimizer=mpe.SGD(lr=0.1),
        cache=mpe.CacheConfig(num_sets=4, ways=8),
        seed=seed,
    )


def rows(emb: mpe.EmbeddingBagCollection) -> bytes:
    return b"".join(np.asarray(emb.rows(t.name, np.arange(200))).tobytes() for t in emb.tables)


def rewrite(target: Path, sources: list[Path]) -> None:
    """Write files over another one in turn, in place, at once and in pieces, for ever."""
    contents, random_numbers = [source.read_bytes() for source in sources], random.Random(0)
    for turn in itertools.count():
        content = contents[turn % len(contents)]
        piece = random_numbers.choice([len(content), 65536, 4096])
        file = os.open(target, os.O_WRONLY | (os.O_TRUNC if turn % 4 else 0))
        for begin in range(0, len(content), piece):
            os.write(file, content[begin : begin + piece])
        os.close(file)
        time.sleep(random_numbers.random() * 0.01)


def load(path: Path, until: float) -> Counter[str]:
    """Load until a time; what loads has to be one of the two versions, whole."""
    versions, found = [rows(make(seed)) for seed in (1, 2)], Counter[str]()
    while time.monotonic() < until:
        found["refused in C++" if refused_by_cpp(path, NAMES) else "read in C++"] += 1
        try:
            emb = mpe.EmbeddingBagCollection.load(path)
        except (ValueError, OSError) as error:
            assert str(path) in str(error)
            found["refused"] += 1
        else:
            assert rows(emb) in versions
            found["loaded"] += 1
    return found


@pytest.mark.parametrize(
    "seconds", [3, pytest.param(10, marks=pytest.mark.exhaustive)], ids=["short", "long"]
)
def test_a_file_that_is_rewritten_in_place(tmp_path: Path, seconds: int) -> None:
    target, sources = tmp_path / "target", [tmp_path / "one", tmp_path / "two"]
    for seed, source in enumerate(sources, 1):
        make(seed).save(source)
    target.write_bytes(sources[0].read_bytes())
    program = Path(__file__).resolve()
    writing = [sys.executable, *map(str, [program, "rewrite", target, *sources])]
    writer = subprocess.Popen(writing, env=environment())
    try:
        done = programs.call(tmp_path, program, "load", target, seconds, timeout=100)
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
    assert done.returncode == 0, done.stderr  # not killed by SIGBUS
    refused, loaded = map(int, done.stdout.split())
    assert refused > 0
    assert loaded > 0


if __name__ == "__main__":
    if sys.argv[1] == "rewrite":
        rewrite(Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
    counts = load(Path(sys.argv[2]), time.monotonic() + float(sys.argv[3]))
    print(counts["refused"], counts["loaded"])
