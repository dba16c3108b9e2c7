"""The forms in which a module of several pooled tables takes its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mpembed.config import TableConfig
from mpembed.torch._dense import dense
from mpembed.torch._feature_errors import describe_index_error
from mpembed.torch._feature_order import FeatureLayout
from mpembed.torch._indices import signed_indices
from mpembed.torch._keyed import is_jagged, keyed_tensor


class LookUp(Protocol):
    """A lookup of table-major indices; `order` as in `_feature_order`."""

    def __call__(
        self, indices: Tensor, offsets: Tensor, weights: Tensor | None, order: Sequence[int] = ()
    ) -> Any:
        """Return (B, sum of D), of all tables."""


class PooledCall:
    """What a module of pooled tables does around its lookup.

    Parameters
    ----------
    tables : sequence of mpembed.TableConfig
        As the caller counts their rows.
    layout : FeatureLayout
        Of the tables.
    is_weighted : bool
        Whether the weights of features multiply the rows.
    drops : callable
        Says whether the tables drop what is out of range.
    look_up : LookUp
        The lookup.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        layout: FeatureLayout,
        drops: Callable[[], bool],
        look_up: LookUp,
        *,
        is_weighted: bool,
    ) -> None:
        self._tables, self._layout, self._drops = tables, layout, drops
        self._look_up, self._is_weighted = look_up, is_weighted

    def __call__(
        self, features: Any, offsets: Tensor | None, per_sample_weights: Tensor | None
    ) -> Any:
        """Look up features, or indices with offsets; return a KeyedTensor or a tensor."""
        if is_jagged(features):
            if offsets is not None or per_sample_weights is not None:
                raise TypeError(
                    "offsets and per_sample_weights must be None: the features have offsets and "
                    "weights of their own"
                )
            return self._features(features)
        if not isinstance(features, Tensor):
            raise TypeError(
                "features must be a KeyedJaggedTensor or a tensor of indices, got "
                f"{type(features).__name__}"
            )
        if offsets is None:
            raise TypeError("offsets must be given where features is a tensor of indices")
        indices = signed_indices(features, "features", self._drops)
        return self._look_up(indices, dense("offsets", offsets), per_sample_weights)

    def _features(self, features: Any) -> Any:
        keys = features.keys()
        if getattr(features, "variable_stride_per_key", bool)():
            raise ValueError(
                "features of different batch sizes (stride_per_key) are not supported: give all one"
            )
        # A compiler would warn of the layout's notes of earlier orders.
        compiling = torch.compiler.is_compiling()
        order = self._layout.find_order(tuple(keys)) if compiling else self._layout.order(keys)
        weights = None
        if self._is_weighted:
            weights = features.weights_or_none()
            if weights is None:
                raise ValueError(
                    "the features have no weights, and the module was made with is_weighted=True"
                )
        offsets = features.offsets()
        batch_size = (offsets.shape[0] - 1) // len(keys)
        if offsets.shape[0] != batch_size * len(keys) + 1:
            raise ValueError(
                f"offsets of {len(keys)} features must have {len(keys)} x batch size + 1 entries, "
                f"got {offsets.shape[0]}"
            )
        layout = self._layout
        values = signed_indices(features.values(), "features.values()", self._drops)
        if compiling:
            looked_up = self._look_up(values, offsets, weights, order)
        else:
            try:
                looked_up = self._look_up(values, offsets, weights, order)
            except IndexError as error:
                raise describe_index_error(error, self._tables, features, layout.features) from None
        outputs = layout.outputs(looked_up, batch_size)
        return keyed_tensor(features, list(layout.names), list(layout.lengths), outputs)
