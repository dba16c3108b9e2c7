"""Load: everything in a file is checked before it is believed."""

import dataclasses
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mpembed import devices
from mpembed._arguments.scalars import integer
from mpembed._bindings import contract
from mpembed._bindings.device import Stream
from mpembed._checkpoint.adapting import pieces
from mpembed._checkpoint.cache_filling import adapt
from mpembed._checkpoint.changes import Changes, same_arrays
from mpembed._checkpoint.checks import check_groups, check_manifest, optimizers_of, other_source
from mpembed._checkpoint.manifest import (
    FORMAT,
    described,
    identity,
    read_manifest,
    set_rates,
    table,
)
from mpembed._checkpoint.setting_changes import changed_settings
from mpembed._checkpoint.tensor_file import Places, Reader, one_place, type_name
from mpembed._checkpoint.versions import Saved, saved_arrays, upgraded
from mpembed._collection.records import StoredArray
from mpembed._collection.save_history import SavePoint
from mpembed._collection.settings import Settings
from mpembed._collection.state import CollectionState, Counters
from mpembed._collection.state_checks import StateChecks
from mpembed.config import CacheConfig, TableConfig
from mpembed.load_report import LoadReport
from mpembed.optim import UnknownOptimizerError

Shapes = dict[str, tuple[str, tuple[int, ...]]]


def load(
    path: str | os.PathLike[str],
    device: str | devices.CudaDevice | devices.TorchDevice | None,
    changes: Changes | None = None,
) -> CollectionState:
    """Return the state of the collection that `path` holds, on a device or where it was."""
    if device is not None:
        device = devices.get(device).name  # a wrong device is the caller's fault, not the file's
    target, changes = Path(path), Changes() if changes is None else changes
    with opened(target) as (reader, manifest):
        saved = _saved(target, manifest, reader.arrays(), device)
        state = _empty_state(target, manifest, saved, changes)
        with state.writing() as on:
            report = _fill(state, target, reader, manifest, saved, on)
            if saved.current and described(state.settings) == described(saved.settings):
                step = state.counters(on).step
                state.storage.saves.points = (SavePoint(step, (identity(manifest),)),)
        state.load_report = report
        report.log(target)
        return state


@contextmanager
def opened(target: Path, wanted: str | None = FORMAT) -> Iterator[tuple[Reader, dict[str, Any]]]:
    """Open a checkpoint, with `wanted` a file of that format, or with None of either."""
    with _open(target) as file:
        try:
            reader = Reader(file)
        except ValueError as error:
            raise ValueError(f"{target}: is damaged or not a checkpoint: {error}") from None
        yield reader, read_manifest(target, reader.metadata, wanted)


@contextmanager
def _open(target: Path) -> Iterator[int]:
    """Open a file once: whoever replaces or changes it meanwhile changes no decision."""
    opened = -1
    try:
        # A pipe that nobody writes to must not be waited for.
        opened = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        mode = os.fstat(opened).st_mode
        if not stat.S_ISREG(mode):
            number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise OSError(number, "is not a regular file, so it is no checkpoint", str(target))
        yield opened
    except OSError as error:
        if error.errno is not None and error.filename is not None:
            raise
        number, text = error.errno or errno.EIO, error.strerror or str(error)
        raise OSError(number, f"cannot be read: {text}", str(target)) from error
    finally:
        if opened >= 0:
            with suppress(OSError):  # everything has been read
                os.close(opened)


def _check_arrays(saved: Saved, found: Shapes) -> None:
    """Refuse arrays that are not the manifest's, before memory is allocated for them."""
    expected = {name: (type_name(dtype), shape) for name, (dtype, shape) in saved.in_file.items()}
    for name, one in expected.items():
        if found.get(name) != one:
            has = "".join(map(str, found[name])) if name in found else "missing"
            raise ValueError(f"{name} is {has}, but the manifest says {one[0]}{one[1]}")
    if set(found) != set(expected):
        raise ValueError(f"it has an array {min(set(found) - set(expected))!r} too many")


def _where(manifest: dict[str, Any]) -> str:
    """Return the device that a collection was saved on; RuntimeError if there is none here."""
    try:
        return devices.get(manifest["device"]).name
    except ValueError as error:
        raise RuntimeError(error) from None


def _placed(saved: TableConfig, where: str) -> TableConfig:
    """Return a table as a device has it: on the CPU every table is in the host's memory."""
    if where != "cpu" or saved.placement == "device":
        return saved
    return dataclasses.replace(saved, placement="device")


