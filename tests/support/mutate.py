"""Load damaged copies of checkpoints in Python and in C++, and count what crashes.

``python tests/support/mutate.py COUNT [SEED]`` makes so many copies: bits flipped, cut, spliced,
their headers, manifests and arrays changed, most of them with checksums that are right again. What
still loads, as it is or with other settings, has to train, flush and save. A worker process does
the work, so that one that dies counts as a crash; it is started again behind the copy that killed
it.
"""

from __future__ import annotations

import json
import signal
import struct
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import programs
from checkpoint_files import (
    OLD,
    CheckpointFile,
    nested,
    refused_by_cpp,
    refused_by_python,
    serve,
)

import mpembed as mpe

LONGEST = 30  # seconds a copy
BYTES = b'0123456789{}[]",:\\-.eEutfn \x80\xff\x00'
ODD: list[Any] = [None, True, -1, 0, 1, 255, 2**31, 2**47, 2**63, 2**64, 1.5, 1e308, "", "cpu"]
ODD += ["adam", "device", "host", "cuda:0", [], {}, [0], [0, 8], {"a": 1}]
WORDS = [0, 1, 7, 0x7F80, 0x7FC0, 0x7C00, 0x7F800000, 0x7FC00000, 2**48 - 1, 1 << 63, 2**64 - 1]


def collections() -> list[mpe.EmbeddingBagCollection]:
    """Return trained collections of several kinds."""
    formats = list(mpe.registry.FORMATS)
    kinds: list[tuple[Any, Any]] = [
        (mpe.CacheConfig(num_sets=2, ways=8, policy="lfu"), mpe.RowwiseAdam(lr=0.1)),
        (mpe.CacheConfig(load_factor=0.5, ways=8), mpe.Adam(lr=0.1, state_precision="bf16")),
        (None, mpe.SGD(lr=0.1)),
        (mpe.CacheConfig(num_sets=1, ways=16), mpe.Ftrl(lr=0.1)),
    ]
    made = []
    for number, (cache, optimizer) in enumerate(kinds):
        tables = [
            mpe.TableConfig(f"{name}.{dim}", 12, dim, name, lr=(None, 0.5)[dim % 2])
            for name in formats[number::2]
            for dim in (4, 5)
        ]
        tables.append(mpe.TableConfig("frozen", 6, 4, trainable=False))
        emb = mpe.EmbeddingBagCollection(tables, cache=cache, optimizer=optimizer, seed=number)
        for step in range(3):
            indices = (np.arange(4 * len(tables)) + step) % 6
            offsets = np.arange(len(tables) + 1) * 4
            emb.backward(np.ones_like(emb.forward(indices, offsets)))
        made.append(emb)
    return made


def old_files() -> list[bytes]:
    """Return checkpoints of earlier layouts."""
    return [path.read_bytes() for path in sorted(OLD.iterdir())]


