"""Checkpoints taken apart, changed, and put together again with right checksums; both readers."""

from __future__ import annotations

import ctypes
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from folders import TESTS
from reference.cache import splitmix64

import mpembed as mpe

Array = npt.NDArray[Any]
PRECISIONS = list(mpe.registry.FORMATS)
DIM, SETS, WAYS = 6, 4, 8
OLD = TESTS / "collection" / "old_checkpoints"  # of earlier layouts, by the code of their time


def make() -> mpe.EmbeddingBagCollection:
    """Return a table a format and a frozen one, trained, with cached rows and without."""
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig(f"t.{name}", 20, DIM, name) for name in PRECISIONS]
        + [mpe.TableConfig("frozen", 9, DIM, "int8", trainable=False)],
        cache=mpe.CacheConfig(num_sets=SETS, ways=WAYS, policy="lfu"),
        optimizer=mpe.RowwiseAdam(lr=0.1, state_precision={"exp_avg": "bf16"}),
    )
    for step in range(3):
        indices = np.arange(4 * len(emb.tables)) % (5 + step)
        offsets = np.arange(len(emb.tables) + 1) * 4
        emb.backward(np.ones_like(emb.forward(indices, offsets)))
    return emb


def written(path: Path, content: bytes) -> Path:
    """Write a file; return its path."""
    path.write_bytes(content)
    return path


class CheckpointFile:
    """A checkpoint in parts.

    Attributes
    ----------
    manifest : dict
        Its checksums of arrays are made anew by `content`.
    arrays : dict of str -> ndarray
        In the file's order; writable.
    """

    def __init__(self, content: bytes) -> None:
        header, data = parsed(content)
        self.manifest = json.loads(header.pop("__metadata__")["mpembed"].partition(" ")[2])
        self.arrays: dict[str, Array] = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            dtype = np.dtype(f"{entry['dtype'][0].lower()}{int(entry['dtype'][1:]) // 8}")
            self.arrays[name] = np.frombuffer(data[begin:end], dtype).reshape(entry["shape"]).copy()

    @classmethod
    def of(cls, emb: mpe.EmbeddingBagCollection, path: Path) -> CheckpointFile:
        """Return what a collection saves."""
        emb.save(path)
        return cls(path.read_bytes())

    def sums(self) -> dict[str, int]:
        """Return the checksum of each array."""
        return {name: zlib.crc32(array.tobytes()) for name, array in self.arrays.items()}

    def entries(self) -> dict[str, Any]:
        """Return what the header says of the arrays."""
        found, end = {}, 0
        for name, array in self.arrays.items():
            begin, end = end, end + array.nbytes
            dtype = f"{array.dtype.kind.upper()}{8 * array.dtype.itemsize}"
            shape = list(array.shape)
            found[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        return found

    def whole_manifest(self) -> dict[str, Any]:
        """Return the manifest with the checksums of the arrays."""
        return {**self.manifest, "crc32": self.sums()}

    def header(self, manifest: str | None = None) -> dict[str, Any]:
        """Return the header, perhaps with another text for its manifest."""
        if manifest is None:
            manifest = json.dumps(self.whole_manifest())
        return {"__metadata__": metadata(manifest), **self.entries()}

    def data(self) -> bytes:
        """Return the bytes of the arrays."""
        return b"".join(array.tobytes() for array in self.arrays.values())

    def content(self, manifest: str | None = None) -> bytes:
        """Return the file, perhaps with another text for its manifest."""
        return self.with_header(self.header(manifest))

    def with_header(self, header: dict[str, Any] | str, data: bytes | None = None) -> bytes:
        """Return the file with another header, perhaps with other bytes behind it."""
        text = (header if isinstance(header, str) else json.dumps(header)).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + (self.data() if data is None else data)


def parsed(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return a file's header, and the bytes behind it."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def rewritten(
    path: Path, target: Path, change: Callable[[dict[str, Any], dict[str, Array]], Any]
) -> Path:
    """Write a file again with another manifest and other arrays; return where."""
    parts = CheckpointFile(path.read_bytes())
    change(parts.manifest, parts.arrays)
    return written(target, parts.content())


def metadata(manifest: str) -> dict[str, str]:
    """Return a header's metadata for a manifest."""
    return {"mpembed": f"{zlib.crc32(manifest.encode()):08x} {manifest}"}


def refused_by_python(path: Path, **changes: Any) -> str | None:
    """Return why a file is not loaded, with its name taken out; None if it is."""
    try:
        mpe.EmbeddingBagCollection.load(path, device="cpu", **changes)
    except (ValueError, OSError) as error:
        assert str(path) in str(error)
        return str(error).replace(str(path), "FILE")
    return None


def refused_by_cpp(path: Path, names: Sequence[str] | None = None) -> str | None:
    """Return why C++ does not read a file or some of its arrays; None if it does."""
    library = _library()
    opened = library.mpe_checkpoint_open(str(path).encode())
    try:
        if not library.mpe_checkpoint_error(opened) and names is None:
            names = array_names(path)
        for name in names or ():
            if library.mpe_checkpoint_error(opened):
                break
            size = library.mpe_checkpoint_bytes(opened, name.encode())
            values = ctypes.create_string_buffer(max(1, size))
            library.mpe_checkpoint_read(opened, name.encode(), values, size)
        error = library.mpe_checkpoint_error(opened)
        return None if error is None else error.decode(errors="replace").replace(str(path), "FILE")
    finally:
        library.mpe_checkpoint_close(opened)


def array_names(path: Path) -> list[str]:
    """Return the names of a file's arrays."""
    return [name for name in parsed(path.read_bytes())[0] if name != "__metadata__"]


READERS: dict[str, Any] = {"python": refused_by_python, "cpp": refused_by_cpp}


@cache
def _library() -> Any:
    library = ctypes.CDLL(str(Path(mpe.get_cmake_dir()).parent / "lib" / "libmpembed.so"))
    opened, name = ctypes.c_void_p, ctypes.c_char_p
    library.mpe_checkpoint_open.argtypes, library.mpe_checkpoint_open.restype = [name], opened
    library.mpe_checkpoint_close.argtypes = [opened]
    library.mpe_checkpoint_error.argtypes, library.mpe_checkpoint_error.restype = [opened], name
    library.mpe_checkpoint_bytes.argtypes = [opened, name]
    library.mpe_checkpoint_bytes.restype = ctypes.c_int64
    library.mpe_checkpoint_read.argtypes = [opened, name, ctypes.c_void_p, ctypes.c_int64]
    return library


def serve(path: Path, **changes: Any) -> None:
    """Train, flush and save what a file holds."""
    emb = mpe.EmbeddingBagCollection.load(path, device="cpu", **changes)
    count = len(emb.tables)
    try:
        out = emb.forward(np.zeros(count, np.int64), np.arange(count + 1))
        emb.backward(np.zeros_like(out))
    except (mpe.NonFiniteUpdateError, IndexError):  # of a rate, or of a table without rows
        pass
    emb.flush()
    emb.stats()
    emb.save(path)


def set_of(row: int, num_sets: int) -> int:
    """Return the set of a row, as docs/numerics.md has it."""
    return (splitmix64(row) >> 32) * num_sets >> 32


def nested(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to every value inside a JSON value."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return [one for key, below in items for one in ((*path, key), *nested(below, (*path, key)))]
