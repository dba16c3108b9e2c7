"""State of sharded tables for ``torch.distributed.checkpoint``; ``docs/distributed_state.md``.

Each rank describes the rows that its collection holds. The checkpoint can then be loaded by any
number of ranks, with the rows split in any other way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from mpembed.collection import EmbeddingBagCollection
from mpembed.load_report import LoadReport
from mpembed.torch import _sharded_entries
from mpembed.torch._sharded_names import of_columns
from mpembed.torch._sharded_planner import LoadPlanner

__all__ = ["LoadPlanner", "load_state_dict", "of_columns", "state_dict"]


def state_dict(
    collection: EmbeddingBagCollection,
    names: Mapping[str, str] | None = None,
    *,
    group: ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """Return all that training changes of a collection, except the learning rates.

    No rank waits for another one.

    Parameters
    ----------
    collection : EmbeddingBagCollection
        Its tables are whole tables, or shards of some (``TableConfig(first_row=, total_rows=)``).
    names : mapping of table name -> str, optional
        How the checkpoint calls the whole table of each: the same on all ranks that have rows of
        it. By default its own name. Columns of a table are ``of_columns(name, first, end)``.
    group : ProcessGroup, optional
        The ranks that have the other rows of tables that are shards.

    Returns
    -------
    dict of str -> Tensor
        ``docs/distributed_state.md`` has the entries. On the CPU, rows are the tables' own memory:
        train on when they have been written, or staged by ``async_save``.
    """
    mesh = None if group is None else DeviceMesh.from_group(group, "cpu")
    return _sharded_entries.entries(collection, _all_names(collection, names), mesh)


def load_state_dict(
    collection: EmbeddingBagCollection,
    state: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
    *,
    strict: bool = True,
) -> LoadReport:
    """Continue from a state; open batches are dropped.

    Parameters
    ----------
    collection : EmbeddingBagCollection
        Of the same precisions and optimizers; its cache may have another size and policy.
    state : mapping of str -> Tensor
        What ``torch.distributed.checkpoint.load`` with a `LoadPlanner` has made of `state_dict`,
        or a `state_dict` of the same rows. Other entries are not looked at.
    names : mapping of table name -> str, optional
        As for `state_dict`.
    strict : bool
        False leaves tables that the state lacks as they are.

    Returns
    -------
    LoadReport
        What was kept, and what was not; ``LoadReport.converted`` names cached rows without room.

    Raises
    ------
    ValueError
        If the state is damaged or not of such tables. Then the collection is as it was, except for
        what was written to its own memory before.
    """
    own = _all_names(collection, names)
    return _sharded_entries.load(collection, own, state, partial=not strict)


def _all_names(
    collection: EmbeddingBagCollection, names: Mapping[str, str] | None
) -> dict[str, str]:
    given = {} if names is None else names
    found = {table.name: given.get(table.name, table.name) for table in collection.tables}
    unknown = set(given) - set(found)
    if unknown:
        raise ValueError(f"names: no table {min(unknown)!r}; there are {sorted(found)}")
    if len(set(found.values())) < len(found):
        raise ValueError(
            f"names: {sorted(found.values())} has a table twice: a rank describes one span of its "
            "rows"
        )
    return found
