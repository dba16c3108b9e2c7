"""Checkpoints: one safetensors file whose metadata holds a manifest; resuming is bit-exact."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import secrets
import stat
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mpembed import devices, registry
from mpembed._arguments.scalars import integer
from mpembed._bindings import array_ops, contract, memory
from mpembed._bindings.device import Stream
from mpembed._bindings.tensor import Tensor
from mpembed._collection.settings import Settings
from mpembed._collection.state import CollectionState
from mpembed.config import CacheConfig, TableConfig
from mpembed.optim import OPTIMIZERS
from mpembed.version import __version__

FORMAT = "mpembed-checkpoint"
VERSION = 1
_KEY = "mpembed"


def _crc32(array: np.ndarray[Any, Any]) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data)


def _manifest(state: CollectionState, arrays: dict[str, np.ndarray[Any, Any]], on: Stream) -> str:
    settings = state.settings
    return json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "written_by": __version__,
            "tables": [dataclasses.asdict(table) for table in settings.tables],
            "cache": None if settings.cache is None else dataclasses.asdict(settings.cache),
            "optimizer": [settings.optimizer.name, settings.optimizer.settings()],
            "device": settings.device.name,
            "seed": settings.seed,
            "rounding": settings.rounding,
            "bounds": settings.bounds,
            "on_nonfinite": settings.on_nonfinite,
            "step": state.step(on),
            "crc32": {name: _crc32(array) for name, array in arrays.items()},
        }
    )


def _temporary_for(target: Path) -> tuple[Path, int]:
    """Create a file that may become `target`; return it and the mode to give it then.

    Its name is short, whatever the target's length, and unique: other threads may save there too.
    """
    try:
        old = target.stat().st_mode
    except FileNotFoundError:
        old = None
    if old is not None and not stat.S_ISREG(old):
        raise OSError(errno.EINVAL, "is not a regular file; nothing was saved", str(target))
    temporary = target.with_name(f".mpembed-{secrets.token_hex(8)}.tmp")
    try:
        # Only a new file shows the umask: asking for it would change it.
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from None
    try:
        new = os.fstat(file).st_mode
    finally:
        os.close(file)
    return temporary, stat.S_IMODE(new if old is None else old)


def save(state: CollectionState, path: str | os.PathLike[str], on: Stream) -> None:
    """Write a collection to `path`; an existing file stays whole until the new one is complete.

    The file keeps its permissions, a new one gets those of any new file; a symbolic link stays
    and the file it leads to is replaced.
    """
    target = Path(os.path.realpath(path))
    arrays = state.values(on)
    temporary, mode = _temporary_for(target)
    try:
        manifest = _manifest(state, arrays, on)
        # One key, its own checksum in front: safetensors orders several keys at random.
        metadata = {_KEY: f"{zlib.crc32(manifest.encode()):08x} {manifest}"}
        save_file(arrays, temporary, metadata=metadata)
        temporary.chmod(mode)  # safetensors replaced it with a private file
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except SafetensorError as error:
        raise OSError(f"{target}: cannot be written: {error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def load(
    path: str | os.PathLike[str], device: str | devices.CudaDevice | devices.TorchDevice | None
) -> CollectionState:
    """Return the state of the collection that `path` holds, on a device or where it was."""
    if device is not None:
        device = devices.get(device).name  # a wrong device is the caller's fault, not the file's
    target = Path(path)
    while True:
        with target.open("rb") as file:  # a missing file or a folder is an OSError that names it
            manifest, shapes = _read_header(target)
            # Both opened the same file, unless a save replaced it in between: then try again.
            if os.path.samestat(os.fstat(file.fileno()), target.stat()):
                state = _empty_state(target, manifest, shapes, device)
                with state.writing() as on:
                    _fill(state, target, file, manifest, on)
                return state


def _read_header(target: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return the manifest and the arrays' shapes, after safetensors has checked the file."""
    try:
        with safe_open(target, framework="numpy") as file:
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            return _read_manifest(target, file.metadata() or {}), shapes
    except SafetensorError as error:
        raise ValueError(f"{target}: is damaged or not a checkpoint: {error}") from error


