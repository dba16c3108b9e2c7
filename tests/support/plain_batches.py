"""What the programs for mpembed.torch.distributed share: batches, tables, comparisons."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

import mpembed as mpe

Tables = Sequence[mpe.TableConfig]


class Batch:
    """The batches of all ranks, drawn alike on each.

    Parameters
    ----------
    seed : int
        Of its numbers.
    tables : sequence of TableConfig
        What it looks up.
    bags : sequence of int
        Of each rank.
    longest : int
        Bags have 0 to `longest` indices.
    """

    def __init__(self, seed: int, tables: Tables, bags: Sequence[int], longest: int) -> None:
        rng = np.random.default_rng(seed)
        self.ends = [0, *accumulate(bags)]
        total = self.ends[-1]
        self.lengths = rng.integers(0, longest + 1, (len(tables), total))
        self.lengths[[t.num_embeddings == 0 for t in tables]] = 0
        self.rows = [
            [rng.integers(0, max(table.num_embeddings, 1), n) for n in lengths]
            for table, lengths in zip(tables, self.lengths, strict=True)
        ]
        self.factors = [[rng.random(n, np.float32) + 0.5 for n in one] for one in self.lengths]
        width = sum(table.embedding_dim for table in tables)
        self.grad = torch.from_numpy(rng.standard_normal((total, width), np.float32))

    def part(self, rank: int | None, *, weighted: bool = False) -> list[torch.Tensor]:
        """Return indices, offsets and perhaps weights of a rank, or of all."""
        own = slice(None) if rank is None else slice(self.ends[rank], self.ends[rank + 1])
        indices = np.concatenate([np.zeros(0, np.int64), *(i for t in self.rows for i in t[own])])
        ends = np.cumsum([0, *self.lengths[:, own].reshape(-1)])
        arrays = [indices, ends]
        if weighted:
            factors = [i for t in self.factors for i in t[own]]
            arrays.append(np.concatenate([np.zeros(0, np.float32), *factors]))
        return [torch.from_numpy(one) for one in arrays]

    def own(self, rank: int, values: torch.Tensor) -> torch.Tensor:
        """Return a rank's bags of what all have."""
        return values[self.ends[rank] : self.ends[rank + 1]]


def bags_of(step: int) -> list[int]:
    """Return batch sizes that differ by rank; one rank has none in every third step."""
    size = dist.get_world_size()
    return [
        0 if (step + 1) % 3 == 0 and r == step % size else 3 + (step + r) % 3 for r in range(size)
    ]


def shards(module: Any, whole: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name, the rank's part and its twin of each array of rows and states."""
    arrays, expected = module.local.state_arrays(), whole.state_arrays()
    starts = {table.name: table.first_row for table in whole.tables}
    for table in module.local.tables:
        first = table.first_row - starts[table.name]
        rows = slice(first, first + table.num_embeddings)
        for key in [k for k in arrays if k.startswith(f"table.{table.name}.")]:
            yield key, arrays[key], expected[key][rows]


def digest(collection: Any) -> str:
    """Return a number for all of a collection's state."""
    found = hashlib.sha256()
    for key, array in sorted(collection.state_arrays().items()):
        found.update(key.encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def table(name: str, rows: int, dim: int, precision: str = "int4", **kind: Any) -> mpe.TableConfig:
    return mpe.TableConfig(name, rows, dim, precision, **kind)


class Features:
    """What modules read of a KeyedJaggedTensor."""

    def __init__(self, keys: str, bags: Sequence[Sequence[Sequence[int]]]) -> None:
        flat = [bag for one in bags for bag in one]
        self._keys = list(keys)
        self._values = torch.tensor([i for bag in flat for i in bag], dtype=torch.int64)
        self._offsets = torch.tensor([0, *accumulate(map(len, flat))])
        self._weights = torch.arange(len(self._values), dtype=torch.float32) + 1

    def keys(self) -> list[str]:
        return self._keys

    def values(self) -> torch.Tensor:
        return self._values

    def offsets(self) -> torch.Tensor:
        return self._offsets

    def weights_or_none(self) -> torch.Tensor:
        return self._weights


@contextmanager
def raises(kind: type[Exception], *texts: str) -> Iterator[None]:
    try:
        yield
    except kind as error:
        assert all(text in str(error) for text in texts), error
        assert type(error) is kind
    else:
        raise AssertionError(f"no {kind.__name__} that says {texts}")
