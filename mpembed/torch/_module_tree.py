"""The modules of a model: those with tables, and others in the place of some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mpembed.torch._module import TableModule


def table_modules(model: Any) -> dict[str, TableModule]:
    """Return the modules with tables by their names; TypeError if `model` is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return {
        name or type(module).__name__: module
        for name, module in model.named_modules()
        if isinstance(module, TableModule)
    }


def put_modules(model: nn.Module, by_id: Mapping[int, nn.Module]) -> nn.Module:
    """Put others in the place of the modules with these ids; return what the model is then."""
    if id(model) in by_id:
        return by_id[id(model)]
    # Each module once: a module may be shared by many paths, or hold itself.
    for parent in model.modules():
        for name, child in list(parent._modules.items()):
            if id(child) in by_id:
                parent._modules[name] = by_id[id(child)]
    return model
