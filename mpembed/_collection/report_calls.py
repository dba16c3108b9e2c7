"""Reports: the calls of a collection that say what it holds and has done."""

from typing import Any

import numpy as np

from mpembed import registry
from mpembed._arguments import captures
from mpembed._bindings import array_ops
from mpembed._collection.base import CollectionBase
from mpembed._collection.memory_report import memory_report
from mpembed.rounding import RoundingReport


class ReportCalls(CollectionBase):
    """What reports on a collection."""

    __slots__ = ()

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

    def stats(self) -> dict[str, dict[str, int]]:
        """Return exact counts for each table, ``mpembed.STATS`` by name, since the start."""
        with self._calls.on_last_stream(captures.waits("stats")) as on:
            self._engine.raise_found(on)
            counts = array_ops.host(array_ops.read_only(self._storage.stats, on))
            return {
                config.name: dict(zip(registry.STATS, map(int, row), strict=True))
                for config, row in zip(self._tables, counts, strict=True)
            }

    def rounding_report(self) -> RoundingReport:
        """Compare the noise of rounding with the updates since the last call.

        One of 1024 writes of rows is measured. The first call covers everything since the
        collection was made; a loaded one has the measurements of the saved one. The call changes
        no state.

        Returns
        -------
        RoundingReport
            Table name -> `mpembed.rounding.TableRounding`: ``ratio``, ``verdict``, ``advice``;
            ``bad`` has the tables that need a higher precision or a larger cache, and ``str()`` is
            a table to print.
        """
        with self._calls.on_last_stream(captures.waits("rounding_report")) as on:
            self._engine.raise_found(on)
            return self._state.rounding_report(on)

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
            optimizers, counters, errors found), ``change_tracking`` (a bit a row and slot where
            writes are tracked), ``background_save`` (what a save that goes on keeps),
            ``workspace`` (open batches), ``total``, and ``pinned_host``, the part of it that tables
            with ``placement="host"`` take.
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
            ``cache.{D}.{optimizer}.tags`` and the cache's other arrays, ``stats``, ``noise``,
            ``step`` and ``updates``. On a device they are tensors, in the order of the stream of
            the latest call.
        """
        with self._calls.on_last_stream(captures.waits("state_arrays"), holds=True) as on:
            named = self._state.views(on)
            for name, count in self._state.counters(on).named().items():
                counter = array_ops.upload(np.array([count], np.uint64), on)
                named[name] = array_ops.read_only(counter, on)
            return named
