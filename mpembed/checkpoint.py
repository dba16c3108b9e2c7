"""Checkpoints: one safetensors file whose metadata holds a manifest; resuming is bit-exact."""

import contextlib
import dataclasses
import json
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mpembed import _storage
from mpembed._checks import integer
from mpembed._version import __version__
from mpembed.config import CacheConfig, TableConfig
from mpembed.optim import OPTIMIZERS

if TYPE_CHECKING:
    from mpembed.collection import EmbeddingBagCollection

FORMAT = "mpembed-checkpoint"
VERSION = 1
_KEY = "mpembed"


def _crc32(array: np.ndarray[Any, Any]) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data)


def _saved_arrays(emb: "EmbeddingBagCollection") -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays to write; pins belong to open batches, which are not saved."""
    arrays = emb._storage.arrays()
    for name in list(arrays):
        if name.endswith(".tags") and name.startswith("cache."):
            arrays[name] = arrays[name] & np.uint64(~_storage.PIN_MASK & (2**64 - 1))
    return arrays


def _manifest(emb: "EmbeddingBagCollection", arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    return json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "written_by": __version__,
            "tables": [dataclasses.asdict(table) for table in emb.tables],
            "cache": None if emb._cache is None else dataclasses.asdict(emb._cache),
            "optimizer": [emb.optimizer.name, emb.optimizer.settings()],
            "device": emb._device,
            "seed": emb._seed,
            "rounding": emb._rounding,
            "bounds": emb._bounds,
            "on_nonfinite": emb._on_nonfinite,
            "step": emb.step,
            "crc32": {name: _crc32(array) for name, array in arrays.items()},
        }
    )


def save(emb: "EmbeddingBagCollection", path: str | os.PathLike[str]) -> None:
    """Write a collection to `path`; an existing file stays whole until the new one is complete."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    arrays = _saved_arrays(emb)
    try:
        manifest = _manifest(emb, arrays)
        # One key, its own checksum in front: safetensors orders several keys at random.
        metadata = {_KEY: f"{zlib.crc32(manifest.encode()):08x} {manifest}"}
        save_file(arrays, temporary, metadata=metadata)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except SafetensorError as error:
        raise OSError(f"{target}: cannot be written: {error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def load(path: str | os.PathLike[str]) -> "EmbeddingBagCollection":
    """Return the collection that `path` holds."""
    target = Path(path)
    with target.open("rb"):  # a missing file or a folder is an OSError that names it
        pass
    try:
        with safe_open(target, framework="numpy") as file:
            manifest = _read_manifest(target, file.metadata() or {})
            emb = _empty_collection(target, manifest)
            _fill(emb, target, file, manifest)
            return emb
    except SafetensorError as error:
        raise ValueError(f"{target}: is damaged or no checkpoint: {error}") from error


def _read_manifest(target: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if _KEY not in metadata:
        raise ValueError(f"{target}: is no mpembed checkpoint (no manifest)")
    checksum, _, text = metadata[_KEY].partition(" ")
    if checksum != f"{zlib.crc32(text.encode()):08x}":
        raise ValueError(f"{target}: its manifest is damaged (checksum)")
    manifest = json.loads(text)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{target}: is no mpembed checkpoint")
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"{target}: checkpoint version {manifest.get('version')}; this mpembed reads {VERSION}"
        )
    return manifest


def _table(fields: dict[str, Any]) -> TableConfig:
    init = fields.pop("init")
    return TableConfig(**fields, init=tuple(init) if isinstance(init, list) else init)


def _empty_collection(target: Path, manifest: dict[str, Any]) -> "EmbeddingBagCollection":
    from mpembed.collection import EmbeddingBagCollection

    try:
        name, settings = manifest["optimizer"]
        cache = manifest["cache"]
        emb = EmbeddingBagCollection.__new__(EmbeddingBagCollection)
        emb._configure(
            [_table(dict(fields)) for fields in manifest["tables"]],
            None if cache is None else CacheConfig(**cache),
            OPTIMIZERS[name](**settings),
            manifest["device"],
            manifest["seed"],
            manifest["rounding"],
            manifest["bounds"],
            manifest["on_nonfinite"],
        )
        emb._engine.step = integer("step", manifest["step"], 0, 2**40 - 1)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{target}: its manifest is not valid: {error}") from error
    return emb


def _fill(emb: "EmbeddingBagCollection", target: Path, file: Any, manifest: dict[str, Any]) -> None:
    arrays = emb._storage.arrays()
    if set(file.keys()) != set(arrays):
        raise ValueError(f"{target}: its arrays do not fit its manifest")
    sums = manifest.get("crc32")
    for name, array in arrays.items():
        stored = file.get_tensor(name)
        if stored.dtype != array.dtype or stored.shape != array.shape:
            raise ValueError(
                f"{target}: {name} is {stored.dtype}{list(stored.shape)}, expected "
                f"{array.dtype}{list(array.shape)}"
            )
        if not isinstance(sums, dict) or _crc32(np.ascontiguousarray(stored)) != sums.get(name):
            raise ValueError(f"{target}: {name} is damaged (checksum)")
        array[...] = stored
    _check_tags(emb, target)


def _check_tags(emb: "EmbeddingBagCollection", target: Path) -> None:
    """Refuse tags that point outside the tables: kernels trust them."""
    for group in emb._storage.groups:
        if group.cache is None:
            continue
        ids = group.cache.tags & np.uint64(_storage.EMPTY_TAG)
        pins = group.cache.tags & np.uint64(_storage.PIN_MASK)
        used = ids != _storage.EMPTY_TAG
        dirty_empty = group.cache.tags[~used] != _storage.EMPTY_TAG
        if (ids[used] >= group.kernels.total_rows).any() or pins.any() or dirty_empty.any():
            raise ValueError(f"{target}: its cache tags are damaged")