@contextmanager
def _reading_manifest(target: Path, manifest: dict[str, Any]) -> Iterator[None]:
    """Say that the manifest is wrong where it leads to an error."""
    try:
        yield
    except UnknownOptimizerError as error:  # the manifest may be right
        raise ValueError(f"{target}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        other = other_source(manifest)
        raise ValueError(f"{target}: its manifest is not valid: {error}{other}") from error
    except RuntimeError as error:
        where = manifest["device"]
        raise RuntimeError(
            f"{target} was saved on {where!r}, which cannot be used here ({error}); pass device= "
            "to load it elsewhere"
        ) from error


def _saved(target: Path, manifest: dict[str, Any], found: Shapes, device: str | None) -> Saved:
    """Return what the checkpoint holds, on the device it is loaded to."""
    with _reading_manifest(target, manifest):
        manifest |= upgraded(manifest)
        check_manifest(manifest, found)
        where = _where(manifest) if device is None else device
        optimizers, number = optimizers_of(manifest), manifest["optimizer"]
        tables = [table(dict(fields), optimizers) for fields in manifest["tables"]]
        settings = Settings.checked(
            [_placed(one, where) for one in tables],
            None if manifest["cache"] is None else CacheConfig(**manifest["cache"]),
            None if number is None else optimizers[number],
            where,
            manifest["seed"],
            manifest["rounding"],
            manifest["bounds"],
            manifest["on_nonfinite"],
        )
        there = dataclasses.replace(settings, tables=tuple(tables))
        if manifest["version"] > 1:
            check_groups(manifest, there)
        saved = saved_arrays(manifest["version"], settings, there)
        _check_arrays(saved, found)
        set_rates(settings, manifest["tables"])
        return saved


def _empty_state(
    target: Path, manifest: dict[str, Any], saved: Saved, changes: Changes
) -> CollectionState:
    """Return a state with the counters of the checkpoint, whose arrays are to be filled."""
    settings = changes.applied(saved.settings)
    with _reading_manifest(target, manifest):
        step = integer("step", manifest["step"], 0, contract.MAX_STEP)
        # Each update takes a step.
        counters = Counters(step, integer("updates", manifest["updates"], 0, step))
    state = CollectionState(settings)
    with state.writing() as on:
        state.set_counters(counters, on)
    return state


def _fill(
    state: CollectionState,
    target: Path,
    reader: Reader,
    manifest: dict[str, Any],
    saved: Saved,
    on: Stream,
) -> LoadReport:
    """Read the arrays into place, and check what they hold; also of those that have none."""
    checks, unread = StateChecks(saved.there), set(reader.arrays())
    names = {file: name for name, file in saved.names.items()}

    def read(file: str, places: Places) -> None:
        unread.discard(file)
        checked = _checked(places, checks, names.get(file, file))
        read_array(reader, target, manifest, file, checked)

    for name, (_, shape) in reader.arrays().items():
        if name not in saved.arrays and name.endswith(".tags"):
            tags = np.empty(shape, np.uint64)
            read(name, one_place(tags, partial(refuse_dirty, tags)))
    changed = changed_settings(saved.settings, state.settings)
    if saved.current and same_arrays(saved.settings, state.settings):
        for name, stored in state.arrays().items():
            read(name, _places(stored, on))
        report = LoadReport(kept=["all rows, states and counts" if changed else "everything"])
    else:
        try:
            report = adapt(state, saved, read, on)
        except OverflowError as error:
            raise ValueError(
                f"{target}: cannot be loaded with changes that write rows or states: {error}"
            ) from error
    report.changed.extend(changed)
    for name in sorted(unread, key=lambda name: not name.endswith(".tags")):
        dtype, shape = saved.in_file[name]
        read(name, pieces(shape, dtype))
    return report


def read_array(
    reader: Reader, target: Path, manifest: dict[str, Any], name: str, places: Places
) -> None:
    """Read an array into its places, compare its checksum, and say what its checks have found."""
    found: list[ValueError] = []  # said only if the bytes are those that were written
    try:
        checksum = reader.read(name, _noting(places, found))
    except EOFError:
        raise ValueError(f"{target}: {name} is cut short") from None
    if manifest["crc32"][name] != checksum:
        raise ValueError(f"{target}: {name} is damaged (checksum)")
    if found:
        raise ValueError(f"{target}: {found[0]}")


def _noting(places: Places, found: list[ValueError]) -> Places:
    """Yield the places; `found` gets the first error of their checks, and none runs after it."""

    def check(done: Callable[[], None]) -> None:
        if found:
            return
        try:
            done()
        except ValueError as error:
            found.append(error)

    for values, done in places:
        yield values, partial(check, done)


def _checked(places: Places, checks: StateChecks, name: str) -> Places:
    """Yield the places of an array, whose values are checked before they are kept."""

    def keep(begin: int, values: np.ndarray[Any, Any], done: Callable[[], None]) -> None:
        checks.piece(name, begin, values)
        done()

    begin = 0
    for values, done in places:
        yield values, partial(keep, begin, values, done)
        begin += len(values)


def refuse_dirty(tags: np.ndarray[Any, Any]) -> None:
    """Raise ValueError where a cache that is left out holds rows that its tables do not have."""
    if ((tags & np.uint64(contract.DIRTY_BIT)) != 0).any():
        raise ValueError(
            "its cache holds rows of frozen tables that were set and not yet written to them: load "
            "it where it was saved, call flush(), save it again"
        )


def _places(stored: StoredArray, on: Stream) -> Places:
    """Yield memory for each piece of an array, and what keeps it."""

    def keep(begin: int, values: np.ndarray[Any, Any]) -> None:
        stored.write(begin, values, on)

    for begin, end in stored.pieces():
        values = stored.target(begin, end)
        yield values, partial(keep, begin, values)