def _read_manifest(target: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if _KEY not in metadata:
        raise ValueError(f"{target}: is not an mpembed checkpoint (it has no manifest)")
    checksum, _, text = metadata[_KEY].partition(" ")
    if checksum != f"{zlib.crc32(text.encode()):08x}":
        raise ValueError(f"{target}: its manifest is damaged (checksum)")
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{target}: its manifest is not valid: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{target}: is not an mpembed checkpoint")
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


def _check_sizes(
    tables: list[TableConfig], cache: CacheConfig | None, shapes: dict[str, tuple[int, ...]]
) -> None:
    """Refuse tables and caches that the file does not hold, before memory is allocated for them.

    All other arrays are smaller, or larger by a small factor only.
    """
    rows: dict[int, int] = {}
    expected: dict[str, tuple[int, ...]] = {}
    for table in tables:
        dim = table.embedding_dim
        rows[dim] = rows.get(dim, 0) + table.num_embeddings
        width = registry.row_bytes(table.precision, dim)
        expected[f"table.{table.name}.rows"] = table.num_embeddings, width
    if cache is not None:
        for dim, total in rows.items():
            expected[f"cache.{dim}.rows"] = cache.sets_for(total), cache.ways, dim
    for name, shape in expected.items():
        if shapes.get(name) != shape:
            raise ValueError(
                f"{name} is {shapes.get(name, 'missing')}, but the manifest says {shape}"
            )


def _empty_state(
    target: Path,
    manifest: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    device: str | None,
) -> CollectionState:
    try:
        name, optimizer = manifest["optimizer"]
        where = manifest["device"] if device is None else device
        tables = [_table(dict(fields), where) for fields in manifest["tables"]]
        cache = None if manifest["cache"] is None else CacheConfig(**manifest["cache"])
        _check_sizes(tables, cache, shapes)
        settings = Settings.checked(
            tables,
            cache,
            OPTIMIZERS[name](**optimizer),
            where,
            manifest["seed"],
            manifest["rounding"],
            manifest["bounds"],
            manifest["on_nonfinite"],
        )
        step = integer("step", manifest["step"], 0, contract.MAX_STEP)
        state = CollectionState(settings)
        state.set_step(step)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{target}: its manifest is not valid: {error}") from error
    except RuntimeError as error:
        where = manifest["device"]
        raise RuntimeError(
            f"{target} was saved on {where!r}, which cannot be used here ({error}); pass device= "
            "to load it elsewhere"
        ) from error
    return state


def _fill(
    state: CollectionState,
    target: Path,
    file: io.BufferedReader,
    manifest: dict[str, Any],
    on: Stream,
) -> None:
    """Read the arrays straight into place; safetensors would map the file and copy each array.

    Those of a device pass through host memory one at a time.
    """
    arrays = state.arrays()
    sums = manifest.get("crc32")
    start = 8 + int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(start - 8))
    header.pop("__metadata__", None)
    if set(header) != set(arrays):
        raise ValueError(f"{target}: its arrays do not match its manifest")
    for name, array in arrays.items():
        stored = header[name]
        # safetensors names types by kind and bits, such as U8 and F32.
        dtype, shape = f"{array.dtype.kind.upper()}{8 * array.dtype.itemsize}", list(array.shape)
        if stored["dtype"] != dtype or stored["shape"] != shape:
            raise ValueError(
                f"{target}: {name} is {stored['dtype']}{stored['shape']}, expected {dtype}{shape}"
            )
        away = isinstance(array, Tensor)
        values = memory.empty(array.shape, array.dtype) if away else array
        file.seek(start + stored["data_offsets"][0])
        if file.readinto(values.reshape(-1).view(np.uint8).data) != values.nbytes:
            raise ValueError(f"{target}: {name} is cut short")
        if not isinstance(sums, dict) or _crc32(values) != sums.get(name):
            raise ValueError(f"{target}: {name} is damaged (checksum)")
        try:
            state.check(name, values)
        except ValueError as error:
            raise ValueError(f"{target}: {error}") from None
        if away:
            array_ops.assign(array, values, on)
