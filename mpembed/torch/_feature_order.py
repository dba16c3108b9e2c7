"""The order of features: from the batch's to the tables', and gradients of weights back.

An *order* is a sequence of int, as an operator of PyTorch takes it: K, the number of the batch's
features, then for each place of the lookup the feature that fills it, -1 for bags without indices.
An empty one keeps the batch as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mpembed.config import TableConfig

#: Where each piece of a reordered batch lies in the caller's: first index and end.
Segments = list[tuple[int, int]]


class FeatureLayout:
    """Which feature goes where: places of the lookup, columns of the output.

    A lookup has as many bags for each table. Where tables serve several features it has `levels`
    blocks of bags, as many as the table with the most features needs; a table with fewer has empty
    bags in the others.

    Attributes
    ----------
    features : list of list of str
        The features of each table.
    names, lengths : list
        Name and number of columns of each output.
    levels : int
        Blocks of bags.
    width : int
        Columns of all tables.
    """

    def __init__(
        self, tables: Sequence[TableConfig], features: Mapping[str, Sequence[str]] | None
    ) -> None:
        self.features = features_by_table(tables, features)
        self.names = output_names(tables, self.features)
        self.levels = max(len(names) for names in self.features)
        self.lengths: list[int] = []
        self._columns: list[tuple[int, int]] = []  # level and first column of each output
        start = 0
        for table, names in zip(tables, self.features, strict=True):
            for level in range(len(names)):
                self.lengths.append(table.embedding_dim)
                self._columns.append((level, start))
            start += table.embedding_dim
        self.width = start
        self._orders: dict[tuple[str, ...], list[int]] = {}

    def order(self, keys: Sequence[str]) -> list[int]:
        """Return the order that a batch with these features is looked up in.

        Raises
        ------
        KeyError
            If a feature is missing.
        ValueError
            If a feature comes twice.
        """
        known = tuple(keys)
        if known not in self._orders:
            self._orders[known] = self.find_order(known)
        return self._orders[known]

    def find_order(self, keys: tuple[str, ...]) -> list[int]:
        """Return what `order` does, and keep no note of it."""
        check_keys(keys, self.features)
        places = []
        for names in self.features:
            of_table = [keys.index(name) for name in names]
            places += of_table + [-1] * (self.levels - len(of_table))
        return [] if places == list(range(len(keys))) and self.levels == 1 else [len(keys), *places]

    def outputs(self, looked_up: Tensor, batch_size: int) -> Tensor:
        """Return the outputs of a lookup side by side, in the order of `names`."""
        if self.levels == 1:
            return looked_up
        blocks = looked_up.view(self.levels, batch_size, self.width)
        parts = zip(self._columns, self.lengths, strict=True)
        return torch.cat([blocks[level, :, a : a + n] for (level, a), n in parts], dim=1)


def check_keys(keys: Sequence[str], features: Sequence[Sequence[str]]) -> None:
    """Raise KeyError if a batch lacks a feature of some table, ValueError if one comes twice."""
    if len(set(keys)) != len(keys):
        raise ValueError(f"features has keys that come twice: {list(keys)}")
    missing = [n for names in features for n in names if n not in keys]
    if missing:
        raise KeyError(f"no feature {missing[0]!r}; there are {list(keys)}")


def first_bags(features: Any, num_keys: int, offsets: Tensor) -> list[int]:
    """Return the first bag of each feature, and the number of all bags."""
    bags = offsets.shape[0] - 1
    if getattr(features, "variable_stride_per_key", bool)():
        firsts = [0]
        for stride in features.stride_per_key():
            firsts.append(firsts[-1] + stride)
    else:
        batch_size = bags // num_keys
        firsts = [k * batch_size for k in range(num_keys + 1)]
    if firsts[-1] != bags:
        raise ValueError(
            f"offsets of {num_keys} features must have {num_keys} x batch size + 1 entries, got "
            f"{bags + 1}"
        )
    return firsts


def output_names(tables: Sequence[TableConfig], features: Sequence[Sequence[str]]) -> list[str]:
    """Return the name of each table's outputs, by TorchRec's rule where tables share a feature."""
    every = [name for names in features for name in names]
    return [
        name if every.count(name) == 1 else f"{name}@{table.name}"
        for table, names in zip(tables, features, strict=True)
        for name in names
    ]


def features_by_table(
    tables: Sequence[TableConfig], features: Mapping[str, Sequence[str]] | None
) -> list[list[str]]:
    """Return the names of each table's features, by default its own; ValueError if wrong."""
    names = [table.name for table in tables]
    given = {name: [name] for name in names} if features is None else dict(features)
    if set(given) != set(names):
        raise ValueError(f"feature_names must have the tables {names}, got {list(given)}")
    for name, own in given.items():
        strings = not isinstance(own, str) and all(isinstance(one, str) for one in own)
        if not strings or len(set(own)) != len(own) or not own:
            raise ValueError(f"feature_names of table {name!r} must be different names, got {own}")
    return [list(given[name]) for name in names]


def reorder(
    indices: Tensor, offsets: Tensor, weights: Tensor | None, order: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor | None, Segments]:
    """Put the features of a batch in another order.

    Parameters
    ----------
    indices : Tensor (N,)
        Feature by feature.
    offsets : Tensor (K * B + 1,)
        As a KeyedJaggedTensor of K features has them.
    weights : Tensor (N,), optional
        Per-sample weights.
    order : sequence of int
        Not empty.

    Returns
    -------
    tuple
        Indices, offsets and weights in that order, and the segments that they are made of.
    """
    keys, places = order[0], order[1:]
    batch_size = (offsets.shape[0] - 1) // keys
    if batch_size * keys + 1 != offsets.shape[0]:
        raise ValueError(
            f"offsets must have {keys} x batch size + 1 entries, got {offsets.shape[0]}"
        )
    ends = [0] * (keys + 1) if batch_size == 0 else offsets[::batch_size].tolist()
    if ends[0] != 0 or ends[-1] != indices.shape[0] or sorted(ends) != ends:
        raise ValueError(
            f"offsets must not decrease, start at 0 and end at the number of indices, "
            f"{indices.shape[0]}; at the features they are {ends}"
        )
    segments = [(ends[k], ends[k + 1]) if k >= 0 else (0, 0) for k in places]
    # One row more than there are features, which has no indices: place -1 finds it at the end.
    lengths = offsets.new_zeros(keys + 1, batch_size)
    lengths[:keys] = (offsets[1:] - offsets[:-1]).view(keys, batch_size)
    new_offsets = offsets.new_zeros(len(places) * batch_size + 1)
    torch.cumsum(lengths[list(places)].reshape(-1), 0, out=new_offsets[1:])
    new_indices = torch.cat([indices[a:b] for a, b in segments])
    if weights is not None:
        weights = torch.cat([weights[a:b] for a, b in segments])
    return new_indices, new_offsets, weights, segments


def restore_order(values: Tensor, segments: Segments, num_indices: int) -> Tensor:
    """Return values of a reordered batch, one an index, added up for the caller's indices."""
    result = values.new_zeros(num_indices)
    start = 0
    for a, b in segments:
        result[a:b] += values[start : start + b - a]
        start += b - a
    return result
