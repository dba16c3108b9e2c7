"""What RecBole 1.2.1 needs to run with today's NumPy, SciPy and PyTorch.

The shims are applied before a model is made, to the original and to the converted one alike. They
change no model.
"""

from __future__ import annotations

import logging
import sys
from functools import cache
from types import ModuleType
from typing import Any

#: Name and reason of each shim, for the report.
SHIMS = {
    "numpy names": "`np.float_` and others are gone from NumPy 2",
    "dok_matrix._update": "gone from SciPy",
    "tensorboard": "an empty `SummaryWriter`, so that nothing is written",
    "torch.load": "`weights_only=False`, because RecBole saves its `Config` too",
    "torch_scatter": "two functions, because it has no wheel for today's PyTorch",
    "dgl": "arguments of two functions, for KGAT, have other names today",
    "seeds": "data are split with one seed, models trained with another",
}


class _Writer:
    """Takes what RecBole logs, and drops it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


@cache
def apply() -> None:
    """Apply all shims but `apply_dgl` to this process."""
    _numpy_names()
    _scipy_update()
    _tensorboard()
    _scatter()
    _load()
    logging.disable(logging.WARNING)
    sys.argv[1:] = []  # RecBole reads its settings there


@cache
def apply_dgl() -> None:
    """Let two functions of DGL take their arguments of before 1.0."""
    import dgl

    original = dgl.edge_subgraph

    def edge_subgraph(*args: Any, preserve_nodes: bool = False, **kwargs: Any) -> Any:
        return original(*args, relabel_nodes=not preserve_nodes, **kwargs)

    def adjacency_matrix(self: Any, transpose: bool = False, scipy_fmt: Any = None) -> Any:
        return self.adj_external(transpose, scipy_fmt=scipy_fmt)

    dgl.edge_subgraph = edge_subgraph
    dgl.DGLGraph.adjacency_matrix = adjacency_matrix


def _numpy_names() -> None:
    import numpy as np

    names = {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}
    for name, kind in {**names, "float": np.float64, "Inf": np.inf}.items():
        setattr(np, name, kind)


def _scipy_update() -> None:
    from scipy import sparse

    def update(self: Any, entries: Any) -> None:
        self._dict.update(entries)

    sparse.dok_matrix._update = update


def _tensorboard() -> None:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = _Writer  # type: ignore[attr-defined]
    sys.modules["torch.utils.tensorboard"] = module


def _scatter() -> None:
    module = ModuleType("torch_scatter")
    module.scatter_mean, module.scatter_softmax = scatter_mean, scatter_softmax  # type: ignore
    sys.modules.setdefault("torch_scatter", module)


def scatter_mean(src: Any, index: Any, dim: int = -1, dim_size: int | None = None) -> Any:
    """Return the mean of the values of each index, along the first dimension."""
    import torch

    assert dim == 0
    rows = int(index.max()) + 1 if dim_size is None else dim_size
    sums = src.new_zeros(rows, *src.shape[1:]).index_add(0, index, src)
    counts = torch.bincount(index, minlength=rows).clamp(min=1).to(src.dtype)
    return sums / counts.view(-1, *[1] * (src.dim() - 1))


def scatter_softmax(src: Any, index: Any, dim: int = -1) -> Any:
    """Return the softmax among the values of each index, along the first dimension."""
    assert dim == 0
    shape = int(index.max()) + 1, *src.shape[1:]
    spread = index.view(-1, *[1] * (src.dim() - 1)).expand_as(src)
    lowest = src.new_full(shape, float("-inf"))
    largest = lowest.scatter_reduce(0, spread, src.detach(), "amax")
    powers = (src - largest[index]).exp()
    return powers / src.new_zeros(shape).index_add(0, index, powers)[index]


def _load() -> None:
    import torch

    original = torch.load

    def load(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{"weights_only": False, **kwargs})

    torch.load = load
