"""Checkpoints: one safetensors file whose metadata holds a manifest; resuming is bit-exact."""

import contextlib
import dataclasses
import errno
import json
import os
import re
import secrets
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from mpembed import devices
from mpembed._arguments.scalars import integer
from mpembed._bindings import contract
from mpembed._bindings.device import Stream
from mpembed._collection import grouping
from mpembed._collection.records import StoredArray
from mpembed._collection.settings import Settings
from mpembed._collection.state import CollectionState, Counters
from mpembed._collection.storage import logical_arrays
from mpembed._collection.tensor_file import Reader, Writer, type_name
from mpembed.config import CacheConfig, TableConfig
from mpembed.optim import OPTIMIZERS, Optimizer
from mpembed.version import __version__

FORMAT = "mpembed-checkpoint"
VERSION = 2
_KEY = "mpembed"
#: A cache that tables have only in the host's memory beside a device, which the CPU does not know.
_FROZEN_CACHE = re.compile(r"cache\.\d+\.frozen\..*")
Shapes = dict[str, tuple[str, tuple[int, ...]]]
Places = Iterator[tuple[np.ndarray[Any, Any], Callable[[], None]]]


def _manifest(state: CollectionState, on: Stream) -> dict[str, Any]:
    """Return what a checkpoint says of a collection: all but the checksums."""
    settings, counters = state.settings, state.counters(on)
    given = settings.optimizer, *(table.optimizer for table in settings.tables)
    unique = {id(one): one for one in given if one is not None}
    place = {key: number for number, key in enumerate(unique)}
    return {
        "format": FORMAT,
        "version": VERSION,
        "written_by": __version__,
        "tables": [
            _described(table, own, place)
            for table, own in zip(settings.tables, settings.optimizers, strict=True)
        ],
        "groups": [
            {"label": group.label, "tables": group.tables, "cached": group.cached}
            for group in grouping.plan(settings)
        ],
        "cache": None if settings.cache is None else dataclasses.asdict(settings.cache),
        "optimizers": [[one.kind, one.settings()] for one in unique.values()],
        "optimizer": place.get(id(settings.optimizer)),
        "device": settings.device.name,
        "seed": settings.seed,
        "rounding": settings.rounding,
        "bounds": settings.bounds,
        "on_nonfinite": settings.on_nonfinite,
        **counters.named(),
    }


def _metadata(manifest: Mapping[str, Any], checksums: Mapping[str, int]) -> dict[str, str]:
    """Return the file's metadata; its length does not depend on the checksums."""
    text = json.dumps({**manifest, "crc32": checksums})
    # One key, its own checksum in front.
    return {_KEY: f"{zlib.crc32(text.encode()):08x} {text}"}


def _described(
    table: TableConfig, optimizer: Optimizer | None, place: Mapping[int, int]
) -> dict[str, Any]:
    """Return a table for the manifest: with its own optimizer's place there, and its rate now."""
    fields = {one.name: getattr(table, one.name) for one in dataclasses.fields(table)}
    fields["optimizer"] = None if table.optimizer is None else place[id(table.optimizer)]
    fields["lr_now"] = None if table.lr is None or optimizer is None else optimizer.lr
    return fields


