"""Checkpoints that ask for much are refused soon, and before memory is taken."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import WAYS, CheckpointFile, refused_by_python, written

LIMITED = """
import resource, sys, time
import mpembed as mpe
memory = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmSize"))
limit = memory * 1024 + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
begin = time.process_time()
try:
    mpe.EmbeddingBagCollection.load(sys.argv[1])
except ValueError as error:
    print(round(time.process_time() - begin, 2), str(error)[:300])
"""


def limited(path: Path, memory: int, folder: Path) -> tuple[float, str]:
    """Load in a process that may take so many bytes; return the CPU's seconds and the error."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(memory)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seconds, _, error = done.stdout.partition(" ")
    return float(seconds), error


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("names", ["same", pytest.param("different", marks=pytest.mark.exhaustive)])
def test_a_hundred_thousand_tables(
    parts: CheckpointFile, tmp_path: Path, reader: Any, names: str
) -> None:
    tables, count = parts.manifest["tables"], 100_000
    one = json.dumps({**tables[0], "num_embeddings": 0, "name": "NAME"})
    many = ", ".join(
        one.replace("NAME", str(n if names == "different" else 0)) for n in range(count)
    )
    text = json.dumps({**parts.whole_manifest(), "tables": []})
    path = written(tmp_path / "file", parts.content(text.replace("[]", f"[{many}]", 1)))
    if reader is refused_by_python:
        seconds, error = limited(path, 600 << 20, tmp_path)
    else:
        begin = time.process_time()
        error, seconds = reader(path), time.process_time() - begin
    assert "manifest is not valid" in error
    assert seconds < 10  # less than 1 on an idle machine; most of it reads the text


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "change",
    [
        {"cache": {"load_factor": None, "num_sets": 2**25, "policy": "lfu", "ways": WAYS}},
        {"cache": {"load_factor": 1e6, "num_sets": None, "policy": "lfu", "ways": WAYS}},
    ],
)
def test_sizes_that_the_file_does_not_have(
    parts: CheckpointFile, tmp_path: Path, change: dict[str, Any]
) -> None:
    parts.manifest.update(change)
    for table in parts.manifest["tables"]:
        table.update(embedding_dim=2**20, num_embeddings=2**20)
    for group in parts.manifest["groups"]:
        group["label"] = group["label"].replace("6.", f"{2**20}.", 1)
    path = written(tmp_path / "file", parts.content())
    _, error = limited(path, 64 << 20, tmp_path)
    assert "manifest is not valid" in error


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "text", ["[" + "[]," * 5_000_000 + "[]]", '{"a":[' + "0," * 8_000_000 + "0]}"]
)
def test_texts_that_would_be_far_larger_in_memory(
    parts: CheckpointFile, tmp_path: Path, text: str
) -> None:
    text = '{"a": ' + text + "}"
    path = written(tmp_path / "file", parts.with_header(text))
    seconds, error = limited(path, 2 * len(text) + (64 << 20), tmp_path)
    assert "values" in error
    assert seconds < 4
