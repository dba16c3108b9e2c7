"""Models that are exported, and processes that serve them, for the tests of frozen modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch_modules import Jagged, bag

import mpembed as mpe
from mpembed import torch as mt


class Scores(nn.Module):
    """The last item of a sequence against all items, and pooled ones with weights."""

    def __init__(self, precision: str = "int8") -> None:
        super().__init__()
        self.items = mt.Embedding(50, 6, precision=precision, optimizer=mpe.SGD(lr=0.1))
        self.pooled = bag(mode="mean", cache=None)
        self.head = nn.Linear(6, 6)

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        users = self.head(self.items(ids)[:, -1] + self.pooled(ids, None, weights))
        scores: Tensor = users @ self.items.weight.T
        return scores


class FromLengths(nn.Module):
    """A collection that is asked with values and lengths (features, B)."""

    def __init__(self, tables: nn.Module, keys: str) -> None:
        super().__init__()
        self.tables, self.keys = tables, list(keys)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        given = Jagged.__new__(Jagged)
        given._keys, given._values, given.weights = self.keys, values, None
        given._offsets = nn.functional.pad(lengths.reshape(-1).cumsum(0), (1, 0))
        out: Tensor = self.tables(given).values()
        return out


def lengths_batches() -> list[tuple[Tensor, Tensor]]:
    """Return batches of four features; the first is the example of an export."""
    lengths: tuple[Any, ...] = (
        *([[1, 2, 0], [3, 0, 1], [1, 1, 1], [2, 2, 2]], [[1], [0], [2], [3]]),
        *([[0, 1], [0, 0], [2, 3], [0, 0]], [[], [], [], []]),
    )
    made = []
    for one in lengths:
        count = torch.tensor(one, dtype=torch.int64)
        made.append((torch.randint(20, (int(count.sum()),)), count))
    return made


def export_by_lengths(frozen: nn.Module, strict: bool = False) -> Any:
    dims = {0: Dim("values", min=0)}, {1: Dim("bags", min=0)}
    example = lengths_batches()[0]
    return torch.export.export(frozen, example, dynamic_shapes=dims, strict=strict)


def in_another_process(code: str, folder: Path) -> dict[str, Any]:
    """Run Python in a new process in `folder`; return what its last line says in JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
