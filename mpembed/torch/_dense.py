"""Tensors whose values lie in memory as kernels read them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def why_not_dense(tensor: Tensor) -> str:
    """Return what keeps a tensor's values from being read, and the way out; "" if nothing does."""
    if tensor.is_nested:
        return "is a nested tensor: pass one of its tensors"
    if tensor.layout is not torch.strided:
        return f"has the layout {tensor.layout}: pass its to_dense()"
    return "is on the meta device and has no values" if tensor.is_meta else ""


def dense(name: str, given: Any) -> Tensor:
    """Return an argument of a forward; TypeError if it is no tensor or not dense.

    One of the meta device may belong to a model that is there.
    """
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(given).__name__}")
    if given.layout is not torch.strided or given.is_nested:
        raise TypeError(f"{name} {why_not_dense(given)}")
    return given
