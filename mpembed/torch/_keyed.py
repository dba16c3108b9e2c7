"""TorchRec's forms of features, outputs and tables, for use without TorchRec."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor


class KeyedTensor:
    """Outputs by name: the methods by which TorchRec's class of this name is read.

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


def keyed_tensor(like: Any, keys: list[str], lengths: list[int], values: Tensor) -> Any:
    """Return TorchRec's KeyedTensor where the features were TorchRec's, else mpembed's."""
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
