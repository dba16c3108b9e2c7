"""Applying deltas: each is read and checked whole before anything of a collection is changed."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpembed import devices
from mpembed._arguments.scalars import integer
from mpembed._bindings import contract
from mpembed._bindings.device import Stream
from mpembed._checkpoint import loading
from mpembed._checkpoint.changes import Changes
from mpembed._checkpoint.checks import check_manifest
from mpembed._checkpoint.delta_checks import Arrays, Targets, checked_targets
from mpembed._checkpoint.manifest import DELTA_FORMAT, identity
from mpembed._checkpoint.matching import checked_rates, rate_owners, refuse_other_settings
from mpembed._checkpoint.tensor_file import one_place, type_name
from mpembed._collection.records import StoredArray
from mpembed._collection.save_history import SavePoint
from mpembed._collection.selection import SelectedArray
from mpembed._collection.state import CollectionState, Counters, half_done
from mpembed.optim import Optimizer

PathLike = str | os.PathLike[str]
Pieces = Mapping[str, Sequence[tuple[int, npt.NDArray[Any]]]]
_TYPES = {type_name(np.dtype(one)): np.dtype(one) for one in ("u1", "u2", "u4", "u8", "i8", "f4")}


class Delta(NamedTuple):
    """A delta as its file has it, checked as far as the file alone allows."""

    target: Path
    manifest: dict[str, Any]
    since: SavePoint
    until: SavePoint
    arrays: Arrays


def load(
    path: PathLike,
    device: str | devices.CudaDevice | devices.TorchDevice | None,
    deltas: Sequence[PathLike],
    changes: Changes,
) -> CollectionState:
    """Return the state of a checkpoint with deltas applied to it, in their order; or with changes.

    Deltas fit the settings with which they were saved.
    """
    if isinstance(deltas, str | bytes | os.PathLike) or not isinstance(deltas, Sequence):
        raise TypeError("deltas must be a sequence of paths, in the order in which they were saved")
    if deltas and changes != Changes():
        raise ValueError(
            "deltas cannot be applied to other settings than they were saved with: load with the "
            "deltas alone, save the result, and load that with the settings"
        )
    if deltas:  # a wrong order is found before anything large is read
        with loading.opened(Path(path)) as (_, manifest):
            before = Path(path), _point(Path(path), manifest)
        for each in map(Path, deltas):
            with loading.opened(each, DELTA_FORMAT) as (_, manifest):
                since = _since(each, manifest)
                _refuse_gap(each, since, f"what comes before it, {before[0]},", before[1])
                before = each, _point(each, manifest)
    state = loading.load(path, device, changes)
    for file in deltas:
        delta = read(file)
        with state.writing() as on:
            apply(state, delta, on)
    return state


def read(path: PathLike) -> Delta:
    """Return what a delta's file holds."""
    target = Path(path)
    with loading.opened(target, DELTA_FORMAT) as (reader, manifest):
        since, until = _since(target, manifest), _point(target, manifest)
        found, arrays = reader.arrays(), {}
        try:
            check_manifest({key: manifest[key] for key in manifest if key != "since"}, found)
        except (KeyError, TypeError, ValueError) as error:
            raise _invalid(target, error) from error
        for name, (kind, shape) in found.items():
            if kind not in _TYPES:
                raise ValueError(f"{target}: {name} has the type {kind}, which no array has")
            values = arrays[name] = np.empty(shape, _TYPES[kind])
            loading.read_array(reader, target, manifest, name, one_place(values))
    return Delta(target, manifest, since, until, arrays)


