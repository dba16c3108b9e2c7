"""`RefCollection`: the collection's calls, stated slowly and compared byte for byte."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .bags import RefTicket, TableBatch, occurrences, parse, pool, row_gradients
from .cache import RefCache
from .formats import decode, encode, storable
from .optim import initial_state, update
from .rounding import F32, I64, f32, initial_values

STATS: tuple[str, ...] = ("accesses", "unique", "hits", "misses", "conflict_misses", "rejected")
STATS += ("evictions", "write_backs", "dropped", "nonfinite")


class RefCollection:
    """Embedding tables with an optional cache; takes the configuration objects of the package."""

    def __init__(
        self,
        tables: list[Any],
        cache: Any = None,
        optimizer: Any = None,
        seed: int = 0,
        rounding: str = "stochastic",
        bounds: str = "raise",
        on_nonfinite: str = "raise",
    ) -> None:
        self.tables, self.optimizer = list(tables), copy.copy(optimizer)
        self.seed, self.rounding, self.bounds = seed, rounding, bounds
        self.on_nonfinite = on_nonfinite
        self.step = 0
        self._implicit: RefTicket | None = None
        self._latest: RefTicket | None = None
        self._prefetched: list[RefTicket] = []
        self._stats = np.zeros((len(tables), len(STATS)), np.int64)
        self.first: list[int] = []
        sizes: dict[int, int] = defaultdict(int)
        for table in self.tables:
            self.first.append(sizes[table.embedding_dim])
            sizes[table.embedding_dim] += table.num_embeddings
        self.caches = {d: self._make_cache(d, n, cache) for d, n in sizes.items() if cache}
        self.data: list[npt.NDArray[np.uint8]] = []
        self.state: list[npt.NDArray[Any] | None] = []
        for t, table in enumerate(self.tables):
            rows, dim = table.num_embeddings, table.embedding_dim
            x = initial_values(table.init, seed, t, rows, dim)
            self.data.append(self._encode(t, np.arange(rows), x))
            self.state.append(initial_state(optimizer, rows, dim))

    # --- calls ---------------------------------------------------------------------------------

    def forward(
        self,
        indices: Any,
        offsets: Any,
        per_sample_weights: Any = None,
        training: bool = True,
        ticket: bool = False,
    ) -> Any:
        """Pooled rows; with `ticket=True` also the ticket that `backward` takes."""
        batch = self._parse(indices, offsets)
        batch.weights = None if per_sample_weights is None else f32(per_sample_weights)
        if training:
            self.step += 1
            batch = self._admit_or_consume(batch, implicit=not ticket)
        outputs = [self._pool(t, part, batch.weights) for t, part in enumerate(batch.tables)]
        out = self._join(outputs)
        return (out, batch) if ticket else out

    def prefetch(self, indices: Any, offsets: Any) -> RefTicket:
        """Admit a batch ahead of its forward."""
        batch = self._parse(indices, offsets)
        self.step += 1
        if self.caches:
            self._admit(batch)
        self._prefetched.append(batch)
        return batch

    def backward(self, grad: Any, ticket: RefTicket | None = None) -> F32 | None:
        """Update the rows of a forward; the gradient of its per-sample weights if it had them."""
        batch = self._latest if ticket is None else ticket
        assert batch is not None
        assert batch.owner is self
        self.step += 1
        weight_grad = None
        parts = [
            self._occurrences(t, part, batch.weights, grad) for t, part in enumerate(batch.tables)
        ]
        if batch.weights is not None:
            weight_grad = np.concatenate([part[2] for part in parts]) if parts else f32([])
        bad = 0
        for t, part in enumerate(batch.tables):
            if not self.caches:
                self._add(t, "unique", len(part.unique))
            bad += self._update(t, part, *parts[t][:2])
        self._close(batch)
        if bad and self.on_nonfinite == "raise":
            raise FloatingPointError(f"{bad} rows")
        return weight_grad

    def flush(self) -> None:
        """Write every dirty slot back."""
        self.step += 1
        for cache in self.caches.values():
            cache.flush()

    def rows(self, name: str, ids: Any) -> F32:
        """Current values of rows."""
        return self._values(self._table(name), np.asarray(ids, np.int64))

    def set_rows(self, name: str, ids: Any, values: Any) -> None:
        """Give rows new values; a cached row changes in its slot."""
        t, ids, values = self._table(name), np.asarray(ids, np.int64), f32(values)
        if not storable(values, self.tables[t].precision).all():
            raise ValueError("a row cannot be stored")
        self.step += 1
        self._store(t, ids, values)

    def stats(self) -> dict[str, dict[str, int]]:
        """Counts of each table."""
        return {
            table.name: dict(zip(STATS, map(int, row), strict=True))
            for table, row in zip(self.tables, self._stats, strict=True)
        }

    def state_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Every byte of the collection's state."""
        out: dict[str, npt.NDArray[Any]] = {}
        for t, table in enumerate(self.tables):
            out[f"table.{table.name}.rows"] = self.data[t]
            state = self.state[t]
            if state is not None:
                out[f"table.{table.name}.state"] = state
        for dim, cache in self.caches.items():
            out.update({f"cache.{dim}.{key}": a for key, a in cache.arrays().items()})
        out["step"] = np.array([self.step], np.uint64)
        out["stats"] = self._stats
        return out

    # --- inputs and tickets --------------------------------------------------------------------

    def _parse(self, indices: Any, offsets: Any) -> RefTicket:
        rows = [table.num_embeddings for table in self.tables]
        batch = parse(rows, np.asarray(indices, np.int64), np.asarray(offsets, np.int64))
        if self.bounds == "raise" and any((part.rows < 0).any() for part in batch.tables):
            raise IndexError("an index is out of range")
        batch.owner = self
        return batch

    def _admit_or_consume(self, batch: RefTicket, implicit: bool) -> RefTicket:
        if self._implicit is not None:
            self._close(self._implicit)
        known = next((p for p in self._prefetched if p.key == batch.key), None)
        if known is not None:
            self._prefetched.remove(known)
            known.weights, batch = batch.weights, known
        if self.caches and known is None:
            self._admit(batch)
        elif not self.caches:
            self._count_inputs(batch)
        self._latest = batch
        self._implicit = batch if implicit else None
        return batch

    def _admit(self, batch: RefTicket) -> None:
        self._count_inputs(batch)
        rows: dict[int, list[int]] = {dim: [] for dim in self.caches}
        for t, part in enumerate(batch.tables):
            self._add(t, "unique", len(part.unique))
            rows[self.tables[t].embedding_dim] += (self.first[t] + part.unique).tolist()
        batch.pinned = {dim: self.caches[dim].admit(ids) for dim, ids in rows.items()}

    def _close(self, batch: RefTicket) -> None:
        for dim, rows in batch.pinned.items():
            self.caches[dim].unpin(rows)
        batch.owner = None
        if batch in self._prefetched:
            self._prefetched.remove(batch)
        if batch is self._implicit:
            self._implicit = None

    def _count_inputs(self, batch: RefTicket) -> None:
        for t, part in enumerate(batch.tables):
            dropped = int((part.rows < 0).sum())
            self._add(t, "accesses", len(part.rows) - dropped)
            self._add(t, "dropped", dropped)

    # --- arithmetic ----------------------------------------------------------------------------

    def _pool(self, t: int, part: TableBatch, weights: F32 | None) -> F32:
        return pool(part, self.tables[t].pooling, self._looked_up(t, part), _of(part, weights))

    def _occurrences(
        self, t: int, part: TableBatch, weights: F32 | None, grad: Any
    ) -> tuple[F32, F32, F32]:
        table = self.tables[t]
        if isinstance(grad, dict):
            g = f32(grad[table.name])
        else:
            column = sum(other.embedding_dim for other in self.tables[:t])
            g = f32(grad)[:, column : column + table.embedding_dim]
        return occurrences(part, table.pooling, self._looked_up(t, part), _of(part, weights), g)

    def _looked_up(self, t: int, part: TableBatch) -> F32:
        rows, places = np.unique(np.where(part.rows >= 0, part.rows, 0), return_inverse=True)
        return self._values(t, rows)[places]

    def _update(self, t: int, part: TableBatch, c: F32, g: F32) -> int:
        rows, state = part.unique, self.state[t]
        old = None if state is None else state[rows]
        new = update(
            self.optimizer,
            self.tables[t].precision,
            self._values(t, rows),
            row_gradients(part, c, g),
            old,
            rounding=self.rounding,
            seed=self.seed,
            step=self.step,
            table=t,
            rows=rows,
        )
        self._store(t, rows[new.ok], new.w[new.ok])
        if state is not None and new.state is not None:
            state[rows[new.ok]] = new.state[new.ok]
        bad = int((~new.ok).sum())
        self._add(t, "nonfinite", bad)
        return bad

    # --- storage -------------------------------------------------------------------------------

    def _values(self, t: int, ids: I64) -> F32:
        table = self.tables[t]
        x = decode(self.data[t][ids], table.precision, table.embedding_dim)
        cache = self.caches.get(table.embedding_dim)
        if cache is not None:
            for i, row in enumerate(ids.tolist()):
                slot = cache.find(self.first[t] + row)
                if slot is not None:
                    x[i] = cache.rows[slot]
        return x

    def _store(self, t: int, ids: I64, values: F32) -> None:
        cache = self.caches.get(self.tables[t].embedding_dim)
        slots = [cache.find(self.first[t] + row) if cache else None for row in ids.tolist()]
        plain = np.array([slot is None for slot in slots], bool)
        self.data[t][ids[plain]] = self._encode(t, ids[plain], values[plain])
        for slot, value in zip(slots, values, strict=True):
            if cache is not None and slot is not None:
                cache.put(slot, value)

    def _encode(self, t: int, ids: I64, values: F32) -> npt.NDArray[np.uint8]:
        table = self.tables[t]
        return encode(
            values.reshape(-1, table.embedding_dim),
            table.precision,
            self.rounding,
            seed=self.seed,
            step=self.step,
            table=t,
            rows=ids,
        )

    def _make_cache(self, dim: int, rows: int, config: Any) -> RefCache:
        tables = [t for t, table in enumerate(self.tables) if table.embedding_dim == dim]

        def owner(linear: int) -> int:
            return next(t for t in reversed(tables) if self.first[t] <= linear)

        def by_table(linear: list[int]) -> Iterator[tuple[int, I64, I64]]:
            owners, ids = np.array([owner(row) for row in linear]), np.array(linear)
            for t in tables:
                at = np.flatnonzero(owners == t)
                yield t, at, ids[at] - self.first[t]

        def read(linear: list[int]) -> F32:
            out = np.empty((len(linear), dim), np.float32)
            for t, at, rows in by_table(linear):
                out[at] = decode(self.data[t][rows], self.tables[t].precision, dim)
            return out

        def write_back(linear: list[int], values: F32) -> None:
            for t, at, rows in by_table(linear):
                self.data[t][rows] = self._encode(t, rows, values[at])

        def count(linear: int, name: str) -> None:
            self._add(owner(linear), name, 1)

        sets = config.num_sets
        if sets is None:
            sets = max(1, math.ceil(config.load_factor * rows / config.ways))
        return RefCache(sets, config.ways, dim, config.policy, read, write_back, count)

    def _join(self, outputs: list[F32]) -> Any:
        if any(table.pooling == "none" for table in self.tables):
            return {t.name: out for t, out in zip(self.tables, outputs, strict=True)}
        return np.concatenate(outputs, axis=1)

    def _table(self, name: str) -> int:
        return [table.name for table in self.tables].index(name)

    def _add(self, t: int, name: str, n: int) -> None:
        self._stats[t, STATS.index(name)] += n


def _of(part: TableBatch, weights: F32 | None) -> F32:
    """Per-sample weights of a table's indices, 1 where there are none."""
    return np.ones(len(part.rows), np.float32) if weights is None else weights[part.at]