def changes(number: int, content: bytes) -> dict[str, Any]:
    """Return what a copy is loaded with; every other one as it is."""
    small = mpe.CacheConfig(num_sets=3, ways=8, policy=("lru", "lfu")[number // 2 % 2])
    choices: list[dict[str, Any]] = [
        {"cache": None},
        {"cache": small},
        {"precision": "int8"},
        {"optimizer": mpe.Adam(lr=0.1), "rounding": "nearest"},
        {"optimizer": mpe.RowwiseAdagrad(lr=0.1, state_precision="bf16"), "cache": small},
        {"num_embeddings": {name: rows // 2 for name, rows in _rows(content).items()}},
        {"num_embeddings": {name: rows + 7 for name, rows in _rows(content).items()}},
    ]
    return {} if number % 2 == 0 else choices[number // 2 % len(choices)]


def _rows(content: bytes) -> dict[str, int]:
    """Return the rows of each table, none where the manifest does not say."""
    try:
        tables = CheckpointFile(content).manifest["tables"]
        found = {table["name"]: table["num_embeddings"] for table in tables}
    except (ValueError, LookupError, TypeError, AttributeError, struct.error):
        return {}
    return {name: rows for name, rows in found.items() if type(rows) is int and 0 <= rows < 1000}


class Mutator:
    """Makes the copies: each follows from its number and the seed alone."""

    def __init__(self, originals: list[bytes], seed: int) -> None:
        self._originals, self._seed = originals, seed
        self._kinds = [self._flip, self._cut, self._splice, self._header_text, self._header_value]
        self._kinds += [self._manifest_text, self._manifest_value, self._array, self._array]

    def copy(self, number: int) -> tuple[str, bytes]:
        """Return the kind of a copy, and the copy."""
        self._random = np.random.default_rng([self._seed, number])
        content = self._originals[self._draw(len(self._originals))]
        kind: Any = self._kinds[number % len(self._kinds)]
        return kind.__name__.strip("_"), bytes(kind(content))

    def _draw(self, below: int) -> int:
        return int(self._random.integers(max(1, below)))

    def _choice(self, values: Any) -> Any:
        return values[self._draw(len(values))]

    def _flip(self, content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(1 + self._draw(8)):
            changed[self._draw(len(changed))] ^= 1 << self._draw(8)
        return bytes(changed)

    def _cut(self, content: bytes) -> bytes:
        if self._draw(4) == 0:
            return content + self._random.bytes(1 + self._draw(100))
        return content[: self._draw(len(content))]

    def _splice(self, content: bytes) -> bytes:
        """Put a piece of a checkpoint over, between or instead of what another one has."""
        other: bytes = self._choice(self._originals)
        begin, at = self._draw(len(other)), self._draw(len(content))
        piece = other[begin : begin + self._draw(2000)]
        return content[:at] + piece + content[at + self._choice([0, len(piece), 8]) :]

    def _damaged(self, text: str) -> str:
        changed = bytearray(text.encode())
        for _ in range(1 + self._draw(3)):
            at, size = self._draw(len(changed)), self._draw(20)
            if self._draw(3) == 0:
                del changed[at : at + size]
            elif self._draw(2) == 0:
                changed[at:at] = changed[self._draw(len(changed)) :][:size]
            else:
                changed[at : at + 1] = bytes([self._choice(BYTES)])
        return changed.decode(errors="replace")

    def _value(self, found: Any) -> Any:
        """Return another value in place of one."""
        if type(found) is int and self._draw(2) == 0:
            return found + self._choice([-1, 1, 8, -8, found])
        return self._choice(ODD)

    def _with_other_values(self, value: Any) -> Any:
        for _ in range(1 + self._draw(2)):
            *above, last = self._choice(nested(value))
            holder = value
            for key in above:
                holder = holder[key]
            if self._draw(5) > 0:
                holder[last] = self._value(holder[last])
            elif isinstance(holder, dict):
                holder[str(self._choice(["more", "name", last]))] = holder.pop(last)
            else:
                holder.append(holder[last])
        return value

    def _header_text(self, content: bytes) -> bytes:
        parts = CheckpointFile(content)
        return parts.with_header(self._damaged(json.dumps(parts.header())))

    def _header_value(self, content: bytes) -> bytes:
        parts = CheckpointFile(content)
        return parts.with_header(self._with_other_values(parts.header()))

    def _manifest_text(self, content: bytes) -> bytes:
        parts = CheckpointFile(content)
        return parts.content(self._damaged(json.dumps(parts.whole_manifest())))

    def _manifest_value(self, content: bytes) -> bytes:
        parts = CheckpointFile(content)
        return parts.content(json.dumps(self._with_other_values(parts.whole_manifest())))

    def _array(self, content: bytes) -> bytes:
        """Change bits or whole elements of arrays, tags more often than the others."""
        parts = CheckpointFile(content)
        tags = [name for name in parts.arrays if name.endswith(".tags")]
        for _ in range(1 + self._draw(4)):
            names = tags if tags and self._draw(3) == 0 else list(parts.arrays)
            array = parts.arrays[self._choice(names)].reshape(-1)
            if array.size == 0:
                continue
            words = array.view(f"u{array.dtype.itemsize}")
            at = self._draw(words.size)
            mask = 2 ** (8 * words.dtype.itemsize) - 1
            if self._draw(2) == 0:
                words[at] ^= words.dtype.type((1 << self._draw(64)) & mask)
            elif self._draw(2) == 0:
                words[at] = words[self._draw(words.size)]
            else:
                words[at:] = words.dtype.type(self._choice(WORDS) & mask)
        return parts.content()


def try_one(path: Path, **changed: Any) -> str:
    """Load a file in both languages; return what happened."""
    cpp = "C++ refused" if refused_by_cpp(path) else "C++ read"
    if refused_by_python(path, **changed) is not None:
        return f"{cpp}, Python refused"
    serve(path, **changed)
    return f"{cpp}, Python served"


def work(folder: Path, begin: int, end: int, seed: int) -> None:
    """Do copies of these numbers; each line says which one begins, or what became of it."""
    originals = [path.read_bytes() for path in sorted(folder.glob("*.original"))]
    mutator, path = Mutator(originals, seed), folder / "copy"
    for number in range(begin, end):
        kind, content = mutator.copy(number)
        path.write_bytes(content)
        print(number, kind, flush=True)
        signal.alarm(LONGEST)  # ends the process
        print("=", try_one(path, **changes(number, content)), flush=True)
    signal.alarm(0)


def run(folder: Path, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Return how often what happened, and the crashes."""
    for number, emb in enumerate(collections()):
        emb.save(folder / f"{number}.original")
    for number, old in enumerate(old_files()):
        (folder / f"old{number}.original").write_bytes(old)
    found, crashes, begin = Counter[str](), list[str](), 0
    while begin < count:
        words = "work", folder, begin, count, seed
        done = programs.call(folder, Path(__file__).resolve(), *words, timeout=None)
        lines = done.stdout.splitlines()
        found.update(line[2:] for line in lines if line.startswith("="))
        if done.returncode == 0:
            break
        if not lines or lines[-1].startswith("="):
            raise RuntimeError(done.stderr)
        crashes.append(f"copy {lines[-1]} (seed {seed}): {done.returncode}\n{done.stderr[-3000:]}")
        begin = int(lines[-1].partition(" ")[0]) + 1
    return found, crashes


if __name__ == "__main__":
    if sys.argv[1] == "work":
        first, last, own_seed = map(int, sys.argv[3:])
        work(Path(sys.argv[2]), first, last, own_seed)
    else:
        copies, own_seed, *_ = [*map(int, sys.argv[1:]), 0]
        with tempfile.TemporaryDirectory() as scratch:
            results, failures = run(Path(scratch), copies, own_seed)
        for text in failures:
            print(text)
        for what, times in sorted(results.items()):
            print(f"{times:6} {what}")
        print(f"{len(failures):6} crashes of {copies}")
        sys.exit(len(failures) > 0)
