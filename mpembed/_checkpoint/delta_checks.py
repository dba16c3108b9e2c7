"""Checks of a delta's arrays: what they hold, and where it belongs in a collection."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed._bindings.device import Stream
from mpembed._checkpoint import loading
from mpembed._checkpoint.deltas import Numbers, selected
from mpembed._checkpoint.matching import as_saved
from mpembed._checkpoint.tensor_file import type_name
from mpembed._collection.records import StoredArray
from mpembed._collection.selection import SelectedArray
from mpembed._collection.state import CollectionState
from mpembed._collection.state_checks import StateChecks
from mpembed._collection.storage import leading_dimensions, logical_arrays

Arrays = Mapping[str, npt.NDArray[Any]]
Targets = Mapping[str, StoredArray | SelectedArray]


def checked_targets(
    state: CollectionState, target: Path, manifest: dict[str, Any], arrays: Arrays, on: Stream
) -> Targets:
    """Return where a delta's arrays belong, after all checks of their values."""
    own = state.arrays()
    changed: dict[str, npt.NDArray[np.int64]] = {}
    for name, stored in own.items():
        owner, dimensions = name.rpartition(".")[0], leading_dimensions(name)
        if dimensions > 0 and owner not in changed:
            count = math.prod(stored.shape[:dimensions])
            changed[owner] = _checked_numbers(target, f"{owner}.changed", arrays, count)
    expected = selected(own, changed)
    for name, one in expected.items():
        _refuse_other_array(target, name, arrays.get(name), one.dtype, one.shape)
    _check_left_out(state, target, manifest, arrays, set(arrays) - set(expected))
    try:
        _check_values(state.checks(), own, arrays, changed, on)
    except ValueError as error:
        raise ValueError(f"{target}: {error}") from None
    return {name: one for name, one in expected.items() if name in own}


def _refuse_other_array(
    target: Path,
    name: str,
    found: npt.NDArray[Any] | None,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
) -> None:
    if found is None or found.shape != shape or found.dtype != dtype:
        has = "missing" if found is None else f"{type_name(found.dtype)}{found.shape}"
        raise ValueError(
            f"{target}: {name} is {has}, but the manifest says {type_name(dtype)}{shape}"
        )


def _check_left_out(
    state: CollectionState,
    target: Path,
    manifest: dict[str, Any],
    arrays: Arrays,
    names: set[str],
) -> None:
    """Refuse arrays that this collection does not have, but for caches that its device has not."""
    own, saved = state.arrays(), logical_arrays(as_saved(state, target, manifest))
    for name, (dtype, shape) in saved.items():
        if name not in own and name.endswith(".tags"):
            tags = arrays.get(name)
            _refuse_other_array(target, name, tags, dtype, shape)
            try:
                loading.refuse_dirty(arrays[name])
            except ValueError as error:
                raise ValueError(f"{target}: {error}") from None
    known = {*saved, *(f"{name.rpartition('.')[0]}.changed" for name in saved)}
    if names - known:
        raise ValueError(f"{target}: it has an array {min(names - known)!r} too many")


def _check_values(
    checks: StateChecks,
    own: Mapping[str, StoredArray],
    arrays: Arrays,
    changed: Numbers,
    on: Stream,
) -> None:
    """Check values as those of a checkpoint are, those of caches among the slots that stay."""
    for name, stored in own.items():
        owner, dimensions = name.rpartition(".")[0], leading_dimensions(name)
        if dimensions == 1:
            checks.rows(name, changed[owner], arrays[name])
            continue
        for begin, end in stored.pieces():
            values = arrays[name][begin:end] if dimensions == 0 else stored.read(begin, end, on)
            if dimensions > 1:  # a slot that stays may have another row's tag
                values = values.copy()
                slots, ways = changed[owner], stored.shape[1]
                here = slice(*np.searchsorted(slots, [begin * ways, end * ways]))
                flat = values.reshape(-1, stored.shape[2])
                flat[slots[here] - begin * ways] = arrays[name][here]
            checks.piece(name, begin, values)


def _checked_numbers(target: Path, name: str, arrays: Arrays, count: int) -> npt.NDArray[np.int64]:
    """Return numbers of rows or slots that are in range and ascending, each once."""
    values = arrays.get(name)
    if values is None or values.dtype != np.int64 or values.ndim != 1:
        raise ValueError(f"{target}: {name} is missing or no list of numbers")
    if len(values) and (values[0] < 0 or values[-1] >= count or (values[1:] <= values[:-1]).any()):
        raise ValueError(f"{target}: {name} is damaged: numbers ascend from 0 to {count - 1}")
    return values
