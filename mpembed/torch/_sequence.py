"""A module of several tables without pooling, called with TorchRec's features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self, Unpack

import torch
from torch import Tensor

from mpembed import collection as core
from mpembed._collection.description import describe_training
from mpembed.config import TableConfig
from mpembed.optim import Optimizer
from mpembed.torch._feature_errors import describe_index_error
from mpembed.torch._feature_order import (
    check_keys,
    features_by_table,
    first_bags,
    output_names,
)
from mpembed.torch._indices import row_numbers
from mpembed.torch._keyed import SequenceConfig, is_jagged, jagged_tensor
from mpembed.torch._module import TableModule
from mpembed.torch._options import ModuleOptions, Options, make_collection
from mpembed.torch._outside_graphs import outside_graphs
from mpembed.torch._poolings import refuse_pooled

Names = Mapping[str, Sequence[str]]
_NUMBER_OF_ROWS = (
    "the outputs of mpembed.torch.EmbeddingCollection have as many rows as the batch has indices"
)


class EmbeddingCollection(TableModule):
    """Several unpooled tables in one lookup; a drop-in for TorchRec's ``EmbeddingCollection``.

    All features of a batch, of whichever table, are one lookup, and their gradients one update. A
    row that comes several times, in one feature or in several of its table, is looked up in the
    cache, admitted and updated once; the output has it as often as the features.

    Parameters
    ----------
    tables : sequence of mpembed.TableConfig
        With pooling ``"none"``; dimensions and precisions may differ.
    optimizer : mpembed.optim.Optimizer, optional
        Such as ``mpembed.Adam()``. None where every table has one of its own or is frozen.
    feature_names : mapping of table name -> names of features, optional
        Which features each table serves; by default the one of its own name.
    **options
        As in `EmbeddingBagCollection`.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        optimizer: Optimizer | None = None,
        feature_names: Names | None = None,
        **options: Unpack[Options],
    ) -> None:
        collection, own = make_collection(tables, optimizer, options)
        self._start(collection, feature_names, own)

    @classmethod
    def from_collection(
        cls,
        collection: core.EmbeddingBagCollection,
        *,
        feature_names: Names | None = None,
        **options: Unpack[ModuleOptions],
    ) -> Self:
        """Return a module of a collection of unpooled tables, such as a loaded one.

        Parameters
        ----------
        collection : mpembed.EmbeddingBagCollection
            Used, not copied.
        feature_names
            As in the class.
        **options
            `output_dtype`, `clip_grad_value`, `clip_grad_norm`.

        Notes
        -----
        A collection, and so a checkpoint, has none of these options: give those of the module that
        was saved. Settings of the collection are changed when it is loaded.
        """
        module = cls.__new__(cls)
        module._start(collection, feature_names, options)
        return module

    def _start(
        self,
        collection: core.EmbeddingBagCollection,
        feature_names: Names | None,
        options: ModuleOptions,
    ) -> None:
        super().__init__(collection, **options)
        refuse_pooled(collection.tables)
        self._features = features_by_table(collection.tables, feature_names)
        self._names = output_names(collection.tables, self._features)

    def forward(self, features: Any) -> dict[str, Any]:
        """Look up the rows of every index of the features.

        Parameters
        ----------
        features : KeyedJaggedTensor
            Features by name, in any order and among others. Anything with the methods of TorchRec's
            class will do. Weights are ignored. Values are int32, int64, uint32 or uint64.

        Returns
        -------
        dict of str -> JaggedTensor
            The rows (N, D) and lengths of each feature, by its name, in the order of the tables;
            a feature of several tables is ``"feature@table"``. TorchRec's class where `features`
            were TorchRec's.
        """
        if torch.compiler.is_exporting():
            raise RuntimeError(
                f"torch.export is not supported: {_NUMBER_OF_ROWS}; export the rest "
                "of the model, with the rows of each feature as its input"
            )
        if torch.compiler.is_compiling():
            return _uncompiled(self, features)
        return self._look_up(features)

    def _look_up(self, features: Any) -> dict[str, Any]:
        if not is_jagged(features):
            raise TypeError(f"features must be a KeyedJaggedTensor, got {type(features).__name__}")
        values = row_numbers(features.values(), "features.values()", self.tables)
        plan = plan_sequences(features, values, self._features)
        found: Any  # a tensor for each table, without a tuple where there is only one
        try:
            found = self._lookup(plan.indices, plan.offsets)
        except IndexError as error:
            raise describe_index_error(
                error, self.tables.tables, features, self._features
            ) from None
        by_table = found if isinstance(found, tuple) else (found,)
        parts: list[Tensor] = []
        for rows, counts in zip(by_table, plan.counts, strict=True):
            parts += [rows] if len(counts) == 1 else torch.split(rows, counts)
        return {
            name: jagged_tensor(features, rows, lengths)
            for name, rows, lengths in zip(self._names, parts, plan.lengths, strict=True)
        }

    def embedding_configs(self) -> list[SequenceConfig]:
        """Return the tables with their features, in the form that TorchRec's models read."""
        return [
            SequenceConfig(t.name, t.num_embeddings, t.embedding_dim, list(names))
            for t, names in zip(self.tables.tables, self._features, strict=True)
        ]

    def embedding_dim(self) -> int:
        """Return the columns of every table.

        Raises
        ------
        ValueError
            If tables have different ones.
        """
        dims = {table.embedding_dim for table in self.tables.tables}
        if len(dims) > 1:
            by_table = {table.name: table.embedding_dim for table in self.tables.tables}
            raise ValueError(
                f"the tables have different dimensions, {by_table}: read embedding_configs()"
            )
        return dims.pop()

    def embedding_names_by_table(self) -> list[list[str]]:
        """Return the names of each table's outputs."""
        names = iter(self._names)
        return [[next(names) for _ in own] for own in self._features]

    def need_indices(self) -> bool:
        """Return False: outputs have no indices beside their rows."""
        return False

    def extra_repr(self) -> str:
        """Return what ``repr`` says of the tables."""
        lines = [
            f"({t.name}): {t.num_embeddings}, {t.embedding_dim}, {t.precision}"
            + describe_training(t, self.tables.optimizers[t.name])
            + ("" if own == [t.name] else f", features={own}")
            for t, own in zip(self.tables.tables, self._features, strict=True)
        ]
        return "\n".join([*lines, super().extra_repr()])


