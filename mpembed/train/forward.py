"""The perceptrons and the dot interaction of a saved model, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed.collection import EmbeddingBagCollection
from mpembed.train.data.clicks import Columns
from mpembed.train.data.encoding import Block
from mpembed.train.joined_tables import JoinedTables
from mpembed.train.tables import layer_sizes

F32 = npt.NDArray[np.float32]
_Layers = list[tuple[F32, F32]]


def _layers(arrays: Mapping[str, npt.NDArray[Any]], name: str, sizes: tuple[int, ...]) -> _Layers:
    """Return the weights and biases of a perceptron; ValueError if they are not of these sizes."""
    layers: _Layers = []
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        start = f"net.{name}.{2 * index}."  # a ReLU stands between two layers
        pair = [arrays.get(start + one) for one in ("weight", "bias")]
        shapes = [(one.dtype, one.shape) if one is not None else None for one in pair]
        kind = np.dtype(np.float32)
        if shapes != [(kind, (outputs, inputs)), (kind, (outputs,))]:
            raise ValueError(f"{start}weight or {start}bias is not that of the model")
        if not all(np.isfinite(one).all() for one in pair if one is not None):
            raise ValueError(f"{start}weight or {start}bias has values that are not finite")
        weight, bias = pair
        assert weight is not None
        assert bias is not None
        layers.append((np.ascontiguousarray(weight.T), bias))
    return layers


def _run(x: F32, layers: _Layers, *, relu_last: bool) -> F32:
    for index, (weight, bias) in enumerate(layers):
        x = x @ weight
        x += bias
        if relu_last or index < len(layers) - 1:
            np.maximum(x, 0.0, out=x)
    return x


class Forward:
    """A trained DLRM that gives the log odds of clicks.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        The weights, ``net.NAME``; others are not looked at.
    tables : mpembed.EmbeddingBagCollection or JoinedTables
        One a categorical.
    columns : Columns
        What the model is given.

    Raises
    ------
    ValueError
        If the weights are not those of such a model.
    """

    def __init__(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        tables: EmbeddingBagCollection | JoinedTables,
        columns: Columns,
    ) -> None:
        self._tables, self._dim = tables, tables.tables[0].embedding_dim
        sizes = layer_sizes(self._dim, columns)
        self._bottom = _layers(arrays, "bottom", sizes["bottom"])
        self._top = _layers(arrays, "top", sizes["top"])
        self._vectors = len(columns.categorical) + 1
        self._below = np.tril_indices(self._vectors, -1)

    def __call__(self, batch: Block) -> F32:
        """Return the log odds (n,) of a batch of `n` clicks."""
        pooled: Any = self._tables.forward(*batch.bags(), training=False)
        bottom = _run(batch.dense, self._bottom, relu_last=True)
        vectors = np.concatenate([bottom, pooled], axis=1).reshape(-1, self._vectors, self._dim)
        products = vectors @ vectors.transpose(0, 2, 1)
        pairs = products[:, self._below[0], self._below[1]]
        return _run(np.concatenate([bottom, pairs], axis=1), self._top, relu_last=False)[:, 0]
