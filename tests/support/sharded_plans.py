"""Plans that split tables over ranks, their collections, and batches that do not depend on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import mpembed as mpe
from mpembed._bindings import contract

DIM, BAGS = 6, 5
PLANS = ("tw", "rw", "mixed", "uneven")


class Whole(NamedTuple):
    """A whole table, whose place is its number."""

    name: str
    rows: int
    precision: str


#: The last two have fewer rows than some worlds have ranks.
TABLES = (
    Whole("packed", 61, "int4"),
    Whole("plain", 47, "fp32"),
    Whole("codes", 3, "int8"),
    Whole("few", 2, "fp32"),
)
OPTIMIZERS: dict[str, Callable[[], mpe.optim.Optimizer]] = {
    "adam": lambda: mpe.Adam(lr=0.05),
    "adam_bf16": lambda: mpe.Adam(lr=0.05, state_precision="bf16"),
    "rowwise_adagrad": lambda: mpe.RowwiseAdagrad(lr=0.05),
    "sgd": lambda: mpe.SGD(lr=0.05),
}


class Part(NamedTuple):
    """Rows [first, end) of a table."""

    table: int
    first: int
    end: int


def parts(plan: str, rank: int, world: int) -> list[Part]:
    """What a rank holds: whole tables in turn (tw), a block of each (rw), or both in turn.

    Uneven blocks are not those that ``Shard(0)`` of a DTensor makes.
    """
    found = []
    for number, whole in enumerate(TABLES):
        if plan == "uneven":
            first, end = (whole.rows * n * n // world**2 for n in (rank, rank + 1))
            found.append(Part(number, first, end))
            continue
        if plan == "rw" or (plan == "mixed" and number % 2 == 0):
            block = -(-whole.rows // world)
            first = min(rank * block, whole.rows)
            found.append(Part(number, first, min(first + block, whole.rows)))
        elif number % world == rank:
            found.append(Part(number, 0, whole.rows))
    return found


def make(
    some: list[Part], optimizer: str = "adam", cache: mpe.CacheConfig | None = None
) -> mpe.EmbeddingBagCollection:
    """A collection of some parts."""
    tables = []
    for part in some:
        whole = TABLES[part.table]
        tables.append(
            mpe.TableConfig(
                whole.name,
                part.end - part.first,
                DIM,
                whole.precision,
                table_id=part.table,
                first_row=part.first,
                total_rows=whole.rows,
            )
        )
    return mpe.EmbeddingBagCollection(
        tables, optimizer=OPTIMIZERS[optimizer](), cache=cache, seed=77
    )


def train(emb: mpe.EmbeddingBagCollection, some: list[Part], begin: int, end: int) -> None:
    """Do steps [begin, end), each the same for all plans; a part gets what it has of a batch."""
    for step in range(begin, end):
        rng = np.random.default_rng(step)
        batches = [_batch(rng, whole.rows) for whole in TABLES]
        grads = rng.standard_normal((len(TABLES), BAGS, DIM), np.float32)
        indices, counts, wanted = [], [], []
        for part in some:
            rows, bags = batches[part.table]
            here = (rows >= part.first) & (rows < part.end)
            indices.append(rows[here] - part.first)
            counts.append(np.bincount(bags[here], minlength=BAGS))
            wanted.append(grads[part.table])
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        emb.forward(np.concatenate(indices), offsets)
        emb.backward(np.concatenate(wanted, axis=1))


def _batch(rng: np.random.Generator, rows: int) -> tuple[Any, Any]:
    """Rows, low ones more often, and the bag of each."""
    count = int(rng.integers(8, 25))
    return (
        np.minimum((rng.random(count) ** 2 * rows).astype(np.int64), rows - 1),
        np.sort(rng.integers(0, BAGS, count)),
    )


def whole_state(emb: mpe.EmbeddingBagCollection, some: list[Part]) -> dict[str, Any]:
    """Return what a collection's own arrays say of each row, by table and row of the whole one.

    The bytes of the row and its states in the table; where it is cached, also its slot's mark,
    count and bytes.
    """
    arrays, found, key = emb.state_arrays(), {}, 0
    slots = _slots(arrays)
    for part in some:
        name = f"table.{TABLES[part.table].name}."
        own = {k.removeprefix(name): a for k, a in arrays.items() if k.startswith(name)}
        for row in range(part.end - part.first):
            values = {k: a[row].tobytes().hex() for k, a in own.items()}
            found[f"{part.table} {part.first + row}"] = {**values, "slot": slots.get(key)}
            key += 1
    return found


def _slots(arrays: dict[str, Any]) -> dict[int, list[Any]]:
    """Return what the cache of the only group holds, by linear row id."""
    held = {k.rpartition(".")[2]: a for k, a in arrays.items() if k.startswith("cache.")}
    if not held:
        return {}
    flat = {k: held[k].reshape(-1, *held[k].shape[2:]) for k in ("tags", "meta", "rows")}
    flat["values"] = held.get("values", np.empty((*held["tags"].shape, 0))).reshape(
        len(flat["tags"]), -1
    )
    return {
        int(tag) & contract.ID_MASK: [
            int(tag) & contract.DIRTY_BIT != 0,
            int(flat["meta"][slot]),
            flat["rows"][slot].tobytes().hex(),
            flat["values"][slot].tobytes().hex(),
        ]
        for slot, tag in enumerate(flat["tags"])
        if int(tag) & contract.ID_MASK != contract.EMPTY_TAG
    }
