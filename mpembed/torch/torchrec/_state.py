"""The tables' part of a sharded module's ``state_dict``, as ``mpembed.torch.sharded`` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.distributed.device_mesh import DeviceMesh

from mpembed.torch import _sharded_entries
from mpembed.torch._sharded_names import of_columns, whole_table
from mpembed.torch.torchrec._shards import Shard


class ShardedState:
    """A sharded module whose tables are in its ``state_dict``.

    They are there as they are stored: packed rows, states, and the cache's rows in FP32. No table
    has a ``weight``.
    """

    #: Where TorchRec's unsharded module has its tables.
    _tables_prefix: str
    table_names: tuple[str, ...]  # of all ranks
    _env: Any

    def kernels(self) -> list[Any]:
        """Return the kernels on this rank."""
        raise NotImplementedError

    def _named_shards(self, prefix: str) -> Iterator[tuple[Any, dict[str, str]]]:
        """Yield each kernel's collection, and how a state calls its tables."""
        for kernel in self.kernels():
            yield (
                kernel.collection,
                {one.key: prefix + self._tables_prefix + _name(one) for one in kernel.shards},
            )

    def _mesh(self) -> DeviceMesh:
        return DeviceMesh.from_group(self._env.process_group, "cpu")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        mesh = self._mesh()
        for collection, names in self._named_shards(prefix):
            destination.update(_sharded_entries.entries(collection, names, mesh))

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # Modules below would not know them.
        given = _sharded_entries.pop_tables(state_dict, prefix + self._tables_prefix)
        super()._load_from_state_dict(  # type: ignore[misc]
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        found = _sharded_entries.tables_in(given)
        known = {prefix + self._tables_prefix + name for name in self.table_names}
        unexpected_keys.extend(key for key in found if whole_table(key) not in known)
        for collection, names in self._named_shards(prefix):
            missing = [name for name in names.values() if name not in found]
            missing_keys.extend(missing)
            if len(missing) == len(names):
                continue
            try:
                _sharded_entries.load(collection, names, given, partial=True)
            except ValueError as error:
                error_msgs.append(str(error))


def _name(shard: Shard) -> str:
    """Return how a state calls a shard's table, or those of its columns that the shard has."""
    end = shard.first_column + shard.embedding_dim
    if shard.embedding_dim == shard.total_columns:
        return shard.table
    return of_columns(shard.table, shard.first_column, end)