def apply(state: CollectionState, delta: Delta, on: Stream) -> None:
    """Bring a collection from the state of the delta's save to the delta's; all of it or nothing.

    Raises
    ------
    ValueError
        If the collection is elsewhere, or the file does not hold what its manifest says.
    """
    target, manifest, before = delta.target, delta.manifest, state.counters(on)
    state.storage.saves.add_ended()
    _refuse_elsewhere(state, delta, before, on)
    owners, rates = rate_owners(state.settings), checked_rates(state, target, manifest)
    targets = checked_targets(state, target, manifest, delta.arrays, on)
    after = Counters(delta.until.step, _updates(target, manifest))
    new = {
        name: [(begin, delta.arrays[name][begin:end]) for begin, end in one.pieces()]
        for name, one in targets.items()
    }
    state.storage.finish_snapshot()
    state.engine.drop_all(on)
    old, old_rates = {name: _copies(one, on) for name, one in targets.items()}, _rates(owners)
    history, points = state.storage.saves, state.storage.saves.points
    try:
        state.engine.calls.half_done = half_done("apply_delta")
        for owner in {name.rpartition(".")[0] for name in targets}:
            if f"{owner}.changed" in delta.arrays:
                state.storage.changes.mark(owner, delta.arrays[f"{owner}.changed"], on)
        _set(state, targets, new, after, on)
        _set_rates(owners, rates)
        state.restores += 1
        history.saved(after.step, delta.until.identities[0], on)
        state.engine.calls.half_done = None
    except BaseException:
        history.points = points
        _set_rates(owners, old_rates)
        _set(state, targets, old, before, on)
        state.engine.calls.half_done = None
        raise


def _refuse_elsewhere(state: CollectionState, delta: Delta, now: Counters, on: Stream) -> None:
    """Raise ValueError where a collection is not in the state that a delta continues."""
    refuse_other_settings(state, delta.target, delta.manifest, on)
    state.notice_foreign_writes(on)
    last = state.storage.saves.last
    if last is None or last.step != now.step:
        why = (
            "was neither saved nor loaded as it was saved"
            if last is None
            else "was changed after it was loaded or saved"
        )
        raise ValueError(
            f"{delta.target}: continues the save {_named(delta.since)}, but this collection is at "
            f"step {now.step} and at no save: it {why}. Load that save and apply the delta to it"
        )
    _refuse_gap(delta.target, delta.since, "this collection", last)


def _refuse_gap(target: Path, since: SavePoint, where: str, at: SavePoint) -> None:
    if not set(since.identities) & set(at.identities):
        raise ValueError(
            f"{target}: continues the save {_named(since)}, but {where} is at the save "
            f"{_named(at)}: apply each delta to the save that it continues, in the order in which "
            "they were saved"
        )


def _named(point: SavePoint) -> str:
    """Return a save as messages name it."""
    names = "/".join(one[:8] for one in point.identities)
    return f"{names or '(not written yet)'} of step {point.step}"


# ---- what a delta's manifest says ---------------------------------------------------------------


def _since(target: Path, manifest: dict[str, Any]) -> SavePoint:
    """Return the save that a delta continues."""
    try:
        step = integer("since", manifest["since"]["step"], 0, contract.MAX_STEP)
        identities = tuple(manifest["since"]["saves"])
        if not identities or not all(isinstance(one, str) for one in identities):
            raise ValueError("since names no save")
    except (KeyError, TypeError, ValueError) as error:
        raise _invalid(target, error) from error
    return SavePoint(step, identities)


def _point(target: Path, manifest: dict[str, Any]) -> SavePoint:
    """Return what a checkpoint or a delta is the save of."""
    since = _since(target, manifest).step if "since" in manifest else 0
    try:
        step = integer("step", manifest["step"], since, contract.MAX_STEP)
    except (KeyError, TypeError, ValueError) as error:
        raise _invalid(target, error) from error
    return SavePoint(step, (identity(manifest),))


def _updates(target: Path, manifest: dict[str, Any]) -> int:
    try:
        return integer("updates", manifest["updates"], 0, manifest["step"])  # each takes a step
    except (KeyError, TypeError, ValueError) as error:
        raise _invalid(target, error) from error


def _invalid(target: Path, error: Exception) -> ValueError:
    return ValueError(f"{target}: its manifest is not valid: {error}")


# ---- arrays -------------------------------------------------------------------------------------


def _copies(one: StoredArray | SelectedArray, on: Stream) -> list[tuple[int, npt.NDArray[Any]]]:
    return [(begin, np.array(one.read(begin, end, on))) for begin, end in one.pieces()]


def _set(
    state: CollectionState, targets: Targets, values: Pieces, counters: Counters, on: Stream
) -> None:
    for name, one in targets.items():
        for begin, piece in values[name]:
            one.write(begin, piece, on)
    state.set_counters(counters, on)


def _rates(owners: Sequence[Optimizer]) -> list[float]:
    return [one.lr for one in owners]


def _set_rates(owners: Sequence[Optimizer], rates: Sequence[float]) -> None:
    for one, rate in zip(owners, rates, strict=True):
        if one.lr != rate:
            one.lr = rate
