"""Make a model ready to be served: tables become buffers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mpembed._collection.export import TORCH_CODES_A_BYTE
from mpembed.collection import EmbeddingBagCollection as Collection
from mpembed.collection import collection_state
from mpembed.torch._bag import Embedding, EmbeddingBag
from mpembed.torch._collection import EmbeddingBagCollection
from mpembed.torch._exchange import current_stream, tensor_of
from mpembed.torch._frozen import (
    FrozenEmbedding,
    FrozenEmbeddingBag,
    FrozenSettings,
    FrozenTables,
)
from mpembed.torch._frozen_features import FrozenEmbeddingBagCollection, FrozenEmbeddingCollection
from mpembed.torch._frozen_torch import PLAIN
from mpembed.torch._module import TableModule
from mpembed.torch._module_tree import table_modules
from mpembed.torch._sequence import EmbeddingCollection

_OPERATORS = ("mpembed", "torch")
# Where PyTorch keeps the hooks of a forward: it has no public way to ask for them.
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)


def freeze(model: nn.Module, *, operators: str = "mpembed") -> nn.Module:
    """Return a copy of a model for serving, in evaluation mode, whose tables are buffers.

    The copy works with ``torch.export``, AOTInductor, ``torch.compile``, safetensors and
    ``torch.save``. Rows are packed as they are stored (``EmbeddingBagCollection.export``), those
    that a cache holds as a flush would write them. Neither the model nor its tables change.

    Parameters
    ----------
    model : torch.nn.Module
        A model with modules of ``mpembed.torch``, or one of them. Everything else in it is copied
        by ``copy.deepcopy``.
    operators : str
        What looks rows up. ``"mpembed"``: the operator ``mpembed::frozen_lookup``. Outputs are bit
        for bit those of the model's ``eval()`` (for cached rows: after they were rounded to the
        format). A process that loads an exported program imports ``mpembed.torch`` before.
        ``"torch"``: PyTorch's own operators, so that a program needs no mpembed. They read
        ``fp32``, ``fp16``, ``bf16``, ``int8``, ``int4`` of even dimensions and ``int2`` of
        multiples of 4; those of ``int8``, ``int4`` and ``int2`` run on the CPU alone, and
        per-sample weights get no gradient. Rows are the same, but sums are rounded in another
        order, so outputs may differ in the last bits.

    Returns
    -------
    torch.nn.Module
        The copy. It has no parameters of tables, and nothing in it trains them.

    Raises
    ------
    TypeError
        If `model` is not a module.
    ValueError
        Naming the module: for a format that PyTorch's operators do not read, a subclass, and if
        the model has no table.
    """
    found = table_modules(model)
    if operators not in _OPERATORS:
        allowed = " or ".join(map(repr, _OPERATORS))
        raise ValueError(f"operators must be {allowed}, got {operators!r}")
    if not found:
        raise ValueError("the model has no table of mpembed.torch: nothing is to be frozen")
    for name, module in found.items():
        _check(name, module, operators)
    rows: dict[int, list[Tensor]] = {}  # of a collection, which several modules may share
    # copy.deepcopy takes what is in its memo as the copy: of the tables, the frozen ones.
    memo: dict[int, Any] = {}
    for module in found.values():
        if id(module.tables) not in rows:
            rows[id(module.tables)] = _rows(module.tables)
        memo[id(module)] = _frozen(module, rows[id(module.tables)], operators)
    for module in found.values():
        _copy_hooks(module, memo[id(module)], memo)
    made: nn.Module = copy.deepcopy(model, memo)
    return made.eval()


def _check(name: str, module: TableModule, operators: str) -> None:
    """Raise ValueError for a module that cannot be frozen."""
    if type(module) not in _FROZEN:
        raise ValueError(
            f"{name}: freeze does not know {type(module).__name__}, which may do something else "
            f"than {' or '.join(kind.__name__ for kind in _FROZEN)}: make it a module that holds "
            "one of these"
        )
    if operators == "mpembed":
        return
    for table in module.tables.tables:
        multiple = TORCH_CODES_A_BYTE.get(table.precision, 1 if table.precision in PLAIN else 0)
        if multiple == 0 or table.embedding_dim % multiple:
            raise ValueError(
                f"{name}: PyTorch's operators do not read {table.precision} rows of "
                f"{table.embedding_dim} columns: use operators='mpembed', which reads all rows"
            )


def _rows(tables: Collection) -> list[Tensor]:
    """Return a copy of the packed rows of each table."""
    stream = current_stream(torch.device(tables.device))
    return [tensor_of(tables.export(table.name, stream=stream)) for table in tables.tables]


def _frozen(module: TableModule, rows: list[Tensor], operators: str) -> FrozenTables:
    drop = collection_state(module.tables).settings.bounds == "drop"
    settings = FrozenSettings(operators, drop, module.output_dtype)
    return _FROZEN[type(module)](module, rows, settings)


def _embedding(module: Any, rows: list[Tensor], settings: FrozenSettings) -> FrozenTables:
    padding_idx = module.padding_idx
    (table,), (packed,) = module.tables.tables, rows
    return FrozenEmbedding(table, packed, settings, padding_idx=padding_idx)


def _bag(module: Any, rows: list[Tensor], settings: FrozenSettings) -> FrozenTables:
    (table,), (packed,) = module.tables.tables, rows
    return FrozenEmbeddingBag(
        table,
        packed,
        settings,
        padding_idx=module.padding_idx,
        include_last_offset=module.include_last_offset,
    )


def _collection(module: Any, rows: list[Tensor], settings: FrozenSettings) -> FrozenTables:
    return FrozenEmbeddingBagCollection(
        module.tables.tables,
        rows,
        settings,
        features=[config.feature_names for config in module.embedding_bag_configs()],
        is_weighted=module.is_weighted(),
    )


def _sequences(module: Any, rows: list[Tensor], settings: FrozenSettings) -> FrozenTables:
    return FrozenEmbeddingCollection(
        module.tables.tables,
        rows,
        settings,
        features=[config.feature_names for config in module.embedding_configs()],
    )


_FROZEN: dict[type, Callable[[Any, list[Tensor], FrozenSettings], FrozenTables]] = {
    Embedding: _embedding,
    EmbeddingBag: _bag,
    EmbeddingBagCollection: _collection,
    EmbeddingCollection: _sequences,
}


def _copy_hooks(module: nn.Module, made: nn.Module, memo: dict[int, Any]) -> None:
    """Give a frozen module the forward hooks of the module that it stands for."""
    for kind in _HOOKS:
        getattr(made, kind).update(copy.deepcopy(getattr(module, kind), memo))
