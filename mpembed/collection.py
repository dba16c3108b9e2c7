"""The mixed-precision cached embedding: several tables, one fused training step."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NoReturn, SupportsIndex

import numpy as np

from mpembed import checkpoint, registry
from mpembed._arguments import arrays, batches, captures, outputs
from mpembed._arguments.gradients import pairs_of, refuse_shared_results
from mpembed._arguments.scalars import boolean
from mpembed._bindings import array_ops
from mpembed._bindings.device import Stream
from mpembed._bindings.dlpack import view
from mpembed._bindings.view import require
from mpembed._collection.by_table import ByTable
from mpembed._collection.description import describe
from mpembed._collection.export import export_rows
from mpembed._collection.memory_report import memory_report
from mpembed._collection.open_batch import OpenBatch
from mpembed._collection.settings import Settings
from mpembed._collection.state import CollectionState
from mpembed.config import CacheConfig, TableConfig
from mpembed.devices import CudaDevice, TorchDevice
from mpembed.optim import Optimizer
from mpembed.tickets import Ticket, batch_of


class EmbeddingBagCollection:
    """Embedding tables in low precision with an FP32 cache, trained by fused optimizers.

    Parameters
    ----------
    tables : sequence of TableConfig
        Names are unique; dimensions, precisions and poolings may differ.
    cache : CacheConfig, optional
        One cache for each group of tables with the same dimension and kind of optimizer. None: no
        cache, every row is trained in its table.
    optimizer : Optimizer, optional
        Such as `RowwiseAdagrad`; its `lr` may change at every step. None where every table has one
        of its own or is frozen.
    device : str or object with ``device_id``
        ``"cpu"``, ``"cuda"``, ``"cuda:N"``, a ``cuda.core.Device`` or a ``torch.device``. Every
        array passed to a call must be there.
    seed : int
        0 <= seed < 2^64. All random bits, of initial rows and of rounding, come from it.
    rounding : str
        ``"stochastic"`` or ``"nearest"``.
    bounds : str
        What happens to an index that is out of range. ``"raise"``: IndexError, and nothing of the
        batch is applied. ``"drop"``: it contributes zero, is not trained, and is counted.
    on_nonfinite : str
        A row whose update would not be finite, or that its format could not store, keeps its
        value and is counted. ``"raise"`` then raises NonFiniteUpdateError after all other rows
        have been updated; ``"skip"`` does not.

    Notes
    -----
    The same calls give the same bytes for every number of threads and every SIMD level;
    ``docs/numerics.md`` defines every bit. Calls from several threads run one after the other.

    On a device:

    - A call returns when its work is queued on `stream`. None is the legacy default stream. An int
      is a stream's handle; that stream must outlive the collection's last call. Any other object
      has ``__cuda_stream__`` and is kept as long as needed.
    - Calls on different streams run in the order in which they were made. Arguments may be changed
      or freed in the order of the call's stream.
    - Wrong offsets, indices or updates are found later. Such a batch changes nothing but the step,
      the count of updates and the cache's clock. `check`, or the next call that waits for the
      device (`stats`, `rows`, `set_rows`, `flush`, `export`, `save`), raises the error.
    - Calls on a stream that is being captured become part of its CUDA graph; ``docs/guide.md``
      lists the calls that can be captured.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        optimizer: Optimizer | None = None,
        cache: CacheConfig | None = None,
        device: str | CudaDevice | TorchDevice = "cpu",
        seed: int = 0,
        rounding: str = "stochastic",
        bounds: str = "raise",
        on_nonfinite: str = "raise",
    ) -> None:
        state = CollectionState(
            Settings.checked(tables, cache, optimizer, device, seed, rounding, bounds, on_nonfinite)
        )
        state.draw_initial_rows()
        self._start(state)

    def _start(self, state: CollectionState) -> None:
        self._state, self._engine, self._storage = state, state.engine, state.storage
        self._calls = state.engine.calls
        self._tables = state.settings.tables

    # ---- properties ------------------------------------------------------------------------

    @property
    def tables(self) -> tuple[TableConfig, ...]:
        """The tables, in the order of the output's columns."""
        return self._tables

    @property
    def optimizer(self) -> Any:
        """The collection's `Optimizer`, whose `lr` may be set at any time.

        None where every table has its own or is frozen: see `optimizers`.
        """
        return self._state.settings.optimizer

    @property
    def optimizers(self) -> Mapping[str, Any]:
        """The `Optimizer` of each table by its name, None if it is frozen; each `lr` may be set.

        Tables without an optimizer or rate of their own share the collection's: setting its `lr`
        sets that of all of them.
        """
        names = [table.name for table in self._tables]
        return MappingProxyType(ByTable(zip(names, self._state.settings.optimizers, strict=True)))

    @property
    def device(self) -> str:
        """The device's name: ``"cpu"``, ``"cuda:0"``."""
        return str(self._state.settings.device.name)

    @property
    def step(self) -> int:
        """The write step: how many calls so far could change state. Waits for a device."""
        with self._calls.on_last_stream(captures.waits("step")) as on:
            return int(self._engine.steps.read(on))

    # ---- training --------------------------------------------------------------------------

    def prefetch(self, indices: Any, offsets: Any = None, *, stream: Any = None) -> Ticket:
        """Admit a coming batch's rows to the cache and pin them.

        Parameters
        ----------
        indices, offsets, stream
            As in `forward`.

        Returns
        -------
        Ticket
            The next training forward with the same indices and offsets takes it over. A device does
            not compare their values: there it is the forward with the same arrays, which must not
            change in the meantime. The collection keeps the ticket until then, or until
            ``ticket.drop()`` or `drop_prefetched`.
        """
        with self._calls.on_stream(stream, partial(self._engine.refuse_admission, indices)) as on:
            return self._engine.prefetch(self._batch(indices, offsets, None, on), on)

    def _batch(self, indices: Any, offsets: Any, weights: Any, on: Stream) -> Any:
        return batches.make_batch(self._tables, indices, offsets, weights, on)

    def drop_prefetched(self) -> int:
        """Drop every prefetch that no forward has taken over; return how many there were."""
        with self._calls.on_last_stream() as on:
            return self._engine.drop_prefetched(on)

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
            Row numbers, table-major, from any DLPack exporter; never modified. Arrays are not
            copied; those of a dict are joined, which waits for a device.
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
        stream : None, int or object with ``__cuda_stream__``, optional
            Where a device does the work; must be None on the CPU.
        training : bool
            False changes no state at all.
        ticket : bool
            True returns ``(output, Ticket)``, to have several forwards open at once.

        Returns
        -------
        numpy.ndarray (B, sum of D), float32
            `out` if it was given. If some table has pooling "none": a dict of table name ->
            (B, D), or (number of the table's indices, D) for the unpooled ones (a device is waited
            for, unless it is the only table). On a device: `Tensor`.

        Raises
        ------
        TypeError, ValueError, IndexError, BufferError
            Before anything changes.
        """
        training, ticket = boolean("training", training), boolean("ticket", ticket)
        if ticket and not training:
            raise ValueError("ticket=True needs training=True")
        refuse = partial(self._engine.refuse_forward, indices, out, training=training)
        with self._calls.on_stream(stream, refuse) as on:
            batch = self._batch(indices, offsets, per_sample_weights, on)
            opened = self._engine.open(batch, on)
            shapes = self._engine.batch_shapes(batch, opened, on)
            result, views = outputs.output_views(out, shapes, batch, on)
            if not training:
                self._engine.evaluate(opened, views, on)
                return result
            made = self._engine.train_forward(batch, opened, views, on, explicit=ticket)
            kept = batch_of(made)
            kept.shapes = shapes
            kept.named_counts = batches.weight_counts(self._tables, batch)
            return (result, made) if ticket else result

    def backward(
        self, grad: Any, ticket: Ticket | None = None, *, stream: Any = None, out: Any = None
    ) -> Any:
        """Update the rows of a forward with the fused optimizers, or of several at once.

        Parameters
        ----------
        grad : float32 array (B, sum of D), or a dict like the forward's output
            Gradient of the output. Or a list of (gradient, ticket): one update from several
            forwards, in which each row's gradient is summed over all of them in the list's order.
        ticket : Ticket, optional
            The forward it belongs to; without one, the latest training forward.
        stream
            As in `forward`.
        out : float32 array (N,), optional
            Where to write the gradient of the per-sample weights, if the forward had them as one
            array. With a list of pairs, a list with an entry for each.

        Returns
        -------
        None or numpy.ndarray or Tensor (N,), float32
            The gradient of the per-sample weights where the forward had them, computed from the
            rows as they are at this call, before the update. A dict of table name -> array where
            they were one. With a list of pairs, a list with an entry for each.

        Raises
        ------
        RuntimeError
            If the forward was used already, was dropped, or there was none.
        NonFiniteUpdateError
            With ``on_nonfinite="raise"``, after the other rows have been updated; a
            FloatingPointError, whose `weight_grad` is what would have been returned. On a device
            it comes later, without a `weight_grad`: see `check`.
        """
        if isinstance(grad, list | tuple):
            pairs, outs = pairs_of(grad, ticket, out)
            return self._backward(pairs, outs, stream, several=True)
        return self._backward([(grad, ticket)], [out], stream, several=False)

    def _backward(
        self,
        pairs: list[tuple[Any, Ticket | None]],
        outs: list[Any],
        stream: Any,
        *,
        several: bool,
    ) -> Any:
        """Update the rows of (gradient, ticket) pairs; what is returned is for one or several."""
        tickets = [ticket for _, ticket in pairs]
        refuse = partial(self._engine.refuse_backward, tickets, outs)
        with self._calls.on_stream(stream, refuse) as on:
            used = self._engine.tickets_for_backward(tickets, on)
            views, results, written = [], [], []
            for i, ticket in enumerate(used):
                opened, name = batch_of(ticket), f"grad[{i}]" if several else "grad"
                view = outputs.matrix_views(pairs[i][0], name, opened.shapes, on, writable=False)
                self._storage.refuse_own_memory(view)
                name = f"out[{i}]" if several else "out"
                result, target = self._weight_grad(opened, outs[i], name, view, on)
                views.append(view)
                results.append(batches.by_table(result, opened.named_counts))
                written.append(target)
            if len(used) > 1:
                refuse_shared_results(written, views)
            self._engine.backward(used, views, written, on)
            returned = results if several else results[0]
            if on.device.raises_at_once:
                self._engine.raise_found(on, returned)
            return returned

    def _weight_grad(
        self, used: OpenBatch, out: Any, name: str, grad: Any, on: Stream
    ) -> tuple[Any, Any]:
        """Return where the gradient of the per-sample weights goes, and its view."""
        if not used.weighted:
            if out is not None:
                raise ValueError(
                    f"{name} must be None: it is for the gradient of per_sample_weights, and the "
                    "forward had none"
                )
            return None, None
        if out is not None and used.named_counts is not None:
            raise ValueError(
                f"{name} must be None: the forward's per_sample_weights were a dict, and so is "
                "their gradient"
            )
        read = list(grad.values()) if isinstance(grad, dict) else [grad]
        shape = (used.num_indices,)
        result, written = arrays.result_view(
            out, shape, np.float32, arrays.FLOAT, on, *read, name=name
        )
        if out is not None:
            self._storage.refuse_own_memory(written)
        return result, written

    def check(self) -> None:
        """Wait for the device and raise what it found wrong since the last check.

        The CPU finds it in the call itself.

        Raises
        ------
        ValueError, IndexError
            Offsets or indices of the first batch that was refused.
        NonFiniteUpdateError
            With ``on_nonfinite="raise"``.
        """
        with self._calls.on_last_stream(captures.waits("check")) as on:
            self._engine.raise_found(on)

    def flush(self, *, stream: Any = None) -> None:
        """Write every dirty cache row back to its table; the rows stay cached."""
        with self._calls.on_stream(stream, captures.waits("flush")) as on:
            self._engine.raise_found(on)
            self._engine.flush(on)

    # ---- rows ------------------------------------------------------------------------------

    def rows(self, name: str, ids: Any, *, stream: Any = None) -> Any:
        """Return the current values of rows, cached or not, as float32 (len(ids), D)."""
        with self._calls.on_stream(stream, captures.waits("rows")) as on:
            table, group, position = self._find(name)
            self._engine.raise_found(on)
            checked = arrays.row_ids(table, ids, on)
            out = array_ops.result((len(checked), table.embedding_dim), np.float32, on)
            group.read_rows(group.keys(position, checked, on), view(out, "out", on), on)
            return out

    def set_rows(self, name: str, ids: Any, values: Any, *, stream: Any = None) -> None:
        """Set rows: a cached row in FP32; any other row is rounded into its table.

        Parameters
        ----------
        name : str
            The table.
        ids : int32 or int64 array (n,)
            Without duplicates.
        values : float32 array (n, D)
            Finite and within the precision's range. The optimizer's state does not change.
        """
        with self._calls.on_stream(stream, captures.waits("set_rows")) as on:
            table, group, position = self._find(name)
            self._engine.raise_found(on)
            checked = arrays.row_ids(table, ids, on)
            if len(np.unique(checked)) != len(checked):
                raise ValueError("ids has duplicates")
            matrix = view(values, "values", on)
            shape = len(checked), table.embedding_dim
            require(matrix, arrays.FLOAT, 2, shape)
            arrays.storable(matrix, *shape, table.precision, "values", on)
            self._storage.refuse_own_memory(matrix)
            self._engine.write_rows(group, group.keys(position, checked, on), matrix, on)

    def export(self, name: str, layout: str = "packed", *, stream: Any = None) -> Any:
        """Return a copy of a table's rows for inference; nothing changes.

        Rows that the cache holds are encoded as a `flush` would encode them now.

        Parameters
        ----------
        name : str
            The table.
        layout : str
            ``"packed"``: as they are stored (``docs/numerics.md``). ``"torch"``: as
            ``torch.ops.quantized.embedding_bag_byte_rowwise_offsets`` and its kind for 4 and 2 bits
            read them; for precision ``"int8"``, ``"int4"`` with an even dimension and ``"int2"``
            with a multiple of 4. ``"fbgemm"``: as FBGEMM's inference operators read them, scale
            and bias first; for ``"int8_fp16"``, ``"int4"``, ``"int2"``, ``"fp16"`` and ``"fp32"``.
        stream
            As in `forward`.

        Returns
        -------
        numpy.ndarray or Tensor (E, bytes), uint8

        Raises
        ------
        ValueError
            If the layout does not know the table's precision or, with it, dimension.
        """
        with self._calls.on_stream(stream, captures.waits("export")) as on:
            self._find(name)
            self._engine.raise_found(on)
            table = next(i for i, config in enumerate(self._tables) if config.name == name)
            return export_rows(self._state, table, layout, on)

    def _find(self, name: str) -> tuple[TableConfig, Any, int]:
        for group in self._storage.groups:
            for position, table in enumerate(group.plan.tables):
                if self._tables[table].name == name:
                    return self._tables[table], group.kernels, position
        raise KeyError(f"no table {name!r}; there are {[t.name for t in self._tables]}")

    # ---- what it holds ---------------------------------------------------------------------

    def stats(self) -> dict[str, dict[str, int]]:
        """Return exact counts for each table, ``mpembed.STATS`` by name, since the start."""
        with self._calls.on_last_stream(captures.waits("stats")) as on:
            self._engine.raise_found(on)
            counts = array_ops.host(array_ops.read_only(self._storage.stats, on))
            return {
                config.name: dict(zip(registry.STATS, map(int, row), strict=True))
                for config, row in zip(self._tables, counts, strict=True)
            }

    def memory_report(self) -> dict[str, Any]:
        """Count every byte.

        Returns
        -------
        dict
            ``tables``: table name -> bytes of ``codes``, ``row_parameters``, ``optimizer_state``
            and ``padding`` between rows and states. ``caches``: ``"{D}.{optimizer}"`` (as in the
            names of `state_arrays`) -> bytes of ``cache_rows``, their ``optimizer_state``,
            ``tags``, ``policy_state``, ``sketch``; tables with the same dimension and kind of
            optimizer share a cache. ``statistics``, ``descriptors`` (on a device: of the tables,
            optimizers, counters, errors found), ``workspace`` (open batches), ``total``, and
            ``pinned_host``, the part of it that tables with ``placement="host"`` take.
            ``fp32_total``: the same tables in FP32 with the same optimizers and no cache.
            ``ratio``: fp32_total / total. ``ratio_embeddings``: the same without the optimizers'
            states on either side.
        """
        with self._calls.on_last_stream():
            return memory_report(self._storage, self._engine.workspace)

    def state_arrays(self) -> dict[str, Any]:
        """Return all state by name, read-only: views, or copies of what lies in records.

        Returns
        -------
        dict
            ``table.{name}.rows`` (E, row_bytes), ``table.{name}.{state}`` (E,) or (E, D),
            ``cache.{D}.{optimizer}.tags`` and the cache's other arrays, ``stats``, ``step`` and
            ``updates``. On a device they are tensors, in the order of the stream of the latest
            call.
        """
        with self._calls.on_last_stream(captures.waits("state_arrays")) as on:
            named = self._state.views(on)
            for name, count in self._state.counters(on).named().items():
                counter = array_ops.upload(np.array([count], np.uint64), on)
                named[name] = array_ops.read_only(counter, on)
            return named

    def __repr__(self) -> str:
        settings = self._state.settings
        return describe(settings, memory_report(self._storage, 0)["total"])

    # ---- checkpoints -----------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one file; a collection loaded from it continues bit for bit.

        The file is written under a temporary name first, so that an existing one stays whole.
        """
        with self._calls.on_last_stream(captures.waits("save")) as on:
            self._engine.raise_found(on)
            checkpoint.save(self._state, path, on)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: str | CudaDevice | TorchDevice | None = None
    ) -> "EmbeddingBagCollection":
        """Return a collection as it was saved; batches that were open then are not part of it.

        Parameters
        ----------
        path : path-like
            A file that `save` wrote, on any device.
        device : str or object with ``device_id``, optional
            Where to put the collection; by default the device it was saved on. On the CPU, tables
            with ``placement="host"`` become ordinary ones.

        Raises
        ------
        OSError, ValueError
            If the file cannot be read, or is not a checkpoint of this version.
        """
        return from_state(checkpoint.load(path, device))

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        # Pickle, copy and torch.save ask this; a module that holds a collection asks it in turn.
        raise TypeError(
            "an EmbeddingBagCollection cannot be pickled or copied; use save() and "
            "EmbeddingBagCollection.load()"
        )


def collection_state(collection: EmbeddingBagCollection) -> CollectionState:
    """Return what checkpoints, copies and adaptors of frameworks read and restore.

    Its arrays are the collection's own, and writable: kernels trust what is put there.
    """
    return collection._state


def from_state(state: CollectionState) -> EmbeddingBagCollection:
    """Return the collection of a state, which it uses and does not copy."""
    made = EmbeddingBagCollection.__new__(EmbeddingBagCollection)
    made._start(state)
    return made