_uncompiled: Callable[..., dict[str, Any]] = outside_graphs(
    f"{_NUMBER_OF_ROWS}; compile without fullgraph=True, and it runs eagerly"
)(EmbeddingCollection._look_up)


class SequencePlan(NamedTuple):
    """A batch as it is looked up: a bag for each table.

    Attributes
    ----------
    indices : Tensor (N,)
        Those of each table, feature by feature.
    offsets : Tensor (T + 1,)
        Where each table's begin.
    counts : list of list of int
        Indices of each table's features.
    lengths : list of Tensor (B,)
        Of each output's bags.
    """

    indices: Tensor
    offsets: Tensor
    counts: list[list[int]]
    lengths: list[Tensor]


def plan_sequences(
    features: Any, values: Tensor, by_table: Sequence[Sequence[str]]
) -> SequencePlan:
    """Find the features of a batch; a device is waited for."""
    keys: Sequence[str] = features.keys()
    check_keys(keys, by_table)
    offsets = features.offsets()
    firsts = first_bags(features, len(keys), offsets)
    lengths = offsets[1:] - offsets[:-1]
    ends: list[int] = offsets[torch.tensor(firsts, device=offsets.device)].tolist()
    falls = lengths.numel() > 0 and bool((lengths < 0).any())
    if falls or ends[0] != 0 or ends[-1] != values.shape[0]:
        raise ValueError(
            f"offsets of the features must not decrease, start at 0 and end at the number of "
            f"values, {values.shape[0]}; at the features {list(keys)} they are {ends}"
        )
    places = {key: k for k, key in enumerate(keys)}
    used = [[places[name] for name in names] for names in by_table]
    segments = [(ends[k], ends[k + 1]) for own in used for k in own]
    counts = [[ends[k + 1] - ends[k] for k in own] for own in used]
    totals = torch.tensor([0, *(sum(own) for own in counts)], dtype=torch.int64)
    return SequencePlan(
        _joined(values, segments),
        totals.cumsum(0).to(offsets.device),
        counts,
        [lengths[firsts[k] : firsts[k + 1]] for own in used for k in own],
    )


def _joined(values: Tensor, segments: Sequence[tuple[int, int]]) -> Tensor:
    """Return segments of a tensor one after the other; a part of it where they already are."""
    pieces: list[tuple[int, int]] = []
    for a, b in segments:
        if pieces and pieces[-1][1] == a:
            pieces[-1] = pieces[-1][0], b
        elif a < b or not pieces:
            pieces.append((a, b))
    parts = [values[a:b] for a, b in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
