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

from mpembed import _arrays, _storage, devices
from mpembed._checks import integer
from mpembed._device import Stream
from mpembed._settings import Settings
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


def _saved_arrays(emb: "EmbeddingBagCollection", on: Stream) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays to write; pins belong to open batches, which are not saved."""
    arrays = {
        name: _arrays.host(_arrays.read_only(array, on))
        for name, array in emb._storage.arrays().items()
    }
    for name in list(arrays):
        if name.endswith(".tags") and name.startswith("cache."):
            arrays[name] = arrays[name] & np.uint64(~_storage.PIN_MASK & (2**64 - 1))
    return arrays


def _manifest(emb: "EmbeddingBagCollection", arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    settings = emb._settings
    return json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "written_by": __version__,
            "tables": [dataclasses.asdict(table) for table in emb.tables],
            "cache": None if settings.cache is None else dataclasses.asdict(settings.cache),
            "optimizer": [emb.optimizer.name, emb.optimizer.settings()],
            "device": emb.device,
            "seed": settings.seed,
            "rounding": settings.rounding,
            "bounds": settings.bounds,
            "on_nonfinite": settings.on_nonfinite,
            "step": emb.step,
            "crc32": {name: _crc32(array) for name, array in arrays.items()},
        }
    )


def save(emb: "EmbeddingBagCollection", path: str | os.PathLike[str], on: Stream) -> None:
    """Write a collection to `path`; an existing file stays whole until the new one is complete."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    arrays = _saved_arrays(emb, on)
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


def load(path: str | os.PathLike[str], device: str | None) -> "EmbeddingBagCollection":
    """Return the collection that `path` holds, on a device or where it was."""
    target = Path(path)
    with target.open("rb"):  # a missing file or a folder is an OSError that names it
        pass
    try:
        with safe_open(target, framework="numpy") as file:
            manifest = _read_manifest(target, file.metadata() or {})
            emb = _empty_collection(target, manifest, device)
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


def _table(fields: dict[str, Any], device: str) -> TableConfig:
    init = fields.pop("init")
    if device == "cpu":
        fields["placement"] = "device"
    return TableConfig(**fields, init=tuple(init) if isinstance(init, list) else init)


def _empty_collection(
    target: Path, manifest: dict[str, Any], device: str | None
) -> "EmbeddingBagCollection":
    from mpembed.collection import EmbeddingBagCollection

    if device is not None:
        devices.get(device)  # a wrong one is the caller's fault, not the file's
    try:
        name, optimizer = manifest["optimizer"]
        cache = manifest["cache"]
        where = manifest["device"] if device is None else device
        settings = Settings.checked(
            [_table(dict(fields), where) for fields in manifest["tables"]],
            None if cache is None else CacheConfig(**cache),
            OPTIMIZERS[name](**optimizer),
            where,
            manifest["seed"],
            manifest["rounding"],
            manifest["bounds"],
            manifest["on_nonfinite"],
        )
        step = integer("step", manifest["step"], 0, 2**40 - 1)
        emb = EmbeddingBagCollection.__new__(EmbeddingBagCollection)
        emb._configure(settings)
        emb._engine.clock.set(step, settings.device.stream(None))
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
        if name.endswith(".tags") and name.startswith("cache."):
            _check_tags(emb, target, name, stored)
        _arrays.assign(array, stored, emb._calls.last)


def _check_tags(
    emb: "EmbeddingBagCollection", target: Path, name: str, tags: np.ndarray[Any, Any]
) -> None:
    """Refuse tags that point outside the tables: kernels trust them."""
    group = next(g for g in emb._storage.groups if name == f"cache.{g.dim}.tags")
    ids = tags & np.uint64(_storage.EMPTY_TAG)
    used = ids != _storage.EMPTY_TAG
    pins = tags & np.uint64(_storage.PIN_MASK)
    dirty_empty = tags[~used] != _storage.EMPTY_TAG
    if (ids[used] >= group.kernels.total_rows).any() or pins.any() or dirty_empty.any():
        raise ValueError(f"{target}: its cache tags are damaged")
