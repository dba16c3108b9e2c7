"""A delta, however damaged or made up, is refused by name, and nothing of a collection changes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import rewritten
from helpers import Array, collection, digest
from helpers import train as train_small

import mpembed as mpe

Arrays = dict[str, Array]
Change = Callable[[dict[str, Any], Arrays], object]
CACHE = "cache.6.rowwise_adagrad"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and a delta from it."""
    folder = tmp_path_factory.mktemp("deltas")
    emb = collection()
    train_small(emb, 1)
    emb.save(folder / "base", track=True)
    since = emb.step
    train_small(emb, 2)
    emb.set_rows("a", np.arange(20, 30), np.ones((10, 6), np.float32))
    emb.save(folder / "delta", since=since)
    return folder


@pytest.fixture
def server(folder: Path) -> mpe.EmbeddingBagCollection:
    return mpe.EmbeddingBagCollection.load(folder / "base")


def refused(server: mpe.EmbeddingBagCollection, target: Path) -> str:
    """Return what a delta is refused with; nothing of the collection may change."""
    before = digest(server), server.step, repr(server.optimizers)
    with pytest.raises(ValueError, match=r"\S") as error:
        server.apply_delta(target)
    assert str(target) in str(error.value)
    assert (digest(server), server.step, repr(server.optimizers)) == before
    return str(error.value)


def test_a_rewritten_delta_is_applied(
    folder: Path, tmp_path: Path, server: mpe.EmbeddingBagCollection
) -> None:
    """What the tests below change is the reason why they are refused."""
    rewritten(folder / "delta", tmp_path / "same", lambda manifest, arrays: None)
    server.apply_delta(tmp_path / "same")
    whole = mpe.EmbeddingBagCollection.load(folder / "base", deltas=[folder / "delta"])
    assert digest(server) == digest(whole)


def in_array(name: str, change: Callable[[Array], Array]) -> Change:
    def changed(_: dict[str, Any], arrays: Arrays) -> None:
        arrays[name] = change(arrays[name].copy())

    return changed


def at(place: Any, value: Any) -> Callable[[Array], Array]:
    def changed(array: Array) -> Array:
        array[place] = value
        return array

    return changed


