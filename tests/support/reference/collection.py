"""`RefCollection`: the collection's calls, stated slowly and compared byte for byte."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed.registry import DEFAULT_ROUNDING

from .bags import RefTicket, TableBatch, join, occurrences, parse, pool, row_gradients
from .cache import RefCache
from .formats import storable
from .groups import RefGroup, group_label
from .optim import rule_of, update
from .rounding import F32, f32
from .tables import RefTable

STATS: tuple[str, ...] = ("accesses", "unique", "hits", "misses", "conflict_misses", "rejected")
STATS += ("evictions", "write_backs", "dropped", "nonfinite")


class RefCollection:
    """Embedding tables with optional caches; takes the configuration objects of the package.

    `optimizers` maps a table's name to the copy of its optimizer, None where it is frozen.
    """

    def __init__(
        self,
        tables: list[Any],
        cache: Any = None,
        optimizer: Any = None,
        seed: int = 0,
        rounding: str = DEFAULT_ROUNDING,
        bounds: str = "raise",
        on_nonfinite: str = "raise",
    ) -> None:
        self.tables, self.optimizer = list(tables), copy.copy(optimizer)
        self.seed, self.rounding, self.bounds = seed, rounding, bounds
        self.on_nonfinite = on_nonfinite
        self.step = self.updates = 0
        self._implicit: RefTicket | None = None
        self._latest: RefTicket | None = None
        self._prefetched: list[RefTicket] = []
        self._stats = np.zeros((len(tables), len(STATS)), np.int64)
        self.optimizers = self._optimizers(optimizer)
        self.data: list[RefTable] = []
        self.groups: dict[tuple[str, bool], RefGroup] = {}
        self._group_of: list[RefGroup] = []
        for t, table in enumerate(self.tables):
            mine = self.optimizers[table.name]
            rule = None if mine is None else rule_of(mine)
            self.data.append(RefTable(table, t, rule, seed, rounding))
            # A frozen table has a cache only where it is far from the kernels.
            cached = cache is not None and (rule is not None or table.placement == "host")
            key = group_label(table.embedding_dim, rule), cached
            if key not in self.groups:
                self.groups[key] = RefGroup(table.embedding_dim, rule, lambda: self.step)
            self.groups[key].add(t, self.data[t])
            self._group_of.append(self.groups[key])
        for (_, cached), group in self.groups.items():
            if cached:
                group.make_cache(cache, lambda t, name: self._add(t, name, 1))

    def _optimizers(self, shared: Any) -> dict[str, Any]:
        copies = {id(shared): self.optimizer}
        found = {}
        for table in self.tables:
            given = shared if table.optimizer is None else table.optimizer
            mine = copies.setdefault(id(given), copy.copy(given))
            if table.lr is not None:
                mine = copy.copy(mine)
                mine.lr = table.lr
            found[table.name] = mine if table.trainable else None
        return found

    @property
    def caches(self) -> dict[str, RefCache]:
        """The caches by the labels of their groups."""
        return {g.label: g.cache for g in self.groups.values() if g.cache is not None}

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
        self._admit(batch)
        self._prefetched.append(batch)
        return batch

    def backward(self, grad: Any, ticket: RefTicket | None = None) -> Any:
        """Update the rows of a forward; the gradient of its per-sample weights if it had them.

        `grad` may be a list of pairs (grad, ticket): one update, and a list of weight gradients.
        """
        several = isinstance(grad, list)
        latest: Any = self._latest if ticket is None else ticket
        pairs: list[tuple[Any, RefTicket]] = grad if several else [(grad, latest)]
        assert all(batch.owner is self for _, batch in pairs)
        self.step += 1
        self.updates += 1
        shares = [
            [self._occurrences(t, p, batch.weights, g) for t, p in enumerate(batch.tables)]
            for g, batch in pairs
        ]
        weight_grads = [
            None if batch.weights is None else np.concatenate([f32([]), *(p[2] for p in share)])
            for share, (_, batch) in zip(shares, pairs, strict=True)
        ]
        bad = 0
        for t in range(len(self.tables)):
            part = join([batch.tables[t] for _, batch in pairs])
            c, g = (np.concatenate([share[t][i] for share in shares]) for i in (0, 1))
            bad += self._update(t, part, c, g)
        for _, batch in pairs:
            self._close(batch)
        if bad and self.on_nonfinite == "raise":
            raise FloatingPointError(f"{bad} rows")
        return weight_grads if several else weight_grads[0]

    def flush(self) -> None:
        """Write every dirty slot back."""
        self.step += 1
        for cache in self.caches.values():
            cache.flush()

    def rows(self, name: str, ids: Any) -> F32:
        """Current values of rows."""
        t = self._table(name)
        return self._group_of[t].get(t, np.asarray(ids, np.int64))[0]

    def set_rows(self, name: str, ids: Any, values: Any) -> None:
        """Give rows new values; a cached row changes in its slot."""
        t, ids, values = self._table(name), np.asarray(ids, np.int64), f32(values)
        if not storable(values, self.tables[t].precision).all():
            raise ValueError("a row cannot be stored")
        self.step += 1
        self._group_of[t].put(t, ids, values, None)

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
            data = self.data[t]
            out[f"table.{table.name}.rows"] = data.rows
            for name, state in zip(data.state_names, data.states, strict=True):
                out[f"table.{table.name}.{name}"] = state
        for label, cache in self.caches.items():
            out.update({f"cache.{label}.{key}": a for key, a in cache.arrays().items()})
        out["step"] = np.array([self.step], np.uint64)
        out["updates"] = np.array([self.updates], np.uint64)
        out["stats"] = self._stats
        out["noise"] = np.stack([data.noise for data in self.data])
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
        if known is None:
            self._admit(batch)
        for t, part in enumerate(batch.tables):
            if self._group_of[t].cache is None:
                self._count_inputs(t, part)
        self._latest = batch
        self._implicit = batch if implicit else None
        return batch

    def _admit(self, batch: RefTicket) -> None:
        rows: dict[str, list[int]] = {label: [] for label in self.caches}
        for t, part in enumerate(batch.tables):
            group = self._group_of[t]
            if group.cache is not None:
                self._count_inputs(t, part)
                self._add(t, "unique", len(part.unique))
                rows[group.label] += (group.first[t] + part.unique).tolist()
        batch.pinned = {label: self.caches[label].admit(ids) for label, ids in rows.items()}

    def _close(self, batch: RefTicket) -> None:
        for label, rows in batch.pinned.items():
            self.caches[label].unpin(rows)
        batch.owner = None
        if batch in self._prefetched:
            self._prefetched.remove(batch)
        if batch is self._implicit:
            self._implicit = None

    def _count_inputs(self, t: int, part: TableBatch) -> None:
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
        kept = part.rows >= 0
        rows, places = np.unique(part.rows[kept], return_inverse=True)
        values = np.zeros((len(part.rows), self.tables[t].embedding_dim), np.float32)
        values[kept] = self._group_of[t].get(t, rows)[0][places]
        return values

    def _update(self, t: int, part: TableBatch, c: F32, g: F32) -> int:
        optimizer = self.optimizers[self.tables[t].name]
        if optimizer is None:
            return 0
        group, rows = self._group_of[t], part.unique
        if group.cache is None:
            self._add(t, "unique", len(rows))
        w, states = group.get(t, rows)
        summed, precision = row_gradients(part, c, g), self.tables[t].precision
        new = update(rule_of(optimizer), self.updates, precision, w, summed, states)
        ok = new.ok
        group.measure(t, rows[ok], new.w[ok], w[ok])
        group.put(t, rows[ok], new.w[ok], [state[ok] for state in new.states])
        bad = int((~ok).sum())
        self._add(t, "nonfinite", bad)
        return bad

    # --- what the calls share ------------------------------------------------------------------

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
