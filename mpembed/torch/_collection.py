"""A module of several tables, called with TorchRec's features or with table-major indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, Unpack

from torch import Tensor

from mpembed import collection as core
from mpembed._collection.description import describe_training
from mpembed.config import TableConfig
from mpembed.optim import Optimizer
from mpembed.torch._feature_order import FeatureLayout
from mpembed.torch._keyed import BagConfig
from mpembed.torch._module import TableModule
from mpembed.torch._options import ModuleOptions, Options, make_collection
from mpembed.torch._pooled_call import PooledCall
from mpembed.torch._poolings import refuse_unpooled

Names = Mapping[str, Sequence[str]]


class EmbeddingBagCollection(TableModule):
    """Several tables in one lookup; a drop-in for TorchRec's ``EmbeddingBagCollection``.

    Parameters
    ----------
    tables : sequence of mpembed.TableConfig
        With pooling ``"sum"`` or ``"mean"``.
    optimizer : mpembed.optim.Optimizer, optional
        Such as ``mpembed.Adam()``; applied by the backward. None where every table has one of its
        own or is frozen.
    feature_names : mapping of table name -> names of features, optional
        Which features each table serves; by default the one of its own name.
    is_weighted : bool
        Whether the weights of the features multiply the rows; otherwise they are ignored.
    **options
        `cache`, `device`, `seed`, `rounding`, `bounds`, `on_nonfinite` as in
        ``mpembed.EmbeddingBagCollection``; `output_dtype`, `clip_grad_value` and
        `clip_grad_norm` as in `EmbeddingBag`.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        optimizer: Optimizer | None = None,
        feature_names: Names | None = None,
        is_weighted: bool = False,
        **options: Unpack[Options],
    ) -> None:
        collection, own = make_collection(tables, optimizer, options)
        self._start(collection, feature_names, is_weighted, own)

    @classmethod
    def from_collection(
        cls,
        collection: core.EmbeddingBagCollection,
        *,
        feature_names: Names | None = None,
        is_weighted: bool = False,
        **options: Unpack[ModuleOptions],
    ) -> Self:
        """Return a module of a collection, such as a loaded one.

        Parameters
        ----------
        collection : mpembed.EmbeddingBagCollection
            Used, not copied.
        feature_names, is_weighted
            As in the class.
        **options
            `output_dtype`, `clip_grad_value`, `clip_grad_norm`.

        Notes
        -----
        A collection, and so a checkpoint, has none of these options: give those of the module that
        was saved. Settings of the collection are changed when it is loaded.
        """
        module = cls.__new__(cls)
        module._start(collection, feature_names, is_weighted, options)
        return module

    def _start(
        self,
        collection: core.EmbeddingBagCollection,
        feature_names: Names | None,
        is_weighted: bool,
        options: ModuleOptions,
    ) -> None:
        super().__init__(collection, **options)
        refuse_unpooled(collection.tables)
        self._layout = FeatureLayout(collection.tables, feature_names)
        self._num_tables, self._is_weighted = len(collection.tables), is_weighted

    def forward(
        self,
        features: Any,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Any:
        """Look up and pool a batch.

        Parameters
        ----------
        features : KeyedJaggedTensor or Tensor (N,)
            Features by name, in any order and among others (anything with the methods of
            TorchRec's class will do); or indices, table-major as in
            ``mpembed.EmbeddingBagCollection.forward``. int32, int64, uint32 or uint64.
        offsets : int32 or int64 Tensor (T * B + 1,), optional
            For indices.
        per_sample_weights : Tensor (N,), optional
            For indices; with a gradient if they require one.

        Returns
        -------
        KeyedTensor or Tensor (B, sum of D)
            For features a block of columns each, by its name (TorchRec's class where `features`
            were TorchRec's); for indices the tables' outputs side by side.
        """
        call = PooledCall(
            self.tables.tables,
            self._layout,
            self._drops,
            self._lookup,
            is_weighted=self._is_weighted,
        )
        return call(features, offsets, per_sample_weights)

    def _drops(self) -> bool:
        return bool(core.collection_state(self.tables).settings.bounds == "drop")

    def _output_shape(
        self, indices: Tensor, offsets: Tensor, order: Sequence[int]
    ) -> tuple[int, int]:
        bags = offsets.shape[0] - 1
        if order:
            return bags // order[0] * self._layout.levels, self._layout.width
        return bags // self._num_tables, self._layout.width

    def is_weighted(self) -> bool:
        """Return whether the weights of the features are used."""
        return self._is_weighted

    def embedding_bag_configs(self) -> list[BagConfig]:
        """Return the tables with their features, in the form that TorchRec's models read."""
        return [
            BagConfig(t.name, t.num_embeddings, t.embedding_dim, list(names), t.pooling)
            for t, names in zip(self.tables.tables, self._layout.features, strict=True)
        ]

    def extra_repr(self) -> str:
        """Return what ``repr`` says of the tables."""
        names = self._layout.features
        lines = [
            f"({t.name}): {t.num_embeddings}, {t.embedding_dim}, {t.precision}, {t.pooling!r}"
            + describe_training(t, self.tables.optimizers[t.name])
            + ("" if own == [t.name] else f", features={own}")
            for t, own in zip(self.tables.tables, names, strict=True)
        ]
        return "\n".join([*lines, super().extra_repr()])
