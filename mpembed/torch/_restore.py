"""Put PyTorch's embeddings back where tables are: the way back from `convert`."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import nn

from mpembed.torch._bag import Embedding, EmbeddingBag
from mpembed.torch._module import TableModule
from mpembed.torch._module_tree import put_modules, table_modules
from mpembed.torch._whole_tables import read_table

Restored: TypeAlias = nn.Embedding | nn.EmbeddingBag
#: What a module has beside its table; of those that a module does not have the default is taken.
_COMMON = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")


def restore(model: nn.Module) -> nn.Module:
    """Replace every `Embedding` and `EmbeddingBag` by PyTorch's, in place.

    The weights are the rows as they are now, cached or not, of each module's `output_dtype`. Then
    ``model.state_dict()`` loads into the model as it was before `convert`.

    Parameters
    ----------
    model : torch.nn.Module
        The model. Mode, padding, training or evaluation and whether tables train are kept. A module
        that is used in several places stays one; modules with the same tables share a weight.

    Returns
    -------
    torch.nn.Module
        The model, or the new module if the model is an embedding itself.

    Raises
    ------
    ValueError
        Before anything changes, naming the module: for an `EmbeddingBagCollection` or a subclass,
        and for hooks, which would be lost. Also if the model has no table.

    Notes
    -----
    Peak memory holds the tables and all weights. Optimizer states are not carried over: make the
    optimizer of the weights afterwards.
    """
    found = table_modules(model)
    if not found:
        raise ValueError("the model has no module of mpembed.torch: there is nothing to restore")
    for name, module in found.items():
        _check_restorable(name, module)
    weights: dict[tuple[int, torch.dtype], nn.Parameter] = {}
    made = {id(module): _restored(module, weights) for module in found.values()}
    return put_modules(model, made)


def weight_key(module: TableModule) -> tuple[int, torch.dtype]:
    """Return what restored modules with the same weight have in common."""
    return id(module.tables), module.output_dtype


def _check_restorable(name: str, module: TableModule) -> None:
    """Raise ValueError for a module that PyTorch has none for."""
    if type(module) not in (Embedding, EmbeddingBag):
        raise ValueError(
            f"{name}: PyTorch has no module for {type(module).__name__}: read its rows with "
            "tables.rows(name, ids) and replace it by hand"
        )
    if any(value for key, value in vars(module).items() if key.endswith("_hooks")):
        raise ValueError(
            f"{name}: its hooks would be lost: remove them, and register them afterwards"
        )


def _restored(module: Any, weights: dict[tuple[int, torch.dtype], nn.Parameter]) -> Restored:
    """Return PyTorch's module with the rows of one; `weights` has those of tables read before."""
    (table,) = module.tables.tables
    trains = module.tables.optimizers[table.name] is not None and module.anchor.requires_grad
    weight = weights.get(weight_key(module))
    if weight is None:
        rows = read_table(module.tables, table, module.output_dtype)
        weight = weights[weight_key(module)] = nn.Parameter(rows, requires_grad=False)
    weight.requires_grad_(trains or weight.requires_grad)
    options: dict[str, Any] = {
        name: getattr(module, name) for name in _COMMON if hasattr(module, name)
    }
    options["_weight"] = weight.detach()  # or the module would draw initial values
    shape = table.num_embeddings, table.embedding_dim
    made: Restored
    if isinstance(module, EmbeddingBag):
        last = module.include_last_offset
        made = nn.EmbeddingBag(*shape, mode=module.mode, include_last_offset=last, **options)
    else:
        made = nn.Embedding(*shape, **options)
    made.weight = weight
    return made.train(module.training)
