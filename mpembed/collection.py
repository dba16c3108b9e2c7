"""The mixed-precision cached embedding: several tables, one fused training step."""

import os
from collections.abc import Sequence
from typing import Any, NoReturn, SupportsIndex

import numpy as np

from mpembed import _inputs, _storage, checkpoint, registry
from mpembed._checks import boolean, integer
from mpembed._describe import describe
from mpembed._dlpack import view
from mpembed._engine import Engine
from mpembed._memory_report import memory_report
from mpembed._view import require
from mpembed.config import CacheConfig, TableConfig
from mpembed.errors import NonFiniteUpdateError
from mpembed.optim import Optimizer
from mpembed.tickets import Ticket

MAX_TABLES = 1 << 16


class EmbeddingBagCollection:
    """Embedding tables in low precision with an FP32 cache, trained by fused optimizers.

    Parameters
    ----------
    tables : sequence of TableConfig
        Names are unique; dimensions, precisions and poolings may differ.
    cache : CacheConfig, optional
        One cache for each group of tables with the same dimension; None trains every row
        straight in its table.
    optimizer : SGD, Adagrad or RowwiseAdagrad
        Its `lr` may change at every step.
    device : str
        ``"cpu"``.
    seed : int
        0 <= seed < 2^64; initial rows and rounding depend on nothing else.
    rounding : str
        ``"stochastic"`` or ``"nearest"``.
    bounds : str
        ``"raise"``: an index out of range raises IndexError and nothing of the batch is applied.
        ``"drop"``: it contributes zero, is not trained and is counted.
    on_nonfinite : str
        A row whose update would not be finite (or storable) keeps its value and is counted;
        ``"raise"`` also raises FloatingPointError once the other rows are updated, ``"skip"``
        does not.

    Notes
    -----
    The same calls give the same bytes for every thread count and SIMD level; the definition of
    every bit is in ``docs/numerics.md``. Calls from several threads are taken one after the other.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        optimizer: Optimizer,
        cache: CacheConfig | None = None,
        device: str = "cpu",
        seed: int = 0,
        rounding: str = "stochastic",
        bounds: str = "raise",
        on_nonfinite: str = "raise",
    ) -> None:
        self._configure(tables, cache, optimizer, device, seed, rounding, bounds, on_nonfinite)
        _storage.draw_initial_rows(self._storage)

    def _configure(
        self,
        tables: Sequence[TableConfig],
        cache: CacheConfig | None,
        optimizer: Optimizer,
        device: str,
        seed: int,
        rounding: str,
        bounds: str,
        on_nonfinite: str,
    ) -> None:
        """Check the settings and allocate; the rows are left undefined."""
        self._tables = tuple(tables) if isinstance(tables, Sequence) else ()
        if not self._tables or not all(isinstance(t, TableConfig) for t in self._tables):
            raise TypeError("tables must be a non-empty sequence of TableConfig")
        if len(self._tables) >= MAX_TABLES:
            raise ValueError(f"at most {MAX_TABLES - 1} tables, got {len(self._tables)}")
        names = [table.name for table in self._tables]
        if len(set(names)) != len(names):
            raise ValueError(f"table names must be unique, got {names}")
        if cache is not None and not isinstance(cache, CacheConfig):
            raise TypeError(f"cache must be a CacheConfig or None, got {cache!r}")
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be an mpembed optimizer, got {optimizer!r}")
        if device != "cpu":
            raise ValueError(f"device must be 'cpu' (this build has no other), got {device!r}")
        registry.choose("rounding", rounding, registry.ROUNDINGS)
        registry.choose("bounds", bounds, {"raise": 0, "drop": 1})
        registry.choose("on_nonfinite", on_nonfinite, {"raise": 0, "skip": 1})
        self._cache, self._optimizer, self._device = cache, optimizer, device
        self._seed = integer("seed", seed, 0, 2**64 - 1)
        self._rounding, self._bounds, self._on_nonfinite = rounding, bounds, on_nonfinite
        self._storage = _storage.allocate(self._tables, cache, optimizer, self._seed, rounding)
        self._engine = Engine(self._storage, optimizer, drop=bounds == "drop")
        self._lock = self._engine.lock

    # ---- properties ------------------------------------------------------------------------

    @property
    def tables(self) -> tuple[TableConfig, ...]:
        """The tables, in the order of the output's columns."""
        return self._tables

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer; its `lr` may be set at any time."""
        return self._optimizer

    @property
    def step(self) -> int:
        """The write step: how many calls so far could change state."""
        return self._engine.step

    # ---- training --------------------------------------------------------------------------

    def prefetch(self, indices: Any, offsets: Any = None) -> Ticket:
        """Admit a coming batch's rows to the cache and pin them.

        Parameters
        ----------
        indices, offsets
            As in `forward`.

        Returns
        -------
        Ticket
            Taken over by the next training forward with the same indices and offsets. The
            collection keeps it until then, or until ``ticket.drop()`` or `drop_prefetched`.
        """
        with self._lock:
            batch = _inputs.make_batch(self._tables, indices, offsets, None)
            return self._engine.prefetch(batch)

    def drop_prefetched(self) -> int:
        """Drop every prefetch that no forward has taken over; return how many there were."""
        with self._lock:
            return self._engine.drop_prefetched()

    def forward(
        self,
        indices: Any,
        offsets: Any = None,
        per_sample_weights: Any = None,
        out: Any = None,
        stream: Any = None,
        *,
        training: bool = True,
        ticket: bool = False,
    ) -> Any:
        """Look up and pool a batch.

        Parameters
        ----------
        indices : int32 or int64 array (N,), or dict of table name -> (indices, offsets)
            Row numbers, table-major. Any DLPack exporter; never modified, never copied.
        offsets : int32 or int64 array (T * B + 1,)
            Bag b of table t holds ``indices[offsets[t * B + b] : offsets[t * B + b + 1]]``. The
            last entry is N, as with PyTorch's ``include_last_offset=True``.
        per_sample_weights : float32 array (N,), or dict of table name -> array, optional
            One factor an index, a dict where `indices` is one; with mean pooling the weighted sum
            is divided by the number of indices. Its values are not checked: a NaN makes its bag
            NaN.
        out : float32 array (B, sum of D), optional
            Where to write the output; it shares no memory with the batch. A dict of arrays where
            some table has pooling "none".
        stream
            For devices; must be None on the CPU.
        training : bool
            False changes no state at all.
        ticket : bool
            True returns ``(output, Ticket)``, to have several forwards open at once.

        Returns
        -------
        numpy.ndarray (B, sum of D), float32
            `out` if it was given. If some table has pooling "none": a dict of table name ->
            (B, D), or (number of the table's indices, D) for the unpooled ones.

        Raises
        ------
        TypeError, ValueError, IndexError, BufferError
            Before anything changes.
        """
        training, ticket = boolean("training", training), boolean("ticket", ticket)
        _inputs.no_stream(stream)
        if ticket and not training:
            raise ValueError("ticket=True needs training=True")
        with self._lock:
            batch = _inputs.make_batch(self._tables, indices, offsets, per_sample_weights)
            shapes = self._engine.batch_shapes(batch)
            result, views = _inputs.output_views(out, shapes, batch)
            if not training:
                self._engine.evaluate(batch, views)
                return result
            opened = self._engine.train_forward(batch, views, explicit=ticket)
            opened._named_counts = _inputs.weight_counts(self._tables, batch)
            return (result, opened) if ticket else result

    def backward(self, grad: Any, ticket: Ticket | None = None) -> Any:
        """Update the rows of a forward with the fused optimizer.

        Parameters
        ----------
        grad : float32 array (B, sum of D), or a dict like the forward's output
            Gradient of the output.
        ticket : Ticket, optional
            The forward it belongs to; without one, the latest training forward.

        Returns
        -------
        None or numpy.ndarray (N,), float32
            The gradient of the per-sample weights where the forward had them, computed from the
            rows as they are at this call, before the update. A dict of table name -> array where
            they were one.

        Raises
        ------
        RuntimeError
            If the forward was used already, was dropped, or there was none.
        NonFiniteUpdateError
            With ``on_nonfinite="raise"``, after the other rows have been updated; a
            FloatingPointError, whose `weight_grad` is what would have been returned.
        """
        with self._lock:
            used = self._engine.ticket_for_backward(ticket)
            shapes = self._engine.ticket_shapes(used)
            views = _inputs.matrix_views(grad, "grad", shapes, writable=False)
            self._storage.refuse_own_memory(views)
            weight_grad, skipped = self._engine.backward(used, views)
            weight_grad = _inputs.by_table(weight_grad, used._named_counts)
            if skipped and self._on_nonfinite == "raise":
                rows = sum(count for count, _, _ in skipped)
                raise NonFiniteUpdateError(
                    f"the update of {rows} row(s) would not be finite, first row {skipped[0][2]} "
                    f"of table {skipped[0][1]!r}; they keep their values, all others are updated",
                    rows,
                    weight_grad,
                )
            return weight_grad

    def flush(self) -> None:
        """Write every dirty cache row back to its table; the rows stay cached."""
        with self._lock:
            self._engine.flush()

    # ---- rows ------------------------------------------------------------------------------

    def rows(self, name: str, ids: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the current values of rows, cached or not, as float32 (len(ids), D)."""
        with self._lock:
            table, group, position = self._find(name)
            checked = _inputs.row_ids(table, ids)
            out = np.empty((len(checked), table.embedding_dim), np.float32)
            group.read_rows(group.keys(position, checked), view(out, "out"))
            return out

    def set_rows(self, name: str, ids: Any, values: Any) -> None:
        """Set rows: a cached row in FP32, any other rounded into its table.

        Parameters
        ----------
        name : str
            Table.
        ids : int32 or int64 array (n,)
            Without duplicates.
        values : float32 array (n, D)
            Finite and within the precision's range. The optimizer's state does not change.
        """
        with self._lock:
            table, group, position = self._find(name)
            checked = _inputs.row_ids(table, ids)
            if len(np.unique(checked)) != len(checked):
                raise ValueError("ids has duplicates")
            matrix = view(values, "values")
            require(matrix, _inputs.FLOAT, 2, (len(checked), table.embedding_dim))
            _inputs.storable(matrix, len(checked), table.embedding_dim, table.precision, "values")
            self._storage.refuse_own_memory(matrix)
            self._engine.write_rows(group, group.keys(position, checked), matrix)

    def _find(self, name: str) -> tuple[TableConfig, Any, int]:
        for group in self._storage.groups:
            for position, table in enumerate(group.table_ids):
                if self._tables[table].name == name:
                    return self._tables[table], group.kernels, position
        raise KeyError(f"no table {name!r}; there are {[t.name for t in self._tables]}")

    # ---- what it holds ---------------------------------------------------------------------

    def stats(self) -> dict[str, dict[str, int]]:
        """Return exact counts for each table, ``mpembed.STATS`` by name, since the start."""
        with self._lock:
            return {
                config.name: dict(zip(registry.STATS, map(int, row), strict=True))
                for config, row in zip(self._tables, self._storage.stats, strict=True)
            }

    def memory_report(self) -> dict[str, Any]:
        """Count every byte.

        Returns
        -------
        dict
            ``tables``: table name -> bytes of ``codes``, ``row_parameters``, ``optimizer_state``.
            ``caches``: ``dim{D}`` -> bytes of ``cache_rows``, ``tags``, ``policy_state``,
            ``sketch`` (a cache is shared by the tables of a dimension). ``statistics``,
            ``workspace`` (open batches), ``total``. ``fp32_total``: the same tables in FP32 with
            the same optimizer and no cache. ``ratio``: fp32_total / total;
            ``ratio_embeddings``: the same with the optimizer's state left out on both sides.
        """
        with self._lock:
            return memory_report(self._storage, self._engine.workspace)

    def state_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return all state by name: read-only views of the arrays, and a copy of the step."""
        with self._lock:
            arrays = {**self._storage.arrays(), "step": np.array([self.step], np.uint64)}
            return {name: _storage.read_only(array) for name, array in arrays.items()}

    def __repr__(self) -> str:
        parts = self._tables, self._cache, self._optimizer, self._device
        return describe(*parts, memory_report(self._storage, 0)["total"])

    # ---- checkpoints -----------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one file, under a temporary name first; resuming is bit-exact."""
        with self._lock:
            checkpoint.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "EmbeddingBagCollection":
        """Return a collection as it was saved; batches open at the time are not part of it.

        Raises
        ------
        OSError, ValueError
            If the file cannot be read, or is no checkpoint of this version.
        """
        return checkpoint.load(path)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        # Pickle, copy and torch.save ask this; a module that holds a collection asks it in turn.
        raise TypeError(
            "an EmbeddingBagCollection cannot be pickled or copied; use save() and "
            "EmbeddingBagCollection.load()"
        )