def _temporary_for(target: Path) -> tuple[int, Path]:
    """Create a file that may become `target`, with the mode it shall have; return it open.

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
    if old is not None:
        os.fchmod(file, stat.S_IMODE(old))
    return file, temporary


def save(state: CollectionState, path: str | os.PathLike[str], on: Stream) -> None:
    """Write a collection to `path`; an existing file stays whole until the new one is complete.

    The file keeps its permissions, a new one gets those of any new file; a symbolic link stays
    and the file it leads to is replaced.
    """
    target = Path(os.path.realpath(path))
    opened, temporary = _temporary_for(target)
    try:
        with os.fdopen(opened, "wb") as file:
            _write(state, file, on)
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(target)) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _write(state: CollectionState, file: BinaryIO, on: Stream) -> None:
    arrays = state.arrays()
    types = {name: (stored.dtype, stored.shape) for name, stored in arrays.items()}
    manifest = _manifest(state, on)  # once: rates may change while the arrays are written
    checksums = dict.fromkeys(arrays, 2**32 - 1)  # the longest one
    writer = Writer(file, types, _metadata(manifest, checksums))

    def pieces(name: str) -> Iterator[np.ndarray[Any, Any]]:
        stored = arrays[name]
        for begin, end in stored.pieces():
            yield state.without_pins(name, stored.read(begin, end, on))

    for name in writer.names:
        checksums[name] = writer.write(pieces(name))
    writer.finish(_metadata(manifest, checksums))


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
                    _fill(state, target, file, manifest, shapes, on)
                return state


def _read_header(target: Path) -> tuple[dict[str, Any], Shapes]:
    """Return the manifest and the arrays' types and shapes, after safetensors' own checks."""
    try:
        with safe_open(target, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {
                name: (str(one.get_dtype()), tuple(one.get_shape())) for name, one in slices.items()
            }
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


def _table(fields: dict[str, Any], optimizers: list[Optimizer], device: str) -> TableConfig:
    init, number = fields.pop("init"), fields.pop("optimizer")
    own = None if number is None else optimizers[number]
    del fields["lr_now"]
    if device == "cpu":
        fields["placement"] = "device"
    init = tuple(init) if isinstance(init, list) else init
    return TableConfig(**fields, init=init, optimizer=own)


def _set_rates(settings: Settings, tables: list[dict[str, Any]]) -> None:
    """Give the tables with a rate of their own the one that they had."""
    for fields, optimizer in zip(tables, settings.optimizers, strict=True):
        if fields["lr_now"] is not None and optimizer is not None:
            optimizer.lr = fields["lr_now"]


def _check_arrays(settings: Settings, found: Shapes) -> None:
    """Refuse arrays that are not the manifest's, before memory is allocated for them."""
    expected = {
        name: (type_name(dtype), shape) for name, (dtype, shape) in logical_arrays(settings).items()
    }
    if settings.device.synchronous:
        found = {name: one for name, one in found.items() if not _FROZEN_CACHE.fullmatch(name)}
    for name, one in expected.items():
        if found.get(name) != one:
            has = "".join(map(str, found[name])) if name in found else "missing"
            raise ValueError(f"{name} is {has}, but the manifest says {one[0]}{one[1]}")
    if set(found) != set(expected):
        raise ValueError(f"it has an array {min(set(found) - set(expected))!r} too many")


def _empty_state(
    target: Path,
    manifest: dict[str, Any],
    found: Shapes,
    device: str | None,
) -> CollectionState:
    try:
        where = manifest["device"] if device is None else device
        optimizers = [OPTIMIZERS[kind](**settings) for kind, settings in manifest["optimizers"]]
        number = manifest["optimizer"]
        settings = Settings.checked(
            [_table(dict(fields), optimizers, where) for fields in manifest["tables"]],
            None if manifest["cache"] is None else CacheConfig(**manifest["cache"]),
            None if number is None else optimizers[number],
            where,
            manifest["seed"],
            manifest["rounding"],
            manifest["bounds"],
            manifest["on_nonfinite"],
        )
        _check_arrays(settings, found)
        _set_rates(settings, manifest["tables"])
        step = integer("step", manifest["step"], 0, contract.MAX_STEP)
        # Each update takes a step.
        counters = Counters(step, integer("updates", manifest["updates"], 0, step))
        state = CollectionState(settings)
        with state.writing() as on:
            state.set_counters(counters, on)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
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
    file: BinaryIO,
    manifest: dict[str, Any],
    shapes: Shapes,
    on: Stream,
) -> None:
    """Read the arrays into place; safetensors would map the file and copy each array."""
    reader, sums, own = Reader(file), manifest.get("crc32"), state.arrays()

    def read(name: str, places: Places) -> None:
        try:
            checksum = reader.read(name, places)
        except (EOFError, KeyError):
            raise ValueError(f"{target}: {name} is cut short") from None
        except ValueError as error:
            raise ValueError(f"{target}: {error}") from None
        if not isinstance(sums, dict) or sums.get(name) != checksum:
            raise ValueError(f"{target}: {name} is damaged (checksum)")

    for name, stored in own.items():
        read(name, _places(state, name, stored, on))
    for name in set(shapes) - set(own):
        if name.endswith(".tags"):
            tags = np.empty(shapes[name][1], np.uint64)
            read(name, iter([(tags, partial(_refuse_dirty, tags))]))


def _refuse_dirty(tags: np.ndarray[Any, Any]) -> None:
    """Raise ValueError where a cache that is left out holds rows that its tables do not have."""
    if ((tags & np.uint64(contract.DIRTY_BIT)) != 0).any():
        raise ValueError(
            "its cache holds rows of frozen tables that were set and not yet written to them: load "
            "it where it was saved, call flush(), save it again"
        )


def _places(state: CollectionState, name: str, stored: StoredArray, on: Stream) -> Places:
    """Yield memory for each piece of an array, and what checks and keeps it."""

    def keep(begin: int, values: np.ndarray[Any, Any]) -> None:
        state.check(name, values)
        stored.write(begin, values, on)

    for begin, end in stored.pieces():
        values = stored.target(begin, end)
        yield values, partial(keep, begin, values)
