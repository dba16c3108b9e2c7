"""What ranks do in the tests of TorchRec's sharded collections; `ranks.run` calls it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import sharded_models as models
from sharded_models import TABLES, Batch, Held, Outputs, Table

import mpembed as mpe
from mpembed.torch.torchrec import MpembedSequenceSharder, MpembedSharder

Plan = Mapping[str, tuple[str, dict[str, Any]]]


def sharder(name: str, options: Mapping[str, Any]) -> MpembedSharder:
    """Return a sharder with an optimizer by its name."""
    return MpembedSharder(optimizers()[name], **options)


def optimizers() -> dict[str, mpe.optim.Optimizer]:
    """Return the optimizers of the tests by name."""
    return {
        "sgd": mpe.SGD(lr=0.05),
        "adagrad": mpe.RowwiseAdagrad(lr=0.1),
        "adam": mpe.Adam(lr=0.01),
    }


def train(
    rank: int,
    world_size: int,
    plan: Plan,
    optimizer: str,
    options: Mapping[str, Any],
    batches: Sequence[Batch],
    tables: Sequence[Table] = TABLES,
    is_weighted: bool = False,
    rows: Mapping[str, Any] | None = None,
    local_size: int | None = None,
) -> tuple[list[Outputs], list[Held]]:
    """Train, from given `rows` of the tables; return outputs and what the rank holds at the end."""
    os.environ["LOCAL_WORLD_SIZE"] = str(local_size or world_size)
    module = models.collection(tables, is_weighted)
    model = models.sharded(module, sharder(optimizer, options), plan, local_size)
    for name, values in (rows or {}).items():
        models.set_rows(model, name, values)
    return models.train(model, batches), models.all_held(model)


def train_sequences(
    rank: int,
    world_size: int,
    plan: Plan,
    optimizer: str,
    options: Mapping[str, Any],
    batches: Sequence[Batch],
    tables: Sequence[Table],
    rows: Mapping[str, Any] | None = None,
) -> tuple[list[Outputs], list[Held]]:
    """Train tables without pooling; return outputs and what the rank holds at the end."""
    own = MpembedSequenceSharder(optimizers()[optimizer], **options)
    model = models.sharded(models.sequences(tables), own, plan)
    for name, values in (rows or {}).items():
        models.set_rows(model, name, values)
    found = []
    for one in batches:
        outputs = model(one.jagged(models.local(rank, world_size, one.lengths.shape[1])))
        found.append({name: one.values().detach().clone() for name, one in outputs.items()})
        models.squared_sequences(outputs).backward()
    return found, models.all_held(model)


def evaluate(
    rank: int, world_size: int, plan: Plan, options: Mapping[str, Any], batches: Sequence[Batch]
) -> tuple[bool, list[Outputs], list[Outputs]]:
    """Return whether evaluation changed nothing, and outputs of it and of training after it."""
    model = models.sharded(models.collection(), sharder("adagrad", options), plan)
    models.train(model, batches[:1])
    before = models.all_held(model)
    model.eval()
    outputs = []
    for one in batches:
        pooled = model(one.jagged(models.local(rank, world_size, one.lengths.shape[1])))
        outputs.append(models.outputs_of(pooled))
    after = models.all_held(model)
    same = all(models.same_bytes(a, b) for a, b in zip(before, after, strict=True))
    model.train()
    return same, outputs, models.train(model, batches[:1])
