"""Features and outputs by name, in the forms that TorchRec gives them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from mpembed.config import TableConfig


class KeyedTensor:
    """What TorchRec's class of this name is read through, for where TorchRec is not in use.

    Parameters
    ----------
    keys : list of str
        Names, one for each block of columns.
    length_per_key : list of int
        Columns of each block.
    values : Tensor (B, sum of lengths)
        The blocks.
    """

    def __init__(self, keys: list[str], length_per_key: list[int], values: Tensor) -> None:
        self._keys, self._length_per_key, self._values = keys, length_per_key, values

    def keys(self) -> list[str]:
        """Return the names."""
        return self._keys

    def values(self) -> Tensor:
        """Return all columns."""
        return self._values

    def key_dim(self) -> int:
        """Return the dimension along which the blocks lie."""
        return 1

    def length_per_key(self) -> list[int]:
        """Return the columns of each block."""
        return self._length_per_key

    def offset_per_key(self) -> list[int]:
        """Return where each block begins, and the end."""
        return [0, *accumulate(self._length_per_key)]

    def to_dict(self) -> dict[str, Tensor]:
        """Return the blocks by name."""
        parts = torch.split(self._values, self._length_per_key, 1)
        return dict(zip(self._keys, parts, strict=True))

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._keys:
            raise KeyError(f"no {key!r}; there are {self._keys}")
        return self.to_dict()[key]

    def __repr__(self) -> str:
        return f"KeyedTensor({self._keys}, {tuple(self._values.shape)})"


def is_jagged(features: Any) -> bool:
    """Whether an object has the methods of a KeyedJaggedTensor."""
    return all(hasattr(features, name) for name in ("keys", "values", "offsets", "weights_or_none"))


def keyed(like: Any, keys: list[str], lengths: list[int], values: Tensor) -> Any:
    """Return TorchRec's KeyedTensor where the features were TorchRec's, else one of ours."""
    home = type(like).__module__
    if home == "torchrec.sparse.jagged_tensor":
        return sys.modules[home].KeyedTensor(keys, lengths, values)
    return KeyedTensor(keys, lengths, values)


@dataclass(frozen=True)
class BagConfig:
    """A table as TorchRec's models ask for it.

    Attributes
    ----------
    name : str
        The table's.
    num_embeddings, embedding_dim : int
        Rows and columns.
    feature_names : list of str
        The features that it serves.
    pooling : str
        ``"sum"`` or ``"mean"``.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    feature_names: list[str]
    pooling: str


class Layout:
    """Which feature goes where: places of the batch, columns of the output.

    A table with several features gets as many bags a sample: those of the batch are repeated
    `levels` times, as often as the table with the most needs, and other tables leave theirs empty.
    """

    def __init__(
        self, tables: Sequence[TableConfig], features: Mapping[str, Sequence[str]] | None
    ) -> None:
        self.features = self._named(tables, features)
        every = [name for names in self.features for name in names]
        self.levels = max(len(names) for names in self.features)
        self.names: list[str] = []
        self.lengths: list[int] = []
        self.columns: list[tuple[int, int]] = []  # level and first column of each output
        start = 0
        for table, names in zip(tables, self.features, strict=True):
            for level, name in enumerate(names):
                # TorchRec's rule where several tables have a feature.
                self.names.append(name if every.count(name) == 1 else f"{name}@{table.name}")
                self.lengths.append(table.embedding_dim)
                self.columns.append((level, start))
            start += table.embedding_dim
        self.width = start
        self._orders: dict[tuple[str, ...], list[int]] = {}

    @staticmethod
    def _named(
        tables: Sequence[TableConfig], features: Mapping[str, Sequence[str]] | None
    ) -> list[list[str]]:
        names = [table.name for table in tables]
        given = {name: [name] for name in names} if features is None else dict(features)
        if set(given) != set(names):
            raise ValueError(f"feature_names must have the tables {names}, got {list(given)}")
        for name, own in given.items():
            strings = not isinstance(own, str) and all(isinstance(one, str) for one in own)
            if not strings or len(set(own)) != len(own) or not own:
                raise ValueError(f"feature_names of table {name!r} must be different names: {own}")
        return [list(given[name]) for name in names]

    def order(self, keys: Sequence[str]) -> list[int]:
        """Return the order of `_calls.arranged` for a batch with these keys, empty for as it is.

        Raises
        ------
        KeyError
            If a feature is missing.
        """
        known = tuple(keys)
        if known not in self._orders:
            self._orders[known] = self._find(known)
        return self._orders[known]

    def _find(self, keys: tuple[str, ...]) -> list[int]:
        if len(set(keys)) != len(keys):
            raise ValueError(f"the features have keys that come twice: {list(keys)}")
        missing = [n for names in self.features for n in names if n not in keys]
        if missing:
            raise KeyError(f"no feature {missing[0]!r}; there are {list(keys)}")
        places = []
        for names in self.features:
            of_table = [keys.index(name) for name in names]
            places += of_table + [-1] * (self.levels - len(of_table))
        return [] if places == list(range(len(keys))) and self.levels == 1 else [len(keys), *places]

    def blocks(self, out: Tensor, stride: int) -> Tensor:
        """Return the outputs side by side, of what the lookup of all levels gave."""
        if self.levels == 1:
            return out
        cut = out.view(self.levels, stride, self.width)
        parts = zip(self.columns, self.lengths, strict=True)
        return torch.cat([cut[level, :, a : a + n] for (level, a), n in parts], dim=1)