ROWS, SLOTS, TAGS = "table.a.changed", f"{CACHE}.changed", f"{CACHE}.tags"
WRONG_ARRAYS: dict[str, tuple[Change, str]] = {
    "a row twice": (in_array(ROWS, lambda ids: np.sort(np.r_[ids[1], ids[1:]])), ROWS),
    "descending": (in_array(ROWS, lambda ids: ids[::-1]), ROWS),
    "negative": (in_array(ROWS, at(0, -1)), ROWS),
    "behind the last row": (in_array(ROWS, at(-1, 40)), ROWS),
    "far behind it": (in_array(ROWS, at(-1, 2**63 - 1)), ROWS),
    "unsigned numbers": (in_array(ROWS, lambda ids: ids.astype(np.uint64)), ROWS),
    "numbers by two": (in_array(ROWS, lambda ids: ids.reshape(-1, 1)), ROWS),
    "too few numbers": (in_array(ROWS, lambda ids: ids[1:]), "table.a.rows"),
    "too many rows": (in_array("table.a.rows", lambda x: np.r_[x, x]), "table.a.rows"),
    "narrower rows": (in_array("table.a.rows", lambda x: x[:, 1:]), "table.a.rows"),
    "other states": (in_array("table.a.sum", lambda x: x.astype(np.float64)), "table.a.sum"),
    "a slot twice": (in_array(SLOTS, lambda ids: np.sort(np.r_[ids[1], ids[1:]])), SLOTS),
    "a slot that is not": (in_array(SLOTS, at(-1, 8)), SLOTS),
    "fewer tags": (in_array(TAGS, lambda tags: tags[:, :4]), TAGS),
    "a row that no table has": (in_array(TAGS, at((0, 0), 49)), "tags"),
    "a slot retagged that stays": (
        in_array(TAGS, lambda tags: tags ^ np.uint64(1)),
        "tags",
    ),
    "a pinned row": (in_array(TAGS, lambda tags: tags | np.uint64(1 << 56)), "tags"),
    "no statistics": (lambda _, arrays: arrays.pop("stats"), "stats is missing"),
    "one too many": (lambda _, arrays: arrays.update(more=np.zeros(1, np.uint8)), "'more'"),
    "no numbers": (lambda _, arrays: arrays.pop(ROWS), ROWS),
    "a cache of no table": (
        lambda _, arrays: arrays.update({"cache.6.frozen.tags": np.zeros(8, np.uint64)}),
        "'cache.6.frozen.tags' too many",
    ),
    "a row twice in a cache": (in_array(TAGS, lambda tags: np.full_like(tags, 3)), "tags"),
    "a state that is not finite": (in_array("table.a.sum", at(0, np.nan)), "table.a.sum"),
    "the last state that is not finite": (
        in_array("table.a.sum", at(-1, np.nan)),
        "table.a.sum: row 29 is",
    ),
    "a cached row that is not finite": (in_array(f"{CACHE}.rows", at((0, 0), np.inf)), "rows"),
    "a count below 0": (in_array("stats", at((0, 0), -1)), "stats"),
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_wrong_arrays(
    name: str, folder: Path, tmp_path: Path, server: mpe.EmbeddingBagCollection
) -> None:
    change, said = WRONG_ARRAYS[name]
    rewritten(folder / "delta", tmp_path / "wrong", change)
    assert said in refused(server, tmp_path / "wrong")


def entry(*path: Any) -> Callable[[Any], Change]:
    """Return what sets an entry of the manifest."""

    def setter(value: Any) -> Change:
        def changed(manifest: dict[str, Any], _: Arrays) -> None:
            inside: Any = manifest
            for key in path[:-1]:
                inside = inside[key]
            inside[path[-1]] = value

        return changed

    return setter


VALUES: list[Any] = [None, -1, 2**70, 1.5, "x", [], {}, True, float("nan")]
HARMLESS: dict[Any, list[Any]] = {"lr": [2**70, 1.5], "lr_now": [None]}  # other rates; what it is
ENTRIES = [
    ("since",),
    ("since", "step"),
    ("since", "saves"),
    ("step",),
    ("updates",),
    ("tables",),
    ("tables", 0),
    ("tables", 0, "lr_now"),
    ("tables", 1, "num_embeddings"),
    ("optimizers",),
    ("optimizers", 0),
    ("optimizers", 0, 1),
    ("optimizers", 0, 1, "lr"),
    ("optimizers", 0, 1, "eps"),
    ("optimizer",),
    ("cache",),
    ("seed",),
    ("version",),
    ("format",),
]


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: ".".join(map(str, path)))
def test_wrong_entries_of_the_manifest(
    path: tuple[Any, ...], folder: Path, tmp_path: Path, server: mpe.EmbeddingBagCollection
) -> None:
    for value in VALUES:
        if value in HARMLESS.get(path[-1], []):
            continue
        rewritten(folder / "delta", tmp_path / "wrong", entry(*path)(value))
        refused(server, tmp_path / "wrong")


def test_steps_that_cannot_be(
    folder: Path, tmp_path: Path, server: mpe.EmbeddingBagCollection
) -> None:
    """Back before the save that is continued; more updates than steps."""
    rewritten(folder / "delta", tmp_path / "wrong", entry("step")(server.step - 1))
    assert "step" in refused(server, tmp_path / "wrong")
    rewritten(folder / "delta", tmp_path / "wrong", entry("updates")(10**6))
    assert "updates" in refused(server, tmp_path / "wrong")


def test_any_changed_byte_is_refused(
    folder: Path, tmp_path: Path, server: mpe.EmbeddingBagCollection
) -> None:
    whole, changed = (folder / "delta").read_bytes(), tmp_path / "changed"
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    rng = np.random.default_rng(0)
    places = [*range(8), *rng.integers(8, header, 150), *rng.integers(header, len(whole), 150)]
    before = digest(server)
    for place in map(int, places):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        changed.write_bytes(flipped)
        with pytest.raises((ValueError, OSError), match="changed"):
            server.apply_delta(changed)
    assert digest(server) == before


def test_a_truncated_delta_is_refused(
    folder: Path, tmp_path: Path, server: mpe.EmbeddingBagCollection
) -> None:
    whole, cut = (folder / "delta").read_bytes(), tmp_path / "cut"
    for size in {0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1}:
        cut.write_bytes(whole[:size])
        refused(server, cut)
    cut.write_bytes(whole + b"\0")
    refused(server, cut)
