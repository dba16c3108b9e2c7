"""What a checkpoint says of its collection: written, and read back."""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpembed._bindings.device import Stream
from mpembed._checkpoint import strict_json
from mpembed._checkpoint.versions import OLDEST
from mpembed._collection import grouping
from mpembed._collection.settings import Settings
from mpembed._collection.state import CollectionState
from mpembed.config import TableConfig
from mpembed.optim import Optimizer
from mpembed.version import __version__

FORMAT = "mpembed-checkpoint"
VERSION = 3
DELTA_FORMAT = "mpembed-delta"
DELTA_VERSION = 1
KEY = "mpembed"


def manifest_of(state: CollectionState, on: Stream) -> dict[str, Any]:
    """Return what a checkpoint says of a collection: all but the checksums."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "written_by": __version__,
        **described(state.settings),
        **state.counters(on).named(),
    }


def described(settings: Settings) -> dict[str, Any]:
    """Return what a checkpoint says of settings; the same of two that differ in nothing."""
    unique = unique_optimizers(settings)
    place = {id(one): number for number, one in enumerate(unique)}
    return {
        "tables": [
            _described(table, own, place)
            for table, own in zip(settings.tables, settings.optimizers, strict=True)
        ],
        "groups": [
            {"label": group.label, "tables": group.tables, "cached": group.cached}
            for group in grouping.plan(settings)
        ],
        "cache": None if settings.cache is None else dataclasses.asdict(settings.cache),
        "optimizers": [[one.kind, one.settings()] for one in unique],
        "optimizer": place.get(id(settings.optimizer)),
        "device": settings.device.name,
        "seed": settings.seed,
        "rounding": settings.rounding,
        "bounds": settings.bounds,
        "on_nonfinite": settings.on_nonfinite,
    }


def unique_optimizers(settings: Settings) -> list[Optimizer]:
    """Return the optimizers that were given, each once, in the manifest's order."""
    given = settings.optimizer, *(table.optimizer for table in settings.tables)
    return list({id(one): one for one in given if one is not None}.values())


def metadata(manifest: Mapping[str, Any], checksums: Mapping[str, int]) -> dict[str, str]:
    """Return the file's metadata; its length does not depend on the checksums."""
    text = json.dumps({**manifest, "crc32": checksums})
    # One key, its own checksum in front.
    return {KEY: f"{zlib.crc32(text.encode()):08x} {text}"}


def identity(manifest: Mapping[str, Any]) -> str:
    """Return what tells a save from all others: a digest of its manifest, checksums included."""
    text = json.dumps(manifest, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _described(
    table: TableConfig, optimizer: Optimizer | None, place: Mapping[int, int]
) -> dict[str, Any]:
    """Return a table for the manifest: with its own optimizer's place there, and its rate now."""
    fields = {one.name: getattr(table, one.name) for one in dataclasses.fields(table)}
    fields["optimizer"] = None if table.optimizer is None else place[id(table.optimizer)]
    fields["lr_now"] = None if table.lr is None or optimizer is None else optimizer.lr
    return fields


def read_manifest(
    target: Path, metadata: dict[str, str], wanted: str | None = FORMAT
) -> dict[str, Any]:
    """Return the manifest of a checkpoint, of a delta, or with None of either."""
    if KEY not in metadata:
        raise ValueError(f"{target}: is not an mpembed checkpoint (it has no manifest)")
    checksum, _, text = metadata[KEY].partition(" ")
    if checksum != f"{zlib.crc32(text.encode()):08x}":
        raise ValueError(f"{target}: its manifest is damaged (checksum)")
    try:
        manifest = strict_json.parse(text)
    except ValueError as error:
        raise ValueError(f"{target}: its manifest is not valid: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") not in (FORMAT, DELTA_FORMAT):
        raise ValueError(f"{target}: is not an mpembed checkpoint")
    found, version = manifest["format"], manifest.get("version")
    if wanted == FORMAT != found:
        raise ValueError(
            f"{target}: is a delta: load the checkpoint that it continues, with deltas=[this file]"
        )
    if wanted == DELTA_FORMAT != found:
        raise ValueError(
            f"{target}: is a whole checkpoint and not a delta: pass it to load() as path"
        )
    if found == FORMAT:
        kind, first, last = "checkpoint", OLDEST, VERSION
    else:
        kind, first, last = "delta", DELTA_VERSION, DELTA_VERSION
    if type(version) is not int or not first <= version <= last:
        reads = f"{first} to {last}" if first < last else f"{last}"
        raise ValueError(f"{target}: {kind} version {version}; this mpembed reads {reads}")
    return manifest


def table(fields: dict[str, Any], optimizers: list[Optimizer]) -> TableConfig:
    """Return a table as it was saved."""
    init, number = fields.pop("init"), fields.pop("optimizer")
    own = None if number is None else optimizers[number]
    del fields["lr_now"]
    init = tuple(init) if isinstance(init, list) else init
    return TableConfig(**fields, init=init, optimizer=own)


def set_rates(settings: Settings, tables: list[dict[str, Any]]) -> None:
    """Give the tables with a rate of their own the one that they had."""
    for fields, optimizer in zip(tables, settings.optimizers, strict=True):
        if (fields["lr"] is None) != (fields["lr_now"] is None):
            raise ValueError(f"lr and lr_now of table {fields['name']!r} do not fit")
        if fields["lr_now"] is not None and optimizer is not None:
            optimizer.lr = fields["lr_now"]
