"""What a module warns of: rounding noise that is too large, gradients that were scaled too late."""

from __future__ import annotations

import warnings

import torch

from mpembed.collection import EmbeddingBagCollection, collection_state
from mpembed.rounding import RoundingWarning
from mpembed.torch._module_calls import ModuleCalls
from mpembed.torch._parameter import TableParameter, set_plain_grad


def warn_of_rounding(tables: EmbeddingBagCollection) -> bool:
    """Warn of tables whose rounding noise is too large; return whether there are any."""
    if tables.device != "cpu" and torch.cuda.is_current_stream_capturing():
        return False
    state = collection_state(tables)
    with state.writing() as on:
        found = state.rounding_report(on, keep=True)
    for table in found.bad:
        warnings.warn(
            f"{table.name}: rounding noise is {table.ratio:.2g} of the updates in "
            f"{table.precision}: {table.advice} would be fine (docs/guide.md, Rounding noise)",
            RoundingWarning,
            stacklevel=4,
        )
    return bool(found.bad)


def warn_of_late_scaling(anchor: TableParameter, calls: ModuleCalls) -> None:
    """Warn of gradients that were scaled after a backward had updated the rows."""
    set_plain_grad(anchor, None)
    attached = calls.optimizer
    if calls.has_replicas or (attached is not None and attached.scales):
        return
    warnings.warn(
        "the gradient of tables was scaled (by clip_grad_norm_ or a GradScaler) after the "
        "backward had updated their rows: make a FusedOptimizer(model), whose step() updates "
        "them, or use clip_grad_norm= of the module",
        stacklevel=5,
    )
