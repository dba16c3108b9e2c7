"""TorchRec's forms of features, outputs and tables, for use without TorchRec."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

_TORCHREC = "torchrec.sparse.jagged_tensor"  # the module of TorchRec's classes


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


class JaggedTensor:
    """Rows of bags of any lengths: the methods by which TorchRec's class of this name is read.

    Parameters
    ----------
    values : Tensor (N, ...)
        The rows of all bags, one bag after the other.
    lengths : Tensor (B,)
        How many of them each bag has.
    """

    def __init__(self, values: Tensor, lengths: Tensor) -> None:
        self._values, self._lengths = values, lengths
        self._offsets: Tensor | None = None

    def values(self) -> Tensor:
        """Return the rows of all bags."""
        return self._values

    def lengths(self) -> Tensor:
        """Return the rows of each bag."""
        return self._lengths

    def offsets(self) -> Tensor:
        """Return where each bag begins, and the end: (B + 1,)."""
        if self._offsets is None:
            ends = torch.cumsum(self._lengths, 0, dtype=self._lengths.dtype)
            self._offsets = torch.cat((ends.new_zeros(1), ends))
        return self._offsets

    def weights_or_none(self) -> Tensor | None:
        """Return None: a lookup has no weights."""

    def to_dense(self) -> list[Tensor]:
        """Return the rows of each bag on its own; a device is waited for."""
        return list(torch.split(self._values, self._lengths.tolist()))

    def to_padded_dense(
        self, desired_length: int | None = None, padding_value: float = 0.0
    ) -> Tensor:
        """Return bags of one length.

        Parameters
        ----------
        desired_length : int, optional
            Rows of each bag, by default those of the longest (a device is waited for). Longer bags
            lose their last rows.
        padding_value : float
            What fills shorter bags up.

        Returns
        -------
        Tensor (B, desired_length, ...)
        """
        bags, device = self._lengths.shape[0], self._values.device
        if desired_length is None:
            desired_length = int(self._lengths.max()) if bags else 0
        lengths = self._lengths.to(device, torch.int64)
        rows = self._values.shape[0]
        bag = torch.repeat_interleave(lengths, output_size=rows)
        place = torch.arange(rows, device=device) - self.offsets().to(device, torch.int64)[bag]
        dense = self._values.new_full(
            (bags, desired_length, *self._values.shape[1:]), padding_value
        )
        kept = place < desired_length
        return dense.index_put((bag[kept], place[kept]), self._values[kept])

    def __repr__(self) -> str:
        return f"JaggedTensor({tuple(self._values.shape)}, lengths={self._lengths.tolist()})"


def is_jagged(features: Any) -> bool:
    """Whether an object has the methods of a KeyedJaggedTensor."""
    return all(hasattr(features, name) for name in ("keys", "values", "offsets", "weights_or_none"))


def keyed_tensor(like: Any, keys: list[str], lengths: list[int], values: Tensor) -> Any:
    """Return TorchRec's KeyedTensor where the features were TorchRec's, else mpembed's."""
    return _class_for(like, KeyedTensor)(keys, lengths, values)


def jagged_tensor(like: Any, values: Tensor, lengths: Tensor) -> Any:
    """Return TorchRec's JaggedTensor where the features were TorchRec's, else mpembed's."""
    return _class_for(like, JaggedTensor)(values=values, lengths=lengths)


def _class_for(like: Any, own: type) -> Any:
    """Return TorchRec's class of the name of mpembed's where the features were TorchRec's."""
    home = type(like).__module__
    return getattr(sys.modules[home], own.__name__) if home == _TORCHREC else own


@dataclass(frozen=True)
class SequenceConfig:
    """An unpooled table as TorchRec's models ask for it.

    Attributes
    ----------
    name : str
        The table's.
    num_embeddings, embedding_dim : int
        Rows and columns.
    feature_names : list of str
        The features that it serves.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    feature_names: list[str]


@dataclass(frozen=True)
class BagConfig(SequenceConfig):
    """A pooled table as TorchRec's models ask for it.

    Attributes
    ----------
    pooling : str
        ``"sum"`` or ``"mean"``.
    """

    pooling: str
