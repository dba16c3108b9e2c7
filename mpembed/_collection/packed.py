"""Lookups in packed rows without a collection: nothing is kept between calls."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from mpembed import registry
from mpembed._arguments import outputs
from mpembed._arguments.arrays import FLOAT, packed_rows, result_view
from mpembed._arguments.batches import index_error, make_batch
from mpembed._bindings import kernels
from mpembed._bindings.device import Stream
from mpembed._bindings.dlpack import view
from mpembed._bindings.view import View, require
from mpembed.config import TableConfig


class PackedTables:
    """Tables that have rows and nothing else, for one call: no optimizer, cache or counters.

    A lookup has the bytes of a collection with these rows and no cache. A device is waited for.

    Parameters
    ----------
    configs : sequence of TableConfig
        All pooled, or a single one that is not.
    rows : sequence of uint8 arrays (E, row_bytes)
        As ``EmbeddingBagCollection.export`` gives them; the same number for each table.
    on : Stream
        Where they lie.
    drop : bool
        Whether an index out of range adds nothing; otherwise it raises IndexError.
    """

    def __init__(
        self, configs: Sequence[TableConfig], rows: Sequence[Any], on: Stream, *, drop: bool
    ) -> None:
        self.configs, self._on = tuple(configs), on
        self._width = outputs.pooled_width(self.configs)
        if self._width is None and len(self.configs) > 1:
            raise ValueError("several tables must all be pooled")
        views = [_rows(config, one, on) for config, one in zip(self.configs, rows, strict=True)]
        self._rows = views
        by_dim: dict[int, list[int]] = {}
        for number, config in enumerate(self.configs):
            by_dim.setdefault(config.embedding_dim, []).append(number)
        steps = kernels.StepCounter(on, 0)
        groups = [
            self._group(steps, number, tables, views)
            for number, tables in enumerate(by_dim.values())
        ]
        self._errors = kernels.DeviceErrors(on, len(groups))
        rules = kernels.UpdateRules(on, len(self.configs), 0)
        names = [config.name for config in self.configs]
        self._step = kernels.Step(groups, names, steps, rules, self._errors, drop)

    def _group(
        self, steps: kernels.StepCounter, number: int, tables: list[int], views: list[View]
    ) -> kernels.Group:
        """Return the tables of one dimension as kernels see them."""
        columns = list(accumulate((c.embedding_dim for c in self.configs), initial=0))
        dim = self.configs[tables[0]].embedding_dim
        group = kernels.Group(steps, number, len(tables), dim, 0, 0)
        for i in tables:
            config = self.configs[i]
            group.add_table(
                config.name,
                config.num_embeddings,
                views[i].address,
                views[i].shape[1],
                precision=registry.FORMATS[config.precision],
                pooling=registry.POOLINGS[config.pooling],
                feature=i,
                column=columns[i],
            )
            group.keep_alive(views[i])
        group.upload_descriptors(self._on)
        return group

    def lookup(self, indices: Any, offsets: Any, weights: Any) -> Any:
        """Return the outputs of a table-major batch, (B, sum of D), or (N, D) of unpooled rows."""
        _, opened, shape = self._open(indices, offsets, weights, self._rows)
        result, target = result_view(None, shape, np.float32, FLOAT, self._on)
        opened.evaluate(target, self._on)
        self._end(opened)
        return result

    def weight_grad(self, grad: Any, indices: Any, offsets: Any) -> Any:
        """Return the gradient (N,) of per-sample weights from that of the outputs."""
        gradient = view(grad, "grad", self._on)
        batch, opened, shape = self._open(indices, offsets, None, [*self._rows, gradient])
        require(gradient, FLOAT, 2, shape)
        result, target = result_view(None, (batch.num_indices,), np.float32, FLOAT, self._on)
        opened.weight_grad(gradient, target, self._on)
        self._end(opened)
        return result

    def _open(
        self, indices: Any, offsets: Any, weights: Any, others: Sequence[View]
    ) -> tuple[kernels.Batch, kernels.OpenedBatch, tuple[int, int]]:
        """Return a checked batch, with the shape of its outputs."""
        batch = make_batch(self.configs, indices, offsets, weights, self._on, others)
        opened = self._step.open(batch, self._on)
        if isinstance(opened, tuple):
            raise self._index_error(opened)
        if self._width is None:
            return batch, opened, (batch.num_indices, self.configs[0].embedding_dim)
        return batch, opened, (batch.batch_size, self._width)

    def _end(self, opened: kernels.OpenedBatch) -> None:
        """Close a batch; raise what a device's kernels found wrong with it."""
        opened.close(self._on)
        if self._on.device.raises_at_once:
            return
        found, _ = self._errors.pop(self._on)
        if found is not None:
            raise found if isinstance(found, Exception) else self._index_error(found)

    def _index_error(self, found: tuple[int, int, int, int]) -> IndexError:
        config = self.configs[found[0]]
        return index_error(config.name, config.num_embeddings, found, "indices")


def _rows(config: TableConfig, rows: Any, on: Stream) -> View:
    """Return the checked rows of a table."""
    checked = packed_rows(
        view(rows, f"rows of table {config.name!r}", on), config.precision, config.embedding_dim
    )
    if checked.shape[0] != config.num_embeddings:
        raise ValueError(
            f"{checked.name}: expected {config.num_embeddings} rows, got {checked.shape[0]}"
        )
    return checked
