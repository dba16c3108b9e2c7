"""Frozen modules of several tables, called with TorchRec's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mpembed.config import TableConfig
from mpembed.torch._feature_errors import describe_index_error
from mpembed.torch._feature_order import FeatureLayout, output_names
from mpembed.torch._frozen import FrozenSettings, FrozenTables
from mpembed.torch._keyed import (
    BagConfig,
    SequenceConfig,
    is_jagged,
    jagged_tensor,
)
from mpembed.torch._one_table import equal_bag_offsets
from mpembed.torch._pooled_call import PooledCall
from mpembed.torch._sequence import plan_sequences


class FrozenEmbeddingBagCollection(FrozenTables):
    """An `EmbeddingBagCollection` of ``freeze``.

    Parameters
    ----------
    tables, rows, settings
        As in `FrozenTables`.
    features : list of list of str
        The features of each table.
    is_weighted : bool
        Whether the weights of the features multiply the rows.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        rows: Sequence[Tensor],
        settings: FrozenSettings,
        *,
        features: Sequence[Sequence[str]],
        is_weighted: bool,
    ) -> None:
        super().__init__(tables, rows, settings)
        self._table_configs = tuple(tables)
        names = {table.name: own for table, own in zip(tables, features, strict=True)}
        self._layout, self._is_weighted = FeatureLayout(tables, names), is_weighted
        self._configs = [
            BagConfig(t.name, t.num_embeddings, t.embedding_dim, list(names[t.name]), t.pooling)
            for t in tables
        ]

    def forward(
        self,
        features: Any,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Any:
        """Look up and pool a batch, as the forward of `EmbeddingBagCollection` does."""
        call = PooledCall(
            self._table_configs,
            self._layout,
            self._drops,
            self._lookup,
            is_weighted=self._is_weighted,
        )
        return call(features, offsets, per_sample_weights)

    def _drops(self) -> bool:
        return self._drop

    def is_weighted(self) -> bool:
        """Return whether the weights of the features are used."""
        return self._is_weighted

    def embedding_bag_configs(self) -> list[BagConfig]:
        """Return the tables with their features, in the form that TorchRec's models read."""
        return list(self._configs)

    def extra_repr(self) -> str:
        """Return what ``repr`` says of the tables."""
        lines = [
            f"({c.name}): {c.num_embeddings}, {c.embedding_dim}, {t.precision}, {c.pooling!r}"
            for c, t in zip(self._configs, self._formats, strict=True)
        ]
        return "\n".join([*lines, super().extra_repr()])


class FrozenEmbeddingCollection(FrozenTables):
    """An `EmbeddingCollection` of ``freeze``.

    Parameters
    ----------
    tables, rows, settings
        As in `FrozenTables`.
    features : list of list of str
        The features of each table.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        rows: Sequence[Tensor],
        settings: FrozenSettings,
        *,
        features: Sequence[Sequence[str]],
    ) -> None:
        super().__init__(tables, rows, settings)
        self._table_configs = tuple(tables)
        self._features = [list(own) for own in features]
        self._names = output_names(tables, self._features)
        self._configs = [
            SequenceConfig(t.name, t.num_embeddings, t.embedding_dim, names)
            for t, names in zip(tables, self._features, strict=True)
        ]

    def forward(self, features: Any) -> dict[str, Any]:
        """Look up the rows of every index, as the forward of `EmbeddingCollection` does."""
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "the outputs of an EmbeddingCollection have as many rows as the batch has indices, "
                "which compilers do not know: export or compile the rest of the model, with the "
                "rows of each feature as its input"
            )
        if not is_jagged(features):
            raise TypeError(f"features must be a KeyedJaggedTensor, got {type(features).__name__}")
        values = self._signed(features.values(), "features.values()")
        plan = plan_sequences(features, values, self._features)
        outputs: list[Tensor] = []
        try:
            for number, counts in enumerate(plan.counts):
                own = plan.indices[plan.offsets[number] : plan.offsets[number + 1]]
                found = self._lookup(own, equal_bag_offsets(own, 1, len(own)), table=number)
                outputs += torch.split(found, counts)
        except IndexError as error:
            raise describe_index_error(
                error, self._table_configs, features, self._features
            ) from None
        return {
            name: jagged_tensor(features, rows, lengths)
            for name, rows, lengths in zip(self._names, outputs, plan.lengths, strict=True)
        }

    def embedding_configs(self) -> list[SequenceConfig]:
        """Return the tables with their features, in the form that TorchRec's models read."""
        return list(self._configs)
